"""What ends a run at any stage of an iteration costs that iteration and nothing else."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fault_probe import fault
from toy_runs import EVALUATED, arguments, assert_same_state, checkpoint, fit, history, start
from two_processes import ROOT, begin

STAGES = ("collecting", "learning", "evaluating", "saving")
SIGNALS = ("SIGTERM", "SIGKILL")
WITHOUT_LOGGERS = """
import sys
sys.modules.update(dict.fromkeys(("tensorboard", "tensorboardX", "wandb")))
from lightning_ript.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), 3, *EVALUATED)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run for each signal and stage, as many at once as there are stages."""
    found = {}
    for name in SIGNALS:
        processes = {}
        for stage in STAGES:
            folder = tmp_path_factory.mktemp(f"{name}_{stage}")
            processes[stage] = folder, start(folder, 3, *EVALUATED, *fault(folder, name, stage))
        for stage, (folder, process) in processes.items():
            said = "".join(process.communicate(timeout=800))
            found[name, stage] = folder, process.returncode, said
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SIGNALS)
def test_the_same_command_goes_on(ended, whole, name, stage):
    folder, code, said = ended[name, stage]
    assert code == (1 if name == "SIGTERM" else -signal.SIGKILL), said
    assert "Traceback" not in said
    assert ("Stopped by SIGTERM" in said) == (name == "SIGTERM"), said
    before = checkpoint(folder)["epoch"]
    assert before == 0 or (name, stage, before) == ("SIGTERM", "saving", 1)
    again = fit(folder, 3, *EVALUATED, *fault(folder, name, stage))
    assert_same_state(again, whole)
    assert [entry["iteration"] for entry in history(folder)] == [1, 2, 3]


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "WandbLogger"])
def test_a_logger_that_is_gone(tmp_path, logger):
    """In a process of its own: whoever has imported a logger once has it."""
    typed = arguments(
        *(tmp_path, 1, f"--trainer.logger=lightning.pytorch.loggers.{logger}"),
        f"--trainer.logger.save_dir={tmp_path}",
    )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOGGERS, *typed],
        **{"cwd": ROOT, "capture_output": True, "text": True, "check": False, "timeout": 100},
    )
    assert done.returncode == 2, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if "error" in x]
    assert "tensorboard" in line or "wandb" in line
    assert not (tmp_path / "history.json").exists()


def test_a_logger_that_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    logger = "--trainer.logger=lightning.pytorch.loggers.CSVLogger"
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path / "run", 1, logger, f"--trainer.logger.save_dir={tmp_path}/file")
    assert caught.value.code == 2
    assert f"{tmp_path}/file" in capsys.readouterr().err


def test_ctrl_c_twice_leaves_nobody_behind(tmp_path):
    """As a terminal sends it: to the whole process group."""
    endless = ["--data.init_args.dynamic_sampling=false", "--data.init_args.num_workers=2"]
    process = begin(arguments(tmp_path, 1000, *endless))
    until = time.monotonic() + 400
    while not (tmp_path / "checkpoints" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    out, err = process.communicate(timeout=800)
    assert process.returncode, out + err
    deadline = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < deadline:  # they notice that it has gone
        time.sleep(0.1)
    assert not members(process.pid), err
    done = len(history(tmp_path))
    fit(tmp_path, done + 1, *endless)
    assert len(history(tmp_path)) == done + 1


def members(group):
    """Processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[2]) == group:
                found.append(path.parent.name)
    return found
