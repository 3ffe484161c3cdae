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
from typing import Any

from lightning_ript.envs.base import WorkerError
from lightning_ript.envs.channel import Channel
from lightning_ript.envs.requests import Request, answer_together


def serve(channel: Channel) -> None:
    """Answers messages about one simulator until the parent hangs up.

    The first is `(spec, message)`. A message is a `Request`, or a list of them where several
    episodes are simulated together; its answer has the same form.
    """
    environment: Any = None
    try:
        spec, message = channel.receive()
        environment = spec.make()
        while True:
            if isinstance(message, Request):
                channel.send(getattr(environment, message.method)(*message.arguments))
            else:
                channel.send(answer_together(environment, message))
            message = channel.receive()
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
