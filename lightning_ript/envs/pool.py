"""Environments in worker processes, each a slot that runs one episode at a time."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType

import numpy as np

from lightning_ript.envs.base import Environment, EnvironmentSpec, WorkerError
from lightning_ript.types import ChunkResult, Context, Observation

_EXIT_SECONDS = 10.0
_LOCAL_SLOTS = 32  # Without workers, many slots make inference batches of a useful size.


class EnvironmentPool:
    """Runs environments side by side; requests are sent at once and answered in any order.

    Args:
        spec: What to build in every slot.
        num_workers: Worker processes, one slot each; 0 runs all environments in this process, for
            those that are cheap and need no GL.

    Raises:
        ValueError: If `num_workers` is negative.
    """

    def __init__(self, spec: EnvironmentSpec, num_workers: int) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}, but must be 0 or more.")
        self._local: list[Environment] = (
            [] if num_workers else [spec.make() for _ in range(_LOCAL_SLOTS)]
        )
        self._ready: list[tuple[int, Observation | ChunkResult]] = []
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._busy: set[int] = set()
        # One thread a worker: the parallelism is over workers, and software GL would otherwise
        # start a thread per core in each of them.
        variables = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1", **os.environ}
        for _ in range(num_workers):
            ours, theirs = multiprocessing.Pipe()
            command = [sys.executable, "-m", "lightning_ript.envs.worker", str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=variables)
            theirs.close()
            ours.send(spec)
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def slots(self) -> Sequence[int]:
        """The slots an episode can run in."""
        return range(len(self._local) or len(self._connections))

    def reset(self, slot: int, context: Context, record: bool = False) -> None:
        """Asks a slot to start an episode; `wait` returns its first observation."""
        self._request(slot, "reset", context, record)

    def step_chunk(self, slot: int, actions: np.ndarray) -> None:
        """Asks a slot to execute actions (n, action_dim); `wait` returns the `ChunkResult`."""
        self._request(slot, "step_chunk", actions)

    def _request(self, slot: int, method: str, *arguments: object) -> None:
        if slot in self._busy:
            raise RuntimeError(f"slot {slot} was asked to {method} before it had answered.")
        if self._local:
            self._ready.append((slot, getattr(self._local[slot], method)(*arguments)))
        else:
            try:
                self._connections[slot].send((method, *arguments))
            except BrokenPipeError:
                self._receive(slot)  # Raises what the process had to say before it went.
                raise
        self._busy.add(slot)

    def wait(self) -> list[tuple[int, Observation | ChunkResult]]:
        """Blocks until a slot has answered; returns every answer there is.

        Raises:
            WorkerError: If a simulator raised or its process died.
        """
        answers, self._ready = self._ready, []
        if not self._local:
            pending = {self._connections[slot]: slot for slot in self._busy}
            for connection in wait(list(pending)):
                assert isinstance(connection, Connection)
                slot = pending[connection]
                self._busy.discard(slot)  # Even if it failed: there is nothing more to wait for.
                answers.append((slot, self._receive(slot)))
        self._busy.difference_update(slot for slot, _ in answers)
        return sorted(answers, key=lambda answer: answer[0])

    def _receive(self, slot: int) -> Observation | ChunkResult:
        try:
            answer = self._connections[slot].recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death(slot) from error
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    def _death(self, slot: int) -> WorkerError:
        code = self._processes[slot].wait(_EXIT_SECONDS)
        return WorkerError(
            f"simulator process {slot} died with exit code {code}", "(it left no traceback)"
        )

    def drain(self) -> None:
        """Waits for the slots that still work and drops their answers, to abandon episodes."""
        while self._busy:
            self.wait()

    def close(self) -> None:
        """Ends all workers."""
        for environment in self._local:
            environment.close()
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            try:
                process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._connections, self._processes, self._busy, self._local = [], [], set(), []

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
