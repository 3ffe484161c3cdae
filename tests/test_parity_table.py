"""docs/parity.md is what the tests' marks say."""

from parity_table import PAGE, page, rows


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/parity_table.py"


def test_every_point_stands_once():
    points = [(row.area, row.point) for row in rows()]
    assert len(set(points)) == len(points)
    assert len(points) >= 20
