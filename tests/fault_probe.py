"""A callback by which a run harms itself at a chosen moment, once."""

import os
import signal
import time
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from lightning_ript.storage.files import below
from lightning_ript.storage.run_directory import journals_path


class Fault(Callback):
    """In the second iteration, does `how` to this process.

    Args:
        flag: A file that is made before; where there is one, nothing happens any more.
        how: A signal's name, `raise`, or `sleep`, for four seconds.
        when: `collecting`, `learning`, `evaluating` or `saving`.
        rank: Only there.
    """

    def __init__(self, flag: str, how: str, when: str, rank: int = 0):
        self.flag, self.how, self.when, self.rank = Path(flag), how, when, rank

    def _now(self, trainer, when):
        is_now = when == self.when and trainer.current_epoch >= 1
        if not is_now or trainer.global_rank != self.rank or self.flag.exists():
            return
        self.flag.touch()
        if self.how == "raise":
            below(Path("arm"), "../hand", "The elbow")  # an error of the package's own
        if self.how == "sleep":
            time.sleep(4)
        else:
            os.kill(os.getpid(), getattr(signal, self.how))

    def setup(self, trainer, pl_module, stage):
        policy = pl_module.policy
        act = policy.act

        def acting(*arguments, **named):
            if trainer.training and _has_finished_a_group(trainer):
                self._now(trainer, "collecting")
            return act(*arguments, **named)

        policy.act = acting

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self._now(trainer, "learning")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._now(trainer, "evaluating")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._now(trainer, "saving")


def _has_finished_a_group(trainer):
    """Whether some rank has, in this iteration: what is resumed then finds a group."""
    groups = f"iteration{trainer.current_epoch}_*/group_*.pt"
    return any(journals_path(trainer.default_root_dir).glob(groups))


def fault(run_dir, how, when, rank=0):
    """Arguments of the command."""
    name = "--trainer.callbacks"
    return [
        f"{name}+=fault_probe.Fault",
        f"{name}.flag={run_dir}/happened",
        f"{name}.how={how}",
        f"{name}.when={when}",
        f"{name}.rank={rank}",
    ]
