"""Policies as LeRobot publishes them: a folder of settings, weights and statistics.

`config.json` has the policy's settings, `model.safetensors` (or shards) the weights. What happens
to observations and actions is said in `policy_preprocessor.json` and `policy_postprocessor.json`,
whose steps name the files that hold their numbers. Older folders have neither of the two, and the
numbers among the weights. Nothing here needs LeRobot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_ript.policies.safetensor_files import SINGLE, opened, read_tensors, shards
from lightning_ript.storage.files import below, read_json, replacing

PATTERNS = ("*.json", "*.safetensors")
CONFIG = "config.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ACTION = "observation.state", "action"
NETWORK = "model."  # what names of the network's tensors begin with

# What a folder's steps may be; those with a setting only if it has this value.
_STEPS: dict[str, Mapping[str, Any]] = {
    "rename_observations_processor": {},
    "to_batch_processor": {},
    "pi0_new_line_processor": {},
    "smolvla_new_line_processor": {},
    "pi05_prepare_state_tokenizer_processor_step": {},
    "tokenizer_processor": {"padding_side": "right", "truncation": True},
    "device_processor": {},
    "relative_actions_processor": {"enabled": False},
    "absolute_actions_processor": {"enabled": False},
    "normalizer_processor": {},
    "unnormalizer_processor": {},
}


@dataclass(frozen=True)
class Normalization:
    """How a vector's numbers become a network's, and back.

    Attributes:
        mode: LeRobot's name for it.
        first: What is subtracted, (n,) float32: mean or lower end.
        second: What is divided by: standard deviation, or upper end.
        epsilon: Keeps numbers that never change finite.
    """

    mode: str
    first: Tensor
    second: Tensor
    epsilon: float

    def normalize(self, values: Tensor) -> Tensor:
        """(..., n) float32."""
        first, second = self._on(values)
        if self.mode == "IDENTITY":
            return values
        if self.mode == "MEAN_STD":
            return (values - first) / (second + self.epsilon)
        return 2 * (values - first) / self._range(first, second) - 1

    def denormalize(self, values: Tensor) -> Tensor:
        """The inverse, (..., n) float32; nothing is clipped."""
        first, second = self._on(values)
        if self.mode == "IDENTITY":
            return values
        if self.mode == "MEAN_STD":
            return values * second + first
        return (values + 1) / 2 * self._range(first, second) + first

    def _range(self, low: Tensor, high: Tensor) -> Tensor:
        difference = high - low
        return torch.where(difference == 0, self.epsilon, difference)

    def _on(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.first.to(values), self.second.to(values)


# By mode: the statistics that are subtracted and divided by.
MODES = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


@dataclass(frozen=True)
class Published:
    """A folder's settings and numbers, without its weights.

    Attributes:
        folder: Where it is.
        config: Of `config.json`.
        state: How the robot's state is normalized.
        action: How actions are.
        tokenizer: Name of the tokenizer, if the folder says.
        cameras: Names of the images that the policy was trained on, in its order.
    """

    folder: Path
    config: Mapping[str, Any]
    state: Normalization
    action: Normalization
    tokenizer: str | None
    cameras: tuple[str, ...]

    @property
    def state_size(self) -> int:
        """Numbers of the robot's state."""
        return int(self.config["input_features"][STATE]["shape"][0])

    @property
    def action_size(self) -> int:
        """Numbers of an action."""
        return int(self.config["output_features"][ACTION]["shape"][0])


