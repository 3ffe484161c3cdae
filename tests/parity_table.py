"""Writes docs/parity.md from the `parity` marks of the tests: `python tests/parity_table.py`.

The marks are read from the source, so that the table costs no import of what is tested.
"""

import ast
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "parity.md"
HEADER = """\
# Parity with the reference

What RIPT-VLA's published code does, what this project does, and the test that proves it.
`python tests/parity_table.py` writes this page from the tests' marks, and a test compares the two.

"""
SETTINGS = ("area", "point", "reference", "ours", "same")


class Row(NamedTuple):
    area: str
    point: str
    reference: str
    ours: str
    same: bool
    test: str


def rows():
    """One for each mark, by area."""
    found = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.parity":
                    found.append(row(mark, path, node.name))
    return sorted(found)


def row(mark, path, name):
    """The row of a mark, all of whose settings are keywords and constants."""
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in mark.keywords}
    if mark.args or not {"area", "point", "reference"} <= given.keys() <= set(SETTINGS):
        raise ValueError(f"{path.name}, {name}: a parity mark takes {SETTINGS} by keyword")
    return Row(
        given["area"],
        given["point"],
        given["reference"],
        given.get("ours", "the same"),
        given.get("same", True),
        f"[{name}](../tests/{path.name})",
    )


def page():
    """The whole page."""
    lines = ["| area | point | reference | here | same? | test |", "|---|---|---|---|---|---|"]
    for found in rows():
        same = "yes" if found.same else "**no**"
        lines.append(f"| {' | '.join(found[:4])} | {same} | {found.test} |")
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
