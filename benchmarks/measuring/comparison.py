"""Runs the variants side by side, or one of them with more and more workers."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.scheduling import EpisodeRequest
from lightning_ript.types import Context, Task
from measuring.policy import TimedPolicy
from measuring.processes import cores
from measuring.report import bound, ratios, summarize, table, with_range
from measuring.variants import KeptWay, Ours, ReferenceWay, Variant
from measuring.workers import TimedSpec, ask_all

Make = Callable[[LiberoSpec, Task, int], Variant]
VARIANTS: dict[str, Make] = {
    "a_reference": ReferenceWay,
    "b_kept": KeptWay,
    "c_exact": lambda spec, *rest: Ours(replace(spec, mode="exact", render="full"), *rest),
    "d_fast": lambda spec, *rest: Ours(replace(spec, mode="fast", render="full"), *rest),
    "e_fast_light": lambda spec, *rest: Ours(replace(spec, mode="fast", render="light"), *rest),
}
_PROBE_CHUNKS = 16


def choose(names: Sequence[str] | None, scaling: bool) -> list[str]:
    """The variants to run; by default all, or those in fast mode when they are scaled.

    Raises:
        ValueError: If there is no such variant.
    """
    if names is None:
        return ["d_fast", "e_fast_light"] if scaling else list(VARIANTS)
    if unknown := set(names) - set(VARIANTS):
        raise ValueError(f"no variant {unknown.pop()!r}: choose from {', '.join(VARIANTS)}.")
    return list(names)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {"cores": cores(), "processor": platform.processor(), "torch": torch.__version__}


def compare(
    spec: LiberoSpec,
    task: Task,
    workers: int,
    rounds: Sequence[Sequence[EpisodeRequest]],
    policy: TimedPolicy,
    names: Sequence[str],
) -> dict[str, Any]:
    """Runs every round with every variant in turn."""
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        variants = {}
        for name in names:
            variants[name] = stack.enter_context(closing(VARIANTS[name](spec, task, workers)))
        for name, variant in variants.items():
            _say(f"warming up {name}")
            variant.warm_up(rounds[0][0].context)  # type: ignore[arg-type]
        for number, episodes in enumerate(rounds):
            for name, variant in variants.items():
                measured[name].append(variant.measure(policy, episodes))
                _say(f"round {number + 1}, {name}: {measured[name][-1]['wall']:.1f} s")
    compared = ratios(measured, ("a_reference", "b_kept"))
    return {
        name: {**summarize(each, workers), "ratio_to": compared[name], "rounds": each}
        for name, each in measured.items()
    }


def scale(
    spec: LiberoSpec,
    task: Task,
    workers: Sequence[int],
    rounds: Sequence[Sequence[EpisodeRequest]],
    policy: TimedPolicy,
    names: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Runs the rounds with each number of workers, in every variant."""
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        for count in workers:
            with closing(VARIANTS[name](spec, task, count)) as variant:
                variant.warm_up(rounds[0][0].context)  # type: ignore[arg-type]
                measured = [variant.measure(policy, episodes) for episodes in rounds]
            summary = summarize(measured, count)
            result.setdefault(name, {})[str(count)] = {**summary, "bound": bound(summary)}
            _say(f"{name} with {count} workers: done")
    return result


def probe(spec: LiberoSpec, context: Context, seed: int) -> dict[str, dict[str, float]]:
    """A control step without cameras against the 25 bare physics steps it contains, in ms."""
    chunks = np.random.default_rng(seed).uniform(-1, 1, (_PROBE_CHUNKS, 8, 7))
    result = {}
    for mode in ("exact", "fast"):
        blind = replace(spec, mode=mode, cameras=())  # type: ignore[arg-type]
        with EnvironmentPool(TimedSpec(blind), 1) as pool:
            ((control, bare),) = ask_all(pool, "probe", context, chunks)
        result[mode] = {
            "control_step_ms": 1000 * median(control),
            "bare_physics_ms": 1000 * median(bare),
            "ratio": median(ours / least for ours, least in zip(control, bare, strict=True)),
        }
    return result


def comparison_table(results: dict[str, Any]) -> str:
    """What `compare` found, for reading."""
    rows = []
    for name, result in results.items():
        parts = result["ms_per_control_step"]
        rows.append(
            [
                name,
                with_range(result["episodes_per_hour"]),
                *(
                    with_range(result["ratio_to"][base], 1) if base in result["ratio_to"] else "-"
                    for base in ("a_reference", "b_kept")
                ),
                f"{result['steps_per_second_per_core']['median']:.1f}",
                *(f"{value:.1f}" for value in parts.values()),
                f"{result['memory_mib']:.0f}",
                f"{result['successes']}/{result['episodes']}",
            ]
        )
    header = ["variant", "episodes/h", "÷ (a)", "÷ (b)", "steps/s/core", "physics+controller ms"]
    header += ["render ms", "reset ms", "waiting ms", "inference ms", "memory MiB", "successes"]
    return table(header, rows)


def probe_table(results: dict[str, dict[str, float]]) -> str:
    """What `probe` found, for reading."""
    header = ["mode", "control step without cameras ms", "25 bare physics steps ms", "ratio"]
    rows = [[mode, *(f"{value:.2f}" for value in each.values())] for mode, each in results.items()]
    return table(header, rows)


def scaling_table(results: dict[str, dict[str, Any]]) -> str:
    """What `scale` found, for reading."""
    rows = [
        [
            name,
            count,
            with_range(each["episodes_per_hour"]),
            f"{each['cores_used_by_workers']:.2f}",
            f"{each['cores_used_by_main']:.2f}",
            f"{each['memory_mib']:.0f}",
            each["bound"],
        ]
        for name, counts in results.items()
        for count, each in counts.items()
    ]
    header = ["variant", "workers", "episodes/h", "cores: workers", "cores: main", "memory MiB"]
    return table([*header, "bound by"], rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
