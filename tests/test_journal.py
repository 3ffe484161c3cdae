"""What a killed run had collected is not collected again, and changes nothing."""

import logging
import re
import shutil

import pytest
import torch
from toy_runs import assert_same_state, contexts_taken, fit, history, interrupting, start

from lightning_ript.envs.toy import ToySpec
from lightning_ript.filtering import LocalQueue
from lightning_ript.storage.journal import Journal, fingerprint, label_of
from lightning_ript.types import Rollout, RolloutGroup

SPEC = ToySpec()


def context(number):
    from dataclasses import replace

    return replace(SPEC.test_contexts(SPEC.tasks()[0])[0], index=number)


def group(number, rewards):
    start = context(number)
    return RolloutGroup(
        start,
        tuple(
            Rollout(start, k, bool(reward), 5 + k, {"seen": torch.rand(3, 2)}, torch.rand(3, 1))
            for k, reward in enumerate(rewards)
        ),
    )


def test_groups_come_back(tmp_path, caplog):
    (tmp_path / "other").mkdir()
    journal = Journal(tmp_path, "this", clean=True)
    assert not (tmp_path / "other").exists()
    kept, dropped = group(4, [1, 0]), group(5, [1, 1])
    journal.write(kept, True)
    journal.write(dropped, False)
    found = {g.context.index: g for g in journal.read(context, lambda n: True)}
    assert found[4].rewards == kept.rewards
    for ours, theirs in zip(kept.rollouts, found[4].rollouts, strict=True):
        assert torch.equal(ours.log_probs, theirs.log_probs)
        assert torch.equal(ours.record["seen"], theirs.record["seen"])
        assert (ours.k, ours.success, ours.steps) == (theirs.k, theirs.success, theirs.steps)
    assert found[5].rewards == [1, 1]
    assert [r.steps for r in found[5].rollouts] == [5, 6]
    assert not found[5].rollouts[0].record
    assert [g.context.index for g in journal.read(context, lambda n: n % 2)] == [5]
    (tmp_path / "this" / "group_4.pt").write_bytes(b"half a file")
    assert [g.context.index for g in journal.read(context, lambda n: True)] == [5]
    assert "its group is run again" in caplog.text


def test_a_journal_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    (tmp_path / "this").write_text("in the way")
    journal = Journal(tmp_path, "this", clean=False)
    assert not journal.write(group(4, [1, 0]), True)
    assert "if this run is killed, its iteration begins again" in caplog.text


def test_what_is_known_is_not_handed_out():
    queue = LocalQueue(first=10, wanted=3, limit=8)
    queue.report(11, True)
    queue.report(12, False)
    assert [queue.claim() for _ in range(3)] == [10, 13, 14]
    queue.report(10, True)
    queue.report(13, True)
    assert queue.enough()
    assert (queue.kept, queue.dropped, queue.end()) == (3, 1, 14)


def test_a_label_tells_weights_apart():
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    first = label_of(1, fingerprint(one.named_parameters()))
    assert first == label_of(1, fingerprint(one.named_parameters()))
    assert first != label_of(2, fingerprint(one.named_parameters()))
    assert first != label_of(1, fingerprint(other.named_parameters()))
    with torch.no_grad():
        one.weight[0, 0] = torch.nextafter(one.weight[0, 0], torch.tensor(9.0))
    assert first != label_of(1, fingerprint(one.named_parameters()))
    one.requires_grad_(False)
    assert not fingerprint(one.named_parameters())


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed as it collected for its second iteration, and one that was not."""
    whole, folder = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    many = ["--data.init_args.groups_per_iteration=16", "--data.init_args.max_contexts=40"]
    expected = fit(whole, 3, *many)
    more = [*many, *interrupting(folder, history(whole)[:2], "SIGKILL")]
    # One of the last contexts, which is begun only when others have finished.
    late = contexts_taken(history(whole)[:2]) - 1
    more = [re.sub(r"\.number=\d+", f".number={late}", each) for each in more]
    process = start(folder, 3, *more)
    process.communicate(timeout=800)
    assert len(history(folder)) == 1
    return folder, more, expected, history(whole)


def test_a_killed_run_goes_on_within_its_iteration(killed, caplog):
    folder, more, expected, entries = killed
    (journal,) = (folder / "checkpoints" / "journal").iterdir()
    files = len(list(journal.glob("group_*.pt")))
    assert files > 0
    with caplog.at_level(logging.INFO):
        run = fit(folder, 3, *more)
    (number,) = re.findall(r"(\d+) groups of this iteration had been finished before", caplog.text)
    assert int(number) == files
    assert_same_state(run, expected)
    for entry, other in zip(history(folder), entries, strict=True):
        for name in ("rollout/success_rate", "rollout/groups_kept", "rollout/groups_dropped"):
            assert entry["metrics"][name] == other["metrics"][name]
    assert not (folder / "checkpoints" / "journal").exists()


@pytest.mark.parametrize(
    "more", [["--data.init_args.init_object_noise=0.1"], ["--data.journal=false"]]
)
def test_groups_of_other_settings_are_not_taken_over(killed, more, tmp_path, caplog):
    folder, settings, _, _ = killed
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "journal").mkdir(exist_ok=True)
    with caplog.at_level(logging.INFO):
        fit(tmp_path / "run", 2, *settings, *more)
    assert "had been finished before" not in caplog.text
