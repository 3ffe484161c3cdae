"""What a run is doing, as others see it."""

import json
import logging
import os
import time
import warnings
from dataclasses import replace
from itertools import groupby

import pytest
from toy_runs import EVALUATED, fit

from lightning_ript.cli import main
from lightning_ript.reports.run_view import Moment, doing, duration, seconds_left
from lightning_ript.running import status_writer
from lightning_ript.storage.given_warnings import GivenWarnings, read_warnings
from lightning_ript.storage.run_directory import status_path, warnings_path
from lightning_ript.storage.run_lock import RunLock, holder_of
from lightning_ript.storage.run_status import RunStatus


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run of two iterations, and all that it said of itself."""
    folder, said = tmp_path_factory.mktemp("run"), []
    with pytest.MonkeyPatch.context() as patch:
        write = RunStatus.write
        patch.setattr(RunStatus, "write", lambda self, to: (said.append(self), write(self, to)))
        patch.setattr(status_writer, "EVERY", 0.0)
        fit(folder, 2, *EVALUATED)
    return folder, said


def test_a_run_says_what_it_does(told):
    _, said = told
    phases = [doing for doing, _ in groupby(said, lambda each: each.doing)]
    one = ["collecting", "learning", "evaluating", "between iterations"]
    assert phases == ["starting", *one, *one, "ended"]
    collecting = [each for each in said if each.doing == "collecting" and each.iteration == 2]
    assert collecting[-1].wanted == 6
    assert collecting[-1].done >= 8 * collecting[-1].kept > 0
    assert 0 < collecting[-1].successes < collecting[-1].done
    learning = [each for each in said if each.doing == "learning"]
    assert learning[-1].done == learning[-1].of > 0
    evaluating = [each for each in said if each.doing == "evaluating"]
    assert (evaluating[-1].done, evaluating[-1].of, evaluating[-1].iterations) == (8, 8, 2)


def test_watching_a_run_that_has_ended(told, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    before = {path: path.stat().st_mtime_ns for path in told[0].rglob("*")}
    main(["watch", str(told[0])])
    shown = capsys.readouterr().out
    for what in ("not running", "iteration 2 of 2", "test states", "clipped", "dropped"):
        assert what in shown
    assert {path: path.stat().st_mtime_ns for path in told[0].rglob("*")} == before


def test_watching_a_run_that_was_killed(tmp_path, capsys):
    RunStatus("learning", time.time(), iteration=3, iterations=12).write(tmp_path)
    main(["watch", str(tmp_path)])
    assert "killed" in capsys.readouterr().out


def test_who_is_at_work(tmp_path):
    assert holder_of(tmp_path) is None
    lock = RunLock(tmp_path, "lightning-ript fit")
    try:
        assert holder_of(tmp_path)["pid"] == os.getpid()
        gone = {**json.loads(lock.path.read_text()), "process_started": "0"}
        lock.path.write_text(json.dumps(gone))
        assert holder_of(tmp_path) is None
        elsewhere = {**gone, "machine": "another"}
        lock.path.write_text(json.dumps(elsewhere))
        assert holder_of(tmp_path) == elsewhere
        os.utime(lock.path, (0, 0))
        assert holder_of(tmp_path) is None
    finally:
        RunLock.release_all()
        lock.path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "is not the directory of a run"), ("{", "not what a run writes")]
)
def test_what_is_no_run(tmp_path, content, said, capsys):
    if content is not None:
        status_path(tmp_path).write_text(content)
    with pytest.raises(SystemExit) as caught:
        main(["watch", str(tmp_path)])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_what_it_does_in_a_line():
    status = RunStatus(
        *("collecting", 100.0, 2, 12),
        **{"done": 80, "successes": 36, "kept": 7, "wanted": 16, "dropped": 3, "ranks": 2},
    )
    assert doing(status, 140.0) == (
        "collecting for 0:40 min: episodes 80, 2.00 episodes/s, success 45%, "
        "groups kept 7 of 16, dropped 3, as the first of 2 processes counts"
    )
    learning = RunStatus("learning", 100.0, 2, 12, done=3, of=8)
    assert doing(learning, 110.0) == "learning for 0:10 min: batches 3 of 8"
    assert doing(RunStatus("starting", 100.0), 100.0) == "starting for 0:00 min"


def test_the_time_that_is_left(tmp_path):
    """Six iterations of 10, then 20 seconds each; four remain, the first has been on for 5 s."""
    ends = [10.0, 30.0, 50.0, 70.0, 90.0, 110.0]
    entries = [
        {"iteration": i, "seconds": end, "metrics": {}, "evaluation": None}
        for i, end in enumerate(ends, 1)
    ]
    status = RunStatus("collecting", 1000.0, iteration=7, iterations=10)
    moment = Moment(tmp_path, 1005.0, {}, status, entries, 1000.0, None, [])
    assert seconds_left(moment) == pytest.approx(75.0)
    resumed = replace(moment, status=replace(status, started=1003.0))
    assert seconds_left(resumed) == pytest.approx(78.0)
    assert (duration(75), duration(3660)) == ("1:15 min", "1:01 h")


def test_warnings_are_kept_once(tmp_path):
    shown = warnings.showwarning
    kept = GivenWarnings(tmp_path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = kept._showwarning
            for _ in range(2):
                warnings.warn("the floor\nis wet", UserWarning, stacklevel=1)
            warnings.warn("call it otherwise", DeprecationWarning, stacklevel=1)
        logging.getLogger("lightning_ript.envs").warning("a worker %s", "died")
        logging.getLogger("lightning_ript.envs").info("all is well")
    finally:
        GivenWarnings.end_all()
    assert warnings.showwarning is shown
    logging.getLogger("lightning_ript.envs").warning("nobody hears this")
    with warnings_path(tmp_path).open("a") as file:
        file.write('[12, "cut o')
    found = [given.text for given in read_warnings(tmp_path)]
    assert found == ["the floor is wet", "a worker died"]
