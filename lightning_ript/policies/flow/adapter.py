"""What flow-matching policies share behind the interface that the RIPT loop asks of a policy."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ript.policies.base import Decisions, PolicyAdapter
from lightning_ript.policies.flow import transitions
from lightning_ript.policies.flow.images import observed_images, resized
from lightning_ript.policies.flow.lerobot import CONFIG, PATTERNS, Published, read_published
from lightning_ript.policies.flow.load import Rename, fill, load_trained, trained_tensors
from lightning_ript.policies.flow.network import FlowNetwork, Prefix, Seen
from lightning_ript.policies.flow.prompts import Prompts, with_newline
from lightning_ript.policies.flow.transitions import Ratio
from lightning_ript.policies.libero_robot import CAMERAS, PROPRIO, proprio
from lightning_ript.policies.lora import (
    LoraSizes,
    inject,
    is_adapter_weight,
    layers_within,
    plain_name,
)
from lightning_ript.policies.setting_checks import check_choice, check_executed_actions
from lightning_ript.storage.hub import is_on_hub, local_folder
from lightning_ript.types import Observation, Task

Probability = Literal["flow_sde", "flow_noise"]
NoisySteps = Literal["one", "all"]
Trained = Literal["expert", "vectors", "everything"]
WeightPrecision = Literal["float32", "bfloat16"]
Density = tuple[Tensor, Tensor]
"""Log-density and entropy of each number that counts, (N, executed, A) float64."""
DEMONSTRATED_STATE = ("ee_pos", "ee_ori", "gripper_states")  # by the names in HDF5 files
LEAST_DEVIATION, MOST_DEVIATION = 0.08, 0.16  # of Flow-Noise, piRL's numbers


class NoiseNetwork(nn.Module):
    """The deviation of each number in Flow-Noise, within [0.08, 0.16].

    Args:
        feature_dim: Width of the features that a velocity is read from.
        action_dim: Numbers of a padded action.
    """

    def __init__(self, feature_dim: int, action_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_dim, feature_dim)
        self.out = nn.Linear(feature_dim, action_dim)
        nn.init.zeros_(self.out.weight)  # starts in the middle, whatever the features
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, H, feature_dim) -> (B, H, D)."""
        share = self.out(torch.nn.functional.silu(self.hidden(features))).sigmoid()
        return LEAST_DEVIATION + (MOST_DEVIATION - LEAST_DEVIATION) * share


def weight_dtypes(
    network: FlowNetwork, precision: WeightPrecision, settings: Mapping[str, Any]
) -> Callable[[str], torch.dtype]:
    """In which precision each weight is kept, by its name.

    What learns is float32: half precision would round most steps of a small learning rate away. So
    are the projections of states and actions, and the whole expert where its vectors learn: a layer
    computes in one precision.

    Args:
        network: The network.
        precision: Of everything else.
        settings: Of `FlowPolicy`; `train` and `lora` count.

    Raises:
        ValueError: Nothing else is left.
    """
    lora = settings.get("lora")
    if precision == "bfloat16" and settings.get("train") == "everything" and lora is None:
        raise ValueError(
            "precision is bfloat16, but with train everything all weights learn, and need float32: "
            "set lora, or leave precision at float32 (with trainer.precision bf16-mixed it "
            "computes in half precision)."
        )
    expert = {id(parameter) for parameter in network.expert.parameters()}
    names = {name for name, p in network.named_parameters() if id(p) in expert}

    def dtype(name: str) -> torch.dtype:
        around = not name.startswith(f"{network.transformers}.")
        learns = lora is None and name in names
        return torch.float32 if around or learns else getattr(torch, precision)

    return dtype


def freeze(network: FlowNetwork, train: Trained) -> None:
    """Leaves what `train` names to learn, as far as it counts."""
    network.requires_grad_(train == "everything")
    for module in network.expert_modules():
        for parameter in module.parameters():
            parameter.requires_grad_(train != "vectors" or parameter.ndim < 2)
    for module in network.idle_modules():
        module.requires_grad_(False)


