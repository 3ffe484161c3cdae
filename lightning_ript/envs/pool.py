"""Environments in worker processes, each a slot that runs one episode at a time."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import TracebackType

import numpy as np

from lightning_ript.envs.base import Environment, EnvironmentSpec, WorkerError
from lightning_ript.envs.channel import Channel, shared_file
from lightning_ript.types import ChunkResult, Context, Observation

log = logging.getLogger(__name__)

Answer = Observation | ChunkResult | WorkerError

_EXIT_SECONDS = 10.0
_LOCAL_SLOTS = 32  # Without workers, many slots make inference batches of a useful size.


@dataclass
class _Worker:
    """A simulator process.

    Attributes:
        process: The process.
        channel: How to talk to it.
        deadline: When the request under way counts as hung, in monotonic seconds.
        starting: Whether it has not answered anything yet; imports and compiling take long.
    """

    process: subprocess.Popen[bytes]
    channel: Channel
    deadline: float = float("inf")
    starting: bool = True


def check_workers(spec: EnvironmentSpec, num_workers: int) -> None:
    """Refuses fewer worker processes than an environment needs.

    Raises:
        ValueError: If these are too few.
    """
    least = spec.least_workers
    if num_workers < least:
        why = ", whose simulators crash beside torch" if num_workers == 0 else ""
        raise ValueError(
            f"num_workers is {num_workers}, but must be {least} or more for "
            f"{type(spec).__name__}{why}."
        )


class EnvironmentPool:
    """Runs environments side by side; requests are sent at once and answered in any order.

    A worker starts when its slot is first asked for something, no more of them at a time than there
    are cores. One that raises, dies or hangs is ended, and its slot answers with the `WorkerError`;
    asked again, the slot gets a new worker.

    Args:
        spec: What to build in every slot.
        num_workers: Worker processes, one slot each; 0 runs all environments in this process, for
            those that are cheap and need no GL.
        hang_seconds: A request that takes longer has hung.
        device: Number of the GPU that this rank's simulators draw on, among those it may use.

    Raises:
        ValueError: If a number makes no sense, or the environment needs a process of its own and
            there are no workers.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_workers: int,
        hang_seconds: float = 600.0,
        device: int = 0,
    ) -> None:
        check_workers(spec, num_workers)
        if not hang_seconds > 0:
            raise ValueError(f"hang_seconds is {hang_seconds}, but must be positive.")
        self._spec = spec
        self._hang_seconds = hang_seconds
        self._local: list[Environment] = (
            [] if num_workers else [spec.make() for _ in range(_LOCAL_SLOTS)]
        )
        self._answered: list[tuple[int, Answer]] = []
        self._workers: list[_Worker | None] = [None] * num_workers
        self._unsent: deque[tuple[int, tuple]] = deque()  # requests to workers still to be started
        self._busy: set[int] = set()
        self._starting_at_once = len(os.sched_getaffinity(0)) if num_workers else 0
        # One thread a worker: the parallelism is over workers, and software GL would otherwise
        # start a thread per core in each of them.
        self._variables = {
            "OMP_NUM_THREADS": "1",
            "LP_NUM_THREADS": "1",
            **os.environ,
            **spec.worker_variables(device),
        }

    @property
    def slots(self) -> Sequence[int]:
        """The slots an episode can run in."""
        return range(len(self._local) or len(self._workers))

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The workers that run at present, in the order of their slots."""
        return [worker.process for worker in self._workers if worker is not None]

    def reset(self, slot: int, context: Context, film: bool = False) -> None:
        """Asks a slot to start an episode; `wait` returns its first observation."""
        self._request(slot, "reset", context, film)

    def step_chunk(self, slot: int, actions: np.ndarray) -> None:
        """Asks a slot to execute actions (n, action_dim); `wait` returns the `ChunkResult`."""
        self._request(slot, "step_chunk", actions)

    def _request(self, slot: int, method: str, *arguments: object) -> None:
        if slot in self._busy:
            raise RuntimeError(f"slot {slot} was asked to {method} before it had answered.")
        if self._local:
            self._answered.append((slot, getattr(self._local[slot], method)(*arguments)))
        elif self._workers[slot] is None:
            self._unsent.append((slot, (method, *arguments)))
            self._start_workers()
        else:
            self._send(slot, (method, *arguments))
        self._busy.add(slot)

    def _start_workers(self) -> None:
        starting = sum(worker is not None and worker.starting for worker in self._workers)
        while self._unsent and starting < self._starting_at_once:
            slot, request = self._unsent.popleft()
            self._workers[slot] = self._start()
            self._send(slot, (self._spec, request))
            starting += 1

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        memory = shared_file()
        command = [sys.executable, "-m", "lightning_ript.envs.worker"]
        descriptors = (theirs.fileno(), memory)
        process = subprocess.Popen(
            [*command, *map(str, descriptors)], pass_fds=descriptors, env=self._variables
        )
        theirs.close()
        return _Worker(process, Channel(ours, memory))

    def _send(self, slot: int, message: object) -> None:
        worker = self._workers[slot]
        assert worker is not None
        # If it is gone, `wait` finds out what it had to say before.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.channel.send(message)
        worker.deadline = time.monotonic() + self._hang_seconds

    def wait(self) -> list[tuple[int, Answer]]:
        """Blocks until a slot has answered or failed; returns every answer there is."""
        answers, self._answered = self._answered, []
        if not self._local:
            waiting = {slot: w for slot in self._busy if (w := self._workers[slot]) is not None}
            first = min((w.deadline for w in waiting.values()), default=time.monotonic())
            connections = [worker.channel.connection for worker in waiting.values()]
            ready = wait(connections, max(0.0, first - time.monotonic()))
            now = time.monotonic()
            for slot, worker in waiting.items():
                if worker.channel.connection in ready:
                    answers.append((slot, self._receive(slot, worker)))
                elif now >= worker.deadline:
                    answers.append((slot, self._hung(slot, worker)))
            self._start_workers()
        self._busy.difference_update(slot for slot, _ in answers)
        return sorted(answers, key=lambda answer: answer[0])

    def _receive(self, slot: int, worker: _Worker) -> Answer:
        try:
            answer = worker.channel.receive()
        except (EOFError, ConnectionResetError):
            code = self._end(slot, worker)
            return WorkerError(f"simulator process {slot} died with exit code {code}", "(nothing)")
        worker.starting = False
        if isinstance(answer, WorkerError):
            self._end(slot, worker)
        return answer

    def _hung(self, slot: int, worker: _Worker) -> WorkerError:
        worker.process.kill()
        self._end(slot, worker)
        return WorkerError(
            f"simulator process {slot} did not answer for {self._hang_seconds:g} s", "(nothing)"
        )

    def _end(self, slot: int, worker: _Worker) -> int:
        """Ends a worker; its slot gets a new one when it is next asked."""
        self._workers[slot] = None
        worker.channel.close()
        try:
            return worker.process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            return worker.process.wait()

    def drain(self) -> None:
        """Waits for the slots that still work and drops their answers, to abandon episodes."""
        self._busy.difference_update(slot for slot, _ in self._unsent)
        self._unsent.clear()
        while self._busy:
            for _, answer in self.wait():
                if isinstance(answer, WorkerError):
                    log.warning("%s\nIts episode had been abandoned.", answer)

    def close(self) -> None:
        """Ends all workers."""
        for environment in self._local:
            environment.close()
        workers = {slot: w for slot, w in enumerate(self._workers) if w is not None}
        for worker in workers.values():
            worker.channel.close()  # all at once, so that they end side by side
        for slot, worker in workers.items():
            self._end(slot, worker)
        self._workers, self._busy, self._local = [], set(), []
        self._unsent.clear()

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
