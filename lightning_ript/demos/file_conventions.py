"""What a file of demonstrations says of itself, and what can be found out where it says nothing.

| | observation t is the one | images are | instruction |
|---|---|---|---|
| LIBERO's published files | after action t | upside down | in `problem_info` |
| OpenVLA's, replayed without idle steps | before it | upside down | none, but the file's name |
| robomimic's | before it | upright | mostly none |
| of `collect-demos` | before it | upside down | in `problem_info` |
"""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np
import yaml

SETTINGS = "collection_settings"  # our own attribute; LIBERO's readers ignore it
OBSERVED = "observations"  # our own, too: "before" or "after" the action of the same index
INSTRUCTION = "language_instruction"
_PROBLEM = "problem_info"
_JOINTS = ("joint_states", "robot0_joint_pos")  # LIBERO's name and robomimic's
_CLEARLY = 2.0  # times as far


def carried_instruction(data: h5py.Group) -> str | None:
    """The instruction that a file carries, None if it does not.

    Args:
        data: Its group `data`.

    Raises:
        KeyError: LIBERO's attribute is there, and the instruction is not in it.
        ValueError: What is there is empty or cannot be read.
    """
    if INSTRUCTION in data.attrs:
        return plain(data.attrs[INSTRUCTION])
    if _PROBLEM in data.attrs:
        return plain(json.loads(_text(data.attrs[_PROBLEM]))[INSTRUCTION])
    return None


def plain(stored: Any) -> str:
    """An instruction without what it was wrapped in.

    Args:
        stored: Text or bytes, in quotation marks or not; or a list or array of its words or
            letters, or of several wordings, of which the first is taken; or such a list as text.

    Raises:
        ValueError: It is empty.
    """
    if isinstance(stored, np.ndarray):
        stored = stored.tolist()
    if isinstance(stored, list):
        parts = [_text(part) for part in stored]
        if all(len(part) == 1 for part in parts):
            return plain("".join(parts))
        wordings = [part for part in parts if len(part.split()) > 1]
        return plain(wordings[0] if wordings else " ".join(parts))
    text = _text(stored).strip()
    if text[:1] in ("[", '"', "'"):
        try:
            return plain(yaml.safe_load(text))
        except yaml.YAMLError:
            text = text.strip("\"'")
    if not text:
        raise ValueError("its instruction is empty")
    return text


def _text(stored: Any) -> str:
    if isinstance(stored, np.ndarray):
        stored = stored.item()
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def is_upside_down(data: h5py.Group, demonstration: h5py.Group) -> bool:
    """Whether images begin with the bottom row, as OpenGL's do.

    Where the file does not say, names as `agentview_image` tell: robomimic has turned those.

    Args:
        data: The file's group `data`.
        demonstration: One of its demonstrations.
    """
    convention = data.attrs.get("macros_image_convention")
    if convention is not None:
        return _text(convention) == "opengl"
    return not any(name.endswith("_image") for name in demonstration["obs"])


def is_observed_after(data: h5py.Group, demonstration: h5py.Group) -> bool:
    """Whether an observation is the one after the action of the same index.

    The states are those before the actions, so the arm tells: where it was seen, it is in the state
    of the same index or in the next one.

    Args:
        data: The file's group `data`.
        demonstration: One of its demonstrations.
    """
    if OBSERVED in data.attrs:
        return _text(data.attrs[OBSERVED]) == "after"
    if SETTINGS in data.attrs:
        return False  # of version 0.1
    seen = next((demonstration["obs"][n] for n in _JOINTS if n in demonstration["obs"]), None)
    states = demonstration.get("states")
    if seen is not None and states is not None and seen.ndim == states.ndim == 2:
        arm = states[:, 1 : 1 + seen.shape[1]]  # after the time, the robot's joints come first
        if arm.shape == seen.shape:
            same = np.abs(seen[1:] - arm[1:]).sum()
            next_ = np.abs(seen[:-1] - arm[1:]).sum()
            if max(same, next_) > _CLEARLY * min(same, next_):
                return bool(next_ < same)
    # The arm stands still, or the states are of another kind.
    return _PROBLEM in data.attrs
