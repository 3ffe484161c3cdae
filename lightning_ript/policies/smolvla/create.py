"""A SmolVLA of one's own size, to start from where there is no published one: `new-smolvla`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from lightning_ript.policies.flow.decoder import DecoderSizes
from lightning_ript.policies.flow.lerobot import (
    ACTION,
    CONFIG,
    NETWORK,
    POSTPROCESSOR,
    PREPROCESSOR,
    STATE,
)
from lightning_ript.policies.flow.vision import VisionSizes
from lightning_ript.policies.setting_checks import check_executed_actions
from lightning_ript.policies.smolvla.network import SmolVLANetwork, SmolVLASizes
from lightning_ript.storage.files import make_folder, making

log = logging.getLogger(__name__)

VLM = "vlm"  # folder of the language model's settings and tokenizer, beside the weights
_SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>", "<image>")  # 2 fills up, as in SmolVLM
_VISION_HEADS = 3
_LENGTH = 48  # tokens of a prompt at most


@dataclass(frozen=True)
class SmallSizes:
    """Sizes of a SmolVLA to make; the defaults have 1.3 M parameters.

    Attributes:
        image: Side of the images it sees, in pixels.
        patch: Side of a patch in pixels.
        shuffle: So many patches to a side become one token.
        vision_width: Of the image encoder, a multiple of 3.
        vision_layers: Of the image encoder.
        width: Of the language model, a multiple of `heads`.
        layers: Of language model and expert.
        heads: Of both; a head's width is even.
        kv_heads: Heads of keys and values.
        expert_width: Of the action expert, even.
        self_attention_every: Every so many layers the expert attends to itself, too.
        chunk: Actions of a chunk.
    """

    image: int = 64
    patch: int = 8
    shuffle: int = 2
    vision_width: int = 96
    vision_layers: int = 3
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    expert_width: int = 96
    self_attention_every: int = 2
    chunk: int = 8

    def network(self, vocabulary: int, state_dim: int, action_dim: int) -> SmolVLASizes:
        """The sizes of the whole.

        Raises:
            ValueError: They do not fit each other.
        """
        side = self.image // self.patch
        if self.image % self.patch or side % self.shuffle:
            raise ValueError(
                f"an image of {self.image} pixels has no whole number of patches of {self.patch} "
                f"of which {self.shuffle} x {self.shuffle} make a token."
            )
        head_dim = self.width // self.heads
        if self.width % self.heads or head_dim % 2 or self.heads % self.kv_heads:
            raise ValueError(
                f"a width of {self.width} makes no {self.heads} heads of an even width, or they "
                f"cannot share {self.kv_heads} heads of keys."
            )
        if self.vision_width % _VISION_HEADS or self.expert_width % 2:
            raise ValueError(
                f"a vision_width of {self.vision_width} must be a multiple of {_VISION_HEADS}, and "
                f"an expert_width of {self.expert_width} even."
            )
        heads = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": head_dim}
        return SmolVLASizes(
            vision=VisionSizes(
                width=self.vision_width,
                layers=self.vision_layers,
                heads=_VISION_HEADS,
                mlp=2 * self.vision_width,
                patch=self.patch,
                image=self.image,
            ),
            language=DecoderSizes(self.width, self.layers, 2 * self.width, **heads),
            expert=DecoderSizes(self.expert_width, self.layers, 2 * self.expert_width, **heads),
            shuffle=self.shuffle,
            self_attention_every=self.self_attention_every,
            vocabulary=vocabulary,
            chunk=self.chunk,
            state_dim=state_dim,
            action_dim=action_dim,
        )


def new_smolvla(
    out: Path,
    files: list[str] | str,
    sizes: SmallSizes = SmallSizes(),
    executed_actions: int | None = None,
    steps: int = 10,
    seed: int = 0,
) -> None:
    """Writes a SmolVLA with random weights in LeRobot's layout, and demonstrations' statistics.

    Supervised fine-tuning starts from it, as it would from a published one.

    Args:
        out: Folder to make.
        files: Demonstrations, as `DemonstrationDataModule` takes them: states and actions are
            normalized by their means and deviations, and the tokenizer knows their words.
        sizes: Of the network.
        executed_actions: Actions executed of each chunk; all by default.
        steps: Denoising steps.
        seed: Of the weights.

    Raises:
        FileExistsError: The folder is there already.
        OSError: Demonstrations are missing.
        ValueError: Sizes do not fit each other, or a file is damaged.
    """
    from lightning_ript.demos.datamodule import DemonstrationDataModule
    from lightning_ript.policies.flow.adapter import DEMONSTRATED_STATE

    if out.exists():
        raise FileExistsError(f"{out} is there already: name another folder.")
    if executed_actions is None:
        executed_actions = sizes.chunk
    check_executed_actions(executed_actions, sizes.chunk)
    make_folder(out.parent)
    data = DemonstrationDataModule(
        files, lowdim=DEMONSTRATED_STATE, cameras=(), validation_fraction=0, block_size=sizes.chunk
    )
    data.setup("fit")
    assert data.training is not None
    found = [trajectory.arrays for trajectory in data.training.trajectories]
    states = np.concatenate(
        [np.concatenate([arrays[name] for name in DEMONSTRATED_STATE], 1) for arrays in found]
    )
    actions = np.concatenate([arrays["actions"] for arrays in found])
    numbers = statistics(STATE, states) | statistics(ACTION, actions)
    words = vocabulary(data.instructions)
    whole = sizes.network(len(words), state_dim=32, action_dim=32)
    torch.manual_seed(seed)
    network = SmolVLANetwork(whole)
    with making(out) as draft:
        write(
            network,
            draft,
            numbers=numbers,
            words=words,
            executed_actions=executed_actions,
            steps=steps,
        )
    count = sum(parameter.numel() for parameter in network.parameters())
    log.info(
        "%s: a SmolVLA of %.1f M parameters for %d demonstrations.", out, count / 1e6, len(found)
    )


def statistics(feature: str, values: np.ndarray) -> dict[str, Tensor]:
    """What LeRobot keeps of n numbers over all steps (T, n), by its names."""
    exact = values.astype(np.float64)
    found = {
        "mean": exact.mean(0),
        "std": exact.std(0),
        "min": exact.min(0),
        "max": exact.max(0),
        "q01": np.quantile(exact, 0.01, axis=0),
        "q99": np.quantile(exact, 0.99, axis=0),
        "count": np.array([len(exact)]),
    }
    return {f"{feature}.{n}": torch.from_numpy(v).float() for n, v in found.items()}


def vocabulary(instructions: Iterable[str]) -> list[str]:
    """Special tokens, then the words of instructions in alphabetical order."""
    words = {word for instruction in instructions for word in instruction.split()}
    return [*_SPECIAL, *sorted(words)]


def write(
    network: SmolVLANetwork,
    out: Path,
    *,
    numbers: Mapping[str, Tensor],
    words: Sequence[str],
    executed_actions: int,
    steps: int,
) -> None:
    """Writes weights, settings, statistics and tokenizer as LeRobot does.

    Args:
        network: The network.
        out: Folder to make.
        numbers: Statistics by LeRobot's names.
        words: The vocabulary.
        executed_actions: Actions executed of each chunk.
        steps: Denoising steps.
    """
    sizes = network.sizes
    (out / VLM).mkdir()
    weights = {NETWORK + name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    side = sizes.vision.image
    images = {"type": "VISUAL", "shape": [3, side, side]}
    state = {"type": "STATE", "shape": [numbers[f"{STATE}.mean"].numel()]}
    action = {"type": "ACTION", "shape": [numbers[f"{ACTION}.mean"].numel()]}
    cameras = {"observation.images.image": images, "observation.images.image2": images}
    inputs, outputs = {**cameras, STATE: state}, {ACTION: action}
    mapping = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    config = {
        "type": "smolvla",
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "chunk_size": sizes.chunk,
        "n_action_steps": executed_actions,
        "normalization_mapping": mapping,
        "max_state_dim": sizes.state_dim,
        "max_action_dim": sizes.action_dim,
        "resize_imgs_with_padding": [side, side],
        "empty_cameras": 0,
        "tokenizer_max_length": _LENGTH,
        "num_steps": steps,
        "freeze_vision_encoder": False,
        "train_expert_only": False,
        "train_state_proj": True,
        "vlm_model_name": VLM,
        "load_vlm_weights": False,
        "add_image_special_tokens": False,
        "attention_mode": "cross_attn",
        "prefix_length": -1,
        "pad_language_to": "longest",
        "num_expert_layers": -1,
        "num_vlm_layers": sizes.language.layers,
        "self_attn_every_n_layers": sizes.self_attention_every,
        "expert_width_multiplier": sizes.expert.width / sizes.language.width,
        "min_period": 0.004,
        "max_period": 4.0,
    }
    _write_json(out / CONFIG, config)
    settings = {"eps": 1e-8, "norm_map": mapping}
    before, after = (
        "policy_preprocessor_step_5_normalizer_processor.safetensors",
        ("policy_postprocessor_step_0_unnormalizer_processor.safetensors"),
    )
    tokenizer = {
        "max_length": _LENGTH,
        "task_key": "task",
        "padding_side": "right",
        "padding": "longest",
        "truncation": True,
        "tokenizer_name": VLM,
    }
    device = _step("device_processor", device="cpu", float_dtype=None)
    steps_before = [
        _step("rename_observations_processor", rename_map={}),
        _step("to_batch_processor"),
        _step("smolvla_new_line_processor"),
        _step("tokenizer_processor", **tokenizer),
        device,
        {
            **_step("normalizer_processor", features={**inputs, **outputs}, **settings),
            "state_file": before,
        },
    ]
    steps_after = [
        {**_step("unnormalizer_processor", features=outputs, **settings), "state_file": after},
        device,
    ]
    _write_json(out / PREPROCESSOR, {"name": "policy_preprocessor", "steps": steps_before})
    _write_json(out / POSTPROCESSOR, {"name": "policy_postprocessor", "steps": steps_after})
    for name in (before, after):
        save_file(dict(numbers), out / name)
    _write_vlm(out / VLM, sizes, words)


def _write_vlm(folder: Path, sizes: SmolVLASizes, words: Sequence[str]) -> None:
    """The settings and the tokenizer of the language model, as transformers reads a SmolVLM's."""
    vision, text = sizes.vision, sizes.language
    _write_json(
        folder / "config.json",
        {
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "image_token_id": words.index("<image>"),
            "pad_token_id": words.index("<|im_end|>"),
            "scale_factor": sizes.shuffle,
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "llama",
                "vocab_size": sizes.vocabulary,
                "hidden_size": text.width,
                "intermediate_size": text.mlp,
                "num_hidden_layers": text.layers,
                "num_attention_heads": text.heads,
                "num_key_value_heads": text.kv_heads,
                "head_dim": text.head_dim,
                "rms_norm_eps": 1e-5,
            },
            "vision_config": {
                "model_type": "smolvlm_vision",
                "hidden_size": vision.width,
                "intermediate_size": vision.mlp,
                "num_hidden_layers": vision.layers,
                "num_attention_heads": vision.heads,
                "image_size": vision.image,
                "patch_size": vision.patch,
            },
        },
    )
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def _step(name: str, **settings: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": settings}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
