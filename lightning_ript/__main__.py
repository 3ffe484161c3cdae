"""The entry point of the program and of `python -m lightning_ript`."""

from __future__ import annotations

import sys

from lightning_ript.commands import COMMANDS, usage


def main() -> None:
    """Does what was typed."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
    elif arguments[0] == "configs":
        COMMANDS["configs"][0](arguments[1:])
    else:
        from lightning_ript.cli import main as run

        run()


if __name__ == "__main__":
    main()
