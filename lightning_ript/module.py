"""Learning: clipped PPO on the kept rollouts, around any policy adapter."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import ExplainedVariance, MeanMetric, MetricCollection

from lightning_ript.advantages import AdvantageEstimator, Credit, concatenate, group_credit
from lightning_ript.distributed.sharding import (
    clip_gradients,
    gathered,
    gradients_stay,
    is_sharded,
    shard,
)
from lightning_ript.distributed.strategies import ShardedStrategy
from lightning_ript.evaluation import SuccessRate
from lightning_ript.extensions.critic import (
    Critic,
    CriticConfig,
    discounted_success,
    moments,
    standardize,
    temporal_credit,
)
from lightning_ript.minibatches import Aggregation
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.ppo import clipped_surrogate, kl_penalty
from lightning_ript.types import Minibatch, Rollout, RolloutGroup

_WATCHED = ("ratio", "clip_fraction", "approx_kl", "entropy", "advantage")


def _adamw(parameters: Iterable[Any]) -> Optimizer:
    """The reference's optimizer for QueST (paper, appendix)."""
    return torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.999), weight_decay=1e-4)


class RIPTLightningModule(L.LightningModule):
    """Post-trains a policy with RIPT. Defaults are the reference's for QueST.

    Args:
        policy: The policy.
        advantage: Advantage estimator; a critic takes its place.
        passes: PPO passes over the kept rollouts per iteration.
        episodes_per_minibatch: Episodes per optimizer step, over all ranks.
        decisions_per_microbatch: Decision steps per forward pass and rank at most; bounds memory
            and changes nothing else.
        aggregation: Mean over all tokens, or over episodes of each one's mean.
        clip_low: Clip range of the ratio below 1.
        clip_high: Clip range above 1; larger than `clip_low` for an asymmetric clip.
        kl_coefficient: Weight of the KL divergence to the starting policy; 0 for none.
        max_grad_norm: Gradients of each optimizer group are scaled down to this norm, unless the
            policy's group has a `max_grad_norm` of its own.
        optimizer: Makes the optimizer from the policy's parameter groups.
        scheduler: Makes a learning rate scheduler, stepped once per iteration.
        critic: A value function that judges every decision, with generalized advantage estimation;
            None for none.

    Raises:
        ValueError: If a setting makes no sense.
        TypeError: If the policy offers a critic nothing to see.
    """

    success_rate: SuccessRate

    def __init__(
        self,
        policy: PolicyAdapter,
        advantage: AdvantageEstimator = "leave_one_out",
        passes: int = 20,
        episodes_per_minibatch: int = 8,
        decisions_per_microbatch: int = 512,
        aggregation: Aggregation = "token",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coefficient: float = 0.0,
        max_grad_norm: float = 1.0,
        optimizer: OptimizerCallable = _adamw,
        scheduler: LRSchedulerCallable | None = None,
        critic: CriticConfig | None = None,
    ) -> None:
        super().__init__()
        positive = {
            "passes": passes,
            "episodes_per_minibatch": episodes_per_minibatch,
            "decisions_per_microbatch": decisions_per_microbatch,
            "clip_low": clip_low,
            "clip_high": clip_high,
            "max_grad_norm": max_grad_norm,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"model.{name} is {value}, but must be positive.")
        if kl_coefficient < 0:
            raise ValueError(f"model.kl_coefficient is {kl_coefficient}, but must not be negative.")
        self.automatic_optimization = False
        self.policy = policy
        self.advantage = advantage
        self.passes = passes
        self.episodes_per_minibatch = episodes_per_minibatch
        self.decisions_per_microbatch = decisions_per_microbatch
        self.aggregation = aggregation
        self.clip_low, self.clip_high = clip_low, clip_high
        self.kl_coefficient = kl_coefficient
        self.max_grad_norm = max_grad_norm
        self._make_optimizer: Callable = optimizer
        self._make_scheduler: Callable | None = scheduler
        self.reference = copy.deepcopy(policy).requires_grad_(False) if kl_coefficient else None
        self.critic = Critic(policy.feature_size, critic) if critic is not None else None
        self.success_rate = SuccessRate()
        watched = (*_WATCHED, "value_loss") if critic is not None else _WATCHED
        self.watched = MetricCollection({name: MeanMetric() for name in watched})
        self.explained_variance = ExplainedVariance()
        self.grad_norm = MeanMetric()
        self._group_norms: dict[str, MeanMetric] = {}
        self.loss = MeanMetric()
        self._loss_of_step = 0.0

    def setup(self, stage: str) -> None:
        """Refuses what cannot work.

        Raises:
            ValueError: If the precision is one whose gradients are scaled, or that the policy does
                not stand.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                "trainer.precision 16-mixed scales gradients, which are clipped here unscaled: set "
                "bf16-mixed."
            )
        precision = str(self.trainer.precision_plugin.precision)
        if precision in ("bf16-true", "16-true") and not self.policy.roundable:
            raise ValueError(
                f"trainer.precision {precision} rounds all parameters, and parts of "
                f"{type(self.policy).__name__} need 32 bits: set bf16-mixed or leave it out."
            )

    def configure_model(self) -> None:
        """Under FSDP, leaves each rank its share of all parameters.

        Raises:
            TypeError: If the strategy is another of Lightning's for sharding, or the policy has
                weights that cannot be cut.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not isinstance(
            strategy, ShardedStrategy
        ):
            raise TypeError(
                "trainer.strategy is ModelParallelStrategy, whose checkpoints no other strategy "
                "could resume: set fsdp2, which is the same without that."
            )
        if isinstance(strategy, FSDPStrategy):
            raise TypeError(
                "trainer.strategy is FSDPStrategy, which forbids a backward pass within "
                "training_step, where RIPT does several per optimizer step: set fsdp2."
            )
        if self.device_mesh is None or is_sharded(self.policy):
            return
        for name, weight in self.named_parameters():
            if not weight.is_floating_point():
                raise TypeError(
                    f"trainer.strategy fsdp2 cannot share out {name}, which is quantized "
                    f"({weight.dtype}): leave quantization out, or set ddp, where each process "
                    "holds all of it."
                )
        mesh = self.device_mesh["data_parallel"]
        for policy in (self.policy, self.reference):
            if policy is not None:
                shard(policy, mesh, policy.blocks(), policy.entry_points)
        if self.critic is not None:
            shard(self.critic, mesh)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what the policy reads from files of its own."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if self._saved(name)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts it back as it is now, so that anything else that is missing is noticed."""
        state = self.state_dict()
        # Quantized layers add entries of their own, which they would not take back.
        everything = self.named_parameters, self.named_buffers
        names = {name for named in everything for name, _ in named(remove_duplicate=False)}
        left_out = {n: v for n, v in state.items() if n in names and not self._saved(n)}
        checkpoint["state_dict"] = {**left_out, **checkpoint["state_dict"]}

    def _saved(self, name: str) -> bool:
        owner, _, rest = name.partition(".")
        return owner not in ("policy", "reference") or self.policy.saved(rest)

    def configure_optimizers(self) -> Any:
        """One optimizer over the policy's parameter groups and, at the end, the critic's.

        Raises:
            ValueError: If two groups have the same name, or the schedule waits for a metric.
        """
        groups = list(self.policy.parameter_groups())
        names = [str(group["name"]) for group in groups if "name" in group]
        if len(set(names)) < len(names):
            raise ValueError(f"parameter_groups() has two groups of a name among {names}.")
        self._group_norms = {name: MeanMetric().to(self.device) for name in names}
        if self.critic is not None:
            parameters = list(self.critic.parameters())
            groups.append({"params": parameters, "lr": self.critic.config.lr})
        optimizer = self._make_optimizer(groups)
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError(
                "model.scheduler is ReduceLROnPlateau, but the schedule counts iterations and "
                "knows no metric: choose another."
            )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_validation_model_zero_grad(self) -> None:
        """Keeps gradients: `training_step` alone knows when a minibatch is over."""

    # -- training ---------------------------------------------------------------------------------

    @property
    def needs_every_decision(self) -> bool:
        """Whether decisions are computed even if their advantage is zero."""
        return self.reference is not None or self.critic is not None

    def judge(self, groups: Sequence[RolloutGroup]) -> Credit:
        """Judges the decisions of this rank's groups, before anything is learned from them.

        Every rank has to call it, once per iteration.
        """
        if self.critic is None:
            return group_credit(self.advantage, groups)
        config = self.critic.config
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        self.policy.eval()
        with gathered(self.policy, self.critic):  # ranks have different numbers of groups
            values = [value for group in groups for value in self._values(group)]
        credit = temporal_credit(values, [r.success for r in rollouts], config)
        outcomes = [discounted_success(r.decisions, r.success, config.gamma) for r in rollouts]
        self.explained_variance.update(
            concatenate(values).to(self.device), concatenate(outcomes).to(self.device)
        )
        if config.normalize:
            mine = moments(credit.advantages).to(self.device)
            total = self.trainer.strategy.reduce(mine, reduce_op="sum")
            credit = credit._replace(advantages=standardize(credit.advantages, total))
        return credit

    def _values(self, group: RolloutGroup) -> Iterator[Tensor]:
        """The critic's values of each rollout, (D,) each.

        A group at a time, so that not even rounding depends on how ranks share the groups.
        """
        assert self.critic is not None
        record = {
            name: torch.cat([rollout.record[name] for rollout in group.rollouts]).to(self.device)
            for name in group.rollouts[0].record
        }
        with self.trainer.precision_plugin.forward_context():
            values = self.critic.values(self.policy.features(record)).cpu()
        yield from values.split([rollout.decisions for rollout in group.rollouts])

    def on_train_epoch_start(self) -> None:
        """Dropout stays off: the ratio compares probabilities of one and the same network."""
        self.policy.eval()
        if self.reference is not None:
            self.reference.eval()
        self._learning_since = time.monotonic()

    def training_step(self, batch: Minibatch, batch_idx: int) -> None:
        """One forward and backward pass; steps the optimizer at the end of a minibatch."""
        log_probs, entropy = self.policy.log_prob(batch.record)
        surrogate = clipped_surrogate(
            log_probs,
            batch.old_log_probs,
            batch.advantages,
            batch.weights,
            batch.normalizer,
            self.clip_low,
            self.clip_high,
        )
        loss = surrogate.loss
        if self.reference is not None:
            with torch.no_grad():
                reference, _ = self.reference.log_prob(batch.record)
            loss = loss + self.kl_coefficient * kl_penalty(
                log_probs, reference, batch.weights, batch.normalizer
            )
        watched = {
            "ratio": surrogate.ratio,
            "clip_fraction": surrogate.clipped,
            "approx_kl": surrogate.approx_kl,
            "entropy": entropy.detach(),
            "advantage": batch.advantages.abs().unsqueeze(-1).expand_as(batch.weights),
        }
        # Strategies and metrics average over ranks, but the normalizer already spans them.
        ranks = self.trainer.world_size
        total = loss
        if self.critic is not None:
            value_losses = self._value_losses(batch)
            watched["value_loss"] = value_losses.detach()
            total = loss + (batch.weights * value_losses).sum() / batch.normalizer
        with gradients_stay(self.trainer.model, not batch.is_last):
            self.manual_backward(total * ranks)
        self._watch(batch, loss.detach() * ranks, watched)
        if batch.is_last:
            self._step()

    def _value_losses(self, batch: Minibatch) -> Tensor:
        """The critic's loss at each decision, the same at each of its tokens (N, T)."""
        assert self.critic is not None
        with torch.no_grad():
            features = self.policy.features(batch.record)
        return self.critic.losses(features, batch.returns).unsqueeze(-1).expand_as(batch.weights)

    def _step(self) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        groups = optimizer.param_groups
        norms = [
            clip_gradients(group["params"], group.get("max_grad_norm", self.max_grad_norm))
            for group in groups
        ]
        if self.critic is not None:
            groups, norms = groups[:-1], norms[:-1]
        self.grad_norm.update(torch.stack(norms).norm())
        for group, norm in zip(groups, norms, strict=True):
            if "name" in group:
                self._group_norms[group["name"]].update(norm)
        optimizer.step()
        optimizer.zero_grad()

    def _watch(self, batch: Minibatch, loss: Tensor, values: dict[str, Tensor]) -> None:
        if batch.weights.any():
            for name, value in values.items():
                self.watched[name].update(value, batch.weights)
        self._loss_of_step += float(loss)
        if batch.is_last:
            self.loss.update(self._loss_of_step)
            self._loss_of_step = 0.0

    def on_train_batch_end(self, outputs: Any, batch: Minibatch, batch_idx: int) -> None:
        """Logs the iteration once its last step is done, before callbacks look at it."""
        if not self.trainer.is_last_batch:
            return
        datamodule = getattr(self.trainer, "datamodule", None)
        values = dict(datamodule.collected) if datamodule is not None else {}
        watched = [*self.watched.items(), ("loss", self.loss), ("grad_norm", self.grad_norm)]
        watched += [(f"grad_norm/{name}", norm) for name, norm in self._group_norms.items()]
        if self.critic is not None:
            watched.append(("explained_variance", self.explained_variance))
        for name, metric in watched:
            value = metric.compute()
            metric.reset()
            if name not in self.watched or not math.isnan(value):  # no decision was worth computing
                values[f"train/{name}"] = value
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        values["train/lr"] = optimizer.param_groups[0]["lr"]
        for group in optimizer.param_groups:
            if "name" in group:
                values[f"train/lr/{group['name']}"] = group["lr"]
        values["time/learning"] = time.monotonic() - self._learning_since
        # All but the times are the same on every rank.
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Steps the learning rate: its schedule counts iterations."""
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()  # type: ignore[union-attr]

    # -- evaluation -------------------------------------------------------------------------------

    def validation_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Counts one evaluation episode."""
        task = self.success_rate.tasks.index(rollout.context.task)
        self.success_rate.update(task, rollout.success, rollout.steps)

    def on_validation_epoch_end(self) -> None:
        """Logs success rates over all ranks."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            datamodule.end_evaluation()
        result = self.success_rate.compute()
        self.evaluation = result
        self.log("val/success_rate", result.rate, prog_bar=True, batch_size=1, sync_dist=True)
        for task in result.tasks:
            self.log(f"val/success_rate/{task.task}", task.rate, batch_size=1, sync_dist=True)
        self.success_rate.reset()
