"""A log file is not flooded."""

import sys

import pytest

from lightning_ript.console.progress import progress_bar


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.1), (False, 30.0)])
def test_a_file_is_written_to_less_often(terminal, seconds, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress_bar(total=1000, desc="busy") as bar:
        assert bar.mininterval == seconds
        for _ in range(1000):
            bar.update()
    said = capsys.readouterr().err
    assert "busy: 100%" in said
    if not terminal:
        assert said.count("busy") == 2  # at the beginning and at the end
