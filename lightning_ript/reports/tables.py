"""Tables: aligned text to look at, Markdown to paste, CSV for any program that reads it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_ript.storage.files import replacing

Row = dict[str, Any]
"""Column -> value of a JSON type; None where there is no number."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells below each other; all columns but the first end on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose header is the first row."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body]) + "\n"


def write_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """Writes rows of the same columns, at once; None is an empty field.

    Args:
        path: The file.
        rows: At least one.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
