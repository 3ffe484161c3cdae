"""A simulator process: `python -m lightning_ript.envs.worker PIPE MEMORY`, two file descriptors.

It is started as a program of its own rather than by `multiprocessing`, which would import the
parent's main module, and with it torch: a software GL driver and triton crash each other when both
are loaded in one process.
"""

from __future__ import annotations

import signal
import sys
import traceback
from multiprocessing.connection import Connection

from lightning_ript.envs.base import Environment, WorkerError
from lightning_ript.envs.channel import Channel


def serve(channel: Channel) -> None:
    """Answers messages about one environment until the parent hangs up.

    The first is `(spec, request)`, the others are requests: `(method, *arguments)`.
    """
    environment: Environment | None = None
    try:
        spec, request = channel.receive()
        environment = spec.make()
        while True:
            method, *arguments = request
            channel.send(getattr(environment, method)(*arguments))
            request = channel.receive()
    except (EOFError, ConnectionError):
        return  # The parent has closed the pool, or is gone.
    except Exception as error:
        channel.send(
            WorkerError(
                f"{type(error).__name__}: {error}",
                traceback.format_exc(),
                unusable=environment is None,
            )
        )
    finally:
        if environment is not None:
            environment.close()


if __name__ == "__main__":
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group, but are the parent's to
    # handle: it hangs up when it has.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Channel(Connection(int(sys.argv[1])), int(sys.argv[2])))
