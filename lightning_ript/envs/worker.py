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

from lightning_ript.envs.base import WorkerError


def serve(connection: Connection) -> None:
    """Answers `(method, *arguments)` messages about one environment until the parent hangs up."""
    environment = None
    try:
        environment = connection.recv().make()
        while True:
            method, *arguments = connection.recv()
            connection.send(getattr(environment, method)(*arguments))
    except (EOFError, ConnectionError):
        return  # The parent has closed the pool, or is gone.
    except Exception as error:
        connection.send(WorkerError(f"{type(error).__name__}: {error}", traceback.format_exc()))
    finally:
        if environment is not None:
            environment.close()


if __name__ == "__main__":
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group, but are the parent's to
    # handle: it hangs up when it has.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))
