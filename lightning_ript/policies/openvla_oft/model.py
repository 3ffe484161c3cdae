"""OpenVLA-OFT (Kim, Finn, Liang 2025, arXiv 2502.19645), which says eight actions at once.

Two kinds, by what reads the hidden states: `OpenVLAOFT` has an action head and RIPT-VLA's Laplace
scale head, `OpenVLATokens` the language model's own head, over the tokens that are action bins.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_ript.policies.openvla_oft.attention import Prefix, run_layers
from lightning_ript.policies.openvla_oft.config import ACTION_DIM, BINS, CHUNK, OpenVLAConfig
from lightning_ript.policies.openvla_oft.heads import (
    ActionHead,
    LaplaceScaleHead,
    ProprioProjector,
)
from lightning_ript.policies.openvla_oft.vision import Projector, VisionBackbone

Forward = Literal["prefix_cache", "single_pass"]
STOP_TOKEN = 2


# A tuple, since FSDP and DDP look for tensors that want gradients only in what pytrees are made of.
class Prediction(NamedTuple):
    """What the model predicts for B decision steps.

    Attributes:
        mean: Normalized actions, (B, 8, 7) float32; mean and median of the Laplace.
        log_scale: Logarithm of the Laplace's scale, not clipped, (B, 8, 7) float32.
        features: What both heads see of each step, (B, 8, 7 * D).
    """

    mean: Tensor
    log_scale: Tensor
    features: Tensor


class OpenVLABase(nn.Module):
    """The part that one published safetensors index holds, and that a LoRA adapts.

    Args:
        config: Sizes.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        from transformers import LlamaForCausalLM

        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(self.vision_backbone.width, config.text.hidden_size)
        self.language_model = LlamaForCausalLM(config.text.llama())


