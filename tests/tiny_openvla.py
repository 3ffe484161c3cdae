"""A tiny OpenVLA-OFT with random weights, in the format of the published directories."""

import json
from pathlib import Path

import torch
from openvla_models import register_dinov2, register_siglip
from safetensors.torch import save_file

from lightning_ript.policies.openvla_oft.checkpoint import published
from lightning_ript.policies.openvla_oft.config import OpenVLAConfig
from lightning_ript.policies.openvla_oft.model import OpenVLAOFT

ACTION_HEAD = "action_head--150000_checkpoint.pt"
PROJECTOR = "proprio_projector--150000_checkpoint.pt"
UNNORM_KEY = "libero_goal_no_noops"
SPACE = 29871  # the token that a prompt must end with
PROMPTS = """
In: What action should the robot take to ? Out: go open close put push turn on pick up and place
it the in of top middle drawer bottom cabinet bowl plate stove wine bottle rack cream cheese front
black basket between next left right red green blue
"""

CONFIG = {
    "model_type": "openvla",
    "image_sizes": [224, 224],
    "n_action_bins": 256,
    "pad_to_multiple_of": 64,
    "pad_token_id": 32000,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "pad_token_id": 32000,
    },
    "timm_model_ids": ["vit_nano_patch56_reg4_dinov2", "vit_nano_patch56_siglip"],
    "timm_override_act_layers": [None, None],
    "use_fused_vision_backbone": True,
}


# 16 patches an image instead of 256: the sequence is what costs.
register_dinov2("vit_nano_patch56_reg4_dinov2", 56, embed_dim=32, num_heads=2)
register_siglip("vit_nano_patch56_siglip", 56, embed_dim=32, num_heads=2)


def tiny_model(seed=0, proprio=True):
    """A random model in float32 and eval mode."""
    torch.manual_seed(seed)
    model = OpenVLAOFT(OpenVLAConfig.from_dict(CONFIG), proprio).eval()
    with torch.no_grad():
        # Larger than an initialization's, or patches and words would hardly matter.
        for parameter in model.base.language_model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


def tiny_inputs(lengths=(9, 9), images=2, seed=0):
    """Prompts of the given lengths, in one padded batch: what `OpenVLAOFT.forward` takes."""
    generator = torch.Generator().manual_seed(seed)
    batch, longest = len(lengths), max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    tokens = torch.randint(3, 1000, (batch, longest), generator=generator)
    tokens[:, 0] = 1
    tokens = torch.where(mask.bool(), tokens, 32000)
    for row, length in enumerate(lengths):
        tokens[row, length - 1] = SPACE
    pixels = torch.randn(batch, 6 * images, 224, 224, generator=generator)
    return tokens, mask, pixels, torch.rand(batch, 8, generator=generator) * 2 - 1


def write_tiny_openvla(folder, seed=0, unnorm_key=UNNORM_KEY, dtype=torch.float16, shards=2):
    """Writes a random model as a published directory with a tokenizer, and a scale head beside.

    Args:
        folder: Where to; made if need be. `scale_header.pth` is written into it too.
        seed: Of the weights.
        unnorm_key: The data set whose statistics it has.
        dtype: Of the base's weights.
        shards: Number of safetensors files.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model(seed)
    statistics = {unnorm_key: _statistics()}
    config = {**CONFIG, "norm_stats": statistics}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics, indent=1))
    weights = {published(n): v.to(dtype) for n, v in model.base.state_dict().items()}
    write_shards(folder, weights, shards)
    for module, name in (
        (model.action_head, ACTION_HEAD),
        (model.proprio_projector, PROJECTOR),
    ):
        torch.save({f"module.{n}": v for n, v in module.state_dict().items()}, folder / name)
    scale = model.scale_head
    torch.save(
        {"scale_trunk": scale.trunk.state_dict(), "log_b_head": scale.log_b_head.state_dict()},
        folder / "scale_header.pth",
    )
    write_tokenizer(folder)
    return folder


def write_tiny_openvla_tokens(folder, proprio=False, **settings):
    """As `write_tiny_openvla`, of the kind whose actions are tokens: it has no action head."""
    folder = write_tiny_openvla(folder, **settings)
    (folder / ACTION_HEAD).unlink()
    if not proprio:
        (folder / PROJECTOR).unlink()
    return folder


def write_shards(folder, weights, shards):
    """Writes weights as `shards` safetensors files of about one size, with an index."""
    total = sum(value.nbytes for value in weights.values())
    parts, written = [{} for _ in range(shards)], 0
    for name in sorted(weights):
        parts[min(written * shards // total, shards - 1)][name] = weights[name].contiguous()
        written += weights[name].nbytes
    places = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        places.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_tokenizer(folder):
    """Writes a tokenizer of whole words with Llama's special tokens; the rest is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": SPACE, "<PAD>": 32000}
    vocabulary.update({word: 3 + i for i, word in enumerate(dict.fromkeys(PROMPTS.split()))})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("?", "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<PAD>",
        padding_side="right",
    ).save_pretrained(folder)


def _statistics():
    action = {
        "q01": [-0.6, -0.7, -0.8, -0.1, -0.2, -0.3, 0.0],
        "q99": [0.9, 0.8, 0.7, 0.2, 0.15, 0.3, 1.0],
        "mask": [True] * 6 + [False],
    }
    proprio = {
        "q01": [-0.5, -0.5, -0.5, -3.0, -3.0, -3.0, 0.0, -0.04],
        "q99": [0.5, 0.5, 0.5, 3.0, 3.0, 3.0, 0.04, 0.0],
    }
    for values in (action, proprio):
        size = len(values["q01"])
        values.update(min=[-1.0] * size, max=[1.0] * size, mean=[0.0] * size, std=[1.0] * size)
    return {"action": action, "proprio": proprio}
