"""A flow-matching policy that was trained here, in LeRobot's layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning_ript.policies.flow.lerobot import PATTERNS, read_published, write_published
from lightning_ript.policies.flow.load import POLICY
from lightning_ript.policies.weights import read_tensors
from lightning_ript.storage.hub import local_file, local_folder

log = logging.getLogger(__name__)

_NETWORK = f"{POLICY}network."


def is_flow(checkpoint: str) -> bool:
    """Whether one of Lightning's checkpoints holds a flow-matching policy."""
    return "kind" in _read(checkpoint).get("policy", {})


def export(checkpoint: str, out: Path) -> None:
    """Writes a folder as LeRobot does, which its evaluation reads.

    What did not learn is taken from the folder that the policy was made from, which must still be
    where it was.

    Args:
        checkpoint: One of Lightning's, here or on the hub.
        out: The folder to write.

    Raises:
        OSError: A file is missing, or `out` is there already.
        ValueError: The checkpoint cannot be read, or holds no such policy.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: name another folder.")
    contents = _read(checkpoint)
    made_from = contents["policy"]
    base = local_folder(made_from["checkpoint"], PATTERNS)
    network = {
        name.removeprefix(_NETWORK): value
        for name, value in contents["state_dict"].items()
        if name.startswith(_NETWORK)
    }
    write_published(read_published(base, made_from["kind"]), out, network)
    log.info("%s: %d tensors of %s, the rest of %s.", out, len(network), checkpoint, base)


def _read(checkpoint: str) -> dict[str, Any]:
    path = local_file(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {checkpoint}")
    return read_tensors(path)