def add_adapter(network: FlowNetwork, train: Trained, sizes: LoraSizes) -> None:
    """Puts an adapter into the transformers' layers, which learns in their place.

    Args:
        network: After `freeze`.
        train: The expert's layers, or all.
        sizes: Of the adapter.

    Raises:
        ModuleNotFoundError: PEFT is not installed.
        ValueError: No layer has one of the names.
    """
    around = [
        parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and not name.startswith(f"{network.transformers}.")
    ]
    everything = train == "everything"
    part = network.get_submodule(network.transformers) if everything else network.expert
    idle = set(layers_within(network, network.idle_modules(), sizes.targets))
    layers = [n for n in layers_within(network, [part], sizes.targets) if n not in idle]
    if not layers:
        raise ValueError(f"lora.targets names no layer that learns: {sizes.targets}.")
    inject(network, sizes, layers)
    for parameter in around:
        parameter.requires_grad_(True)


class FlowPolicy(PolicyAdapter):
    """A flow-matching policy with probabilities.

    Args:
        network: Predicts velocities.
        published: How observations and actions become its numbers.
        image_size: Height and width of the images it sees.
        centred: Whether images are padded on both sides.
        cameras: The environment's images, in the order of the policy's; those that it was trained
            on beyond these are missing to it.
        steps: Denoising steps K.
        executed_actions: Actions executed of each chunk.
        probability: `flow_sde` or `flow_noise`; see `transitions`.
        noise_level: a of Flow-SDE.
        noisy_steps: Of Flow-SDE: `one` step of each decision, drawn evenly, is noisy, and the
            others are plain; or `all` are, and the log-probability is the mean over them.
        ratio: What has a ratio of probabilities of its own: a `chunk`, an `action`, a `dimension`.
        train: The action `expert` and its projections, for which the prefix needs no gradient;
            their `vectors` alone, biases and scales of norms (BitFit, Ben Zaken et al. 2022), which
            learn from fewer episodes; or `everything`.
        lora: An adapter that learns in place of the weights of the transformers' layers, of the
            expert's alone or of all; the projections around the expert learn as they are.
        gradient_checkpointing: Computes activations again in the backward pass: less memory.
        weights: One of Lightning's checkpoints of the same policy, here or on the hub, such as that
            of the supervised stage: its weights take the place of the folder's.

    Raises:
        OSError: A file is missing.
        ValueError: A setting is out of range, or a file does not fit.
    """

    kind: ClassVar[str]
    """`type` in the `config.json` of published folders."""

    checkpoint: str
    prompts: Prompts
    _prompt_length: int | None = None
    needs_noise = True
    roundable = False  # times, and what learns

    def __init__(
        self,
        network: FlowNetwork,
        published: Published,
        *,
        image_size: tuple[int, int],
        centred: bool,
        cameras: Sequence[str] = CAMERAS,
        steps: int = 10,
        executed_actions: int = 5,
        probability: Probability = "flow_sde",
        noise_level: float = 0.5,
        noisy_steps: NoisySteps = "one",
        ratio: Ratio = "chunk",
        train: Trained = "expert",
        lora: LoraSizes | None = None,
        gradient_checkpointing: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("probability", probability, get_args(Probability)),
            ("noisy_steps", noisy_steps, get_args(NoisySteps)),
            ("ratio", ratio, get_args(Ratio)),
            ("train", train, get_args(Trained)),
        ):
            check_choice(name, value, choices)
        if lora is not None and train == "vectors":
            raise ValueError(
                "train is vectors, which leaves no layer to an adapter: leave lora out, or set "
                "train to expert."
            )
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be 1 or more.")
        check_executed_actions(executed_actions, network.chunk)
        if not noise_level > 0:
            raise ValueError(f"noise_level is {noise_level}; it must be above 0.")
        trained_on = [name for name in published.cameras if "empty_camera" not in name]
        if not 1 <= len(cameras) <= len(trained_on):
            raise ValueError(
                f"cameras names {len(cameras)} images, but the policy was trained on "
                f"{len(trained_on)} ({', '.join(trained_on)}): name those in their order."
            )
        self.network, self.published = network, published
        self.image_size, self.centred = image_size, centred
        self.cameras = tuple(cameras)
        self.steps, self.executed_actions = steps, executed_actions
        self.probability, self.noise_level = probability, noise_level
        self.ratio, self.train_what = ratio, train
        self.noise_network: NoiseNetwork | None = None
        if probability == "flow_noise":
            self.noise_network = NoiseNetwork(network.feature_dim, network.action_dim)
        self.all_noisy = probability == "flow_noise" or noisy_steps == "all"
        self._numbers = network.chunk * network.action_dim
        self.noise_shape = (1 + self._numbers * (1 + (steps if self.all_noisy else 1)),)
        self._times: Tensor
        self._start: Tensor
        self.register_buffer("_times", transitions.times(steps), persistent=False)
        start = torch.randn(
            network.chunk, network.action_dim, generator=torch.Generator().manual_seed(0)
        )
        self.register_buffer("_start", start, persistent=False)
        network.gradient_checkpointing = gradient_checkpointing
        freeze(network, train)
        self.lora = lora
        found, said = ({}, {}) if weights is None else trained_tensors(weights)
        self._replaced = frozenset(map(plain_name, found))
        adapted = any(map(is_adapter_weight, found))
        if adapted and self._lora_scaling != said.get("lora_scaling"):
            raise ValueError(
                f"{weights} holds a LoRA with alpha / r = {said.get('lora_scaling')}, but the "
                f"policy's is {self._lora_scaling}: set lora to its sizes."
            )
        if weights is not None and not adapted:
            load_trained(self, found, weights)
        if lora is not None:
            add_adapter(network, train, lora)
        if weights is not None and adapted:
            load_trained(self, found, weights)

    # -- what the family says ---------------------------------------------------------------------

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Makes all prompts of a run the same length: decisions of any tasks fit a batch."""
        self._prompt_length = self.prompts.longest([with_newline(task.language) for task in tasks])

    def encode_prompts(self, tasks: Sequence[str], state: Tensor) -> tuple[Tensor, Tensor]:
        """Makes prompts of B instructions and normalized states (B, n): the instructions alone.

        Returns:
            Tokens (B, L) int64, and which of them are there (B, L) bool.
        """
        return self.prompts.batch([with_newline(task) for task in tasks], self._prompt_length)

    @staticmethod
    @abstractmethod
    def renaming(folder: Path) -> Rename:
        """From names in a published folder's files to the network's."""

    # -- PolicyAdapter ----------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self, observations: Sequence[Observation], tasks: Sequence[Task], noise: Tensor | None
    ) -> Decisions:
        """Denoises B chunks; the record holds what was seen and the noisy transitions.

        With noise but not `exploring`, noise decides where denoising starts, and all steps are
        plain. Without noise it starts from the same numbers every time.
        """
        record = self.inputs(observations, [task.language for task in tasks])
        prefix = self.network.prefix(self.seen(record))
        explore = noise is not None and self.exploring
        x = self._start.expand(len(observations), -1, -1)
        draws: Tensor | None = None
        step = torch.zeros(len(observations), dtype=torch.int64, device=self.device)
        if noise is not None:
            step = (noise[:, 0].double() * self.steps).long().clamp_max(self.steps - 1)
            normal = transitions.normal_noise(noise[:, 1:])
            normal = normal.unflatten(1, (-1, self.network.chunk, self.network.action_dim))
            x, draws = normal[:, 0], normal[:, 1:]
        chain, terms = [x], []
        for k in range(self.steps):
            here = torch.full_like(step, k)
            velocity, features = self._velocity(prefix, x, here)
            mean, deviation = self._moments(x, velocity, features=features, step=here)
            after = transitions.plain_step(x, velocity, self.steps)
            if draws is not None and explore:
                drawn = draws[:, k if self.all_noisy else 0].double()
                noisy = (mean + deviation * drawn).float()
                after = torch.where(self.all_noisy | (step == k)[:, None, None], noisy, after)
            terms.append(self._density(after, mean, deviation))
            chain.append(after)
            x = after
        whole = torch.stack(chain, dim=1)
        if self.all_noisy:
            record["chain"] = whole
            density, _ = self._mean_of_all(x=whole[:, 0], terms=terms)
        else:
            rows = torch.arange(len(step), device=step.device)
            record |= {"step": step, "before": whole[rows, step], "after": whole[rows, step + 1]}
            density = torch.stack([density for density, _ in terms], dim=1)[rows, step]
        normalized = self._executed(x)
        record["actions"] = normalized
        actions = self.published.action.denormalize(normalized)
        return Decisions(actions, record, transitions.tokens(density, self.ratio))

    def log_prob(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores the noisy transitions of N recorded decisions."""
        return self._score(self.encoded(record), record)

    @property
    def feature_size(self) -> int:
        """Numbers of a state, n."""
        return self.published.state_size

    def features(self, record: dict[str, Tensor]) -> Tensor:
        """The normalized state, (N, n): much of the outcome shows in it, at no cost."""
        return record["state"]

    def recorded_actions(self, record: dict[str, Tensor]) -> Tensor:
        """The normalized actions that were executed."""
        return record["actions"]

    def check_spaces(self, observation_space: spaces.Dict, action_space: spaces.Box) -> None:
        """Refuses an environment that shows or takes something else.

        Raises:
            ValueError: It does; the message says how.
        """
        wanted = (*self.cameras, *PROPRIO)
        if missing := [name for name in wanted if name not in observation_space.spaces]:
            raise ValueError(f"the policy needs {', '.join(missing)}, which the environment lacks.")
        width = sum(math.prod(observation_space[name].shape or ()) for name in PROPRIO) - 1
        state, action = self.published.state_size, self.published.action_size
        if state != width:  # of four numbers that say a rotation it sees three
            raise ValueError(
                f"the policy's state has {state} numbers, but the environment's has {width}: it "
                "was trained on another robot."
            )
        if action_space.shape != (action,):
            raise ValueError(
                f"the policy's actions have {action} numbers, but the environment takes "
                f"{action_space.shape}."
            )

    def load_published(self, place: str | Path) -> bool:
        """Loads a folder in LeRobot's layout, with its statistics.

        Raises:
            OSError: A file is missing.
            ValueError: It does not fit.
        """
        if not is_on_hub(place) and not (Path(place) / CONFIG).is_file():
            return False
        folder = local_folder(place, PATTERNS)
        self.published = read_published(folder, self.kind)
        fill(self.network, folder, self.renaming(folder))
        for name, parameter in self.network.named_parameters():
            if ".lora_B." in name:  # without it an adapter changes nothing
                nn.init.zeros_(parameter)
        self.checkpoint = str(place)
        return True

    def described(self) -> dict[str, Any]:
        """Which folder it was made from, and how its adapter counts, for `export`."""
        scaling = self._lora_scaling
        return {"kind": self.kind, "checkpoint": self.checkpoint, "lora_scaling": scaling}

    @property
    def _lora_scaling(self) -> float | None:
        return None if self.lora is None else self.lora.alpha / self.lora.r

    def saved(self, name: str) -> bool:
        """What does not learn is in the published folder, unless `weights` replaced it."""
        if plain_name(name) in self._replaced or not name.startswith("network."):
            return True
        return self.get_parameter(name).requires_grad

    # -- shared with the supervised stage ---------------------------------------------------------

    def inputs(
        self, observations: Sequence[Observation], tasks: Sequence[str]
    ) -> dict[str, Tensor]:
        """What B decisions are recorded to have been made from."""
        state = self.published.state.normalize(proprio(observations).float())
        tokens, mask = self.encode_prompts(tasks, state)
        images = observed_images(observations, self.cameras)
        record = {"images": images, "tokens": tokens, "token_mask": mask, "state": state}
        return {name: value.to(self.device) for name, value in record.items()}

    def seen(self, record: Mapping[str, Tensor]) -> Seen:
        """The network's inputs of recorded decisions."""
        images = record["images"]
        batch, cameras = images.shape[:2]
        prepared = resized(images.flatten(0, 1), self.image_size, self.centred)
        prepared = prepared.unflatten(0, (batch, cameras))
        mask = torch.ones(batch, cameras, dtype=torch.bool, device=images.device)
        absent = self.absent_cameras
        if absent:
            black = prepared.new_full((batch, absent, *prepared.shape[2:]), -1.0)
            prepared = torch.cat([prepared, black], dim=1)
            mask = torch.nn.functional.pad(mask, (0, absent))
        # Padding that none of these decisions needs costs time.
        longest = int(record["token_mask"].sum(1).max())
        return Seen(
            prepared,
            mask,
            record["tokens"][:, :longest],
            record["token_mask"][:, :longest],
            self.padded(record["state"], self.network.state_dim),
        )

    @property
    @abstractmethod
    def absent_cameras(self) -> int:
        """Images beyond the environment's, which the network gets as missing ones."""

    @staticmethod
    def padded(values: Tensor, size: int) -> Tensor:
        """Zeros after the last dimension, up to `size`."""
        return torch.nn.functional.pad(values, (0, size - values.shape[-1]))

    def encoded(self, record: Mapping[str, Tensor]) -> Prefix:
        """The prefix, with gradients only if something in it learns."""
        learns = torch.is_grad_enabled() and self.train_what == "everything"
        with torch.set_grad_enabled(learns):
            return self.network.prefix(self.seen(record))

    def demonstrated(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """A batch of B steps of `DemonstrationDataModule` as the network takes it.

        Args:
            batch: With blocks of H actions, and `DEMONSTRATED_STATE` as its proprioception.

        Returns:
            What `inputs` returns, and normalized and padded actions (B, H, D) float32.

        Raises:
            ValueError: Blocks have another length than the policy's chunks.
        """
        length, chunk = batch["actions"].shape[1], self.network.chunk
        if length != chunk:
            raise ValueError(
                f"data.block_size is {length}, but the policy's chunks have {chunk} actions: set "
                "it to that."
            )
        # Left and right exchanged, as `observed_images` does it.
        pictures = [batch["images"][camera].flip(2).movedim(-1, 1) for camera in self.cameras]
        state = torch.cat([batch["lowdim"][name] for name in DEMONSTRATED_STATE], dim=-1)
        state = self.published.state.normalize(state.float())
        tokens, mask = self.encode_prompts(batch["language"], state)
        record = {"tokens": tokens, "token_mask": mask, "state": state}
        record |= {"images": torch.stack(pictures, dim=1)}
        actions = self.published.action.normalize(batch["actions"].float())
        record = {name: value.to(self.device) for name, value in record.items()}
        return record, self.padded(actions, self.network.action_dim).to(self.device)

    def flow_errors(
        self, record: Mapping[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor
    ) -> Tensor:
        """Squared errors of the velocity on the way from demonstrated actions to noise.

        Args:
            record: What N demonstrated chunks were seen with, as `inputs` makes it.
            actions: Normalized and padded, (N, H, D).
            noise: Standard normal, (S, N, H, D).
            time: Where on the way, (S, N).

        Returns:
            (S, N, H, D): the velocity is noise - actions everywhere on the way.
        """
        share = time[..., None, None]
        x = share * noise + (1 - share) * actions
        prefix = self.encoded(record)
        velocities = [self.network.velocity(prefix, *each)[0] for each in zip(x, time, strict=True)]
        return (noise - actions - torch.stack(velocities)).square()

    def prepare_instructions(self, instructions: Sequence[str]) -> None:
        """Makes all prompts of these instructions the same length."""
        self.prepare([Task("", i, "", each) for i, each in enumerate(instructions)])

    # -- probabilities ----------------------------------------------------------------------------

    def _velocity(self, prefix: Prefix, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.velocity(prefix, x, self._times[step])

    def _moments(
        self, x: Tensor, velocity: Tensor, *, features: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.noise_network is None:
            return transitions.sde_moments(x, velocity, step, self.steps, self.noise_level)
        mean = transitions.plain_step(x, velocity, self.steps)
        return mean, self.noise_network(features)

    def _score(self, prefix: Prefix, record: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.all_noisy:
            density, entropy = self._transition(
                prefix, record["before"], record["after"], record["step"]
            )
            return transitions.tokens(density, self.ratio), transitions.tokens(entropy, self.ratio)
        chain = record["chain"]
        terms = []
        for k in range(self.steps):
            step = torch.full(chain.shape[:1], k, dtype=torch.int64, device=chain.device)
            terms.append(self._transition(prefix, chain[:, k], chain[:, k + 1], step))
        density, entropy = self._mean_of_all(chain[:, 0], terms)
        return transitions.tokens(density, self.ratio), transitions.tokens(entropy, self.ratio)

    def _mean_of_all(self, x: Tensor, terms: Sequence[Density]) -> Density:
        """Of all steps from x (N, H, D) on; in Flow-Noise, x itself counts as well."""
        if self.noise_network is not None:
            first = self._executed(x).double()
            one = torch.ones_like(first)
            prior = transitions.log_density(first, torch.zeros_like(first), one)
            terms = [(prior, transitions.entropy(one)), *terms]
        density, entropy = (torch.stack(each).mean(0) for each in zip(*terms, strict=True))
        return density, entropy

    def _transition(self, prefix: Prefix, before: Tensor, after: Tensor, step: Tensor) -> Density:
        velocity, features = self._velocity(prefix, before, step)
        mean, deviation = self._moments(before, velocity, features=features, step=step)
        return self._density(after, mean, deviation)

    def _density(self, after: Tensor, mean: Tensor, deviation: Tensor) -> Density:
        """Of a step to `after`, all (N, H, D)."""
        deviation = deviation.expand_as(mean)
        mean, deviation, after = (self._executed(each) for each in (mean, deviation, after))
        return transitions.log_density(after, mean, deviation), transitions.entropy(deviation)

    def _executed(self, chunk: Tensor) -> Tensor:
        """Of padded chunks (N, H, D), the numbers that move the robot, (N, executed, A)."""
        return chunk[:, : self.executed_actions, : self.published.action_size]
