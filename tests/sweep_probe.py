"""A toy with suites, and a callback that interrupts a sweep."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from lightning_ript.envs.toy import ToySpec
from lightning_ript.policies.toy import ToyPolicy


@dataclass(frozen=True)
class SuiteSpec(ToySpec):
    """Two suites that differ in where their test episodes start.

    `mark`, a list, makes the spec unhashable as LIBERO's is.
    """

    suite: str = "near"
    mark: tuple | list = ()

    def tasks(self):
        return [replace(task, suite=self.suite) for task in super().tasks()]

    def test_contexts(self, task):
        offset = 1000 * (self.suite == "far")
        return [replace(c, seed=c.seed + offset) for c in super().test_contexts(task)]

    def check(self):
        super().check()
        if self.suite not in ("near", "far"):
            raise ValueError(f"unknown suite '{self.suite}': near or far.")


class PartlySavedPolicy(ToyPolicy):
    """Its first layer is frozen and not in checkpoints; a folder has both layers' biases."""

    needs_noise = True
    checkpoint: str | None = None

    def __init__(self, seed=0):
        super().__init__(seed=seed)
        self.net[0].requires_grad_(False)

    def saved(self, name):
        return not name.startswith("net.0.")

    def load_published(self, place):
        if not Path(place).is_dir():
            return False
        for layer in (self.net[0], self.net[2]):
            layer.bias.data.fill_(3.0)
        self.checkpoint = str(place)
        return True


class InterruptSecond(Callback):
    """Sends this process a signal in the middle of its second evaluation, once.

    Args:
        signal_name: Of the signal.
        flag: A file that is made before it is sent; where there is one, nothing is sent.
    """

    def __init__(self, signal_name: str, flag: str):
        self.signal_name, self.flag = signal_name, flag
        self.evaluations = 0

    def on_validation_start(self, trainer, pl_module):
        self.evaluations += 1

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.evaluations == 2 and batch_idx == 1 and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), getattr(signal, self.signal_name))
