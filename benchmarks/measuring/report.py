"""From what the rounds of a benchmark measured to the numbers that are reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from measuring.processes import cores

Measurement = dict[str, Any]
"""What `Variant.measure` returns for a round."""


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and range."""
    ordered = sorted(values)
    return {"median": median(ordered), "min": ordered[0], "max": ordered[-1]}


def episodes_per_hour(round_: Measurement) -> float:
    """Finished episodes per hour of wall time."""
    return 3600 * round_["episodes"] / round_["wall"]


def summarize(rounds: Sequence[Measurement], workers: int) -> dict[str, Any]:
    """One variant's numbers.

    A core is one of those that the simulators can keep busy: no more than there are workers. The
    parts of a control step are of a worker's wall time and add up to it; `inference` is of the main
    process's, and part of what the workers wait for.
    """
    busy = min(workers, cores())
    total = {key: sum(each[key] for each in rounds) for key in rounds[0]}
    steps = total["executed_steps"]
    worked = total["step"] + total["render"] + total["reset"]
    parts = {
        "physics_and_controller": total["step"],
        "render": total["render"],
        "reset_and_settling": total["reset"],
        "waiting": max(0.0, total["wall"] * workers - worked),
        "inference": total["inference"],
    }
    return {
        "episodes_per_hour": spread(episodes_per_hour(each) for each in rounds),
        "steps_per_second_per_core": spread(each["steps"] / each["wall"] / busy for each in rounds),
        "ms_per_control_step": {name: 1000 * value / steps for name, value in parts.items()},
        "memory_mib": max(each["memory"] for each in rounds),
        "episodes": total["episodes"],
        "successes": total["successes"],
        "control_steps": total["steps"],
        "executed_control_steps": steps,
        "cores_used_by_main": total["main_processor"] / total["wall"],
        "cores_used_by_workers": total["worker_processor"] / total["wall"],
        "seconds": total["wall"],
    }


def ratios(
    rounds: dict[str, list[Measurement]], bases: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Each variant's episodes per hour over each base's, round by round."""
    return {
        name: {
            base: spread(
                episodes_per_hour(ours) / episodes_per_hour(theirs)
                for ours, theirs in zip(mine, rounds[base], strict=True)
            )
            for base in bases
            if base in rounds
        }
        for name, mine in rounds.items()
    }


def bound(summary: dict[str, Any]) -> str:
    """What keeps a variant from running more episodes."""
    main, workers = summary["cores_used_by_main"], summary["cores_used_by_workers"]
    if main + workers > 0.9 * cores():
        return f"the {cores()} cores: {workers:.1f} simulate and draw, {main:.1f} decide"
    if main > 0.9:
        return "the main process"
    return "waiting: too few workers, or workers for one another's decisions"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def with_range(values: dict[str, float], digits: int = 0) -> str:
    """The median, and the range in brackets."""
    return "{median:.{d}f} ({min:.{d}f}–{max:.{d}f})".format(**values, d=digits)
