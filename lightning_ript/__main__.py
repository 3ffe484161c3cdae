"""The entry point of the program and of `python -m lightning_ript`."""

from __future__ import annotations

import os
import select
import signal
import sys

from lightning_ript.commands import COMMANDS, usage


def main() -> None:
    """Does what was typed."""
    try:
        _run()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # Python writes what is left at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _run() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
    elif arguments[0] == "configs":
        COMMANDS["configs"][0](arguments[1:])
    else:
        from lightning_ript.cli import main as run

        run()


def _reader_has_gone() -> bool:
    """Whether nobody reads our output any more: `head` goes once it has seen enough."""
    pipe = select.poll()
    pipe.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in pipe.poll(0))


if __name__ == "__main__":
    main()
