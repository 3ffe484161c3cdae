"""2: K episodes per context, scheduled over the environment pool, with batched inference.

What is collected does not depend on timing or on the number of workers: an episode draws its noise
from (seed, iteration, context, k) alone, and the groups of an iteration are the first ones of the
context stream that qualify, whichever finish first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from lightning_ript.distributed.exchange import gather_objects, wait_for_all
from lightning_ript.distributed.sharding import gathered
from lightning_ript.envs.base import WorkerError
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.filtering import ContextQueue, is_informative
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.scheduling import EpisodeRequest, GroupByGroup, Schedule
from lightning_ript.storage.journal import Journal
from lightning_ript.types import ChunkResult, Context, Observation, Rollout, RolloutGroup

log = logging.getLogger(__name__)

ForwardContext = Callable[[], AbstractContextManager]
"""Makes the context of a forward pass, as Lightning's precision plugins do."""

_ATTEMPTS = 3  # of an episode; a simulator that fails each time has another reason than bad luck


@dataclass
class _Running:
    """An episode in a slot."""

    episode: EpisodeRequest
    attempt: int
    rng: np.random.Generator | None
    steps: int = 0
    records: list[dict[str, torch.Tensor]] = field(default_factory=list)
    log_probs: list[torch.Tensor] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    seen: list[np.ndarray] = field(default_factory=list)


@contextmanager
def acting(
    policy: PolicyAdapter, num_workers: int, exploring: bool = True, evaluating: bool = False
) -> Iterator[None]:
    """Puts the policy in evaluation mode, gathers it, and leaves the simulators their cores.

    Under FSDP every rank has to enter, but needs no other after that.

    Args:
        policy: The policy.
        num_workers: Simulator processes, which want cores.
        exploring: See `PolicyAdapter`.
        evaluating: See `PolicyAdapter`.
    """
    training, threads = policy.training, torch.get_num_threads()
    policy.eval()
    policy.exploring, policy.evaluating = exploring, evaluating
    # OpenMP's threads wait for each other by spinning: one too many, and a decision takes 20 times
    # as long.
    torch.set_num_threads(max(1, threads - num_workers))
    try:
        with gathered(policy):
            yield
    finally:
        torch.set_num_threads(threads)
        policy.exploring, policy.evaluating = True, False
        policy.train(training)


def run_episodes(
    policy: PolicyAdapter,
    pool: EnvironmentPool,
    schedule: Schedule,
    max_steps: int,
    forward_context: ForwardContext = nullcontext,
) -> Generator[Rollout, None, None]:
    """Runs episodes and yields each as it finishes; a free slot starts the next one at once.

    Closing the generator abandons the episodes still running. An episode whose simulator fails is
    run again from its start in a new simulator, and comes out as it would have the first time.

    Args:
        policy: Decides for all slots that wait, in one batch.
        pool: Where the episodes run.
        schedule: What to run; an episode is taken only when a slot is free.
        max_steps: Control steps after which an episode has failed.
        forward_context: Makes the context that the policy decides in.

    Raises:
        WorkerError: If a simulator cannot be built, or fails in an episode time after time.
    """
    running: dict[int, _Running] = {}

    def start(slot: int, episode: EpisodeRequest | None, attempt: int = 1) -> None:
        if episode is not None:
            rng = None if episode.seed is None else np.random.default_rng(episode.seed)
            running[slot] = _Running(episode, attempt, rng)
            pool.reset(slot, episode.context, episode.film)

    def start_next(slot: int) -> None:
        start(slot, schedule.take(slot, pool))

    try:
        for slot in pool.slots:
            start_next(slot)
        while running:
            deciding, observations = [], []
            for slot, answer in pool.wait():
                state = running[slot]
                if isinstance(answer, WorkerError):
                    if answer.unusable or state.attempt == _ATTEMPTS:
                        raise answer
                    log.warning(
                        "%s\nIts episode (task '%s', context %d, k %d) is run again in a new one.",
                        answer,
                        state.episode.context.task.name,
                        state.episode.context.index,
                        state.episode.k,
                    )
                    start(slot, state.episode, state.attempt + 1)
                    continue
                if isinstance(answer, ChunkResult):
                    state.steps += answer.steps
                    state.frames.extend(answer.frames)
                    if answer.success or state.steps >= max_steps:
                        del running[slot]
                        start_next(slot)
                        yield _finish(state, answer.success)
                        continue
                    answer = answer.observation
                if len(state.seen) < state.episode.keep_seen:
                    state.seen.extend(_side_by_side(answer))
                deciding.append(slot)
                observations.append(answer)
            if deciding:
                _decide(
                    policy,
                    pool,
                    slots=deciding,
                    observations=observations,
                    running=running,
                    max_steps=max_steps,
                    forward_context=forward_context,
                )
    finally:
        pool.drain()


