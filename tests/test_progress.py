"""A terminal shows bars, a log file has lines."""

import math
import sys

import pytest
from toy_runs import fit

from lightning_ript.console import progress
from lightning_ript.console.progress import progress_bar


def test_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(total=1000, desc="busy") as bar:
        bar.update(1000)
    assert "busy: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("every", [math.inf, 0.0])
def test_lines_in_a_file(every, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", every)
    with progress_bar(total=3, desc="busy", unit="episode") as bar:
        for n in range(3):
            bar.set_postfix_str(f"success {n}")
            bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said
    assert (said == "") == (every == math.inf)
    assert every or "busy: 3 episodes in 00:00, success 2\n" in said


def test_a_run_whose_output_goes_to_a_file(tmp_path, capfd, caplog):
    """A line per iteration, and no other library's advertisement."""
    fit(tmp_path, 2, "--trainer.enable_progress_bar=true")
    said = "\n".join(caplog.messages)
    assert said.count("iteration 1: ") == said.count("iteration 2: ") == 1
    assert "litlogger" not in said
    assert len(caplog.messages) < 10, said
    drawn = capfd.readouterr()
    assert "\r" not in drawn.out + drawn.err
