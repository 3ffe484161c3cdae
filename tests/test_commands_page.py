"""docs/reference/commands.md is what the commands' parsers say."""

from commands_page import PAGE, page

from lightning_ript.commands import COMMANDS


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/commands_page.py"


def test_every_command_has_a_section():
    text = PAGE.read_text(encoding="utf-8")
    for name in ("fit", "validate", *COMMANDS):
        assert f"\n## {name}\n" in text
