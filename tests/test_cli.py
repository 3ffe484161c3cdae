"""The command line: what it refuses, in one sentence and before anything is built."""

import json
import re
import subprocess
import sys
import time

import h5py
import pytest
import torch
from toy_runs import SHORT, fit

from lightning_ript.cli import main
from lightning_ript.demos.hdf5 import read_init_states
from lightning_ript.envs.libero import graphics

COMMANDS = ["collect-demos", "data", "export", "report", "sweep", "compare", "fit", "validate"]
LIBERO = "lightning_ript.envs.libero.LiberoSpec"
DEMONSTRATIONS = "lightning_ript.contexts.DemonstrationContexts"


def refusal(capsys, *arguments):
    """Runs the command, which must fail, and returns its one line."""
    capsys.readouterr()
    since = time.process_time()  # of this process alone, however busy the machine is
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert time.process_time() - since < 10
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("lightning-ript: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modle=3"], "unrecognized arguments: --modle=3"),
        (["--data.init_args.rolouts=3"], "Option 'rolouts' is not accepted"),
        (["--data.init_args.environment.num_taks=3"], "'num_taks' is not accepted"),
        (["--trainer.max_epochs=many"], '"trainer.max_epochs": Expected a .* value: many'),
        (["--model.init_args.advantage=best"], "best"),
        (["--config=configs/nothing.yaml"], r"File does not exist: .*configs/nothing.yaml"),
        (["--ckpt_path=nothing.ckpt"], "nothing.ckpt, which does not exist"),
        (["--data.init_args.rollouts_per_context=1"], r"\(K\) is 1"),
        (["--model.init_args.passes=0"], "model.passes is 0"),
        (
            ["--trainer.reload_dataloaders_every_n_epochs=0"],
            "reload_dataloaders_every_n_epochs to 1",
        ),
        (
            ["--trainer.reload_dataloaders_every_n_epochs=2"],
            "reload_dataloaders_every_n_epochs to 1",
        ),
        (["--data.init_args.environment.num_tasks=0"], "ToySpec.num_tasks is 0"),
        (["--trainer.limit_train_batches=1"], "limit_train_batches is 1, but an iteration"),
        (["--trainer.val_check_interval=0.5"], "val_check_interval is 0.5, but an iteration"),
        (
            [
                "--model.init_args.scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
                "--model.init_args.scheduler.monitor=val/success_rate",
            ],
            "ReduceLROnPlateau, but the schedule counts iterations",
        ),
    ],
)
def test_bad_settings(capsys, tmp_path, arguments, said):
    line = refusal(capsys, "fit", *SHORT, f"--run_dir={tmp_path}", *arguments)
    assert re.search(said, line)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("suite=libero_moon", "unknown LIBERO suite 'libero_moon'"),
        ("task_subset=[fly_away]", "no task 'fly_away'"),
        ("task_subset=[10]", "no task 10"),
        ("image_size=0", "image_size is 0"),
    ],
)
def test_bad_libero_settings(capsys, tmp_path, setting, said):
    environment = f"--data.init_args.environment={LIBERO}"
    settings = {"suite": "libero_object"} | dict([setting.split("=")])
    given = [f"--data.init_args.environment.{name}={value}" for name, value in settings.items()]
    line = refusal(capsys, "fit", *SHORT, f"--run_dir={tmp_path}", environment, *given)
    assert said in line


def test_libero_without_workers(capsys, tmp_path):
    environment = f"--data.init_args.environment={LIBERO}"
    suite = "--data.init_args.environment.suite=libero_object"
    line = refusal(capsys, "fit", *SHORT, f"--run_dir={tmp_path}", environment, suite)
    assert "num_workers is 0, but must be 1 or more for LiberoSpec" in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("turn_0_demo.hdf5", "no file of demonstrations"),
        ("turn_90_demo.hdf5", "turn_90_demo.hdf5 is damaged or no HDF5 file"),
        ("fly_demo.hdf5", "not a task to use here"),
    ],
)
def test_bad_demonstrations(capsys, tmp_path, name, said):
    whole = tmp_path / "whole.hdf5"
    with h5py.File(whole, "w") as file:
        file["data/demo_0/states"] = torch.zeros(5000, 3).numpy()
    (tmp_path / "turn_90_demo.hdf5").write_bytes(whole.read_bytes()[:10_000])
    (tmp_path / "fly_demo.hdf5").touch()
    line = refusal(
        capsys,
        "fit",
        *SHORT,
        f"--run_dir={tmp_path}",
        f"--data.init_args.contexts={DEMONSTRATIONS}",
        f"--data.init_args.contexts.files=[{tmp_path / name}]",
    )
    assert said in line
    with pytest.raises((ValueError, FileNotFoundError), match=r"demonstration|damaged"):
        read_init_states(tmp_path / name)


def test_bad_checkpoints(capsys, tmp_path):
    fit(tmp_path / "run", 1)
    last = tmp_path / "run/checkpoints/last.ckpt"
    wider = ["--model.init_args.policy.init_args.hidden=32", f"--ckpt_path={last}"]
    line = refusal(capsys, "fit", *SHORT, f"--run_dir={tmp_path}", *wider)
    assert "policy.net.0.weight" in line
    assert "[64, 16]" in line
    assert "[32, 16]" in line

    half = tmp_path / "half.ckpt"
    half.write_bytes(last.read_bytes()[:3000])
    for command in ("fit", "validate"):
        given = ["--config=configs/toy.yaml", f"--run_dir={tmp_path}", f"--ckpt_path={half}"]
        assert "half.ckpt is damaged" in refusal(capsys, command, *given)


def test_missing_gl_library(monkeypatch):
    monkeypatch.setattr(graphics.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(OSError, match=r"libOSMesa is missing.*apt-get install libosmesa6"):
        graphics.check_backend()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ValueError, match="osmesa"):
        graphics.check_backend()


def test_bugs_keep_their_traceback(monkeypatch):
    def bug(arguments):
        torch.zeros(2).reshape(3)

    monkeypatch.setattr("lightning_ript.cli.COMMANDS", {"report": (bug, "")})
    with pytest.raises(RuntimeError, match="shape"):
        main(["report"])


def test_debugging_brings_the_traceback_back(monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_RIPT_DEBUG", "1")
    with pytest.raises(ValueError, match=r"\(K\) is 1"):
        main(["fit", *SHORT, f"--run_dir={tmp_path}", "--data.init_args.rollouts_per_context=1"])


def test_help(capsys):
    main([])
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert command in said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["fitt", "report", "collect-demos", "sweep", "compare", "export", "data check"]
)
def test_bad_commands(capsys, command):
    said = refusal(capsys, *command.split(), "--nonsense=1")
    assert "--nonsense" in said or command == "fitt"


def test_the_program_says_one_line_and_no_more(tmp_path):
    """What a user sees in a shell, warnings and usage pages included."""
    command = [sys.executable, "-m", "lightning_ript", "fit", *SHORT, "--modle=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "lightning-ript: error: unrecognized arguments: --modle=3\n"


def test_the_resolved_settings_can_be_run_again(tmp_path):
    fit(tmp_path / "first", 1)
    (config,) = tmp_path.glob("first/**/config.yaml")
    main(["fit", f"--config={config}", f"--run_dir={tmp_path}/second"])
    first, second = (
        json.loads((tmp_path / name / "history.json").read_text())[0]["metrics"]
        for name in ("first", "second")
    )
    assert first["train/grad_norm"] == second["train/grad_norm"]
