"""OpenVLA-OFT: a 7 B vision-language model that predicts chunks of continuous actions."""

from lightning_ript.policies.openvla_oft.adapter import OpenVLAOFTPolicy

__all__ = ["OpenVLAOFTPolicy"]
