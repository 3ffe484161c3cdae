"""A simulator process: `python -m lightning_ript.envs.worker FD`.

It is started as a program of its own rather than by `multiprocessing`, which would import the
parent's main module, and with it torch: a software GL driver and triton crash each other when both
are loaded in one process.
"""

from __future__ import annotations

import signal
import sys
import traceback
from multiprocessing.connection import Connection


def serve(connection: Connection) -> None:
    """Answers `(method, *arguments)` messages about one environment until the parent hangs up."""
    environment = None
    try:
        environment = connection.recv().make()
        while True:
            method, *arguments = connection.recv()
            connection.send(getattr(environment, method)(*arguments))
    except EOFError:
        return  # The parent has closed the pool, or is gone.
    except Exception as error:
        connection.send(WorkerError(f"{type(error).__name__}: {error}", traceback.format_exc()))
    finally:
        if environment is not None:
            environment.close()


class WorkerError(RuntimeError):
    """An exception of the simulator, carried to the parent with its traceback as text."""

    def __init__(self, message: str, remote_traceback: str) -> None:
        super().__init__(message, remote_traceback)
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        return f"{self.args[0]}\n\nIn the simulator process:\n{self.remote_traceback}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    serve(Connection(int(sys.argv[1])))
