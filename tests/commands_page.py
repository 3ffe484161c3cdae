"""Writes docs/reference/commands.md from the program's parsers: `python tests/commands_page.py`.

Of `fit`, `validate` and `sweep` it tells what this project has added to LightningCLI's options.
"""

import argparse
import re
from pathlib import Path
from unittest.mock import patch

import docstring_parser

from lightning_ript.cli import main
from lightning_ript.commands import COMMANDS
from lightning_ript.commands.errors import CommandParser
from lightning_ript.running.configs import show_configs

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
HEADER = """\
# Commands

`lightning-ript COMMAND`, or `python -m lightning_ript COMMAND`, which also imports from the
current folder. `python tests/commands_page.py` writes this page from the commands' own parsers,
and a test compares the two.

Most commands also take their options from a YAML file (`--config`), and print them
(`--print_config`).
"""
LIGHTNING = {
    "fit": "Trains: RIPT or a supervised stage, as the config says. The same command resumes.",
    "validate": "Evaluates a checkpoint on the test states.",
}
LIGHTNINGS_OWN = """
Its further options are LightningCLI's: `--config`, which may be repeated; `--trainer`, `--model`
and `--data` with their settings; `--ckpt_path`, `--seed_everything`, `--weights_only` and
`--print_config`.
"""
NOTES = {
    "export": "A flow-matching policy becomes a folder as LeRobot writes it.",
    "submit": "The words of an option may be joined by dashes, as in `--dry-run`.",
}
OURS = {"run_dir", "checkpoints", "out", "seeds", "suites"}  # beside LightningCLI's
EVERYWHERE = {"help", "config", "print_config"}


class Found(Exception):  # noqa: N818 (it carries a result)
    pass


def parser_of(*command):
    """The parser that a command would parse its arguments with."""

    def found(parser, *_, **__):
        raise Found(parser)

    try:
        with patch.object(CommandParser, "parse_args", found):
            main(list(command))
    except Found as caught:
        return caught.args[0]
    raise AssertionError(f"{command} has no parser")


def subcommands(parser):
    """By name; none for a command that has none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def rows(parser, only=None):
    for action in parser._actions:
        if action.dest in EVERYWHERE or isinstance(action, argparse._SubParsersAction):
            continue
        if action.default is argparse.SUPPRESS or (only is not None and action.dest not in only):
            continue
        name = action.option_strings[0] if action.option_strings else action.dest.upper()
        needed = action.required or not action.option_strings
        default = "needed" if needed else shown(action.default)
        yield row(name, action.help or "", default)


def row(name, text, default):
    words = " ".join(text.split())
    if "`" not in words:  # what stands for a name is no HTML
        words = words.replace("<", "&lt;")
    return f"| `{name}` | {words} | {default} |"


def shown(default):
    if default is None or default == ():
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def table(found):
    found = list(found)
    return "\n".join(["| option | | default |", "|---|---|---|", *found, ""]) if found else ""


def described(parser):
    """The first paragraph of what a command says of itself."""
    text = " ".join(re.split(r"\n\s*\n", (parser.description or "").strip())[0].split())
    return text if text.endswith(".") else f"{text}."


def sections():
    for name, text in LIGHTNING.items():
        yield f"## {name}\n\n{text}"
        yield table(rows(subcommands(parser_of(name))[name], OURS))
        yield LIGHTNINGS_OWN
    for name, (_, summary) in COMMANDS.items():
        yield f"## {name}\n\n{summary[0].upper()}{summary[1:]}."
        if name == "configs":  # has no parser
            (names,) = docstring_parser.parse(show_configs.__doc__).params
            yield table([row("NAME", names.description, "")])
            continue
        parser = parser_of(name)
        parts = subcommands(parser)
        if name == "sweep":
            (parser,) = parts.values()
            yield table(rows(parser, OURS))
            yield "Its further options are those of `validate`."
            continue
        for part, inner in parts.items() or {"": parser}.items():
            if part:
                yield f"### {name} {part}"
            yield f"{described(inner)} {NOTES.get(name, '')}".rstrip()
            yield table(rows(inner))


def page():
    """The whole page."""
    return "\n\n".join(part.strip() for part in [HEADER, *sections()] if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
