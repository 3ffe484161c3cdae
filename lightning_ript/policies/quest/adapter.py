"""QueST behind the interface that the RIPT loop asks of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from lightning_ript.policies.base import Decisions, PolicyAdapter
from lightning_ript.policies.quest.checkpoint import is_official, load_official, load_weights
from lightning_ript.policies.quest.language import task_embedding
from lightning_ript.policies.quest.model import QueST, QueSTConfig, inputs_for
from lightning_ript.types import Observation, Task

FULL_SIZE = QueSTConfig()


class QueSTPolicy(PolicyAdapter):
    """QueST, of which RIPT trains the prior; encoders and autoencoder stay as they are.

    Acts and scores without dropout and with the image encoders' running statistics, whatever mode
    its owner is in: the context of a decision is then the same in every pass over a rollout. The
    supervised stages put `model` itself in training mode.

    Args:
        sizes: Sizes of the model; the published ones by default.
        checkpoint: Weights to start from: an official file, or a Lightning checkpoint of any
            earlier stage, here or on the hub (`hf://owner/repo/path/in/repo`). None: random.
        executed_actions: Actions executed of each decoded block.
        top_k: Number of most likely skill tokens to sample from.
        temperature: Divides the logits when sampling.
        evaluation_temperature: The same in evaluations that sample; by default `temperature`.
        score: Which distribution a sampled token's log-probability is of: `full`, the softmax over
            all tokens at temperature 1, as the reference has it; or `sampled`, the one it was drawn
            from: the `top_k` most likely tokens when it was drawn, at `temperature`.
        language: How instructions become vectors; the same in all stages. `hashed`: a random vector
            per text, which tells tasks apart but knows nothing of their meaning; `clip`: the text
            features of openai/clip-vit-base-patch32, as published checkpoints have learned them;
            or another CLIP, by its id on the hub (owner/name) or as a folder.

    Raises:
        OSError: There is no file at `checkpoint`.
        ValueError: A setting is out of range, or `checkpoint` does not fit `sizes` or `language`.
    """

    roundable = False  # the quantizer of skill tokens computes in float32

    def __init__(
        self,
        sizes: QueSTConfig = FULL_SIZE,
        checkpoint: str | None = None,
        executed_actions: int = 8,
        top_k: int = 5,
        temperature: float = 1.0,
        evaluation_temperature: float | None = None,
        score: Literal["full", "sampled"] = "full",
        language: str = "hashed",
    ) -> None:
        super().__init__()
        if not 1 <= executed_actions <= sizes.block_size:
            raise ValueError(
                f"executed_actions is {executed_actions}, but a block has {sizes.block_size} "
                "actions: choose between 1 and that"
            )
        if not 1 <= top_k <= sizes.vocab_size:
            raise ValueError(
                f"top_k is {top_k}, but there are {sizes.vocab_size} skill tokens: choose between "
                "1 and that"
            )
        for name, value in (
            ("temperature", temperature),
            ("evaluation_temperature", evaluation_temperature),
        ):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if score not in ("full", "sampled"):
            raise ValueError(f"score is {score!r}; it must be 'full' or 'sampled'")
        self.checkpoint = checkpoint
        self.executed_actions = executed_actions
        self.top_k = top_k
        self.temperature = temperature
        self.evaluation_temperature = evaluation_temperature
        self.score = score
        self.language = language
        self._embedding = task_embedding(language, sizes.language_dim)
        self.noise_shape = (sizes.tokens,)
        self.model = QueST(sizes)
        if checkpoint is not None:
            load_weights(self.model, checkpoint, language)
        self.model.requires_grad_(False)
        self.model.policy_prior.requires_grad_(True)
        self.eval()

    def train(self, mode: bool = True) -> QueSTPolicy:
        """Stays in evaluation mode."""
        return super().train(False)

    @classmethod
    def settings_for(
        cls, observation_space: spaces.Dict, action_space: spaces.Box
    ) -> dict[str, Any]:
        """Which images and proprioception it takes, and how wide its actions are."""
        return {"sizes": inputs_for(observation_space, action_space)}

    def check_spaces(self, observation_space: spaces.Dict, action_space: spaces.Box) -> None:
        """Refuses an environment that shows or takes something else.

        Raises:
            ValueError: It does; the message says how.
        """
        config = self.model.config
        wanted = {
            **dict.fromkeys(config.images, (config.image_size, config.image_size, 3)),
            **{name: (width,) for name, width in config.proprioception.items()},
        }
        shown = {name: box.shape for name, box in observation_space.items()}
        wrong = {name: shape for name, shape in wanted.items() if shown.get(name) != shape}
        if wrong:
            raise ValueError(
                f"QueST takes {wrong}, but the environment shows {shown}: change the policy's "
                "sizes or the environment's settings"
            )
        if action_space.shape != (config.actions,):
            raise ValueError(
                f"QueST decides on actions of {config.actions} numbers, but the environment takes "
                f"{action_space.shape}: set the policy's sizes.action_dim"
            )

    @torch.no_grad()
    def act(
        self, observations: Sequence[Observation], tasks: Sequence[Task], noise: Tensor | None
    ) -> Decisions:
        """Decides for B environments; actions (B, executed_actions, A) are not yet clipped."""
        context = self.encode_observations(observations, tasks)
        uniforms = None if noise is None else noise.to(self.device)
        temperature = self.temperature
        if self.evaluating and self.evaluation_temperature is not None:
            temperature = self.evaluation_temperature
        indices, logits = self.model.policy_prior.sample(context, uniforms, self.top_k, temperature)
        record = {"context": context, "indices": indices}
        if self.score == "sampled":
            record["support"] = logits.topk(self.top_k, dim=-1).indices
        log_probs, _ = self._score(logits, record)
        actions = self.model.decode(indices)[:, : self.executed_actions]
        return Decisions(actions, record, log_probs)

    def log_prob(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores N recorded decisions in one forward of the prior."""
        logits = self.model.prior_logits(record["context"], record["indices"])
        return self._score(logits, record)

    @property
    def feature_size(self) -> int:
        """Two context tokens."""
        return 2 * self.model.config.embed_dim

    def features(self, record: dict[str, Tensor]) -> Tensor:
        """The context tokens side by side, (N, 2 D)."""
        return record["context"].flatten(1)

    def encode_observations(
        self, observations: Sequence[Observation], tasks: Sequence[Task]
    ) -> Tensor:
        """Returns the context tokens (B, 2, D) of B raw observations.

        Raises:
            ValueError: An observation lacks an input of the policy, or its images have another
                size.
        """
        config = self.model.config
        missing = {*config.images, *config.proprioception} - observations[0].keys()
        if missing:
            raise ValueError(
                f"QueST needs {sorted(missing)}, which the environment's observations lack"
            )

        def gather(name: str) -> Tensor:
            return torch.from_numpy(np.stack([o[name] for o in observations])).to(self.device)

        images = {name: scale_images(gather(name)) for name in config.images}
        lowdim = {name: gather(name).float() for name in config.proprioception}
        return self.model.encode_context(images, lowdim, self.embed([t.language for t in tasks]))

    @torch.no_grad()
    def recorded_actions(self, record: dict[str, Tensor]) -> Tensor:
        """What the recorded skill tokens decode to."""
        return self.model.decode(record["indices"].to(self.device))[:, : self.executed_actions]

    def described(self) -> dict[str, Any]:
        """How instructions become vectors, which the weights do not show."""
        return {"language": self.language}

    def load_published(self, place: str | Path) -> bool:
        """Loads an official file."""
        if not is_official(place):
            return False
        load_official(self.model, place, self.language)
        self.checkpoint = str(place)
        return True

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Computes what the instructions are encoded as, unless it is known.

        Raises:
            OSError: The text encoder is needed and cannot be had.
            ValueError: It does not fit the model.
        """
        self.embed([task.language for task in tasks])

    def embed(self, instructions: Sequence[str]) -> Tensor:
        """Returns the task embeddings (B, language_dim) of B instructions."""
        return self._embedding(instructions).to(self.device)

    def _score(self, logits: Tensor, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy (N, T) of the recorded tokens under logits (N, T, vocab)."""
        chosen = record["indices"][..., None]
        if self.score == "sampled":
            # What could be drawn is as recorded: the most likely tokens change with the weights,
            # and a recorded token that is no longer among them would get probability zero.
            support = record["support"]
            logits = logits.gather(-1, support) / self.temperature
            chosen = (support == chosen).long().argmax(-1, keepdim=True)
        log_probs = logits.float().log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, chosen)[..., 0], entropy


def scale_images(images: Tensor) -> Tensor:
    """Maps upright images (B, H, W, 3) uint8 to (B, 3, H, W) float in [0, 1], upside down.

    As they were when the published checkpoints were trained. Channels are last in memory.
    """
    return images.flip(1).permute(0, 3, 1, 2).float() / 255