def _decide(
    policy: PolicyAdapter,
    pool: EnvironmentPool,
    slots: list[int],
    observations: list,
    running: dict[int, _Running],
    max_steps: int,
    forward_context: ForwardContext,
) -> None:
    """Gives each waiting slot its next action chunk."""
    states = [running[slot] for slot in slots]
    # Sampled and greedy episodes may share the pool; each kind makes one batch.
    for sampled in (True, False):
        rows = [i for i, state in enumerate(states) if (state.rng is not None) == sampled]
        if not rows:
            continue
        noise = None
        if sampled:
            draws = [states[i].rng.random(policy.noise_shape, np.float32) for i in rows]  # type: ignore[union-attr]
            noise = torch.from_numpy(np.stack(draws)).to(policy.device)
        tasks = [states[i].episode.context.task for i in rows]
        with forward_context():
            decisions = policy.act([observations[i] for i in rows], tasks, noise)
        actions = decisions.actions.float().cpu().numpy()
        if not np.isfinite(actions).all():
            raise FloatingPointError(
                f"the policy gave a non-finite action for task '{tasks[0].name}': its parameters "
                "have probably diverged; lower the learning rate or resume an earlier checkpoint."
            )
        log_probs = decisions.log_probs.float().cpu()
        record = {name: value.cpu() for name, value in decisions.record.items()}
        for row, i in enumerate(rows):
            states[i].records.append({name: value[row] for name, value in record.items()})
            states[i].log_probs.append(log_probs[row])
            pool.step_chunk(slots[i], actions[row][: max_steps - states[i].steps])


def _finish(state: _Running, success: bool) -> Rollout:
    record = {name: torch.stack([r[name] for r in state.records]) for name in state.records[0]}
    return Rollout(
        context=state.episode.context,
        k=state.episode.k,
        success=success,
        steps=state.steps,
        record=record,
        log_probs=torch.stack(state.log_probs),
        frames=tuple(state.frames),
        seen=tuple(state.seen),
    )


def _side_by_side(observation: Observation) -> list[np.ndarray]:
    """All images of an observation as one, where they are equally high; none without any."""
    images = [value for value in observation.values() if value.ndim == 3]
    same = [image for image in images if image.shape[0] == images[0].shape[0]]
    return [np.concatenate(same, axis=1)] if same else []


@dataclass(frozen=True)
class Collection:
    """What this rank's share of an iteration's collection brought.

    Attributes:
        groups: Kept groups, in the order of their context numbers.
        dropped: Context numbers of this rank's finished groups with all-equal rewards.
        successes: Successful episodes among all finished ones, kept or not.
        episodes: Finished episodes.
        steps: Control steps of the finished episodes.
        next_context: Number of the first context the next iteration takes.
        run_before: Those of the finished episodes that a journal held.
    """

    groups: tuple[RolloutGroup, ...]
    dropped: tuple[int, ...]
    successes: int
    episodes: int
    steps: int
    next_context: int
    run_before: int = 0


