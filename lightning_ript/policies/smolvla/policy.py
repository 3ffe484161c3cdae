"""SmolVLA behind the interface that the RIPT loop asks of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_ript.policies.flow.adapter import FlowPolicy, WeightPrecision, weight_dtypes
from lightning_ript.policies.flow.lerobot import PATTERNS, read_published
from lightning_ript.policies.flow.load import Rename, fill, network_shapes
from lightning_ript.policies.flow.prompts import Prompts, published_beside
from lightning_ript.policies.openvla_oft.adapter import default_device
from lightning_ript.policies.smolvla.network import SmolVLANetwork
from lightning_ript.policies.smolvla.sizes import read_sizes
from lightning_ript.storage.hub import local_folder

_PADDING = 2  # SmolVLM's <|im_end|>


class SmolVLAPolicy(FlowPolicy):
    """SmolVLA (Shukor et al. 2025), as LeRobot publishes it.

    Args:
        checkpoint: A published folder, here or on the hub (`hf://owner/repo`).
        vlm: Folder with the SmolVLM's `config.json` and `tokenizer.json`, here or on the hub; by
            default the one that the checkpoint names.
        steps: Denoising steps; by default the checkpoint's.
        executed_actions: Actions executed of each chunk; by default the checkpoint's.
        precision: Of the transformers' weights that do not learn; all others are float32.
        device: Where they go; by default the GPU of this process, if there is one.
        **settings: Of `FlowPolicy`.

    Raises:
        OSError: A file is missing.
        ValueError: A setting is out of range, or a file does not fit.
    """

    kind = "smolvla"
    network: SmolVLANetwork

    def __init__(
        self,
        checkpoint: str,
        vlm: str | None = None,
        steps: int | None = None,
        executed_actions: int | None = None,
        precision: WeightPrecision = "float32",
        device: str | None = None,
        **settings: Any,
    ) -> None:
        folder = local_folder(checkpoint, PATTERNS)
        published = read_published(folder, self.kind)
        config = published.config
        name = vlm or config["vlm_model_name"]
        needed = ("config.json", "tokenizer.json")
        place = published_beside((folder / name, Path(name)), name, needed)
        sizes = read_sizes(config, place, network_shapes(folder, _rename))
        with torch.device("meta"):
            network = SmolVLANetwork(sizes)
        fill(network, folder, _rename, weight_dtypes(network, precision, settings))
        width, height = config["resize_imgs_with_padding"]
        super().__init__(
            network,
            published,
            image_size=(height, width),
            centred=False,
            steps=config["num_steps"] if steps is None else steps,
            executed_actions=(
                config["n_action_steps"] if executed_actions is None else executed_actions
            ),
            **settings,
        )
        self.checkpoint = checkpoint
        self.prompts = Prompts(place, int(config["tokenizer_max_length"]), None, _PADDING)
        self.to(default_device() if device is None else device)
        self.eval()

    @staticmethod
    def renaming(folder: Path) -> Rename:
        """All but the SmolVLM's head."""
        return _rename

    @property
    def absent_cameras(self) -> int:
        """At most as many as the checkpoint calls empty."""
        absent = len(self.published.cameras) - len(self.cameras)
        return min(absent, int(self.published.config["empty_cameras"]))

    def blocks(self) -> Sequence[torch.nn.Module]:
        """The layers of image encoder, SmolVLM and expert."""
        vlm = self.network.vlm
        return [
            *vlm.vision_model.encoder.layers,
            *vlm.text_model.layers,
            *self.network.expert.layers,
        ]


def _rename(name: str) -> str | None:
    """The SmolVLM's head makes words, which no action needs."""
    return None if name == "vlm_with_expert.vlm.lm_head.weight" else name
