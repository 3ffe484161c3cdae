"""A flow-matching policy that was trained here, in LeRobot's layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning_ript.policies.flow.lerobot import PATTERNS, read_published, write_published
from lightning_ript.policies.flow.load import POLICY, Rename, published_tensors
from lightning_ript.policies.lora import is_adapter_weight, merged
from lightning_ript.policies.weights import read_tensors
from lightning_ript.storage.files import make_folder, making
from lightning_ript.storage.hub import local_file, local_folder

log = logging.getLogger(__name__)

_NETWORK = f"{POLICY}network."


def is_flow(checkpoint: str) -> bool:
    """Whether one of Lightning's checkpoints holds a flow-matching policy."""
    return "kind" in _read(checkpoint).get("policy", {})


def export(checkpoint: str, out: Path) -> None:
    """Writes a folder as LeRobot does, which its evaluation reads; an adapter is merged.

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
    make_folder(out.parent)
    contents = _read(checkpoint)
    made_from = contents["policy"]
    base = local_folder(made_from["checkpoint"], PATTERNS)
    network = {
        name.removeprefix(_NETWORK): value
        for name, value in contents["state_dict"].items()
        if name.startswith(_NETWORK)
    }
    rename = _renaming(made_from["kind"], base)
    if any(map(is_adapter_weight, network)):
        adapted = {f"{n.partition('.lora_')[0]}.weight" for n in network if is_adapter_weight(n)}
        weights = published_tensors(base, rename, adapted)
        network = merged(network, made_from["lora_scaling"], weights)
    with making(out) as draft:
        write_published(read_published(base, made_from["kind"]), draft, network, rename)
    log.info("%s: %d tensors of %s, the rest of %s.", out, len(network), checkpoint, base)


def _renaming(kind: str, folder: Path) -> Rename:
    from lightning_ript.policies.pi0 import Pi0Policy, Pi05Policy
    from lightning_ript.policies.smolvla import SmolVLAPolicy

    kinds = {policy.kind: policy for policy in (Pi0Policy, Pi05Policy, SmolVLAPolicy)}
    return kinds[kind].renaming(folder)


def _read(checkpoint: str) -> dict[str, Any]:
    path = local_file(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {checkpoint}")
    return read_tensors(path)
