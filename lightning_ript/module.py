"""Learning: clipped PPO on the kept rollouts, around any policy adapter."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric, MetricCollection

from lightning_ript.advantages import AdvantageEstimator, group_advantages
from lightning_ript.console.deprecation import renamed
from lightning_ript.distributed.exchange import gather_objects, wait_for_all
from lightning_ript.distributed.sharding import (
    clip_gradients,
    gathered,
    gradients_stay,
    is_sharded,
    shard,
)
from lightning_ript.distributed.sigterm import check_sigterm
from lightning_ript.distributed.strategies import ShardedStrategy
from lightning_ript.evaluation import SuccessRate
from lightning_ript.minibatches import (
    LearningSchedule,
    LossAggregation,
    MinibatchSchedule,
    filler_of,
    flatten,
    kept_episodes,
)
from lightning_ript.policies.agreement import allowed_log_ratio, check_agreement
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.policies.reference import ReferenceWeights
from lightning_ript.ppo import Surrogate, SurrogateLoss, clipped_surrogate, kl_penalty
from lightning_ript.storage.run_directory import diverged_path
from lightning_ript.types import (
    DecisionBatch,
    Experience,
    Minibatch,
    Rollout,
    RolloutGroup,
    Task,
)

_WATCHED = ("ratio", "clip_fraction", "approx_kl", "entropy", "advantage")
_REFERENCE = "reference_log_probs"


def _adamw(parameters: Iterable[Any]) -> Optimizer:
    """The reference's optimizer for QueST (paper, appendix)."""
    return torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.999), weight_decay=1e-4)


