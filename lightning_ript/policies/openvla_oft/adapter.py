"""OpenVLA-OFT behind the interface that the RIPT loop asks of a policy."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_ript.hub import local_folder
from lightning_ript.policies.base import Decisions, PolicyAdapter
from lightning_ript.policies.openvla_oft import laplace
from lightning_ript.policies.openvla_oft.checkpoint import PATTERNS, load_openvla
from lightning_ript.policies.openvla_oft.config import ACTION_DIM, CHUNK
from lightning_ript.policies.openvla_oft.images import (
    CAMERAS,
    crops,
    observation_crops,
    pixel_values,
)
from lightning_ript.policies.openvla_oft.laplace import Aggregation
from lightning_ript.policies.openvla_oft.lora import LoraSizes, add_lora, has_lora, load_lora
from lightning_ript.policies.openvla_oft.model import Forward, Prediction
from lightning_ript.policies.openvla_oft.prompt import PromptTokenizer
from lightning_ript.policies.openvla_oft.quantization import Quantization
from lightning_ript.policies.openvla_oft.statistics import load_statistics
from lightning_ript.types import Observation, Task

Precision = Literal["bfloat16", "float32"]
DEFAULT_LORA = LoraSizes()
STATE = ("ee_pos", "ee_ori", "gripper_states")  # of a demonstration, by the names in its file


class OpenVLAOFTPolicy(PolicyAdapter):
    """OpenVLA-OFT with a Laplace density; LoRA and action head learn, all else stays as it is.

    Args:
        checkpoint: A published directory, here or on the hub (`hf://owner/repo`).
        statistics: The data set of the checkpoint whose statistics map states and actions: a
            suite's name will do.
        scale_head: RIPT-VLA's scale head, a file here or on the hub; None for a fresh one, which
            wants the callback `ScaleHeadPretraining`.
        adapter: A published LoRA adapter with its heads to start from, a folder here or on the hub.
        lora: The adapter to make where none is given; None to train the heads alone.
        forward: `prefix_cache` runs the prompt on its own and without gradient, as RIPT-VLA does;
            `single_pass` runs everything at once, as the checkpoints were trained.
        sampling_scale: Samples from so many times the Laplace's scale (RIPT-VLA: 5, Spatial 2).
        score: Which density a sampled action's log-probability is of: `full`, the head's own, as
            the reference has it; or `sampled`, the one that it was drawn from.
        aggregation: A token per action of a chunk, the `sum` or `mean` over its dimensions, or a
            token `per_dimension`.
        executed_actions: Actions executed of each chunk of 8.
        cameras: The images the checkpoint was trained on, in that order.
        head_lr: Learning rate of the action head; by default the optimizer's.
        precision: Of the base's weights; heads are float32.
        quantization: Stores the language model's weights in so many bits; needs bitsandbytes.
        gradient_checkpointing: Computes activations again in the backward pass: less memory.
        device: Where the weights go; by default the GPU of this process, if there is one.

    Raises:
        OSError: A file is missing.
        ValueError: A setting is out of range, or a file does not fit.
        ModuleNotFoundError: A library that only this policy needs is not installed.
    """

    entries = (*PolicyAdapter.entries, "demonstrated")

    def __init__(
        self,
        checkpoint: str,
        statistics: str,
        scale_head: str | None = None,
        adapter: str | None = None,
        lora: LoraSizes | None = DEFAULT_LORA,
        forward: Forward = "prefix_cache",
        sampling_scale: float = 5.0,
        score: Literal["full", "sampled"] = "full",
        aggregation: Aggregation = "sum",
        executed_actions: int = CHUNK,
        cameras: Sequence[str] = CAMERAS,
        head_lr: float | None = None,
        precision: Precision = "bfloat16",
        quantization: Quantization | None = None,
        gradient_checkpointing: bool = True,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= executed_actions <= CHUNK:
            raise ValueError(
                f"executed_actions is {executed_actions}, but a chunk has {CHUNK} actions: choose "
                "between 1 and that"
            )
        if not 0 < sampling_scale < math.inf:
            raise ValueError(f"sampling_scale is {sampling_scale}; it must be above 0")
        for name, value, choices in (
            ("forward", forward, get_args(Forward)),
            ("score", score, ("full", "sampled")),
            ("aggregation", aggregation, get_args(Aggregation)),
            ("precision", precision, get_args(Precision)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        folder = local_folder(checkpoint, PATTERNS)
        self.statistics = load_statistics(folder, statistics)
        self.tokenizer = PromptTokenizer(folder)
        self.checkpoint = checkpoint
        self.forward_pass = forward
        self.sampling_scale = sampling_scale
        self.score = score
        self.aggregation = aggregation
        self.executed_actions = executed_actions
        self.cameras = tuple(cameras)
        self.head_lr = head_lr
        self.noise_shape = (CHUNK, ACTION_DIM)
        self.needs_scale_head = scale_head is None
        self._prompt_length: int | None = None
        self.model = load_openvla(
            folder,
            scale_head,
            device=default_device() if device is None else device,
            dtype=getattr(torch, precision),
            quantization=quantization,
        )
        self.model.requires_grad_(False)
        self.model.gradient_checkpointing = gradient_checkpointing
        if adapter is not None:
            self.needs_scale_head &= not load_lora(self.model, adapter)
        elif lora is not None:
            add_lora(self.model, lora)
        for name in self.model.unused(forward):
            self._freeze(name)
        self.model.action_head.requires_grad_(True)
        self.eval()

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
        input_ids, mask = self.tokenizer([t.language for t in tasks], self._prompt_length)
        record = {
            "images": observation_crops(observations, self.device, self.cameras),
            "proprio": self.statistics.normalize_proprio(observations).to(self.device),
            "input_ids": input_ids.to(self.device),
            "attention_mask": mask.to(self.device),
        }
        prediction = self.predict(record)
        log_scale = laplace.clip_log_scale(prediction.log_scale)
        actions = prediction.mean
        if noise is not None:
            actions = laplace.sample(actions, log_scale, noise.to(actions), self.sampling_scale)
        record["actions"] = actions
        log_probs, _ = self._score(prediction, actions)
        executed = self.statistics.environment_actions(actions)[:, : self.executed_actions]
        return Decisions(executed, record, log_probs)

    def log_prob(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores N recorded chunks; the tokens are as `aggregation` says."""
        return self._score(self.predict(record), record["actions"])

    def predict(self, record: Mapping[str, Tensor]) -> Prediction:
        """What the model says of N recorded decisions."""
        return self.model(
            record["input_ids"],
            record["attention_mask"],
            pixel_values(record["images"], self.dtype),
            record["proprio"],
            self.forward_pass,
        )

    @torch.no_grad()
    def demonstrated(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What the scale head sees of demonstrated steps, and how far the mean is from them.

        Args:
            batch: Of `DemonstrationDataModule`, with blocks of 8 actions and `STATE` as its
                proprioception.

        Returns:
            Features (B, 8, 7 D), and absolute errors of the normalized actions (B, 8, 7) float32.
        """
        input_ids, mask = self.tokenizer(batch["language"], None)
        images = torch.stack([crops(batch["images"][n].to(self.device)) for n in self.cameras], 1)
        state = torch.cat([batch["lowdim"][n] for n in STATE], -1)
        record = {
            "images": images,
            "proprio": self.statistics.proprio.normalize(state.double()).float().to(self.device),
            "input_ids": input_ids.to(self.device),
            "attention_mask": mask.to(self.device),
        }
        prediction = self.predict(record)
        targets = self.statistics.target_actions(batch["actions"].double()).to(prediction.mean)
        return prediction.features, (targets - prediction.mean).abs()

    def parameter_groups(self) -> list[dict[str, object]]:
        """LoRA and action head, each clipped on its own and with its own learning rate."""
        head = list(self.model.action_head.parameters())
        lora = [p for p in self.model.base.parameters() if p.requires_grad]
        groups: list[dict[str, object]] = [{"params": lora, "name": "lora"}] if lora else []
        rate = {} if self.head_lr is None else {"lr": self.head_lr}
        return [*groups, {"params": head, "name": "action_head", **rate}]

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the language model and of both image encoders."""
        vision = self.model.base.vision_backbone
        return [
            *self.model.base.language_model.model.layers,
            *vision.featurizer.blocks,
            *vision.fused_featurizer.blocks,
        ]

    def saved(self, name: str) -> bool:
        """The base is in its own files: checkpoints hold what RIPT changes, and the scale head."""
        return not name.startswith("model.base.") or ".lora_" in name

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA is attached."""
        return has_lora(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return self.model.base.projector.fc1.weight.dtype

    def _freeze(self, prefix: str) -> None:
        for name, parameter in self.model.named_parameters():
            if name.startswith(prefix):
                parameter.requires_grad_(False)

    def _score(self, prediction: Prediction, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the tokens (N, T) of normalized actions (N, 8, 7)."""
        log_scale = laplace.clip_log_scale(prediction.log_scale)
        if self.score == "sampled":
            log_scale = log_scale + math.log(self.sampling_scale)
        log_probs = laplace.log_prob(actions, prediction.mean, log_scale)
        return (
            laplace.aggregate(log_probs, self.aggregation),
            laplace.aggregate(laplace.entropy(log_scale), self.aggregation),
        )


def default_device() -> str:
    """The GPU of this process, which its launcher names; the CPU where there is none."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return f"cuda:{rank}"
