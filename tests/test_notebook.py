"""The notebook runs from top to bottom, and what it shows is what it does."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_run.ipynb"
PERCENTAGES = r"(\d+)% of the episodes succeed before practice, (\d+)% after"


@pytest.mark.libero
def test_the_notebook_shows_what_it_does(tmp_path):
    shown = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in shown.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert NOTEBOOK.stat().st_size < 1_000_000
    said, before = percentages(shown), [kinds(cell) for cell in shown.cells]
    assert not any("stderr" in kind for cell in before for kind in cell)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(shown, timeout=800, kernel_name="python3", resources=where).execute()
    after = [kinds(cell) for cell in shown.cells]
    assert [[kind for kind in cell if "stderr" not in kind] for cell in after] == before
    assert percentages(shown) == pytest.approx(said, abs=5)  # torch rounds as it likes
    assert percentages(shown)[1] > 90
    assert 10_000 < (tmp_path / "runs/first_run/expert.mp4").stat().st_size < 300_000


def kinds(cell):
    """What a cell has put out, without what is in it."""
    return [
        (output.output_type, output.get("name"), sorted(output.get("data", {})))
        for output in cell.get("outputs", [])
    ]


def percentages(notebook):
    """What it says about success before and after practice."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    return [int(number) for number in re.search(PERCENTAGES, text).groups()]
