"""Says early that a run cannot learn, or has stopped learning."""

from __future__ import annotations

from typing import Any

import imageio.v3 as iio
import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_ript.callbacks.evaluation_report import evaluation_name, success_metric
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.reports.fresh_metrics import FreshMetrics
from lightning_ript.storage.files import replacing
from lightning_ript.storage.run_directory import seen_path
from lightning_ript.types import Rollout

CHECKS = (
    "check the statistics that scale actions, the images' orientation, the language embedding, the "
    "gripper's sign and the controller's mode against those of the checkpoint's training"
)


_EPISODES_LOOKED_AT = 10


def oddities(actions: Tensor) -> str:
    """What is odd about normalized actions (n, A), whose last number is the gripper; "" if nothing.

    Where statistics fit, a policy's actions lie within [-1, 1], and an episode opens and closes.
    """
    found = ""
    outside = (actions.abs() > 1).float().mean().item()
    if outside > 0.05:
        found += f" Of the actions' numbers {outside:.0%} lie outside [-1, 1], which is suspicious."
    if len(actions) > 1 and bool((actions[:, -1].sign() == actions[0, -1].sign()).all()):
        found += " The last number, the gripper's where there is one, never changes its sign."
    return found


class Tripwires(Callback):
    """Warns, in one sentence each, of what would otherwise cost hours in silence.

    Of an evaluation in which no episode succeeds, of the first iteration whose groups are all
    uniform, of steps that stay too large, and of success that has fallen by more than half. The
    command line adds it to every run of RIPT.

    Args:
        max_clip_fraction: Share of clipped tokens above which steps are too large.
        max_kl: Divergence from the policy of the rollouts, in nats per token, above which they are.
        patience: Iterations in a row before that is said.
        min_episodes: Episodes without success that mean something.
    """

    def __init__(
        self,
        max_clip_fraction: float = 0.5,
        max_kl: float = 0.5,
        patience: int = 3,
        min_episodes: int = 20,
    ) -> None:
        self.max_clip_fraction, self.max_kl = max_clip_fraction, max_kl
        self.patience, self.min_episodes = patience, min_episodes
        self._metrics = FreshMetrics()
        self._too_large = 0
        self._best = 0.0
        self._actions: list[Tensor] = []
        self._seen: tuple[np.ndarray, ...] = ()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a module that counts no successes."""
        success_metric(pl_module, type(self).__name__)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Marks earlier numbers as old."""
        self._metrics.start(trainer)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the evaluation before."""
        self._actions, self._seen = [], ()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Rollout,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps what the first failures did and saw."""
        if batch.success:
            return
        self._seen = self._seen or batch.seen
        if len(self._actions) >= _EPISODES_LOOKED_AT:
            return
        policy: PolicyAdapter = pl_module.policy  # type: ignore[assignment]
        actions = policy.recorded_actions(batch.record)
        if actions is not None:
            self._actions.append(actions.flatten(0, 1).float().cpu())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at the success rate; callbacks come before the module resets it."""
        if trainer.sanity_checking:
            return
        result = success_metric(pl_module, type(self).__name__).compute().overall
        if not result.successes and result.episodes >= self.min_episodes:
            odd = oddities(torch.cat(self._actions)) if self._actions else ""
            rank_zero_warn(
                f"None of {result.episodes} evaluation episodes succeeded: {CHECKS}.{odd}"
                f"{self._strip(trainer)}"
            )
        if trainer.state.fn != "fit" or not result.episodes:
            return
        if result.rate < self._best / 2:
            rank_zero_warn(
                f"Success has fallen to {result.rate:.1%} from {self._best:.1%} at best: go on "
                "from best.ckpt with a lower learning rate or fewer passes, or let the callback "
                "RollBack do so."
            )
        self._best = max(self._best, result.rate)

    def _strip(self, trainer: L.Trainer) -> str:
        """Writes what the policy saw in its first decisions, one below the other."""
        if not self._seen or not trainer.is_global_zero:
            return ""
        path = seen_path(trainer.default_root_dir, evaluation_name(trainer, None))
        with replacing(path) as draft:
            iio.imwrite(draft, np.concatenate(self._seen), extension=".png")
        return f" {path} shows what the policy saw in its first decisions."

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at what the iteration has learned."""
        metrics = self._metrics.read(trainer)
        clipped, kl = metrics.get("train/clip_fraction"), metrics.get("train/approx_kl")
        if clipped is None or kl is None:
            return
        large = clipped > self.max_clip_fraction or kl > self.max_kl
        self._too_large = self._too_large + 1 if large else 0
        if self._too_large == self.patience:
            rank_zero_warn(
                f"For {self.patience} iterations steps have been too large: clip fraction "
                f"{clipped:.2f} (warns above {self.max_clip_fraction}), KL {kl:.2g} (above "
                f"{self.max_kl}): lower the learning rate or the number of passes."
            )

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        return {"best": self._best, "too_large": self._too_large}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self._best, self._too_large = state_dict["best"], state_dict["too_large"]
