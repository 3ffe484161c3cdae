"""OpenVLA-OFT: a 7 B vision-language model that predicts action chunks, as numbers or tokens."""

from lightning_ript.policies.openvla_oft.continuous import OpenVLAOFTPolicy
from lightning_ript.policies.openvla_oft.discrete import OpenVLATokenPolicy

__all__ = ["OpenVLAOFTPolicy", "OpenVLATokenPolicy"]
