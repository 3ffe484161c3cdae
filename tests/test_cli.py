"""The command line: its help, its errors and the settings that it records."""

import json
import subprocess
import sys

import pytest
import torch
from toy_runs import SHORT, fit

from lightning_ript.cli import main
from lightning_ript.envs.libero import graphics

COMMANDS = [
    *("collect-demos", "data", "export", "report", "submit", "sweep", "compare"),
    *("fit", "validate"),
]


def test_an_unknown_gl_backend(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ValueError, match="osmesa"):
        graphics.check_backend()


def test_bugs_keep_their_traceback(monkeypatch):
    def bug(arguments):
        torch.zeros(2).reshape(3)

    monkeypatch.setattr("lightning_ript.cli.COMMANDS", {"report": (bug, "")})
    with pytest.raises(RuntimeError, match="shape"):
        main(["report"])


def test_slips_of_our_own_are_bugs(monkeypatch):
    """Though their kind is that of many a refusal."""
    module = {"__name__": "lightning_ript.module"}
    exec("def slip(arguments):\n    len()", module)
    monkeypatch.setattr("lightning_ript.cli.COMMANDS", {"report": (module["slip"], "")})
    with pytest.raises(TypeError, match="takes exactly one"):
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
    said = capsys.readouterr().out
    assert "--" in said
    assert "Args:" not in said
    assert "Raises:" not in said


def test_the_program_says_one_line_and_no_more(tmp_path):
    """What a user sees in a shell, warnings and usage pages included."""
    command = [sys.executable, "-m", "lightning_ript", "fit", *SHORT, "--modle=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "lightning-ript: error: unrecognized arguments: --modle=3: did you mean --model?\n"
    )


def test_the_resolved_settings_can_be_run_again(tmp_path):
    fit(tmp_path / "first", 1)
    (config,) = tmp_path.glob("first/**/config.yaml")
    main(["fit", f"--config={config}", f"--run_dir={tmp_path}/second"])
    first, second = (
        json.loads((tmp_path / name / "history.json").read_text())[0]["metrics"]
        for name in ("first", "second")
    )
    assert first["train/grad_norm"] == second["train/grad_norm"]
