"""QueST (Mete et al. 2024, arXiv 2407.15840): discrete skill tokens and a prior over them."""

from lightning_ript.policies.quest.adapter import QueSTPolicy
from lightning_ript.policies.quest.checkpoint import (
    is_official,
    load_official,
    load_weights,
    save_official,
)
from lightning_ript.policies.quest.model import QueST, QueSTConfig

__all__ = [
    "QueST",
    "QueSTConfig",
    "QueSTPolicy",
    "is_official",
    "load_official",
    "load_weights",
    "save_official",
]
