"""Cross-fitted values: what they find where it is known, and the loop on the toy twin with them."""

from dataclasses import replace

import pytest
import torch
from test_critic import TIMES, BlindPolicy, judge, toy_group
from toy_runs import SGD, assert_same_state, checkpoint, fit, history, start, weights

import lightning_ript.extensions.fitted_values as fitted_values
from lightning_ript.cli import main
from lightning_ript.extensions.fitted_values import (
    Ended,
    FittedValueModule,
    ValueFit,
    cross_fitted_values,
)
from lightning_ript.minibatches import flatten
from lightning_ript.policies.toy import ToyPolicy

FITTED = ["--config=configs/ablations/fitted_values.yaml"]
START, GOOD, BAD = torch.eye(3)


def forked(number, k, success):
    """Starts where all start, then goes where three of four times it ends well, or badly."""
    generator = torch.Generator().manual_seed(100 * number + k)
    likely = torch.rand((), generator=generator) < 0.75
    after = GOOD if success == likely else BAD
    return Ended(number, k, success, torch.stack([START, after]))


def forks(groups=40):
    return [forked(number, k, k < 4) for number in range(groups) for k in range(8)]


def test_values_are_the_probability_of_success():
    """Of 320 rollouts half succeed, three quarters of those that go the good way."""
    rollouts = forks()
    values = cross_fitted_values(rollouts, ValueFit(folds=2))
    at_start = torch.stack([value[0] for value in values])
    after = torch.stack([value[1] for value in values])
    good = torch.tensor([torch.equal(r.features[1], GOOD) for r in rollouts])
    assert at_start.mean() == pytest.approx(0.5, abs=0.05)
    assert after[good].mean() == pytest.approx(0.75, abs=0.08)
    assert after[~good].mean() == pytest.approx(0.25, abs=0.08)


def test_a_rollout_has_no_part_in_its_own_values():
    rollouts = forks(4)
    changed = [replace(r, success=not r.success) if r.k == 3 else r for r in rollouts]
    values, others = (cross_fitted_values(each, ValueFit(folds=4)) for each in (rollouts, changed))
    for rollout, value, other in zip(rollouts, values, others, strict=True):
        # 3 and 7 are of one fold.
        assert torch.equal(value, other) == (rollout.k in (3, 7)), rollout.k


def test_fitting_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    cross_fitted_values(forks(2), ValueFit(epochs=1))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_values_are_fitted_where_nothing_else_has_gradients():
    with torch.inference_mode():
        values = cross_fitted_values(forks(2), ValueFit(epochs=1))
    assert not any(value.requires_grad for value in values)


@pytest.mark.parametrize(
    "settings",
    [
        {"gae_lambda": 1.1},
        {"gae_lambda": float("nan")},
        {"folds": 1},
        {"hidden": 0},
        {"epochs": 0},
        {"lr": 0.0},
    ],
)
def test_it_refuses(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"^model\.values.*{name}.* set"):
        ValueFit(**settings)


def test_a_policy_without_features_is_refused():
    with pytest.raises(TypeError, match="BlindPolicy has no features"):
        FittedValueModule(BlindPolicy())


# -- in the module ---------------------------------------------------------------------------------


def test_judging_by_hand(monkeypatch):
    """With values 0.5 everywhere and λ = 1, outcomes are 1/2 more or less than expected."""
    monkeypatch.setattr(
        fitted_values,
        "cross_fitted_values",
        lambda rollouts, fit: [torch.full((len(r.features),), 0.5) for r in rollouts],
    )
    module = FittedValueModule(ToyPolicy(), values=ValueFit(gae_lambda=1.0))
    judged = judge(module, [toy_group(0, [1, 0], [1, 3])])
    assert judged.advantages.tolist() == [0.5, -0.5, -0.5, -0.5]
    assert module.explained_variance.compute() == pytest.approx(0, abs=1e-6)


def test_values_see_time():
    """What is seen is noise, but those that succeed are done after two decisions."""
    rewards, lengths = [1, 1, 1, 1, 0, 0, 0, 0], [2, 2, 2, 2, 4, 4, 4, 4]
    groups = [toy_group(number, rewards, lengths) for number in range(20)]
    _, values = FittedValueModule(ToyPolicy()).fitted(groups, flatten(groups))
    assert torch.stack([value[:2] for value in values]).mean() > 0.4
    assert torch.stack([value[2:] for value in values if len(value) == 4]).mean() < 0.2


def test_ranks_judge_as_one_process_does(monkeypatch):
    """Whoever holds a group, its values are fitted to all ranks' groups in the same order."""
    groups = [toy_group(number, [1, 0, 1, 0], [2, 3, 1, 4]) for number in range(3)]
    module = FittedValueModule(ToyPolicy())
    together = judge(module, groups).advantages
    first, second = [groups[1]], [groups[0], groups[2]]
    for mine, others, rows in ((first, second, slice(10, 20)), (second, first, None)):
        decisions = flatten(others)
        theirs = list(module._ended(others, decisions))
        monkeypatch.setattr(fitted_values, "gather_objects", lambda own, o=theirs: [o, own])
        expected = together[rows] if rows else torch.cat([together[:10], together[20:]])
        assert torch.equal(judge(module, mine).advantages, expected)


def test_a_rank_without_groups_judges_nothing(monkeypatch):
    module = FittedValueModule(ToyPolicy())
    groups = [toy_group(0, [1, 0], [2, 3])]
    theirs = list(module._ended(groups, flatten(groups)))
    monkeypatch.setattr(fitted_values, "gather_objects", lambda own: [own, theirs])
    assert len(judge(module, []).advantages) == 0


# -- the loop --------------------------------------------------------------------------------------


def test_it_learns(tmp_path):
    main(["fit", "--config=configs/toy.yaml", *FITTED, f"--run_dir={tmp_path}"])
    entries = history(tmp_path)
    assert entries[0]["metrics"]["rollout/success_rate"] < 0.5
    assert entries[-1]["metrics"]["val/success_rate"] > 0.9
    assert max(e["metrics"]["train/explained_variance"] for e in entries) > 0.1


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    whole = fit(tmp_path / "whole", 3, *FITTED)
    fit(tmp_path / "parts", 1, *FITTED)
    assert_same_state(fit(tmp_path / "parts", 3, *FITTED), whole)


@pytest.mark.slow
def test_two_ranks_end_where_one_process_ends(tmp_path):
    settings = [*FITTED, *SGD, "--model.init_args.episodes_per_minibatch=3"]
    run = fit(tmp_path / "alone", 2, *settings)
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(tmp_path / "ranks", 2, *settings, *ranks)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, out + err
    other = weights(checkpoint(tmp_path / "ranks"))
    for name, value in weights(run).items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-5)
    pairs = zip(history(tmp_path / "alone"), history(tmp_path / "ranks"), strict=True)
    for entry, entry2 in pairs:
        for name in entry["metrics"].keys() - TIMES:
            expected = pytest.approx(entry["metrics"][name], rel=1e-4, abs=1e-5)
            assert entry2["metrics"][name] == expected, name
