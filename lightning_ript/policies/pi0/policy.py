"""pi0 and pi0.5 behind the interface that the RIPT loop asks of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ript.policies.flow.adapter import FlowPolicy, WeightPrecision, weight_dtypes
from lightning_ript.policies.flow.lerobot import NETWORK, PATTERNS, read_published
from lightning_ript.policies.flow.load import Rename, fill, network_shapes
from lightning_ript.policies.flow.prompts import Prompts, published_beside
from lightning_ript.policies.openvla_oft.adapter import default_device
from lightning_ript.policies.pi0.network import Pi0Network
from lightning_ript.policies.pi0.sizes import VISION_HEADS, read_sizes
from lightning_ript.policies.safetensor_files import shapes, shards
from lightning_ript.storage.hub import local_folder
from lightning_ript.types import Task

TOKENIZER = "google/paligemma-3b-pt-224"
_START, _PADDING = 2, 0  # Gemma's
BINS = 256


class Pi0Policy(FlowPolicy):
    """pi0 (Black et al. 2024), as LeRobot publishes it.

    Args:
        checkpoint: A published folder, here or on the hub (`hf://owner/repo`).
        tokenizer: Folder with PaliGemma's `tokenizer.json`, here or on the hub, where Google wants
            its terms accepted first; by default the one that the checkpoint names.
        steps: Denoising steps; by default the checkpoint's.
        executed_actions: Actions executed of each chunk; by default the checkpoint's.
        precision: Of the transformers' weights that do not learn; all others are float32.
        vision_heads: Attention heads of the image encoder, which no file tells.
        device: Where the weights go; by default the GPU of this process, if there is one.
        **settings: Of `FlowPolicy`.

    Raises:
        OSError: A file is missing.
        ValueError: A setting is out of range, or a file does not fit.
    """

    kind = "pi0"
    network: Pi0Network

    def __init__(
        self,
        checkpoint: str,
        tokenizer: str | None = None,
        steps: int | None = None,
        executed_actions: int | None = None,
        precision: WeightPrecision = "float32",
        vision_heads: int = VISION_HEADS,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        folder = local_folder(checkpoint, PATTERNS)
        published = read_published(folder, self.kind)
        config = published.config
        name = tokenizer or published.tokenizer or TOKENIZER
        place = published_beside(
            (Path(name), folder / name, folder / "tokenizer"), name, ("tokenizer.json",)
        )
        rename = self.renaming(folder)
        sizes = read_sizes(config, network_shapes(folder, rename), vision_heads)
        with torch.device("meta"):
            network = Pi0Network(sizes)
        fill(network, folder, rename, weight_dtypes(network, precision, settings))
        height, width = config["image_resolution"]
        super().__init__(
            network,
            published,
            image_size=(height, width),
            centred=True,
            steps=config["num_inference_steps"] if steps is None else steps,
            executed_actions=(
                config["n_action_steps"] if executed_actions is None else executed_actions
            ),
            **settings,
        )
        self.checkpoint = checkpoint
        self.prompts = Prompts(place, int(config["tokenizer_max_length"]), _START, _PADDING)
        self.to(default_device() if device is None else device)
        self.eval()

    @staticmethod
    def renaming(folder: Path) -> Rename:
        """Older folders' names included."""
        return _renaming(folder)

    @property
    def absent_cameras(self) -> int:
        """All that the checkpoint was trained on beyond the environment's."""
        return len(self.published.cameras) - len(self.cameras)

    def blocks(self) -> Sequence[torch.nn.Module]:
        """The layers of image encoder, PaliGemma and expert."""
        return [
            *self.network.vision.encoder.layers,
            *self.network.language.layers,
            *self.network.expert.layers,
        ]


class Pi05Policy(Pi0Policy):
    """pi0.5 (Physical Intelligence 2025), as LeRobot publishes it: the state is in the prompt."""

    kind = "pi05"

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Makes room for every prompt: the state's numbers change its length."""
        self._prompt_length = self.prompts.length

    def encode_prompts(self, tasks: Sequence[str], state: Tensor) -> tuple[Tensor, Tensor]:
        """The instructions with the states' bins."""
        texts = [
            f"Task: {cleaned(task)}, State: {' '.join(map(str, bins))};\nAction: "
            for task, bins in zip(tasks, state_bins(state).tolist(), strict=True)
        ]
        return self.prompts.batch(texts, self._prompt_length)


def cleaned(task: str) -> str:
    """An instruction as pi0.5's prompts have it."""
    return task.strip().replace("_", " ").replace("\n", " ")


def state_bins(state: Tensor) -> Tensor:
    """Which of 256 equal intervals of [-1, 1] normalized numbers lie in; (B, n) int64.

    Below the range it is -1, above it 255.
    """
    edges = -1 + torch.arange(BINS, dtype=torch.float64) / (BINS / 2)
    return torch.searchsorted(edges.to(state.device), state.double(), right=True) - 1


def _renaming(folder: Path) -> Rename:
    """From names in a folder's files, older ones included, to the network's.

    Heads for words are left out, but where a file has no embedding of words: that was the head.
    """
    old = "paligemma_with_expert.paligemma."
    embedding = f"{old}model.language_model.embed_tokens.weight"
    moved = (
        (f"{old}language_model.model.", f"{old}model.language_model."),
        (f"{old}vision_tower.", f"{old}model.vision_tower."),
        (f"{old}multi_modal_projector.", f"{old}model.multi_modal_projector."),
    )

    def rename(name: str) -> str | None:
        for before, after in moved:
            if name.startswith(before):
                return after + name.removeprefix(before)
        return None if name.endswith("lm_head.weight") else name

    names = [name.removeprefix(NETWORK) for name in shapes(shards(folder))]
    if embedding in map(rename, names):
        return rename
    heads = {f"{old}lm_head.weight", f"{old}language_model.lm_head.weight"}
    return lambda name: embedding if name in heads else rename(name)
