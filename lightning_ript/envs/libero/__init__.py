"""LIBERO: assets, suites, the environment, and a scripted expert for LIBERO-Object."""

from lightning_ript.envs.libero.spec import LiberoSpec

__all__ = ["LiberoSpec"]