def collect_groups(
    policy: PolicyAdapter,
    pool: EnvironmentPool,
    queue: ContextQueue,
    context: Callable[[int], Context],
    *,
    rollouts_per_context: int,
    seed: tuple[int, ...],
    max_steps: int,
    dynamic_sampling: bool = True,
    on_rollout: Callable[[Rollout, ContextQueue], None] = lambda rollout, queue: None,
    interrupt: Callable[[], None] = lambda: None,
    forward_context: ForwardContext = nullcontext,
    journal: Journal | None = None,
    share: tuple[int, int] = (0, 1),
) -> Collection:
    """Runs groups until enough were kept or no context is left.

    Args:
        policy: The policy to sample from.
        pool: This rank's environments.
        queue: Hands out context numbers and knows when to stop, across all ranks.
        context: Number -> context.
        rollouts_per_context: K.
        seed: Entropy that every episode's noise starts from, e.g. (run seed, iteration).
        max_steps: Control steps after which an episode has failed.
        dynamic_sampling: Whether groups with all-equal rewards are dropped.
        on_rollout: Called after every finished episode, for progress.
        interrupt: Called after every finished episode and while waiting for others; raises to
            stop.
        forward_context: Makes the context that the policy decides in.
        journal: Where finished groups are written to; what is there is not run again.
        share: This rank and the number of ranks, who take over a journal's groups by turns.
    """
    finished: dict[int, list[Rollout]] = {}
    run_before: set[int] = set()
    complete: dict[int, RolloutGroup] = {}
    schedule = GroupByGroup(queue, context, rollouts_per_context, seed)

    def keeps(group: RolloutGroup) -> bool:
        return not dynamic_sampling or is_informative(group.rewards)

    if journal is not None:
        rank, ranks = share
        for group in journal.read(context, lambda number: number % ranks == rank):
            complete[group.context.index] = group
            run_before.add(group.context.index)
            queue.report(group.context.index, keeps(group))
        # Nobody begins a context that another rank has finished before. The store answers this
        # rank only when it has heard all of the above.
        queue.enough()
        taken_over = sum(gather_objects(len(complete)))
        if taken_over and rank == 0:
            log.info("%d groups of this iteration had been finished before.", taken_over)

    # However the loop ends, closing abandons what still runs.
    with closing(
        run_episodes(
            policy, pool, schedule=schedule, max_steps=max_steps, forward_context=forward_context
        )
    ) as stream:
        for rollout in stream:
            n = rollout.context.index
            finished.setdefault(n, []).append(rollout)
            if len(finished[n]) == rollouts_per_context:
                group = RolloutGroup(
                    rollout.context, tuple(sorted(finished.pop(n), key=lambda r: r.k))
                )
                complete[n] = group
                if journal is not None and not journal.write(group, keeps(group)):
                    journal = None
                queue.report(n, keeps(group))
            on_rollout(rollout, queue)
            interrupt()
            if queue.enough():
                break
    queue.wait(interrupt)
    wait_for_all(interrupt)  # others may be in the midst of an episode
    # Groups beyond the point where enough were kept are discarded: whether they had finished in
    # time depends on timing, and the next iteration starts with their contexts.
    end = queue.end()
    counted = (n for n in sorted(complete) if n < end and n not in queue.passed_over)
    used = {n: complete[n] for n in counted}
    kept = {n: group for n, group in used.items() if keeps(group)}
    everything = [rollout for group in used.values() for rollout in group.rollouts]
    return Collection(
        groups=tuple(kept.values()),
        dropped=tuple(n for n in used if n not in kept),
        successes=sum(rollout.success for rollout in everything),
        episodes=len(everything),
        steps=sum(rollout.steps for rollout in everything),
        next_context=end,
        run_before=sum(len(group.rollouts) for n, group in used.items() if n in run_before),
    )
