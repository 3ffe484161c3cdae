"""Any QueST checkpoint as an official file: `lightning-ript export`."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning_ript.policies.quest.checkpoint import (
    read_weights,
    recorded_language,
    write_official,
)

log = logging.getLogger(__name__)

# QueST's children; a checkpoint of anything else has others.
PARTS = {
    "image_encoders",
    "lowdim_encoders",
    "obs_proj",
    "task_encoder",
    "autoencoder",
    "policy_prior",
}


def export(
    checkpoint: str, out: Path, overwrite: bool = False, language: str | None = None
) -> None:
    """Writes a checkpoint's QueST in the official format, which the reference's evaluation reads.

    The weights are copied one by one, bit for bit, so no config is needed.

    Args:
        checkpoint: A Lightning checkpoint of any stage or an official file, here or on the hub
            (`hf://owner/repo/path/in/repo`).
        out: The file to write.
        overwrite: Whether to replace a file that is already there.
        language: The `language` that the policy was trained with, for checkpoints of version 0.1;
            later ones say it themselves. The file records it.

    Raises:
        OSError: There is no such checkpoint, or `out` is there and must not be replaced.
        ValueError: The checkpoint cannot be read, or holds no QueST.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already: name another file, or add --overwrite")
    weights = read_weights(checkpoint)
    found = {name.partition(".")[0] for name in weights}
    if found != PARTS:
        raise ValueError(
            f"{checkpoint} holds no whole QueST: its parts are {', '.join(sorted(found))}, but "
            f"should be {', '.join(sorted(PARTS))}"
        )
    write_official(weights, out, language or recorded_language(checkpoint))
    log.info("%s: %d tensors of %s.", out, len(weights), checkpoint)
