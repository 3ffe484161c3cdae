"""Simulators in worker processes, each with slots that run one episode at a time."""

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
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import numpy as np

from lightning_ript.envs.base import WorkerError, WorkerSpec
from lightning_ript.envs.channel import Channel, shared_file
from lightning_ript.envs.requests import Request, answer_together
from lightning_ript.types import Context, Task

log = logging.getLogger(__name__)

_EXIT_SECONDS = 10.0
_LOCAL_SLOTS = 32  # Without workers, many slots make inference batches of a useful size.
_BEGINS = "reset"  # The one request that needs nothing of what its slot has done before.


@dataclass
class _Worker:
    """A simulator process.

    Attributes:
        process: The process.
        channel: How to talk to it.
        deadline: When the request under way counts as hung, in monotonic seconds.
        starting: Whether it has not answered anything yet; imports and compiling take long.
        asked: The slots whose requests are under way.
    """

    process: subprocess.Popen[bytes]
    channel: Channel
    deadline: float = float("inf")
    starting: bool = True
    asked: list[int] = field(default_factory=list)


def check_workers(spec: WorkerSpec, num_workers: int) -> None:
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
    """Runs simulators side by side; requests are sent at once and answered in any order.

    A worker starts when one of its slots is first asked for something, no more of them at a time
    than there are cores. One that raises, dies or hangs is ended, and its slots answer with the
    `WorkerError`; asked again, they get a new worker.

    Where a specification says that one process simulates several episodes (`episodes_per_worker`),
    a worker has as many slots. What they are asked for until `wait` is simulated together, and they
    fail together.

    Args:
        spec: What to build in every worker.
        num_workers: Worker processes; 0 runs everything in this process, for simulators that are
            cheap and need no GL.
        hang_seconds: A request that takes longer has hung.
        device: Number of the GPU that this rank's simulators draw on, among those it may use.

    Raises:
        ValueError: If a number makes no sense, or the environment needs a process of its own and
            there are no workers.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        num_workers: int,
        hang_seconds: float = 600.0,
        device: int = 0,
    ) -> None:
        check_workers(spec, num_workers)
        if not hang_seconds > 0:
            raise ValueError(f"hang_seconds is {hang_seconds}, but must be positive.")
        self._spec = spec
        self._hang_seconds = hang_seconds
        self._per_worker = spec.episodes_per_worker
        local = 1 if self._per_worker > 1 else _LOCAL_SLOTS
        self._local: list[Any] = [] if num_workers else [spec.make() for _ in range(local)]
        self._workers: list[_Worker | None] = [None] * num_workers
        self._slots = range(self._per_worker * (len(self._local) or num_workers))
        self._answered: list[tuple[int, Any]] = []
        # Of each worker or local simulator, what it has not been told yet.
        self._unsent: list[list[Request]] = [[] for _ in self._workers or self._local]
        self._waiting_to_start: deque[int] = deque()
        self._busy: set[int] = set()
        # The scenes that each worker or local simulator has ready, in the order of their use.
        self._ready: list[dict[str, None]] = [{} for _ in self._unsent]
        self._lost: set[int] = set()  # slots whose episode went with a worker that another failed
        self._starting_at_once = len(os.sched_getaffinity(0)) if num_workers else 0
        # One thread a worker: the parallelism is over workers, and software GL would otherwise
        # start a thread per core in each of them.
        self._variables = {
            "LP_NUM_THREADS": "1",
            **os.environ,
            "OMP_NUM_THREADS": "1",  # what is set is for the trainer
            "MPLBACKEND": "Agg",
            **spec.worker_variables(device),
        }

    @property
    def slots(self) -> Sequence[int]:
        """The slots an episode can run in."""
        return self._slots

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The workers that run at present, in the order of their slots."""
        return [worker.process for worker in self._workers if worker is not None]

    def reset(self, slot: int, context: Context, film: bool = False) -> None:
        """Asks a slot to start an episode; `wait` returns its first observation."""
        self.ask(slot, _BEGINS, context, film)
        ready = self._ready[slot // self._per_worker]
        scene = self._spec.scene(context.task)
        ready.pop(scene, None)
        ready[scene] = None
        kept = self._spec.scenes_kept
        while kept is not None and len(ready) > kept:
            del ready[next(iter(ready))]

    def is_ready(self, slot: int, task: Task) -> bool:
        """Whether a slot's simulator can begin an episode of this task without preparing a scene.

        What it is about to prepare counts as ready.
        """
        kept, ready = self._spec.scenes_kept, self._ready[slot // self._per_worker]
        return kept is None or self._spec.scene(task) in ready

    def step_chunk(self, slot: int, actions: np.ndarray) -> None:
        """Asks a slot to execute actions (n, action_dim); `wait` returns the `ChunkResult`."""
        self.ask(slot, "step_chunk", actions)

    def ask(self, slot: int, method: str, *arguments: object) -> None:
        """Asks a slot's simulator to call a method; `wait` returns what it returns.

        Args:
            slot: A slot that has answered everything before.
            method: Name of the method.
            arguments: What to call it with, by position; picklable.

        Raises:
            RuntimeError: If the slot has not answered yet.
        """
        if slot in self._busy:
            raise RuntimeError(f"slot {slot} was asked to {method} before it had answered.")
        self._busy.add(slot)
        if slot in self._lost:
            self._lost.discard(slot)
            if method != _BEGINS:
                message = f"the episode of slot {slot} ended with its simulator process"
                self._answered.append((slot, WorkerError(message, "(see the other slots)")))
                return
        number, index = divmod(slot, self._per_worker)
        self._unsent[number].append(Request(index, method, arguments))
        if self._per_worker == 1:  # nothing to wait for
            self._send_requests(number)

    def _send_requests(self, number: int) -> None:
        """Sends what a worker has been asked for, if it is there and has nothing else to do."""
        if not self._unsent[number]:
            return
        if self._local:
            requests, self._unsent[number] = self._unsent[number], []
            slots = self._slots_of(number, requests)
            try:
                answers = self._answer_here(self._local[number], requests)
            except BaseException:
                self._busy.difference_update(slots)  # there is nothing to wait for
                raise
            self._answered += zip(slots, answers, strict=True)
            return
        worker = self._workers[number]
        if worker is None:
            if number not in self._waiting_to_start:
                self._waiting_to_start.append(number)
            self._start_workers()
        elif not worker.asked:
            self._send(number, worker, first=False)

    def _answer_here(self, simulator: Any, requests: list[Request]) -> list[Any]:
        if self._per_worker > 1:
            return answer_together(simulator, requests)
        return [getattr(simulator, each.method)(*each.arguments) for each in requests]

    def _start_workers(self) -> None:
        starting = sum(worker is not None and worker.starting for worker in self._workers)
        while self._waiting_to_start and starting < self._starting_at_once:
            number = self._waiting_to_start.popleft()
            worker = self._workers[number] = self._start()
            self._send(number, worker, first=True)
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

    def _send(self, number: int, worker: _Worker, first: bool) -> None:
        requests, self._unsent[number] = self._unsent[number], []
        worker.asked = self._slots_of(number, requests)
        message = requests if self._per_worker > 1 else requests[0]
        # If it is gone, `wait` finds out what it had to say before.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.channel.send((self._spec, message) if first else message)
        worker.deadline = time.monotonic() + self._hang_seconds

    def _slots_of(self, number: int, requests: list[Request]) -> list[int]:
        return [number * self._per_worker + request.index for request in requests]

    def wait(self) -> list[tuple[int, Any]]:
        """Blocks until a slot has answered or failed; returns every answer there is.

        Returns:
            Slots, and what their methods returned or the `WorkerError` that kept them from it.
        """
        for number in range(len(self._unsent)):
            self._send_requests(number)
        answers, self._answered = self._answered, []
        waiting = {n: w for n, w in enumerate(self._workers) if w is not None and w.asked}
        if waiting:
            first = min(worker.deadline for worker in waiting.values())
            patience = 0.0 if answers else max(0.0, first - time.monotonic())
            connections = [worker.channel.connection for worker in waiting.values()]
            ready = wait(connections, patience)
            now = time.monotonic()
            for number, worker in waiting.items():
                if worker.channel.connection in ready:
                    answers += self._receive(number, worker)
                elif now >= worker.deadline:
                    answers += self._hung(number, worker)
            self._start_workers()
        self._busy.difference_update(slot for slot, _ in answers)
        return sorted(answers, key=lambda answer: answer[0])

    def _receive(self, number: int, worker: _Worker) -> list[tuple[int, Any]]:
        try:
            answer = worker.channel.receive()
        except (EOFError, ConnectionResetError):
            code = self._end(number, worker)
            answer = WorkerError(
                f"simulator process {number} died with exit code {code}", "(nothing)"
            )
            return self._failed(number, worker, answer)
        worker.starting = False
        if isinstance(answer, WorkerError):
            self._end(number, worker)
            return self._failed(number, worker, answer)
        slots, worker.asked = worker.asked, []
        return list(zip(slots, answer if self._per_worker > 1 else [answer], strict=True))

    def _hung(self, number: int, worker: _Worker) -> list[tuple[int, Any]]:
        worker.process.kill()
        self._end(number, worker)
        error = WorkerError(
            f"simulator process {number} did not answer for {self._hang_seconds:g} s", "(nothing)"
        )
        return self._failed(number, worker, error)

    def _failed(
        self, number: int, worker: _Worker, error: WorkerError
    ) -> list[tuple[int, WorkerError]]:
        """The answers of the slots that a worker has taken down with it.

        Those that were to begin an episode next can still do so in a new worker; those that are not
        asked for anything now are told when they next are.
        """
        first = number * self._per_worker
        unsent = self._unsent[number]
        begins = [request for request in unsent if request.method == _BEGINS]
        failed = worker.asked + self._slots_of(number, [r for r in unsent if r not in begins])
        self._unsent[number] = begins
        idle = set(range(first, first + self._per_worker)) - self._busy
        self._lost |= idle
        return [(slot, error) for slot in failed]

    def _end(self, number: int, worker: _Worker) -> int:
        """Ends a worker; its slots get a new one when they are next asked."""
        self._workers[number] = None
        self._ready[number].clear()
        worker.channel.close()
        try:
            return worker.process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            return worker.process.wait()

    def drain(self) -> None:
        """Waits for the slots that still work and drops their answers, to abandon episodes."""
        for number, requests in enumerate(self._unsent):
            self._busy.difference_update(self._slots_of(number, requests))
            requests.clear()
        self._waiting_to_start.clear()
        while self._busy:
            for _, answer in self.wait():
                if isinstance(answer, WorkerError):
                    log.warning("%s\nIts episode had been abandoned.", answer)

    def close(self) -> None:
        """Ends all workers."""
        for simulator in self._local:
            simulator.close()
        workers = {number: w for number, w in enumerate(self._workers) if w is not None}
        for worker in workers.values():
            worker.channel.close()  # all at once, so that they end side by side
        for number, worker in workers.items():
            self._end(number, worker)
        self._workers, self._local, self._unsent, self._busy = [], [], [], set()
        self._waiting_to_start.clear()

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
