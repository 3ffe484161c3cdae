"""What an evaluation found: counts per task, their intervals, and the JSON file that holds them.

Intervals are Wilson's score intervals: unlike the normal approximation they stay within [0, 1] and
are right for rates near 0 and 1, where a run that goes well ends.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from lightning_ript.storage.files import replacing

_STANDINS = "Stand-in assets: these numbers are not comparable with the benchmark."


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (E. B. Wilson, JASA 22, 1927).

    Args:
        successes: Episodes that succeeded.
        episodes: Episodes in all; none at all tells nothing and gives (0, 1).
        confidence: Coverage, within (0, 1).

    Returns:
        Lower and upper bound of the rate, within [0, 1].

    Raises:
        ValueError: If the counts are impossible or the confidence is not within (0, 1).
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes of {episodes} episodes are impossible counts.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be within (0, 1), got {confidence}.")
    if episodes == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / episodes
    shrunk = 1 + z * z / episodes
    center = (rate + z * z / (2 * episodes)) / shrunk
    half = z * math.sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2) / shrunk
    # The bounds are exactly 0 and 1 here; rounding would leave 1e-17.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == episodes else center + half
    return low, high


# Named tuples, not frozen dataclasses: torchmetrics walks through whatever `compute` returns and
# raises on a frozen dataclass.
class TaskResult(NamedTuple):
    """What evaluation found on one task.

    Attributes:
        task: LIBERO's task name.
        language: The instruction.
        episodes: Episodes run.
        successes: Episodes that succeeded.
        mean_steps: Mean length of all episodes, failed ones included, in control steps; NaN
            without episodes.
    """

    task: str
    language: str
    episodes: int
    successes: int
    mean_steps: float

    @property
    def rate(self) -> float:
        """Success rate, NaN without episodes."""
        return self.successes / self.episodes if self.episodes else math.nan

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the rate."""
        return wilson_interval(self.successes, self.episodes, confidence)

    def to_dict(self) -> dict[str, Any]:
        """The counts, and for readers the numbers that follow from them; NaN becomes None."""
        return {
            "task": self.task,
            "language": self.language,
            "episodes": self.episodes,
            "successes": self.successes,
            "success_rate": self.rate if self.episodes else None,
            "interval_95": list(self.interval()),
            "mean_steps": self.mean_steps if self.episodes else None,
        }


class EvaluationResult(NamedTuple):
    """What evaluation found on all tasks.

    Attributes:
        tasks: One result per task.
        metadata: What was evaluated and how (checkpoint, seed, versions, ...); JSON types only.
    """

    tasks: tuple[TaskResult, ...]
    metadata: dict[str, Any]

    @property
    def caveats(self) -> tuple[str, ...]:
        """What whoever compares the result with others has to know, a sentence each."""
        return tuple(self.metadata.get("environment", {}).get("caveats", ()))

    @property
    def overall(self) -> TaskResult:
        """All tasks pooled: every episode counts the same."""
        episodes = sum(task.episodes for task in self.tasks)
        steps = sum(task.mean_steps * task.episodes for task in self.tasks if task.episodes)
        return TaskResult(
            task="all tasks",
            language="",
            episodes=episodes,
            successes=sum(task.successes for task in self.tasks),
            mean_steps=steps / episodes if episodes else math.nan,
        )

    @property
    def rate(self) -> float:
        """Success rate over all episodes of all tasks, NaN without episodes."""
        return self.overall.rate

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the overall rate."""
        return self.overall.interval(confidence)

    def to_dict(self) -> dict[str, Any]:
        """The whole result in JSON's types."""
        overall = self.overall.to_dict()
        del overall["task"], overall["language"]
        return {
            "overall": overall,
            "tasks": [task.to_dict() for task in self.tasks],
            "metadata": self.metadata,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EvaluationResult:
        """Inverse of `to_dict`; numbers that follow from the counts are worked out anew.

        Raises:
            KeyError: If a key is missing.
            TypeError: If a value has the wrong type.
        """
        tasks = tuple(
            TaskResult(
                task=task["task"],
                language=task["language"],
                episodes=task["episodes"],
                successes=task["successes"],
                mean_steps=math.nan if task["mean_steps"] is None else task["mean_steps"],
            )
            for task in content["tasks"]
        )
        metadata = content["metadata"]
        environment = metadata.get("environment", {})
        # Version 0.1 had a flag for the one caveat that it knew.
        if environment.get("standin_assets") and "caveats" not in environment:
            metadata = {**metadata, "environment": {**environment, "caveats": [_STANDINS]}}
        return cls(tasks, metadata)

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Writes the JSON at once: a killed run leaves the old file or the new one."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> EvaluationResult:
        """Reads what `write` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not an evaluation result.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"No evaluation result at {path}: run `lightning-ript validate` with the "
                "EvaluationReport callback first."
            )
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not an evaluation result ({error!r}): give a JSON file that the "
                "EvaluationReport callback wrote."
            ) from error
