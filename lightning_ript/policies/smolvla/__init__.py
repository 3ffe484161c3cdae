"""SmolVLA (Shukor et al. 2025): a SmolVLM of 350 M parameters and an expert of 100 M."""

from lightning_ript.policies.smolvla.policy import SmolVLAPolicy

__all__ = ["SmolVLAPolicy"]