def read_published(folder: Path, kind: str) -> Published:
    """Reads everything but the weights.

    Args:
        folder: The folder.
        kind: The `type` that its `config.json` must have.

    Raises:
        OSError: A file is missing.
        ValueError: It is another kind of policy, or has something that is not supported.
    """
    config = _json(folder / CONFIG)
    if config.get("type") != kind:
        raise ValueError(
            f"{folder} holds a policy of the type {config.get('type')!r}, not {kind!r}: choose "
            "the class that fits."
        )
    for name, group in ((STATE, "input_features"), (ACTION, "output_features")):
        if name not in config.get(group, {}):
            raise ValueError(f"{folder / CONFIG} has no {name} among its {group}.")
    features = config["input_features"]
    cameras = tuple(name for name, each in features.items() if each["type"] == "VISUAL")
    steps = [*_steps(folder, PREPROCESSOR), *_steps(folder, POSTPROCESSOR)]
    if steps:
        numbers = {
            name: (step["config"], read_tensors(below(folder, step["state_file"], folder)))
            for step in steps
            if (name := step["registry_name"]) in ("normalizer_processor", "unnormalizer_processor")
        }
        tokenizers = [
            step["config"]["tokenizer_name"]
            for step in steps
            if step["registry_name"] == "tokenizer_processor"
        ]
        state_settings, state_numbers = numbers["normalizer_processor"]
        action_settings, action_numbers = numbers["unnormalizer_processor"]
        state = _normalization(state_settings, state_numbers, STATE, "STATE", folder)
        action = _normalization(action_settings, action_numbers, ACTION, "ACTION", folder)
        tokenizer = tokenizers[0] if tokenizers else None
        return Published(folder, config, state, action, tokenizer, cameras)
    settings = {"norm_map": config["normalization_mapping"], "eps": 1e-8}
    buffers = _buffers(folder)
    state = _normalization(settings, buffers, STATE, "STATE", folder)
    action = _normalization(settings, buffers, ACTION, "ACTION", folder)
    return Published(folder, config, state, action, None, cameras)


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors by name, one at a time.

    Raises:
        OSError: The weights are missing.
        ValueError: They cannot be read.
    """
    for path in shards(folder):
        with opened(path) as contents:
            for name in contents.keys():  # noqa: SIM118  (not a mapping)
                if name.startswith(NETWORK):
                    yield name.removeprefix(NETWORK), contents.get_tensor(name)


def write_published(
    published: Published,
    to: Path,
    network: Mapping[str, Tensor],
    rename: Callable[[str], str | None],
) -> None:
    """Writes a folder of the same layout, with a network's tensors in place of the old ones.

    What the network does not have, such as heads that no action needs, is taken from the old
    folder; so LeRobot finds all it expects.

    Args:
        published: Where everything else comes from.
        to: The new folder.
        network: Tensors by name.
        rename: From names in the old folder to the network's.
    """
    to.mkdir(parents=True, exist_ok=True)
    everything: dict[str, Tensor] = {}
    for path in shards(published.folder):
        everything.update(read_tensors(path))
    for old in [full for full in everything if full.startswith(NETWORK)]:
        name = rename(old.removeprefix(NETWORK)) or ""
        # What has an older name takes the newer one; a head that served as embedding stays, too.
        if name in network and old != NETWORK + name and not old.endswith("lm_head.weight"):
            everything[NETWORK + name] = everything.pop(old)
    for name, value in network.items():
        full = NETWORK + name
        like = everything.get(full)
        everything[full] = value.detach().cpu().to(value.dtype if like is None else like.dtype)
    contiguous = {name: value.contiguous() for name, value in everything.items()}
    with replacing(to / SINGLE) as draft:
        save_file(contiguous, draft, metadata={"format": "pt"})
    for path in published.folder.rglob("*"):
        place = path.relative_to(published.folder)
        if path.is_file() and not path.name.startswith("model"):
            (to / place).parent.mkdir(parents=True, exist_ok=True)
            (to / place).write_bytes(path.read_bytes())


def _normalization(
    settings: Mapping[str, Any],
    numbers: Mapping[str, Tensor],
    feature: str,
    kind: str,
    folder: Path,
) -> Normalization:
    mode = settings["norm_map"].get(kind, "IDENTITY")
    if mode not in MODES:
        known = ", ".join(MODES)
        raise ValueError(f"{folder} normalizes {feature} by {mode}, which is none of {known}.")
    names = [f"{feature}.{statistic}" for statistic in MODES[mode]]
    if missing := [name for name in names if name not in numbers]:
        raise ValueError(f"{folder} has no numbers {', '.join(missing)}, which {mode} needs.")
    first, second = (numbers[name].float() for name in names) if names else (torch.zeros(0),) * 2
    return Normalization(mode, first, second, float(settings.get("eps", 1e-8)))


def _steps(folder: Path, name: str) -> Sequence[Mapping[str, Any]]:
    """The steps of a processor that say something; none in older folders."""
    path = folder / name
    if not path.is_file():
        return []
    steps = _json(path)["steps"]
    for step in steps:
        kind = step.get("registry_name")
        allowed = _STEPS.get(kind)
        settings = step.get("config", {})
        wrong = {k: settings[k] for k, v in (allowed or {}).items() if settings.get(k, v) != v}
        if allowed is None or wrong:
            what = f" with {wrong}" if wrong else ""
            raise ValueError(f"{path} has a step {kind!r}{what}, which is not supported.")
    return steps


def _buffers(folder: Path) -> dict[str, Tensor]:
    """Statistics that older folders have among the weights, by the names newer ones give them."""
    found: dict[str, Tensor] = {}
    for path in shards(folder):
        with opened(path) as contents:
            for name in contents.keys():  # noqa: SIM118  (not a mapping)
                holder, _, rest = name.partition(".buffer_")
                if holder in ("normalize_inputs", "unnormalize_outputs"):
                    feature, _, statistic = rest.rpartition(".")
                    feature = feature.replace("observation_", "observation.", 1)
                    found[f"{feature}.{statistic}"] = contents.get_tensor(name)
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: name a folder that LeRobot has saved.")
    contents: dict[str, Any] = read_json(path)
    return contents
