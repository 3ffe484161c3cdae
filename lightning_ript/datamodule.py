"""Experience: a fresh batch of kept rollouts every epoch, and the evaluation episodes."""

from __future__ import annotations

import logging
import math
import time
from argparse import ArgumentError
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from gymnasium import spaces
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_ript.console.progress import progress_bar
from lightning_ript.contexts import ContextSource, SampledContexts
from lightning_ript.distributed.exchange import gather_objects
from lightning_ript.distributed.sigterm import check_sigterm
from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.envs.pool import EnvironmentPool, check_workers
from lightning_ript.evaluation import (
    EvaluationEpisodes,
    Start,
    evaluation_starts,
    run_evaluation,
)
from lightning_ript.filtering import ContextQueue, Quota, make_queue
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.rollouts import Collection, acting, collect_groups
from lightning_ript.storage.journal import Journal, fingerprint, label_of, remove_journals
from lightning_ript.storage.run_directory import journals_path
from lightning_ript.types import (
    CollectingProgress,
    Context,
    Experience,
    Minibatch,
    Perturbation,
    Rollout,
    Task,
)

log = logging.getLogger(__name__)

_PERTURBATION = 2**32 - 2  # Stands where the seeds of training episodes have the iteration.


@runtime_checkable
class Learner(Protocol):
    """What the data module asks of the module that it makes experience for."""

    policy: PolicyAdapter

    def prepare_tasks(self, tasks: Sequence[Task]) -> None:
        """Gets ready for the tasks of a run, before any simulator is started."""

    def plan(self, experience: Experience) -> Any:
        """The micro-batches to learn from, a sized iterable; every rank calls it."""


@runtime_checkable
class RolloutObserver(Protocol):
    """A callback that hears of every episode while an iteration collects, on its rank."""

    def on_rollout(self, trainer: L.Trainer, progress: CollectingProgress) -> None:
        """An episode is over.

        Args:
            trainer: The trainer.
            progress: How far the iteration is; changes afterwards.
        """