class OpenVLA(nn.Module):
    """What both kinds share: the adaptable base, and the projector of proprioception.

    D is the language model's width, L the length of the longest prompt.

    Args:
        config: Sizes.
        proprio: Whether the model was trained with proprioception.

    Attributes:
        gradient_checkpointing: Whether the language model's activations are computed again for the
            backward pass instead of kept.
        precise: What the names of the base's weights begin with that are as precise as the heads.
    """

    precise: tuple[str, ...] = ()

    def __init__(self, config: OpenVLAConfig, proprio: bool) -> None:
        super().__init__()
        dim = config.text.hidden_size
        self.config = config
        self.gradient_checkpointing = False
        self.base = OpenVLABase(config)
        self.proprio_projector = ProprioProjector(dim) if proprio else None

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        proprio: Tensor | None,
        forward: Forward,
    ) -> Tensor:
        """Reads images, state and prompt.

        Args:
            input_ids: Prompts, (B, L) long, each beginning with BOS.
            attention_mask: Where they have tokens, (B, L); padding comes after the prompt.
            pixel_values: (B, 6 * images, 224, 224), as `VisionBackbone` takes them.
            proprio: Normalized, (B, 8); None for a model without.
            forward: "single_pass": every token attends to every other, as in the base model's
                training. "prefix_cache", RIPT-VLA's: the prompt but for its last token is run on
                its own and without gradient, and what remains attends to it and to itself.

        Returns:
            Hidden states of the prompt's last token, the 56 actions and the stop token, (B, 58, D).
            The base was trained to predict the next token, and its action tokens with it: what is
            said of an action is found one place before it.
        """
        if forward not in get_args(Forward):
            raise ValueError(f"forward must be one of {get_args(Forward)}, but is {forward!r}")
        if forward == "single_pass":
            prompt = self._prompt(input_ids, attention_mask, pixel_values, proprio)
            return self._single_pass(input_ids, attention_mask, prompt)
        with torch.no_grad():
            prompt = self._prompt(input_ids, attention_mask, pixel_values, proprio)
        return self._prefix_cache(input_ids, attention_mask, prompt)

    def published_heads(self) -> dict[str, nn.Module]:
        """Heads by their names in the file that is published beside an adapter."""
        return {}

    def unused(self, forward: Forward) -> tuple[str, ...]:
        """What the names of parameters begin with that a forward pass gives no gradient.

        DDP waits for a gradient of every parameter that requires one.
        """
        names = []
        if forward == "prefix_cache":
            names += ["base.vision_backbone.", "base.projector.", "proprio_projector."]
        for encoder in ("featurizer", "fused_featurizer"):
            last = len(getattr(self.base.vision_backbone, encoder).blocks) - 1
            parts = f"blocks.{last}", "norm", "attn_pool"
            names += [f"base.vision_backbone.{encoder}.{part}." for part in parts]
        return tuple(names)

    def freeze_unused(self, forward: Forward) -> None:
        """Lets only what a forward pass gives a gradient want one."""
        unused = self.unused(forward)
        for name, parameter in self.named_parameters():
            if name.startswith(unused):
                parameter.requires_grad_(False)

    def _prompt(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        proprio: Tensor | None,
    ) -> Tensor:
        """Embeds BOS, patches, proprioception and the prompt without its last token, (B, T, D).

        The last token's place depends on the prompt's length. It begins what `_rest` embeds, and in
        a row with padding its place here is padding too.
        """
        _check_prompts(input_ids, attention_mask)
        if (proprio is None) != (self.proprio_projector is None):
            has = "no" if self.proprio_projector is None else "a"
            got = "none" if proprio is None else "some"
            raise ValueError(f"The model has {has} proprio projector, but was given {got} proprio")
        words = self._embed(input_ids[:, :-1])
        patches = self.base.projector(self.base.vision_backbone(pixel_values)).to(words.dtype)
        parts = [words[:, :1], patches]
        if self.proprio_projector is not None and proprio is not None:
            token = self.proprio_projector(proprio.to(self.proprio_projector.fc1.weight.dtype))
            parts.append(token[:, None].to(words.dtype))
        return torch.cat([*parts, words[:, 1:]], dim=1)

    def _rest(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embeds the prompt's last token, 56 zeros for actions and the stop token (B, 58, D)."""
        last = self._embed(input_ids.gather(1, lengths[:, None] - 1))
        actions = last.new_zeros(len(last), CHUNK * ACTION_DIM, last.shape[-1])
        stop = self._embed(torch.full_like(input_ids[:, :1], STOP_TOKEN))
        return torch.cat([last, actions, stop], dim=1)

    def _layout(self, attention_mask: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where tokens are.

        Returns:
            Lengths of the prompts (B,) long; which of the prompt's embeddings are not padding
            (B, T) bool; positions of prompt and rest (B, T + 58) long.
        """
        lengths = attention_mask.long().sum(dim=1)
        words = attention_mask.shape[1] - 1
        others = prompt.shape[1] - words  # patches and proprioception
        places = torch.arange(prompt.shape[1], device=prompt.device)
        ends = others + lengths[:, None] - 1
        rest = torch.arange(CHUNK * ACTION_DIM + 2, device=prompt.device) + ends
        positions = torch.cat([places.expand(len(prompt), -1), rest], dim=1)
        return lengths, places < ends, positions

    def _single_pass(self, input_ids: Tensor, attention_mask: Tensor, prompt: Tensor) -> Tensor:
        lengths, real, positions = self._layout(attention_mask, prompt)
        rest = self._rest(input_ids, lengths)
        keys = torch.cat([real, real.new_ones(rest.shape[:2])], dim=1)
        attend = keys[:, None].expand(-1, keys.shape[1], -1)
        hidden = self._run(torch.cat([prompt, rest], dim=1), attend, positions)
        return hidden[:, prompt.shape[1] :]

    def _prefix_cache(self, input_ids: Tensor, attention_mask: Tensor, prompt: Tensor) -> Tensor:
        lengths, real, positions = self._layout(attention_mask, prompt)
        size = prompt.shape[1]
        prefix = Prefix()
        with torch.no_grad():
            attend = real[:, None].expand(-1, size, -1)
            self._run(prompt, attend, positions[:, :size], prefix)
        prefix.recording = False
        rest = self._rest(input_ids, lengths)
        keys = torch.cat([real, real.new_ones(rest.shape[:2])], dim=1)
        attend = keys[:, None].expand(-1, rest.shape[1], -1)
        return self._run(rest, attend, positions[:, size:], prefix)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.base.language_model.model.embed_tokens(tokens)

    def _run(
        self, embeddings: Tensor, attend: Tensor, positions: Tensor, prefix: Prefix | None = None
    ) -> Tensor:
        return run_layers(
            self.base.language_model.model,
            embeddings,
            attend=attend,
            positions=positions,
            prefix=prefix,
            # Whether it is in training mode tells nothing: RIPT learns in eval mode.
            checkpointing=self.gradient_checkpointing,
        )


class OpenVLAOFT(OpenVLA):
    """Continuous actions: a Laplace with the action head's mean and the scale head's scale.

    Args:
        config: Sizes.
        proprio: Whether the model was trained with proprioception.
    """

    def __init__(self, config: OpenVLAConfig, proprio: bool = True) -> None:
        super().__init__(config, proprio)
        dim = config.text.hidden_size
        self.action_head = ActionHead(dim)
        self.scale_head = LaplaceScaleHead(dim)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        proprio: Tensor | None,
        forward: Forward = "prefix_cache",
    ) -> Prediction:
        """Predicts the next eight actions and how much they spread, from what `hidden` takes."""
        hidden = self.hidden(
            input_ids, attention_mask, pixel_values=pixel_values, proprio=proprio, forward=forward
        )
        features = hidden[:, : CHUNK * ACTION_DIM].reshape(len(hidden), CHUNK, -1)
        mean = self.action_head(features.to(self.action_head.model.fc1.weight.dtype))
        log_scale = self.scale_head(features.to(self.scale_head.log_b_head.weight.dtype))
        return Prediction(mean.float(), log_scale.float(), features)

    def published_heads(self) -> dict[str, nn.Module]:
        """The action head and the scale head."""
        return {"action_header": self.action_head, "scale_header": self.scale_head}

    def unused(self, forward: Forward) -> tuple[str, ...]:
        """Beside what both kinds leave unused, the language model's head."""
        return (*super().unused(forward), "base.language_model.lm_head.")


class OpenVLATokens(OpenVLA):
    """Discrete actions: each dimension of each action is a token of the language model.

    Args:
        config: Sizes.
        proprio: Whether the model was trained with proprioception.

    Raises:
        ValueError: The config is of another number of bins.
    """

    # A bfloat16 logit of 20 is rounded by up to 0.06, and so is a log-probability.
    precise = ("language_model.lm_head.",)

    def __init__(self, config: OpenVLAConfig, proprio: bool = False) -> None:
        if config.n_action_bins != BINS:
            raise ValueError(f"The config's n_action_bins is {config.n_action_bins}, not {BINS}")
        super().__init__(config, proprio)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        proprio: Tensor | None,
        forward: Forward = "single_pass",
    ) -> Tensor:
        """Logits of the action bins, (B, 56, 256) float32, from what `hidden` takes.

        Bins are the last tokens before the vocabulary's padding, from the last one on: bin k is
        token 31999 - k.
        """
        hidden = self.hidden(
            input_ids, attention_mask, pixel_values=pixel_values, proprio=proprio, forward=forward
        )
        end = self.config.text.vocab_size - self.config.pad_to_multiple_of
        head = self.base.language_model.lm_head
        logits = head(hidden[:, : CHUNK * ACTION_DIM].to(head.weight.dtype))
        return logits[..., end - BINS : end].float().flip(-1)


def _check_prompts(input_ids: Tensor, attention_mask: Tensor) -> None:
    if input_ids.shape != attention_mask.shape or input_ids.shape[1] < 2:
        raise ValueError(
            f"Prompts are (B, L) with L at least 2 and have a mask of their shape, but input_ids "
            f"are {tuple(input_ids.shape)} and attention_mask is {tuple(attention_mask.shape)}"
        )
    mask = attention_mask.bool()
    if not bool(mask[:, :2].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("Prompts are padded after their end: pad on the right, not on the left")
