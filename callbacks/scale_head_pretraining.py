"""The scale head's training, before RIPT or alone."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.distributed.sharding import gathered, sharded_like
from lightning_ript.policies.openvla_oft.checkpoint import load_scale_head, save_scale_head
from lightning_ript.policies.openvla_oft.config import CHUNK
from lightning_ript.policies.openvla_oft.continuous import STATE, OpenVLAOFTPolicy
from lightning_ript.policies.openvla_oft.heads import LaplaceScaleHead
from lightning_ript.policies.openvla_oft.scale_head_training import (
    demonstrated_batches,
    train_scale_head,
    trainable_copy,
)
from lightning_ript.storage.run_directory import scale_head_path


class ScaleHeadPretraining(Callback):
    """Teaches a fresh scale head how far the policy's actions are from demonstrated ones.

    The Laplace's negative log-likelihood of demonstrations, with its mean and all else of the model
    frozen, as in RIPT-VLA, whose code for it is not published. Runs before the first rollout
    if the policy was given no head, and writes it to `<run_dir>/scale_head.pth` in the published
    format; a run that is started again takes it from there. Alone: `--trainer.max_epochs 0`.

    What the head sees is computed once for all epochs if it fits into `cache_gib`, else in each.
    Every process does the same work, without communication, and takes what rank zero has learned.

    Args:
        data: Demonstrations, with blocks of 8 actions, each after the observation that it is paired
            with; those it holds out are the test.
        epochs: Passes over them.
        lr: Learning rate of Adam.
        cache_gib: Memory for what the head sees, in GiB; a step of the 7 B model takes 0.0004.
        seed: Of the order of batches.

    Raises:
        ValueError: If a setting makes no sense.
    """

    def __init__(
        self,
        data: DemonstrationDataModule,
        epochs: int = 10,
        lr: float = 1e-4,
        cache_gib: float = 32.0,
        seed: int = 0,
    ) -> None:
        if epochs < 1 or not lr > 0 or cache_gib < 0:
            raise ValueError(
                f"ScaleHeadPretraining has epochs {epochs}, lr {lr} and cache_gib {cache_gib}: "
                "set them to 1 or more, above 0, and 0 or more."
            )
        read = data.reading
        if data.block_size != CHUNK or read.only_actions or set(STATE) - set(read.lowdim or ()):
            raise ValueError(
                f"ScaleHeadPretraining.data has block_size {data.block_size}, only_actions "
                f"{read.only_actions} and lowdim {read.lowdim}: set them to {CHUNK}, false and "
                f"{list(STATE)}."
            )
        if not read.before_action:
            raise ValueError(
                "ScaleHeadPretraining.data has before_action false, but OpenVLA-OFT was trained on "
                "the observation before each action, and LIBERO's files hold the one after it: set "
                "it to true."
            )
        self.data, self.epochs, self.lr = data, epochs, lr
        self.cache_gib, self.seed = cache_gib, seed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Reads the demonstrations, which may be missing, before anything expensive is started."""
        policy = pl_module.policy
        if not isinstance(policy, OpenVLAOFTPolicy):
            raise TypeError(
                f"ScaleHeadPretraining needs an OpenVLAOFTPolicy, not {type(policy).__name__}: "
                "leave the callback out."
            )
        if (
            stage == "fit"
            and not policy.model.scale_head.trained
            and not self._path(trainer).is_file()
        ):
            self.data.setup("fit")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Trains the head, or takes up the one that was trained before."""
        policy: OpenVLAOFTPolicy = pl_module.policy  # type: ignore[assignment]
        if policy.model.scale_head.trained:
            return
        path = self._path(trainer)
        with gathered(policy):
            head = trainable_copy(policy.model.scale_head)
            if path.is_file():
                load_scale_head(head, path)
            else:
                self._train(trainer, policy, head)
                if trainer.is_global_zero:
                    save_scale_head(head, path)
        trainer.strategy.barrier()
        # Rank zero's: where ranks were not seeded alike, the others' batches differ.
        weights = [trainer.strategy.broadcast(p.detach().cpu()) for p in head.parameters()]
        mine = policy.model.scale_head
        with torch.no_grad():
            for parameter, value in zip(mine.parameters(), weights, strict=True):
                parameter.copy_(sharded_like(value, parameter))
        mine.trained = True
        rank_zero_info(f"The scale head is in {path}")

    def _path(self, trainer: L.Trainer) -> Any:
        return scale_head_path(trainer.default_root_dir)

    def _train(self, trainer: L.Trainer, policy: OpenVLAOFTPolicy, head: LaplaceScaleHead) -> None:
        quiet = trainer.global_rank > 0 or trainer.progress_bar_callback is None
        training, test = (
            demonstrated_batches(policy, loader, self.cache_gib, self.seed)
            for loader in (self.data.train_dataloader(), self.data.val_dataloader())
        )
        train_scale_head(head, training, test, epochs=self.epochs, lr=self.lr, quiet=quiet)
