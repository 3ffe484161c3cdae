"""What the RIPT loop asks of a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ript.types import Observation, Task


@dataclass(frozen=True)
class Decisions:
    """A batch of B decisions.

    Attributes:
        actions: Environment actions to execute, (B, chunk, action_dim) float32.
        record: What `log_prob` needs to score these decisions again, name -> (B, ...).
        log_probs: Log-probability of each action token, (B, T) float32.
    """

    actions: Tensor
    record: dict[str, Tensor]
    log_probs: Tensor


class PolicyAdapter(nn.Module, ABC):
    """Wraps a policy for rollouts and for learning.

    Attributes:
        noise_shape: Shape of the uniform noise one sampled decision consumes. The rollout engine
            draws it from the episode's own seed, so results do not depend on batching.
        entry_points: Names of the methods that run parts of the network and are called from
            outside. When processes share the parameters (FSDP), these gather them first.
        needs_noise: Whether decisions need noise even where nothing is explored, e.g. for where
            denoising starts. Evaluations without sampling then draw it from their seed and set
            `exploring` to false; other policies get none.
        exploring: Whether noise is also to make decisions differ from the most likely ones.
        evaluating: Whether decisions are an evaluation's, of which nothing is learned.
        roundable: Whether all parameters may be rounded to half precision, as the trainer's
            `bf16-true` does.
    """

    noise_shape: tuple[int, ...]
    entry_points: tuple[str, ...] = ("act", "log_prob")
    needs_noise: bool = False
    exploring: bool = True
    evaluating: bool = False
    roundable: bool = True

    @classmethod
    def settings_for(
        cls, observation_space: spaces.Dict, action_space: spaces.Box
    ) -> dict[str, Any]:
        """Settings that follow from what an environment shows and takes.

        Used for those that a config leaves out (null), so that it need not repeat them.

        Args:
            observation_space: Of the environment, or of demonstrations.
            action_space: The action of one control step.

        Returns:
            Arguments of `__init__`, nested as in a config.
        """
        return {}

    def check_spaces(self, observation_space: spaces.Dict, action_space: spaces.Box) -> None:
        """Refuses an environment that shows or takes something else, before any simulator starts.

        Raises:
            ValueError: It does; the message says how.
        """

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Gets ready for all tasks of a run, before any simulator is started.

        The place to refuse instructions that cannot be encoded.
        """

    def described(self) -> dict[str, Any]:
        """What a checkpoint says of the policy beside its weights; plain values only."""
        return {}

    def recorded_actions(self, record: dict[str, Tensor]) -> Tensor | None:
        """The actions (N, steps, A) of N recorded decisions, in the range the policy learned in.

        For checks of whether they make sense; None where the policy does not say.
        """
        return None

    def load_published(self, place: str | Path) -> bool:
        """Loads a checkpoint in a format of the policy's own, as `validate` and `sweep` meet them.

        Args:
            place: A file or folder, here or on the hub.

        Returns:
            False if it has no such format: it may still be Lightning's.

        Raises:
            OSError: A file is missing.
            ValueError: It has the format, but does not fit the policy.
        """
        return False

    def check_ready(self) -> None:
        """Refuses to learn with something missing; asked before the first rollout of a fit.

        Raises:
            ValueError: Something is missing; the message says how to get it.
        """

    @abstractmethod
    def act(
        self, observations: Sequence[Observation], tasks: Sequence[Task], noise: Tensor | None
    ) -> Decisions:
        """Decides for B environments at once, without gradients.

        Args:
            observations: B observations.
            tasks: The B tasks they belong to.
            noise: (B, *noise_shape) uniform in [0, 1), or None for the most likely action.
        """

    @abstractmethod
    def log_prob(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores recorded decisions under the current parameters, with gradients.

        Returns:
            Log-probabilities (N, T), equal to those `act` returned until the parameters change,
            and the entropy of each token's distribution (N, T).
        """

    def blocks(self) -> Sequence[nn.Module]:
        """Parts that take most of the parameters, e.g. a transformer's layers, inner ones first.

        When processes share the parameters (FSDP), these are gathered one at a time, as each one's
        `forward` is called, which is the only way to call them; whatever is not in a block is
        gathered for the whole of `act` and `log_prob`. Optional: without blocks it is all one.
        """
        return ()

    def parameter_groups(self) -> list[dict[str, object]]:
        """Parameters that RIPT trains, as optimizer groups; by default all that require gradients.

        Each group's gradient is clipped on its own. Beside `params`, a group may have settings of
        the optimizer, such as its own `lr`, a `max_grad_norm` other than the module's, and a `name`
        that its norm and learning rate are logged by.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def reference_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters whose starting values give the starting policy back, for the KL penalty.

        By default all that RIPT trains. A policy may leave out what has no effect at the start.
        """
        trained: set[int] = set()
        for group in self.parameter_groups():
            trained |= {id(p) for p in group["params"]}  # type: ignore[attr-defined]
        return [(name, p) for name, p in self.named_parameters() if id(p) in trained]

    def saved(self, name: str) -> bool:
        """Whether checkpoints hold a parameter or buffer, all of them by default.

        A policy whose frozen weights lie in files of their own, which it reads whenever it is
        built, leaves them out: its checkpoints are small then.

        Args:
            name: As in `state_dict`.
        """
        return True

    def saved_in_module(self, name: str) -> bool:
        """The same of a name in a module that holds the policy as `policy`, where all else is."""
        owner, _, rest = name.partition(".")
        return owner != "policy" or self.saved(rest)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device
