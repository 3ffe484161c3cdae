"""What other libraries say that no user of this program needs to read."""

from __future__ import annotations

import logging
import warnings

_LOGGED = ("💡 Tip", "TPU available: False", "Loading `train_dataloader` to estimate")
_WARNED = (
    # What was typed may have been changed.
    "LightningCLI's args parameter is intended to run",
    # Lightning asks torch in a way that newer ones advise against, once a batch.
    ".*LeafSpec.*deprecated",
    # It is intended: a policy is trained without dropout, as it acts.
    "Found .* in eval mode at the start of training",
    # One run, one folder: a second start is meant to find it full.
    "Checkpoint directory .* exists and is not empty",
    # Nothing here changes what a policy returns in place.
    "FSDP2-wrapped module .* returned a view tensor",
)


def leave_out_missing_callbacks() -> None:
    """Where a checkpoint is only evaluated, what its run had for training is rightly missing."""
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")


def leave_out_chatter() -> None:
    """Lets Lightning and torch say what matters here, and no more."""
    for message in _WARNED:
        warnings.filterwarnings("ignore", message=message)
    for package in ("pytorch", "fabric"):
        logger = logging.getLogger(f"lightning.{package}.utilities.rank_zero")
        logger.removeFilter(_matters)
        logger.addFilter(_matters)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _matters(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LOGGED)
