"""The policy that the rollouts are benchmarked with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_ript.policies.quest import QueSTPolicy
from lightning_ript.policies.quest.model import QueSTConfig

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart" / "policy.yaml"


def quickstart_settings() -> dict[str, Any]:
    """The settings of the quickstart's policy, with `sizes` as a `QueSTConfig`."""
    settings = yaml.safe_load(QUICKSTART.read_text())["model"]["init_args"]["policy"]["init_args"]
    return {**settings, "sizes": QueSTConfig(**settings["sizes"])}


class TimedPolicy(QueSTPolicy):
    """The quickstart's QueST with random weights; `seconds` is what deciding has taken."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(**quickstart_settings())
        self.seconds = 0.0

    def act(self, *arguments: Any) -> Any:
        """See `PolicyAdapter.act`."""
        started = time.perf_counter()
        decisions = super().act(*arguments)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return decisions
