"""pi0 and pi0.5 (Physical Intelligence): a PaliGemma and an expert that denoises actions."""

from lightning_ript.policies.pi0.policy import Pi0Policy, Pi05Policy

__all__ = ["Pi0Policy", "Pi05Policy"]