class RIPTLightningModule(L.LightningModule):
    """Post-trains a policy with RIPT. Defaults are the reference's for QueST.

    Args:
        policy: The policy.
        advantage: Advantage estimator: `leave_one_out`, `group_normalized` (GRPO), `plain`
            (REINFORCE), or the import path of a function from rewards (K,) to advantages (K,).
        passes: PPO passes over the kept rollouts per iteration.
        episodes_per_minibatch: Episodes per optimizer step, over all ranks.
        decisions_per_microbatch: Decision steps per forward pass and rank at most; bounds memory
            and changes nothing else.
        loss_aggregation: Mean over all tokens (`token`), or over episodes of each one's mean
            (`sequence`).
        minibatch_parts: Parts of a minibatch whose means over tokens are averaged; with `token`
            only. The reference's 3 GPUs made 3 parts of 2 episodes each.
        surrogate: The loss: `clipped`, PPO's, or the import path of a function that takes the
            arguments of `ppo.clipped_surrogate` by keyword and returns a `ppo.Surrogate`.
        clip_low: Clip range of the ratio below 1.
        clip_high: Clip range above 1; larger than `clip_low` for an asymmetric clip.
        kl_coefficient: Weight of the KL divergence to the starting policy; 0 turns it off.
        max_grad_norm: Gradients of each optimizer group are scaled down to this norm, unless the
            policy's group has a `max_grad_norm` of its own.
        max_first_log_ratio: How far `act` and `log_prob` may differ on what has just been decided,
            before the first optimizer step; by default what the precision explains (0.01 in
            float32, 0.5 in bfloat16).
        optimizer: Makes the optimizer from the policy's parameter groups.
        scheduler: Makes a learning rate scheduler.
        scheduler_interval: Iterations from one step of the scheduler to the next.
        aggregation: The name that `loss_aggregation` had in version 0.1.

    Raises:
        ValueError: If a setting makes no sense.
    """

    best_by: ClassVar = ("val/success_rate", "max")
    """The metric that tells which checkpoint is the best one, and whether large is good."""

    success_rate: SuccessRate

    def __init__(
        self,
        policy: PolicyAdapter,
        advantage: AdvantageEstimator = "leave_one_out",
        passes: int = 20,
        episodes_per_minibatch: int = 8,
        decisions_per_microbatch: int = 512,
        loss_aggregation: LossAggregation = "token",
        minibatch_parts: int = 1,
        surrogate: SurrogateLoss = "clipped",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coefficient: float = 0.0,
        max_grad_norm: float = 1.0,
        max_first_log_ratio: float | None = None,
        optimizer: OptimizerCallable = _adamw,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: int = 1,
        aggregation: LossAggregation | None = None,
    ) -> None:
        super().__init__()
        positive = {
            "passes": passes,
            "episodes_per_minibatch": episodes_per_minibatch,
            "decisions_per_microbatch": decisions_per_microbatch,
            "minibatch_parts": minibatch_parts,
            "scheduler_interval": scheduler_interval,
            "clip_low": clip_low,
            "clip_high": clip_high,
            "max_grad_norm": max_grad_norm,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"model.{name} is {value}, but must be positive.")
        if optimizer is None:
            raise ValueError("model.optimizer is null: name a class, or leave it out for AdamW.")
        if kl_coefficient < 0:
            raise ValueError(f"model.kl_coefficient is {kl_coefficient}, but must not be negative.")
        if aggregation is not None:
            renamed("model.aggregation", "model.loss_aggregation")
            loss_aggregation = aggregation
        if minibatch_parts > 1 and loss_aggregation == "sequence":
            raise ValueError(
                f"model.minibatch_parts is {minibatch_parts} and model.loss_aggregation sequence, "
                "where every episode is a part of its own: set one of them only."
            )
        self.automatic_optimization = False
        self.policy = policy
        self.advantage = advantage
        self.learning_schedule = LearningSchedule(
            passes=passes,
            episodes_per_minibatch=episodes_per_minibatch,
            decisions_per_microbatch=decisions_per_microbatch,
            loss_aggregation=loss_aggregation,
            minibatch_parts=minibatch_parts,
        )
        self.surrogate: Callable[..., Surrogate] = (
            surrogate if callable(surrogate) else clipped_surrogate
        )
        self.clip_low, self.clip_high = clip_low, clip_high
        self.kl_coefficient = kl_coefficient
        self.max_grad_norm = max_grad_norm
        self.max_first_log_ratio = max_first_log_ratio
        self._compared = False  # act and log_prob, since this process began to learn
        self._diverged: Minibatch | None = None
        self._make_optimizer: Callable = optimizer
        self._make_scheduler: Callable | None = scheduler
        self.scheduler_interval = scheduler_interval
        self.reference = ReferenceWeights(policy) if kl_coefficient else None
        self.success_rate = SuccessRate()
        self.watched = MetricCollection({name: MeanMetric() for name in _WATCHED})
        self.grad_norm = MeanMetric()
        self._group_norms: dict[str, MeanMetric] = {}
        self._policy_groups = 0  # of the optimizer's parameter groups, the first ones
        self.loss = MeanMetric()
        self._loss_of_step = 0.0
        self._statistics: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        """Refuses what cannot work.

        Raises:
            ValueError: If the precision is one whose gradients are scaled, or one that the policy
                does not tolerate.
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

    def prepare_tasks(self, tasks: Sequence[Task]) -> None:
        """Gets policy and success counts ready for the tasks of a run.

        The data module calls it before any simulator is started.
        """
        self.policy.prepare(tasks)
        self.success_rate.reset_tasks(tasks)

    def configure_model(self) -> None:
        """Under FSDP, leaves each rank its share of all parameters.

        Raises:
            TypeError: If the strategy is another of Lightning's for sharding, or the policy has
                weights that cannot be sharded.
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
        self.shard_parts(self.device_mesh["data_parallel"])

    def shard_parts(self, mesh: Any) -> None:
        """Leaves each rank of a one-dimensional device mesh its share of everything that learns."""
        shard(self.policy, mesh, self.policy.blocks(), self.policy.entry_points)
        if self.reference is not None:
            self.reference.shard(self.policy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what the policy reads from files of its own, and says what it is like."""
        state = checkpoint["state_dict"]
        saved = self.policy.saved_in_module
        checkpoint["state_dict"] = {name: state[name] for name in state if saved(name)}
        checkpoint["policy"] = self.policy.described()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts it back as it is now, so that anything else that is missing is noticed."""
        state = self.state_dict()
        # Quantized layers add entries of their own, which they would not take back.
        everything = self.named_parameters, self.named_buffers
        names = {name for named in everything for name, _ in named(remove_duplicate=False)}
        saved = self.policy.saved_in_module
        left_out = {n: v for n, v in state.items() if n in names and not saved(n)}
        found = checkpoint["state_dict"]
        if self.reference is not None:
            found = self.reference.adopt(found, "reference.")
        checkpoint["state_dict"] = {**left_out, **found}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, the policy's first."""
        return list(self.policy.parameter_groups())

    def configure_optimizers(self) -> Any:
        """One optimizer over all parameter groups.

        Raises:
            ValueError: If two groups have the same name, or the schedule waits for a metric.
        """
        groups = self.parameter_groups()
        self._policy_groups = len(self.policy.parameter_groups())
        names = [str(group["name"]) for group in groups if "name" in group]
        if len(set(names)) < len(names):
            raise ValueError(f"parameter_groups() has two groups of a name among {names}.")
        self._group_norms = {name: MeanMetric().to(self.device) for name in names}
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

    # -- planning ---------------------------------------------------------------------------------

    def plan(self, experience: Experience) -> MinibatchSchedule:
        """Judges an iteration's rollouts and arranges what all passes learn from.

        Every rank has to call it, with its own share.

        Args:
            experience: What this rank has kept; some rank has kept something.

        Returns:
            This rank's micro-batches.
        """
        self._statistics = experience.statistics
        self.policy.eval()
        decisions = self.judge(experience.groups, flatten(experience.groups))
        if self.reference is not None:
            scores = self._reference_log_probs(decisions)
            decisions = replace(decisions, targets={**decisions.targets, _REFERENCE: scores})
        rank = self.trainer.global_rank
        everyone = gather_objects((kept_episodes(experience.groups, rank), filler_of(decisions)))
        return MinibatchSchedule(
            decisions,
            [episode for episodes, _ in everyone for episode in episodes],
            next(filler for _, filler in everyone if filler is not None),
            self.learning_schedule,
            rank=rank,
            world_size=self.trainer.world_size,
            seed=experience.seed,
        )

    def judge(self, groups: Sequence[RolloutGroup], decisions: DecisionBatch) -> DecisionBatch:
        """Gives each decision its advantage, before anything is learned.

        Every rank has to call it, once per iteration.

        Args:
            groups: This rank's groups.
            decisions: All their decisions.
        """
        return replace(decisions, advantages=group_advantages(self.advantage, groups))

    @torch.no_grad()
    def _reference_log_probs(self, decisions: DecisionBatch) -> Tensor:
        """What the starting policy gives the decisions, (N, T), once for all passes."""
        assert self.reference is not None
        scores = [torch.empty_like(decisions.old_log_probs[:0])]
        size = self.learning_schedule.decisions_per_microbatch
        with self.reference.in_place_of(self.policy), gathered(self.policy):
            for start in range(0, len(decisions), size):
                record = decisions[start : start + size].record
                record = {name: value.to(self.device) for name, value in record.items()}
                with self.trainer.precision_plugin.forward_context():
                    log_probs, _ = self.policy.log_prob(record)
                scores.append(log_probs.float().cpu())
        return torch.cat(scores)

    # -- training ---------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Dropout stays off: the ratio compares probabilities of one and the same network."""
        self.policy.eval()
        self._learning_since = time.monotonic()

    def training_step(self, batch: Minibatch, batch_idx: int) -> None:
        """One forward and backward pass; steps the optimizer at the end of a minibatch."""
        log_probs, entropy = self.policy.log_prob(batch.record)
        self._compare_once(log_probs, batch)
        surrogate = self.surrogate(
            log_probs=log_probs,
            old_log_probs=batch.old_log_probs,
            advantages=batch.advantages,
            weights=batch.weights,
            normalizer=batch.normalizer,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        loss = surrogate.loss
        if self.reference is not None:
            reference = batch.targets[_REFERENCE]
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
        for name, values in self.auxiliary_losses(batch).items():
            watched[name] = values.detach()
            total = total + (batch.weights * values).sum() / batch.normalizer
        with gradients_stay(self.trainer.model, not batch.is_last):
            self.manual_backward(total * ranks)
        self._watch(batch, loss.detach() * ranks, watched)
        if batch.is_last:
            self._step()

    def _compare_once(self, log_probs: Tensor, batch: Minibatch) -> None:
        """Compares `log_prob` with `act` before the first optimizer step.

        Raises:
            ValueError: They disagree.
        """
        if self._compared:
            return
        allowed = self.max_first_log_ratio
        if allowed is None:
            mixed = str(self.trainer.precision_plugin.precision) == "bf16-mixed"
            allowed = allowed_log_ratio(self.policy, torch.bfloat16 if mixed else None)
        check_agreement(log_probs, batch.old_log_probs, batch.weights, allowed)
        self._compared = batch.is_last

    def auxiliary_losses(self, batch: Minibatch) -> dict[str, Tensor]:
        """Losses of an extension beside the policy's: metric name -> loss of each token (N, T)."""
        return {}

    def _step(self) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        norms = [
            clip_gradients(group["params"], group.get("max_grad_norm", self.max_grad_norm))
            for group in optimizer.param_groups
        ]
        self._check_finite(optimizer.param_groups, norms)
        self.grad_norm.update(torch.stack(norms[: self._policy_groups]).norm())
        for group, norm in zip(optimizer.param_groups, norms, strict=True):
            if "name" in group:
                self._group_norms[group["name"]].update(norm)
        optimizer.step()
        optimizer.zero_grad()

    def _check_finite(self, groups: Sequence[dict[str, Any]], norms: Sequence[Tensor]) -> None:
        """Stops before a step that would ruin the weights; all ranks see the same norms.

        Raises:
            FloatingPointError: A gradient is not finite; the micro-batch is kept in a file.
        """
        names = [
            str(group.get("name", number))
            for number, (group, norm) in enumerate(zip(groups, norms, strict=True))
            if not torch.isfinite(norm)
        ]
        if not names:
            return
        kept = ""
        if self._diverged is not None:
            path = diverged_path(self.trainer.default_root_dir, self.trainer.global_rank)
            torch.save(vars(self._diverged), path)
            kept = f" The micro-batch that it came from is in {path}."
        raise FloatingPointError(
            f"Iteration {self.current_epoch + 1}: the gradient of the parameter group "
            f"{', '.join(names)} is not finite, so the optimizer did not step.{kept} Checkpoints "
            "are of the iterations before."
        )

    def _watch(self, batch: Minibatch, loss: Tensor, values: dict[str, Tensor]) -> None:
        if batch.weights.any():
            for name, value in values.items():
                self.watched[name].update(value, batch.weights)
        self._loss_of_step += float(loss)
        if not math.isfinite(self._loss_of_step) and self._diverged is None:
            self._diverged = batch
        if batch.is_last:
            self.loss.update(self._loss_of_step)
            self._loss_of_step = 0.0

    def learning_metrics(self) -> dict[str, Metric]:
        """What an iteration logs of its learning, by name below `train/`."""
        norms = {f"grad_norm/{name}": norm for name, norm in self._group_norms.items()}
        watched = {str(name): metric for name, metric in self.watched.items()}
        return {**watched, "loss": self.loss, "grad_norm": self.grad_norm, **norms}

    def on_train_batch_end(self, outputs: Any, batch: Minibatch, batch_idx: int) -> None:
        """Logs the iteration once its last step is done, before callbacks look at it."""
        if not self.trainer.is_last_batch:
            return
        values: dict[str, Any] = dict(self._statistics)
        with warnings.catch_warnings():
            # A rank may have kept no group; what the others counted is summed all the same.
            unused = "The ``compute`` method of metric .* was called before the ``update``"
            warnings.filterwarnings("ignore", unused)
            for name, metric in self.learning_metrics().items():
                values[f"train/{name}"] = metric.compute()
                metric.reset()
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
        if scheduler is not None and (self.current_epoch + 1) % self.scheduler_interval == 0:
            scheduler.step()  # type: ignore[union-attr]

    # -- evaluation -------------------------------------------------------------------------------

    def validation_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Counts one evaluation episode."""
        task = self.success_rate.tasks.index(rollout.context.task)
        self.success_rate.update(task, rollout.success, rollout.steps)

    def on_validation_epoch_end(self) -> None:
        """Logs success rates over all ranks."""
        # Episodes run as they are asked for, and Lightning may have asked for some of them only.
        end = getattr(self.trainer.val_dataloaders, "close", None)
        if end is not None:
            end()
        wait_for_all(lambda: check_sigterm(self.trainer))
        result = self.success_rate.compute()
        self.evaluation = result
        self.log("val/success_rate", result.rate, prog_bar=True, batch_size=1, sync_dist=True)
        for task in result.tasks:
            self.log(f"val/success_rate/{task.task}", task.rate, batch_size=1, sync_dist=True)
        self.success_rate.reset()