class OpaqueLoader:
    """Hides batches from Lightning until they are moved to the device.

    At `bf16-true` Lightning would round all of a batch to the precision of the parameters, so that
    actions were scored that nobody took; what to round is the policy's business.

    Args:
        batches: A sized iterable of them; closed with the loader if it can be.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[OpaqueBatch]:
        return map(OpaqueBatch, self._batches)

    def close(self) -> None:
        """Ends an iteration that was left before its end."""
        if hasattr(self._batches, "close"):
            self._batches.close()


class OpaqueBatch:
    """One batch; neither a dataclass nor a collection, which Lightning would look into."""

    def __init__(self, batch: Minibatch | Rollout) -> None:
        self.batch = batch


class RolloutDataModule(L.LightningDataModule):
    """Collects rollouts of the live policy; one trainer epoch is one RIPT iteration.

    Args:
        environment: What to run episodes in.
        contexts: Where training episodes start.
        init_object_noise: Standard deviation (m) of noise on where objects stand in these contexts,
            along each horizontal axis; all rollouts of a context start alike. Test states have
            none.
        rollouts_per_context: K, at least 2.
        groups_per_iteration: B, groups to keep per iteration over all ranks.
        stop_fraction: Stop collecting at this share of B (the reference stops at 0.8).
        max_contexts: Contexts to try per iteration at most, over all ranks; by default 10 B. An
            iteration that reaches it goes on with the groups it has.
        max_groups_per_task: Groups to keep of each task at most, by default any number. The
            reference gives each GPU its own tasks and an equal share of B.
        dynamic_sampling: Whether groups whose rewards are all equal are dropped.
        num_workers: Simulator processes per rank; 0 runs the environment in this process.
        hang_seconds: A simulator that does not answer for so long is replaced.
        eval_states_per_task: Test states per task to evaluate on, all by default.
        eval_sampling: Evaluate with sampled actions (QueST) or the most likely ones (OpenVLA-OFT);
            policies that denoise, with noise within the denoising or without (published).
        eval_videos: Of this many test episodes per task frames are kept, for `RolloutVideo`; or by
            task name, e.g. `{pick_up_the_milk_and_place_it_in_the_basket: 5}`, and none of others.
            Drawing a frame in every control step makes these episodes much slower.
        seed: Seed of contexts, action noise and shuffling.
        journal: Keep finished groups of the iteration in progress on the disk, beside the
            checkpoints, so that a killed run does not run them again. Without effect where no
            command line tells all settings, since groups of other settings would not fit.

    Raises:
        ValueError: If a setting makes no sense.
    """

    _fits = 0  # of this process, the same on all ranks: what a queue is called is used once

    def __init__(
        self,
        environment: EnvironmentSpec,
        contexts: ContextSource | None = None,
        init_object_noise: float = 0.0,
        rollouts_per_context: int = 8,
        groups_per_iteration: int = 180,
        stop_fraction: float = 1.0,
        max_contexts: int | None = None,
        max_groups_per_task: int | None = None,
        dynamic_sampling: bool = True,
        num_workers: int = 2,
        hang_seconds: float = 600.0,
        eval_states_per_task: int | None = None,
        eval_sampling: bool = True,
        eval_videos: int | dict[str, int] = 0,
        seed: int = 0,
        journal: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= init_object_noise < math.inf:
            raise ValueError(f"init_object_noise is {init_object_noise}, but must be 0 or more.")
        if rollouts_per_context < 2:
            raise ValueError(
                f"rollouts_per_context (K) is {rollouts_per_context}: a rollout is judged by the "
                "others of its group, so set it to 2 or more."
            )
        if groups_per_iteration < 1 or not 0 < stop_fraction <= 1:
            raise ValueError(
                f"groups_per_iteration is {groups_per_iteration} and stop_fraction "
                f"{stop_fraction}: set the first to 1 or more and the second within (0, 1]."
            )
        if num_workers < 0 or not hang_seconds > 0:
            raise ValueError(
                f"num_workers is {num_workers} and hang_seconds {hang_seconds}: set the first to 0 "
                "or more and the second to more than 0."
            )
        if eval_states_per_task is not None and eval_states_per_task < 1:
            raise ValueError(
                f"eval_states_per_task is {eval_states_per_task}: set it to 1 or more, or leave it "
                "out for all test states."
            )
        recorded = eval_videos.values() if isinstance(eval_videos, dict) else [eval_videos]
        if min(recorded, default=0) < 0:
            raise ValueError(f"eval_videos is {eval_videos}: set it to 0 episodes or more.")
        self.environment = environment
        self.contexts = contexts or SampledContexts()
        self.init_object_noise = init_object_noise
        self.rollouts_per_context = rollouts_per_context
        self.groups_wanted = math.ceil(stop_fraction * groups_per_iteration)
        self.max_contexts = max_contexts or 10 * groups_per_iteration
        if self.max_contexts < self.groups_wanted:
            raise ValueError(
                f"max_contexts is {self.max_contexts}, fewer than the {self.groups_wanted} groups "
                "to keep: raise it or lower groups_per_iteration."
            )
        if max_groups_per_task is not None and max_groups_per_task < 1:
            raise ValueError(
                f"max_groups_per_task is {max_groups_per_task}: set it to 1 or more, or leave it "
                "out."
            )
        self.max_groups_per_task = max_groups_per_task
        self.dynamic_sampling = dynamic_sampling
        self.num_workers = num_workers
        self.hang_seconds = hang_seconds
        self.eval_states_per_task = eval_states_per_task
        self.eval_sampling = eval_sampling
        self.eval_videos = eval_videos
        self.seed = seed
        self.journal = journal
        self._next_context = 0
        self._iteration = -1  # the one that `_batches` are of
        self._batches: Sized = ()
        self._pool: EnvironmentPool | None = None

    @classmethod
    def spaces_of(cls, settings: Mapping[str, Any]) -> tuple[spaces.Dict, spaces.Box] | None:
        """The observation and action space of the environment that settings of this class name.

        Args:
            settings: As for `__init__`, with the environment as a config has it.

        Returns:
            None where the environment cannot be built, which whoever builds it will say.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("environment", type=EnvironmentSpec)
        try:
            wanted = parser.parse_object({"environment": settings["environment"]})
            environment = parser.instantiate_classes(wanted).environment
        except (ArgumentError, KeyError, TypeError, ValueError):
            return None
        return environment.observation_space, environment.action_space

    @property
    def learner(self) -> Learner:
        """The module whose policy acts, and which learns from what it experiences.

        Raises:
            TypeError: If the module cannot.
        """
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        if not isinstance(module, Learner):
            raise TypeError(
                "RolloutDataModule makes experience for a RIPTLightningModule (a policy, "
                f"prepare_tasks and plan), not for {type(module).__name__}: set model.class_path."
            )
        return module

    def setup(self, stage: str) -> None:
        """Refuses what cannot work before anything expensive is started."""
        assert self.trainer is not None
        reload = self.trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        if stage == "fit" and reload != 1:
            raise ValueError(
                "RolloutDataModule collects anew every epoch: set "
                "trainer.reload_dataloaders_every_n_epochs to 1."
            )
        if stage == "fit" and self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(
                "trainer.fast_dev_run takes one batch of an iteration, which is learned from as a "
                "whole: set trainer.max_epochs and data.groups_per_iteration to 1 in place of it."
            )
        for name in ("limit_train_batches", "val_check_interval") if stage == "fit" else ():
            given = getattr(self.trainer, name)
            if isinstance(given, int) or given != 1.0:
                raise ValueError(
                    f"trainer.{name} is {given}, but an iteration is learned from as a whole: "
                    "leave it out."
                )
        self.check_environment(self.environment)
        tasks = len(self.environment.tasks())
        if (self.eval_states_per_task or self.trainer.world_size) * tasks < self.trainer.world_size:
            raise ValueError(
                f"{self.eval_states_per_task} test states of {tasks} tasks are fewer than the "
                f"{self.trainer.world_size} processes that evaluate: raise eval_states_per_task."
            )
        if stage == "fit" and self.max_groups_per_task is not None:
            most = self.max_groups_per_task * tasks
            if most < self.groups_wanted:
                raise ValueError(
                    f"max_groups_per_task is {self.max_groups_per_task}, so {tasks} tasks give "
                    f"{most} groups at most, but {self.groups_wanted} are wanted: raise one or "
                    "lower the other."
                )
        if isinstance(self.eval_videos, dict):
            names = {task.name for task in self.environment.tasks()}
            if unknown := sorted(self.eval_videos.keys() - names):
                raise ValueError(
                    f"eval_videos names {', '.join(unknown)}, not among the environment's tasks: "
                    "give names as evaluations list them."
                )
        if stage == "fit":
            self.contexts.check(self.environment)
            self._iteration = -1
            RolloutDataModule._fits += 1
        policy, shown = self.learner.policy, self.environment
        policy.check_spaces(shown.observation_space, shown.action_space)
        self.learner.prepare_tasks(self.environment.tasks())

    def check_environment(self, environment: EnvironmentSpec) -> None:
        """Refuses an environment that cannot run on this machine or with this module's settings.

        Args:
            environment: What episodes are to be run in.

        Raises:
            ValueError: If a setting is wrong.
            OSError: If something is missing on this machine.
        """
        environment.check()
        check_workers(environment, self.num_workers)

    @property
    def pool(self) -> EnvironmentPool:
        """The simulators, started when they are first needed."""
        if self._pool is None:
            self._pool = self.make_pool(self.environment)
        return self._pool

    def make_pool(self, environment: EnvironmentSpec) -> EnvironmentPool:
        """Simulators of any environment with this module's settings, which draw on this rank's GPU.

        Args:
            environment: What to build in every slot.
        """
        assert self.trainer is not None
        gpu = self.trainer.strategy.root_device.index  # None without one
        device = self.trainer.local_rank if gpu is None else gpu
        return EnvironmentPool(environment, self.num_workers, self.hang_seconds, device)

    def teardown(self, stage: str) -> None:
        """Ends the simulators."""
        self._close()
        if stage == "fit" and self.trainer is not None and self.trainer.is_global_zero:
            remove_journals(self._journals)

    def on_exception(self, exception: BaseException) -> None:
        """Ends the simulators."""
        self._close()

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def state_dict(self) -> dict[str, Any]:
        """The cursor in the context stream, and what it was collected in, for whoever reads it."""
        return {"next_context": self._next_context, "environment": self.environment.describe()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the stream was left."""
        self._next_context = state_dict["next_context"]

    def on_before_batch_transfer(
        self, batch: OpaqueBatch, dataloader_idx: int
    ) -> Minibatch | Rollout:
        """Unwraps what Lightning was not to touch."""
        return batch.batch

    def transfer_batch_to_device(
        self, batch: Minibatch | Rollout, device: torch.device, dataloader_idx: int
    ) -> Minibatch | Rollout:
        """Moves micro-batches; evaluation rollouts stay where they are."""
        return batch.to(device) if isinstance(batch, Minibatch) else batch

    # -- training ---------------------------------------------------------------------------------

    def train_dataloader(self) -> Iterable[OpaqueBatch]:
        """Collects an iteration's experience; the batches are what the module plans to learn from.

        Raises:
            StopIteration: If there is nothing to learn from, which ends the run as it stood after
                the last iteration that learned.
        """
        trainer = self.trainer
        assert trainer is not None
        # Not `trainer.current_epoch`, which is one less when a resumed run first asks for data.
        if trainer.should_stop:
            return iter(())  # e.g. the time of an earlier start was all there was
        progress: Any = trainer.fit_loop.epoch_progress.current
        iteration: int = progress.processed
        max_epochs = trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs <= iteration:
            return iter(())  # A finished run was started again: Lightning asks before it looks.
        if iteration == self._iteration:
            return OpaqueLoader(self._batches)  # When it resumes a run, Lightning asks twice.
        self.learner.policy.check_ready()  # earlier, sharded weights are not yet restored
        experience = self.collect(iteration)
        if not experience.statistics["rollout/groups_kept"]:
            rank_zero_warn(
                f"All {self.max_contexts} contexts of iteration {iteration} gave "
                "groups of equal rewards, so there is nothing to learn from: the run ends here. "
                "The policy always fails or always succeeds on these contexts. If it always fails, "
                "check the statistics that scale actions, the images' orientation, the language "
                "embedding, the gripper's sign and the controller's mode; else a better start, "
                "other contexts or more rollouts per context would help."
            )
            if trainer.train_dataloader is not None:
                raise StopIteration
            trainer.should_stop = True  # Before the first iteration Lightning stops only so.
            return iter(())
        self._iteration = iteration
        self._batches = self.learner.plan(experience)
        return OpaqueLoader(self._batches)

    def collect(self, iteration: int) -> Experience:
        """Runs and filters rollouts of the live policy; every rank has to call it.

        Args:
            iteration: Number of the iteration, which the rollouts' noise depends on.

        Returns:
            This rank's groups, and the statistics of all ranks.
        """
        started = time.monotonic()
        collection = self._collect(iteration)
        self._next_context = collection.next_context
        statistics = summed_statistics(collection, time.monotonic() - started)
        kept = statistics["rollout/groups_kept"]
        if 0 < kept < self.groups_wanted:
            rank_zero_info(
                f"This iteration kept {kept:.0f} of {self.groups_wanted} groups after "
                f"{self.max_contexts} contexts and goes on."
            )
        return Experience(collection.groups, statistics, seed=(self.seed, iteration))

    def _collect(self, iteration: int) -> Collection:
        trainer, policy = self.trainer, self.learner.policy
        assert trainer is not None
        first = self._next_context
        quota = None
        if self.max_groups_per_task is not None:
            quota = Quota(self.max_groups_per_task, lambda n: self._context(n).task.name)
        queue = make_queue(
            f"fit{self._fits}/iteration{iteration}",
            first,
            self.groups_wanted,
            self.max_contexts,
            quota=quota,
        )
        bar = progress_bar(
            desc=f"iteration {iteration + 1}: collecting",
            unit="episode",
            disable=trainer.global_rank > 0 or trainer.progress_bar_callback is None,
        )
        progress = CollectingProgress(iteration, self.groups_wanted)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        observers = [each for each in callbacks if isinstance(each, RolloutObserver)]

        def on_rollout(rollout: Rollout, queue: ContextQueue) -> None:
            progress.kept, progress.dropped = queue.kept, queue.dropped
            progress.episodes += 1
            progress.successes += rollout.success
            bar.update()
            bar.set_postfix_str(str(progress), refresh=False)
            for observer in observers:
                observer.on_rollout(trainer, progress)

        with bar, acting(policy, self.num_workers):
            return collect_groups(
                policy,
                self.pool,
                queue,
                self._context,
                rollouts_per_context=self.rollouts_per_context,
                seed=(self.seed, iteration),
                max_steps=self.environment.max_steps,
                dynamic_sampling=self.dynamic_sampling,
                on_rollout=on_rollout,
                interrupt=self.check_sigterm,
                forward_context=trainer.precision_plugin.forward_context,
                journal=self._journal(iteration, first),
                share=(trainer.global_rank, trainer.world_size),
            )

    def _journal(self, iteration: int, first: int) -> Journal | None:
        """The finished groups of this iteration, where there are checkpoints to go on from."""
        trainer = self.trainer
        assert trainer is not None
        if not trainer.checkpoint_callbacks:
            return None
        settings = self._told_settings()
        if not self.journal or settings is None:
            return None
        label = ""
        if trainer.is_global_zero:
            weights = fingerprint(self.learner.policy.named_parameters())
            label = label_of(iteration, first, settings, weights)
        label = gather_objects(label)[0]
        return Journal(self._journals, label, clean=trainer.is_global_zero)

    def _told_settings(self) -> str | None:
        """All settings of model and data but those that change no rollout; None where not known."""
        assert self.trainer is not None
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        saved = [each for each in callbacks if isinstance(each, SaveConfigCallback)]
        if not saved:
            return None
        settings = saved[0].config.as_dict()
        data = {**settings.get("data", {}).get("init_args", {})}
        for name in ("num_workers", "hang_seconds", "eval_videos", "journal"):
            data.pop(name, None)
        return repr((settings.get("model"), data, self.trainer.precision))

    @property
    def _journals(self) -> Path:
        assert self.trainer is not None
        return journals_path(self.trainer.default_root_dir)

    def _context(self, n: int) -> Context:
        """The n-th training context."""
        context = self.contexts.context(n, self.environment, self.seed)
        if not self.init_object_noise:
            return context
        seed = (self.seed, _PERTURBATION, n)
        return replace(context, perturbation=Perturbation(self.init_object_noise, seed))

    def check_sigterm(self) -> None:
        """Stops a process that was told to end."""
        assert self.trainer is not None
        check_sigterm(self.trainer)

    # -- evaluation -------------------------------------------------------------------------------

    def val_dataloader(self) -> OpaqueLoader:
        """The evaluation episodes, run lazily: one finished rollout per batch."""
        assert self.trainer is not None
        starts = evaluation_starts(self.environment, self.eval_states_per_task, self.eval_videos)
        mine = starts[self.trainer.global_rank :: self.trainer.world_size]
        return OpaqueLoader(EvaluationEpisodes(mine, self._evaluate))

    def _evaluate(self, starts: list[Start]) -> Generator[Rollout, None, None]:
        assert self.trainer is not None
        return run_evaluation(
            self.learner.policy,
            self.pool,
            starts,
            max_steps=self.environment.max_steps,
            seed=self.seed,
            sampling=self.eval_sampling,
            num_workers=self.num_workers,
            interrupt=self.check_sigterm,
            forward_context=self.trainer.precision_plugin.forward_context,
        )


def summed_statistics(collection: Collection, seconds: float) -> dict[str, float]:
    """The metrics of a collection over all ranks; every rank has to call it.

    Args:
        collection: This rank's share.
        seconds: How long it took.
    """
    kept = [rollout for group in collection.groups for rollout in group.rollouts]
    mine = {
        "successes": collection.successes,
        "episodes": collection.episodes,
        "run_before": collection.run_before,
        "steps": collection.steps,
        "kept_groups": len(collection.groups),
        "dropped_groups": len(collection.dropped),
        "kept_successes": sum(rollout.success for rollout in kept),
        "kept_episodes": len(kept),
    }
    everyone = gather_objects(mine)
    total = {name: sum(part[name] for part in everyone) for name in mine}
    return {
        "rollout/success_rate": total["successes"] / max(1, total["episodes"]),
        "rollout/success_rate_kept": total["kept_successes"] / max(1, total["kept_episodes"]),
        "rollout/groups_kept": total["kept_groups"],
        "rollout/groups_dropped": total["dropped_groups"],
        "rollout/episode_length": total["steps"] / max(1, total["episodes"]),
        "rollout/episodes_per_second": (total["episodes"] - total["run_before"]) / seconds,
        "time/collecting": seconds,
    }
