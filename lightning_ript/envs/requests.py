"""What the pool asks of a simulator, one episode at a time or several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """What one of a worker's episodes is to do.

    Attributes:
        index: Its number among the worker's; 0 where there is only one.
        method: The simulator's method to call.
        arguments: What with.
    """

    index: int
    method: str
    arguments: tuple[Any, ...]


def answer_together(simulator: Any, requests: Sequence[Request]) -> list[Any]:
    """Calls each method once for all who ask for it; returns their answers in order.

    Args:
        simulator: A `BatchedEnvironment`.
        requests: At most one of each index.
    """
    answers: dict[int, Any] = {}
    for method in dict.fromkeys(request.method for request in requests):
        asked = [request for request in requests if request.method == method]
        indices = [request.index for request in asked]
        columns = [list(column) for column in zip(*(r.arguments for r in asked), strict=True)]
        answers.update(zip(indices, getattr(simulator, method)(indices, *columns), strict=True))
    return [answers[request.index] for request in requests]
