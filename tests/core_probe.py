"""Environments, contexts and callbacks that misbehave on purpose.

Simulator workers and subprocesses import this module, so what is needed of torch is imported late.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lightning_ript.contexts import SampledContexts
from lightning_ript.envs.toy import (
    BatchedToyEnvironment,
    BatchedToySpec,
    ToyEnvironment,
    ToySpec,
)


@dataclass(frozen=True)
class FaultySpec(ToySpec):
    """Fails as `fault` says: in `make`, in `step`, by `hang`ing, or as the process `die`s.

    Where `flags` names a folder, each context fails the first time only, and leaves a file there.
    """

    fault: str = "step"
    flags: str | None = None

    def make(self):
        if self.fault == "make":
            raise ModuleNotFoundError("no simulator here")
        return FaultyEnvironment(self.fault, self.flags)


class FaultyEnvironment(ToyEnvironment):
    def __init__(self, fault, flags):
        self.fault, self.flags = fault, flags

    def reset(self, context, film=False):
        self.context = context
        return super().reset(context, film)

    def step_chunk(self, actions):
        if self.flags is not None:
            flag = Path(self.flags) / f"{self.context.task.index}_{self.context.index}"
            if flag.exists():
                return super().step_chunk(actions)
            flag.touch()
        if self.fault == "die":
            os._exit(3)
        if self.fault == "hang":
            time.sleep(1000)
        raise RuntimeError("the arm fell off")


@dataclass(frozen=True)
class CuriousSpec(ToySpec):
    """Tells in `gripper_states` whether the process has torch."""

    def worker_variables(self, device):
        return {"CURIOUS_DEVICE": str(device)}

    def make(self):
        return CuriousEnvironment()


class CuriousEnvironment(ToyEnvironment):
    def reset(self, context, film=False):
        observation = dict(super().reset(context, film))
        observation["gripper_states"][:] = "torch" in sys.modules
        return observation


@dataclass(frozen=True)
class BulkySpec(ToySpec):
    """Its arrays go through shared memory, as requests' arrays do."""

    bulk: np.ndarray = field(default_factory=lambda: np.arange(5, dtype=np.float64))

    def make(self):
        assert np.array_equal(self.bulk, np.arange(5))
        return ToyEnvironment()


@dataclass(frozen=True)
class HopelessSpec(ToySpec):
    """Nobody ever succeeds, from context `since` on (training contexts are numbered)."""

    since: int = 0

    def make(self):
        return HopelessEnvironment(self.since)


class HopelessEnvironment(ToyEnvironment):
    def __init__(self, since):
        self.since = since

    def reset(self, context, film=False):
        self.hopeless = context.index >= self.since
        return super().reset(context, film)

    def step_chunk(self, actions):
        if self.hopeless:
            self._goal = self._point + 10
        return super().step_chunk(actions)


class InterruptingContexts(SampledContexts):
    """Sends this process a signal in the middle of an iteration, once for each `flag` file.

    A context's number alone does not tell the iteration: where one rank is slow, the others begin
    any number of contexts in vain, which the next iteration begins again.

    Args:
        history: The run's history, which is written before an iteration's checkpoint.
        iterations: Entries that it must have, of finished iterations.
        number: The context to begin after that, or any later one.
        name: The signal's name.
        flag: A file that is made before the signal is sent; where there is one, nothing is sent.
    """

    def __init__(self, history: str, iterations: int, number: int, name: str, flag: str):
        self.history, self.iterations = history, iterations
        self.number, self.name, self.flag = number, name, flag

    def context(self, n, environment, seed):
        if n >= self.number and not Path(self.flag).exists() and self.finished():
            Path(self.flag).touch()
            os.kill(os.getpid(), getattr(signal, self.name))
        return super().context(n, environment, seed)

    def finished(self):
        path = Path(self.history)
        return path.exists() and len(json.loads(path.read_text())) == self.iterations


@dataclass(frozen=True)
class FaultyBatchSpec(BatchedToySpec):
    """As `FaultySpec`, several episodes at once: the one that fails takes the others with it."""

    episodes_per_worker: int = 4
    fault: str = "step"
    flags: str | None = None

    def make(self):
        return FaultyBatchEnvironment(self.episodes_per_worker, self.fault, self.flags)


class FaultyBatchEnvironment(BatchedToyEnvironment):
    def __init__(self, episodes, fault, flags):
        super().__init__(episodes)
        self.fault, self.flags, self.contexts = fault, flags, {}

    def reset(self, indices, contexts, films):
        self.contexts.update(zip(indices, contexts, strict=True))
        return super().reset(indices, contexts, films)

    def step_chunk(self, indices, actions):
        for index in indices:
            context = self.contexts[index]  # raises if it began in another process
            flag = Path(self.flags) / f"{context.task.index}_{context.index}"
            if context.index % 3 == 0 and not flag.exists():
                flag.touch()
                if self.fault == "die":
                    os._exit(3)
                if self.fault == "hang":
                    time.sleep(1000)
                raise RuntimeError("the arm fell off")
        return super().step_chunk(indices, actions)
