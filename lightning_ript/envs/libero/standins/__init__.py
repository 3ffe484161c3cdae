"""Stand-ins for LIBERO's assets: an asset pack of primitive shapes that this package generates.

Where LIBERO's own files cannot be had, the ten LIBERO-Object tasks still run, with LIBERO's own
task files, initial states, predicates, robot and controller. Sizes, masses, friction and resting
poses are the originals'; looks are not, so success rates are not comparable with the benchmark's.
"""

from lightning_ript.envs.libero.standins.catalogue import OBJECTS
from lightning_ript.envs.libero.standins.pack import build_standins, is_standin

__all__ = ["OBJECTS", "build_standins", "is_standin"]
