"""Finished groups of the iteration in progress, kept so that a killed run need not repeat them."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_ript.storage.files import replacing
from lightning_ript.types import Context, Rollout, RolloutGroup

log = logging.getLogger(__name__)


class Journal:
    """A folder with a file per finished group, all of one iteration.

    Args:
        folder: Where journals lie.
        label: Says of what iteration (`label_of`) and by which policy the groups are. What lies
            there under another label is of no use any more; if it is of the same iteration, a line
            says so.
        clean: Whether to remove that; one process of a run does it.
    """

    def __init__(self, folder: Path, label: str, clean: bool) -> None:
        self.folder = folder / label
        if clean and folder.is_dir():
            for other in folder.iterdir():
                if other == self.folder:
                    continue
                if other.name.startswith(label.partition("_")[0] + "_"):
                    log.info(
                        "%d groups of this iteration had been finished before, by other weights or "
                        "with other settings: they are run again.",
                        len(list(other.glob("group_*.pt"))),
                    )
                shutil.rmtree(other, ignore_errors=True)

    def write(self, group: RolloutGroup, kept: bool) -> bool:
        """Adds a group; of one that is dropped, only how its episodes ended.

        Returns:
            Whether it could. Where not, a warning says why: a run goes on without a journal.
        """
        rollouts = [
            {
                "k": rollout.k,
                "success": rollout.success,
                "steps": rollout.steps,
                "record": rollout.record if kept else {},
                "log_probs": rollout.log_probs if kept else torch.zeros(0, 0),
            }
            for rollout in group.rollouts
        ]
        try:
            with replacing(self.folder / f"group_{group.context.index}.pt") as draft:
                torch.save(rollouts, draft)
        except (OSError, RuntimeError) as error:
            log.warning(
                "%s cannot be written (%s): if this run is killed, its iteration begins again.",
                self.folder,
                error,
            )
            return False
        return True

    def read(
        self, context: Callable[[int], Context], mine: Callable[[int], bool]
    ) -> Iterator[RolloutGroup]:
        """The groups that are there.

        Args:
            context: Number -> context.
            mine: Whether this process takes the group of that number.
        """
        for path in sorted(self.folder.glob("group_*.pt")):
            number = int(path.stem.removeprefix("group_"))
            if not mine(number):
                continue
            start = context(number)
            try:
                found: list[dict[str, Any]] = torch.load(path, weights_only=True)
                rollouts = tuple(Rollout(context=start, **each) for each in found)
            except Exception as error:  # a damaged file makes the unpickler raise anything at all
                log.warning("%s cannot be read (%s): its group is run again.", path, error)
                continue
            yield RolloutGroup(start, rollouts)


def remove_journals(folder: Path) -> None:
    """Removes all journals, once a run is over."""
    shutil.rmtree(folder, ignore_errors=True)


def label_of(iteration: int, *said: object) -> str:
    """A name for an iteration and whatever else decides which groups come about."""
    return f"iteration{iteration}_{hashlib.sha256(repr(said).encode()).hexdigest()[:32]}"


def fingerprint(parameters: Iterable[tuple[str, nn.Parameter]]) -> tuple[object, ...]:
    """What changes whenever weights do: sums of the bits of each tensor that learns.

    Sums of integers are exact, whatever device and number of threads.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    found: list[object] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            bits = parameter.detach().contiguous().view(integers[parameter.element_size()])
            found += [name, bits.sum(dtype=torch.int64).item()]
    return tuple(found)
