"""Evaluations during training on more than the run's own tasks."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_ript.console.progress import progress_bar
from lightning_ript.datamodule import RolloutDataModule
from lightning_ript.distributed.exchange import wait_for_all
from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.evaluation import SuccessRate, draws_noise, evaluation_starts, run_evaluation
from lightning_ript.reports.rows import pooled, result_rows
from lightning_ript.reports.tables import Row, write_csv
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.run_directory import sweep_table_path


class EvaluationSweep(Callback):
    """Every few iterations, evaluates the policy on the test states of other environments.

    For example of other suites, to see whether what it learns carries over and what it forgets. The
    rows go to `<run_dir>/sweep.csv`, the rates to `sweep/<name>/success_rate`, over all tasks and
    seeds. The rows are part of the checkpoint, so a resumed run goes on with them. List it before
    `RunReport`, whose history then holds the rates too.

    The data module decides whether actions are sampled and how many simulators run
    (`eval_sampling`, `num_workers`). Each environment's simulators are started for its sweep and
    ended after it, beside those of training.

    Args:
        environments: What to evaluate on, by the name that the results carry.
        every_n_iterations: Iterations from one sweep to the next.
        at_start: Whether the starting policy is evaluated too, as iteration 0.
        states_per_task: Test states per task, all by default.
        seeds: Seeds of the sampling noise; each one runs every test state.

    Raises:
        ValueError: If a setting makes no sense.
    """

    def __init__(
        self,
        environments: dict[str, EnvironmentSpec],
        every_n_iterations: int = 1,
        at_start: bool = False,
        states_per_task: int | None = None,
        seeds: tuple[int, ...] = (0,),
    ) -> None:
        if not environments or not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"EvaluationSweep has {len(environments)} environments and the seeds {seeds}: name "
                "at least one of each, and no seed twice."
            )
        if every_n_iterations < 1 or (states_per_task is not None and states_per_task < 1):
            raise ValueError(
                f"EvaluationSweep.every_n_iterations is {every_n_iterations} and states_per_task "
                f"{states_per_task}: set them to 1 or more."
            )
        self.environments = environments
        self.every_n_iterations = every_n_iterations
        self.at_start = at_start
        self.states_per_task = states_per_task
        self.seeds = seeds
        self.rows: list[Row] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses what cannot work before anything expensive is started."""
        if stage != "fit":
            return
        datamodule = _datamodule(trainer)
        policy = datamodule.learner.policy
        if len(self.seeds) > 1 and not draws_noise(policy, datamodule.eval_sampling):
            raise ValueError(
                "EvaluationSweep has several seeds, but data.eval_sampling is false: the episodes "
                "would be the same for each. Give one seed."
            )
        for environment in self.environments.values():
            datamodule.check_environment(environment)
            datamodule.learner.policy.check_spaces(
                environment.observation_space, environment.action_space
            )
        environments = [datamodule.environment, *self.environments.values()]
        tasks = [task for environment in environments for task in environment.tasks()]
        datamodule.learner.policy.prepare(tasks)  # the data module has prepared it for its own only

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes on from the iteration that training goes on from; evaluates the starting policy."""
        done = trainer.current_epoch
        self.rows = [row for row in self.rows if row["iteration"] <= done]
        if self.at_start and done == 0:
            rates = self._sweep(trainer, pl_module, iteration=0)
            for logger in trainer.loggers:  # what is logged here the usual way waits for the epoch
                logger.log_metrics(rates, step=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluates every `every_n_iterations`; checkpoints are saved later and hold the rows."""
        iteration = trainer.current_epoch + 1
        if iteration % self.every_n_iterations == 0:
            rates = self._sweep(trainer, pl_module, iteration)
            pl_module.log_dict(rates, batch_size=1, sync_dist=True)

    def _sweep(
        self, trainer: L.Trainer, pl_module: L.LightningModule, iteration: int
    ) -> dict[str, float]:
        """Evaluates on everything; returns the rates by metric, the same on every rank."""
        rates = {}
        for name, environment in self.environments.items():
            rows: list[Row] = []
            with _datamodule(trainer).make_pool(environment) as pool:
                for seed in self.seeds:
                    result = self._evaluate(trainer, pl_module, name=name, pool=pool, seed=seed)
                    facts = {"iteration": iteration, "environment": name, "seed": seed}
                    rows += result_rows(result, facts)
            total = pooled(rows)
            low, high = total.interval()
            rank_zero_info(
                f"sweep of iteration {iteration}: {name} {total.successes}/{total.episodes}, "
                f"{total.rate:.1%} ({low:.1%} - {high:.1%})"
            )
            rates[f"sweep/{name}/success_rate"] = total.rate
            self.rows += rows
        if trainer.is_global_zero:
            write_csv(sweep_table_path(trainer.default_root_dir), self.rows)
        return rates

    def _evaluate(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        name: str,
        pool: EnvironmentPool,
        seed: int,
    ) -> EvaluationResult:
        """One environment with one seed; the ranks share the episodes and sum the counts."""
        datamodule, environment = _datamodule(trainer), self.environments[name]
        metric = SuccessRate(environment.tasks()).to(pl_module.device)
        starts = evaluation_starts(environment, self.states_per_task)
        mine = starts[trainer.global_rank :: trainer.world_size]
        rollouts = run_evaluation(
            datamodule.learner.policy,
            pool,
            mine,
            max_steps=environment.max_steps,
            seed=seed,
            sampling=datamodule.eval_sampling,
            num_workers=datamodule.num_workers,
            interrupt=datamodule.check_sigterm,
            forward_context=trainer.precision_plugin.forward_context,
        )
        bar = progress_bar(
            rollouts,
            desc=f"sweep: {name}, seed {seed}",
            unit="episode",
            total=len(mine),
            disable=trainer.global_rank > 0 or trainer.progress_bar_callback is None,
        )
        for rollout in bar:
            metric.update(metric.tasks.index(rollout.context.task), rollout.success, rollout.steps)
        wait_for_all(datamodule.check_sigterm)
        metadata: dict[str, Any] = {
            "sampled_actions": datamodule.eval_sampling,
            "environment": environment.describe(),
        }
        return metric.compute()._replace(metadata=metadata)

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the rows of the checkpoint."""
        self.rows = list(state_dict["rows"])


def _datamodule(trainer: L.Trainer) -> RolloutDataModule:
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, RolloutDataModule):
        raise TypeError(
            f"EvaluationSweep runs rollouts, but the data module is {type(datamodule).__name__}: "
            "use it with RolloutDataModule."
        )
    return datamodule
