"""Callbacks: they watch a run and write what people want to see of it."""

from lightning_ript.callbacks.best_checkpoint import BestCheckpoint
from lightning_ript.callbacks.evaluation_report import EvaluationReport
from lightning_ript.callbacks.evaluation_sweep import EvaluationSweep
from lightning_ript.callbacks.lora_checkpoint import LoRACheckpoint
from lightning_ript.callbacks.roll_back import RollBack
from lightning_ript.callbacks.rollout_statistics import RolloutStatistics
from lightning_ript.callbacks.rollout_video import RolloutVideo
from lightning_ript.callbacks.run_report import RunReport
from lightning_ript.callbacks.scale_head_pretraining import ScaleHeadPretraining
from lightning_ript.callbacks.tripwires import Tripwires

__all__ = [
    "BestCheckpoint",
    "EvaluationReport",
    "EvaluationSweep",
    "LoRACheckpoint",
    "RollBack",
    "RolloutStatistics",
    "RolloutVideo",
    "RunReport",
    "ScaleHeadPretraining",
    "Tripwires",
]
