"""A run that is killed and started again ends as if nothing had happened, bit for bit."""

import signal

import pytest
from toy_runs import assert_same_state, checkpoint, fit, history, interrupting, start

# The learning rate falls, so that a lost or repeated step of the schedule would show.
SCHEDULE = [
    "--model.init_args.scheduler=torch.optim.lr_scheduler.StepLR",
    "--model.init_args.scheduler.step_size=1",
    "--model.init_args.scheduler.gamma=0.7",
]
TIMES = {"time/collecting", "time/learning", "rollout/episodes_per_second"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    return fit(run_dir, 4, *SCHEDULE), history(run_dir)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, uninterrupted):
    """Runs that get a signal while they collect for their third iteration, all at once."""
    runs = {}
    for name in ("SIGKILL", "SIGTERM", "SIGINT"):
        run_dir = tmp_path_factory.mktemp(name)
        runs[name] = run_dir, [*SCHEDULE, *interrupting(run_dir, uninterrupted[1][:3], name)]
    processes = {name: start(run_dir, 4, *more) for name, (run_dir, more) in runs.items()}
    said = {name: process.communicate(timeout=800)[1] for name, process in processes.items()}
    return {n: (*runs[n], processes[n].returncode, said[n]) for n in runs}


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_the_same_command_goes_on(interrupted, uninterrupted, name):
    run_dir, more, code, said = interrupted[name]
    assert code != 0
    assert len(history(run_dir)) == 2, said
    assert checkpoint(run_dir)["epoch"] == 1
    run = fit(run_dir, 4, *more)
    expected, entries = uninterrupted
    assert_same_state(run, expected)
    resumed = history(run_dir)
    assert [entry["iteration"] for entry in resumed] == [1, 2, 3, 4]
    assert sorted(resumed, key=lambda e: e["seconds"]) == resumed
    for entry, other in zip(resumed, entries, strict=True):
        for metric in entry["metrics"].keys() - TIMES:
            assert entry["metrics"][metric] == other["metrics"][metric], metric


def test_kills_are_taken_quietly(interrupted):
    assert interrupted["SIGKILL"][2] == -signal.SIGKILL
    for name, sentence in (("SIGTERM", "Stopped by SIGTERM"), ("SIGINT", "KeyboardInterrupt")):
        _, _, code, said = interrupted[name]
        assert code == 1
        assert sentence in said
        assert "Traceback" not in said
    (line,) = [x for x in interrupted["SIGTERM"][3].splitlines() if x.startswith("Stopped")]
    assert line == "Stopped by SIGTERM; the same command goes on from the last finished epoch."


def test_a_finished_run_can_be_made_longer(uninterrupted, tmp_path):
    fit(tmp_path, 3, *SCHEDULE)
    run = fit(tmp_path, 4, *SCHEDULE)
    assert_same_state(run, uninterrupted[0])
    assert len(history(tmp_path)) == 4
