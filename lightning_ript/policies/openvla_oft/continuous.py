"""OpenVLA-OFT with continuous actions, to which a Laplace distribution gives a density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_ript.console.deprecation import renamed
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.policies.openvla_oft import laplace
from lightning_ript.policies.openvla_oft.adapter import OpenVLAPolicy
from lightning_ript.policies.openvla_oft.checkpoint import load_openvla, load_scale_head
from lightning_ript.policies.openvla_oft.config import ACTION_DIM, CHUNK
from lightning_ript.policies.openvla_oft.images import crops
from lightning_ript.policies.openvla_oft.laplace import DimensionAggregation
from lightning_ript.policies.openvla_oft.model import OpenVLAOFT, Prediction
from lightning_ript.policies.setting_checks import check_choice

STATE = ("ee_pos", "ee_ori", "gripper_states")  # of a demonstration, by the names in its file


class OpenVLAOFTPolicy(OpenVLAPolicy):
    """OpenVLA-OFT with a Laplace density; LoRA and action head learn, all else stays as it is.

    Args:
        checkpoint: A published directory, here or on the hub (`hf://owner/repo`).
        statistics: The data set of the checkpoint whose statistics map states and actions: a
            suite's name will do.
        scale_head: RIPT-VLA's scale head, a file here or on the hub; None for a fresh one, which
            the callback `ScaleHeadPretraining` has to train.
        sampling_scale: Multiplies the Laplace's scale when sampling (RIPT-VLA: 5, Spatial 2); the
            head's scale as it is, not clipped.
        score: Which density a sampled action's log-probability is of: `full`, the head's own with
            log b clipped to [-2, 0.5], as the reference has it; or `sampled`, the one that the
            action was drawn from, which is neither clipped nor without `sampling_scale`.
        dimension_aggregation: What becomes a token, with a ratio of its own: each action of a
            chunk, by the `sum` or `mean` over its dimensions, or each number (`per_dimension`).
        head_lr: Learning rate of the action head; by default the optimizer's.
        aggregation: The name that `dimension_aggregation` had in version 0.1.
        **settings: Of `OpenVLAPolicy`.

    Raises:
        OSError: A file is missing.
        ValueError: A setting is out of range, or a file does not fit.
        ModuleNotFoundError: A library that only this policy needs is not installed.
    """

    entry_points = (*PolicyAdapter.entry_points, "demonstrated")
    model: OpenVLAOFT

    def __init__(
        self,
        checkpoint: str,
        statistics: str,
        scale_head: str | None = None,
        sampling_scale: float = 5.0,
        score: Literal["full", "sampled"] = "full",
        dimension_aggregation: DimensionAggregation = "sum",
        head_lr: float | None = None,
        aggregation: DimensionAggregation | None = None,
        **settings: Any,
    ) -> None:
        if not 0 < sampling_scale < math.inf:
            raise ValueError(f"sampling_scale is {sampling_scale}; it must be above 0")
        check_choice("score", score, ("full", "sampled"))
        if aggregation is not None:
            renamed("model.policy.aggregation", "model.policy.dimension_aggregation")
            dimension_aggregation = aggregation
        check_choice("dimension_aggregation", dimension_aggregation, get_args(DimensionAggregation))
        load = partial(load_openvla, scale_head=scale_head)
        super().__init__(load, checkpoint, statistics, **settings)
        if scale_head is not None and settings.get("adapter") is not None:
            load_scale_head(self.model.scale_head, scale_head)  # not the one beside the adapter
        self.sampling_scale = sampling_scale
        self.score = score
        self.dimension_aggregation = dimension_aggregation
        self.head_lr = head_lr
        self.noise_shape = (CHUNK, ACTION_DIM)
        self.model.action_head.requires_grad_(True)

    def check_ready(self) -> None:
        """Refuses to explore with the density of an untrained head.

        Raises:
            ValueError: The scale head is fresh.
        """
        if not self.model.scale_head.trained:
            raise ValueError(
                "The policy has no trained scale head: name one (model.policy.scale_head), "
                "or train one first (configs/openvla_oft/scale_head.yaml)."
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
        images = torch.stack([crops(batch["images"][n].to(self.device)) for n in self.cameras], 1)
        record = self._inputs(batch["language"], None, images)
        if self.proprio:
            state = torch.cat([batch["lowdim"][n] for n in STATE], -1)
            normalized = self.statistics.proprio.normalize(state.double()).float()
            record["proprio"] = normalized.to(self.device)
        prediction = self.predict(record)
        targets = self.statistics.target_actions(batch["actions"].double()).to(prediction.mean)
        return prediction.features, (targets - prediction.mean).abs()

    def parameter_groups(self) -> list[dict[str, object]]:
        """LoRA and action head, each clipped on its own and with its own learning rate."""
        head = list(self.model.action_head.parameters())
        rate = {} if self.head_lr is None else {"lr": self.head_lr}
        return [*super().parameter_groups(), {"params": head, "name": "action_head", **rate}]

    def _choose(self, prediction: Prediction, noise: Tensor | None) -> Tensor:
        """Normalized actions (B, 8, 7)."""
        if noise is None:
            return prediction.mean
        mean = prediction.mean
        return laplace.sample(mean, prediction.log_scale, noise.to(mean), self.sampling_scale)

    def _normalized_actions(self, chosen: Tensor) -> Tensor:
        return chosen

    def _score(self, prediction: Prediction, chosen: Tensor) -> tuple[Tensor, Tensor]:
        if self.score == "sampled":
            log_scale = prediction.log_scale + math.log(self.sampling_scale)
        else:
            log_scale = laplace.clip_log_scale(prediction.log_scale)
        log_probs = laplace.log_prob(chosen, prediction.mean, log_scale)
        return (
            laplace.aggregate(log_probs, self.dimension_aggregation),
            laplace.aggregate(laplace.entropy(log_scale), self.dimension_aggregation),
        )
