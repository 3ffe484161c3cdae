"""LIBERO: assets, suites, the environment, and a scripted expert for LIBERO-Object."""

from lightning_ript.envs.libero.environment import LiberoEnvironment, LiberoSpec

__all__ = ["LiberoEnvironment", "LiberoSpec"]
