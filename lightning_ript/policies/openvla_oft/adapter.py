"""What both kinds of OpenVLA share behind the interface that the RIPT loop asks of a policy."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_ript.policies.base import Decisions, PolicyAdapter
from lightning_ript.policies.libero_robot import CAMERAS
from lightning_ript.policies.openvla_oft.checkpoint import PATTERNS
from lightning_ript.policies.openvla_oft.config import CHUNK
from lightning_ript.policies.openvla_oft.images import observation_crops, pixel_values
from lightning_ript.policies.openvla_oft.lora import PATTERNS as LORA_PATTERNS
from lightning_ript.policies.openvla_oft.lora import (
    LoraSizes,
    add_lora,
    check_not_merged,
    has_lora,
    is_adapter,
    load_lora,
)
from lightning_ript.policies.openvla_oft.model import Forward, OpenVLA
from lightning_ript.policies.openvla_oft.prompt import PromptTokenizer
from lightning_ript.policies.openvla_oft.quantization import Quantization
from lightning_ript.policies.openvla_oft.statistics import load_statistics
from lightning_ript.policies.setting_checks import check_choice, check_executed_actions
from lightning_ript.storage.hub import local_folder
from lightning_ript.types import Observation, Task

WeightPrecision = Literal["bfloat16", "float32"]
DEFAULT_LORA = LoraSizes()


class OpenVLAPolicy(PolicyAdapter):
    """Reads a published directory, adapts it by LoRA, and sees what the simulator shows.

    Args:
        load: Makes the model of a folder, with keywords `device`, `dtype`, `quantization` and
            `proprio`.
        checkpoint: A published directory, here or on the hub (`hf://owner/repo`).
        statistics: The data set of the checkpoint whose statistics map states and actions: a
            suite's name will do.
        adapter: A published LoRA adapter to start from, with its heads if it has some: a folder
            here or on the hub.
        lora: The adapter to create if none is loaded; None for no adapter.
        forward: `prefix_cache` runs the prompt on its own and without gradient, as RIPT-VLA does;
            `single_pass` runs everything at once, as the checkpoints were trained.
        executed_actions: Actions executed of each chunk of 8.
        cameras: The images the checkpoint was trained on, in that order.
        proprio: Whether the checkpoint was trained with the robot's state.
        precision: Of the base's weights; heads are float32.
        quantization: Stores the language model's weights in 8 or 4 bits; needs bitsandbytes.
        gradient_checkpointing: Computes activations again in the backward pass: less memory.
        device: Where the weights go; by default the GPU of this process, if there is one.

    Raises:
        OSError: A file is missing.
        ValueError: A setting is out of range, or a file does not fit.
        ModuleNotFoundError: A library that only this policy needs is not installed.
    """

    model: OpenVLA
    roundable = False  # rotary frequencies, adapter and heads

    def __init__(
        self,
        load: Callable[..., OpenVLA],
        checkpoint: str,
        statistics: str,
        adapter: str | None = None,
        lora: LoraSizes | None = DEFAULT_LORA,
        forward: Forward = "prefix_cache",
        executed_actions: int = CHUNK,
        cameras: Sequence[str] = CAMERAS,
        proprio: bool = True,
        precision: WeightPrecision = "bfloat16",
        quantization: Quantization | None = None,
        gradient_checkpointing: bool = True,
        device: str | None = None,
    ) -> None:
        super().__init__()
        check_executed_actions(executed_actions, CHUNK)
        check_choice("forward", forward, get_args(Forward))
        check_choice("precision", precision, get_args(WeightPrecision))
        folder = local_folder(checkpoint, PATTERNS)
        self.statistics = load_statistics(folder, statistics)
        self.tokenizer = PromptTokenizer(folder)
        self.checkpoint = self._base = checkpoint
        self.forward_pass = forward
        self.executed_actions = executed_actions
        self.cameras = tuple(cameras)
        self.proprio = proprio
        self._prompt_length: int | None = None
        self.model = load(
            folder,
            device=default_device() if device is None else device,
            dtype=getattr(torch, precision),
            quantization=quantization,
            proprio=proprio,
        )
        self.model.requires_grad_(False)
        self.model.gradient_checkpointing = gradient_checkpointing
        if adapter is not None:
            check_not_merged(folder, local_folder(adapter, LORA_PATTERNS))
            load_lora(self.model, adapter)
        elif lora is not None:
            add_lora(self.model, lora)
        self.model.freeze_unused(forward)
        self.eval()

    @abstractmethod
    def _choose(self, prediction: Any, noise: Tensor | None) -> Tensor:
        """What to record as B decisions, given the model's prediction."""

    @abstractmethod
    def _score(self, prediction: Any, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the tokens (N, T) of recorded decisions."""

    @abstractmethod
    def _normalized_actions(self, chosen: Tensor) -> Tensor:
        """Normalized actions (B, 8, 7) float32 of recorded decisions."""

    def load_published(self, place: str | Path) -> bool:
        """Loads the folder of a LoRA adapter, as RIPT-VLA and `LoRACheckpoint` write them.

        Raises:
            OSError: A file is missing.
            ValueError: The adapter does not fit, or its heads are missing.
        """
        if not is_adapter(place):
            return False
        base = local_folder(self._base, PATTERNS)
        check_not_merged(base, local_folder(place, LORA_PATTERNS))
        load_lora(self.model, place, heads_too=True)
        self.checkpoint = str(place)
        return True

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Makes all prompts of a run the same length, so that decisions of any tasks fit a batch.

        Raises:
            ValueError: A prompt cannot be made.
        """
        self._prompt_length = self.tokenizer.longest([task.language for task in tasks])

    @torch.no_grad()
    def act(
        self, observations: Sequence[Observation], tasks: Sequence[Task], noise: Tensor | None
    ) -> Decisions:
        """Decides for B environments; the record holds what the model saw, images as uint8."""
        record = self._inputs(
            [task.language for task in tasks],
            self._prompt_length,
            observation_crops(observations, self.device, self.cameras),
        )
        if self.proprio:
            state = self.statistics.normalize_proprio(observations)
            record["proprio"] = state.to(self.device)
        prediction = self.predict(record)
        record["chosen"] = self._choose(prediction, noise)
        log_probs, _ = self._score(prediction, record["chosen"])
        actions = self._normalized_actions(record["chosen"])
        actions = self.statistics.environment_actions(actions)
        return Decisions(actions[:, : self.executed_actions], record, log_probs)

    def log_prob(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores N recorded chunks."""
        return self._score(self.predict(record), record["chosen"])

    def recorded_actions(self, record: dict[str, Tensor]) -> Tensor:
        """The normalized actions."""
        return self._normalized_actions(record["chosen"])[:, : self.executed_actions]

    def predict(self, record: Mapping[str, Tensor]) -> Any:
        """The model's prediction for N recorded decisions."""
        return self.model(
            record["input_ids"],
            record["attention_mask"],
            pixel_values(record["images"], self.dtype),
            record.get("proprio"),
            self.forward_pass,
        )

    def parameter_groups(self) -> list[dict[str, object]]:
        """The LoRA, clipped on its own."""
        lora = [p for p in self.model.base.parameters() if p.requires_grad]
        return [{"params": lora, "name": "lora"}] if lora else []

    def reference_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """All that learns, but of a fresh adapter only the half that is zero.

        A layer's change is the product of lora_B and lora_A. While lora_B is zero there is no
        change, whatever lora_A holds, so the base alone is the starting policy.
        """
        parameters = dict(super().reference_parameters())
        idle = {n.replace(".lora_B.", ".lora_A.") for n, p in parameters.items() if _is_idle(n, p)}
        return [(name, p) for name, p in parameters.items() if name not in idle]

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the language model and of both image encoders."""
        vision = self.model.base.vision_backbone
        return [
            *self.model.base.language_model.model.layers,
            *vision.featurizer.blocks,
            *vision.fused_featurizer.blocks,
        ]

    def saved(self, name: str) -> bool:
        """The base is in its own files: checkpoints hold what RIPT changes, and the heads."""
        return not name.startswith("model.base.") or ".lora_" in name

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA is attached."""
        return has_lora(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return self.model.base.projector.fc1.weight.dtype

    def _inputs(
        self, languages: Sequence[str], length: int | None, images: Tensor
    ) -> dict[str, Tensor]:
        input_ids, mask = self.tokenizer(languages, length)
        return {
            "images": images,
            "input_ids": input_ids.to(self.device),
            "attention_mask": mask.to(self.device),
        }


def _is_idle(name: str, parameter: nn.Parameter) -> bool:
    return ".lora_B." in name and not parameter.any()


def default_device() -> str:
    """The GPU of this process, which its launcher names; the CPU where there is none."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return f"cuda:{rank}"
