"""Records that describe a stand-in object, and the MJCF text made from them.

Coordinates are *upright*: metres, z up, relative to the object's body frame. Some of LIBERO's
objects stand along their body's y axis instead; :class:`StandIn` says so, and the writer turns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Contact behaviour of LIBERO's own objects: stiff contacts, high friction.
_CONTACT = 'friction="0.95 0.3 0.1" solimp="0.998 0.998 0.001" solref="0.001 1"'
_FLAT = math.tan(math.pi / 8)  # half a side of the octagon around a circle of radius 1

Vector = tuple[float, float, float]
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """One solid of an object: seen as it is, felt as boxes.

    Attributes:
        shape: "box", or "cylinder" (upright).
        size: half extents (x, y, z) in metres; a cylinder's x and y are its radius.
        center: position of the middle, in upright coordinates, metres.
        color: red, green, blue in [0, 1].
    """

    shape: Literal["box", "cylinder"]
    size: Vector
    center: Vector
    color: Color

    def volume(self) -> float:
        """Volume in cubic metres."""
        x, y, z = self.size
        return 2 * z * (4 * x * y if self.shape == "box" else math.pi * x * y)

    def collision_boxes(self) -> tuple[Vector, ...]:
        """Half extents of the boxes, all at the part's middle, that stand for it in the physics.

        A cylinder becomes a square pillar inside it with a flat slab along either axis: contacts
        between boxes are many and stable, so that flat fingers hold a can without letting it
        swing. Only the pillar reaches the ends; more contacts with the floor would cost time.
        """
        if self.shape == "box":
            return (self.size,)
        radius, _, height = self.size
        half, side, low = radius * math.sqrt(0.5), radius * _FLAT, height - 0.0005
        return ((half, half, height), (radius, side, low), (side, radius, low))


@dataclass(frozen=True)
class Region:
    """A named box inside an object that LIBERO's predicates ask about.

    Attributes:
        name: the region's name in the task files.
        size: half extents in metres.
        center: position of the middle, upright coordinates, metres.
    """

    name: str
    size: Vector
    center: Vector


@dataclass(frozen=True)
class StandIn:
    """A movable object.

    Attributes:
        name: LIBERO's category name, also its file's name.
        folder: the folder of the asset pack that LIBERO's class looks in.
        up: the body axis that points up where LIBERO puts the object.
        mass: kilograms, spread over the parts by volume.
        parts: the solids.
        bottom: height of the site that LIBERO puts on the floor, in metres.
        top: height of the site on which LIBERO puts other things, in metres.
        radius: horizontal radius that LIBERO keeps clear when it places objects, in metres.
        regions: boxes that predicates ask about.
    """

    name: str
    folder: str
    up: Literal["y", "z"]
    mass: float
    parts: tuple[Part, ...]
    bottom: float
    top: float
    radius: float
    regions: tuple[Region, ...] = ()

    @property
    def path(self) -> str:
        """Path of the object's file in the asset pack."""
        return f"{self.folder}/{self.name}/{self.name}.xml"

    def lowest(self) -> float:
        """Height of the lowest point relative to the body frame, in metres."""
        return min(part.center[2] - part.size[2] for part in self.parts)

    def mjcf(self) -> str:
        """The object's model file, with the body and site names that robosuite looks for."""
        lines = [
            f'<mujoco model="{self.name}">',
            "  <worldbody>",
            "    <body>",
            '      <body name="object">',
            *(f"        {line}" for line in self._solids()),
            "      </body>",
            # robosuite reads these three as they stand, in the frame in which it places objects.
            f'      <site name="bottom_site" pos="0 0 {self.bottom}" size="0.005" rgba="0 0 0 0"/>',
            f'      <site name="top_site" pos="0 0 {self.top}" size="0.005" rgba="0 0 0 0"/>',
            f'      <site name="horizontal_radius_site" pos="{self.radius} {self.radius} 0" '
            'size="0.005" rgba="0 0 0 0"/>',
            "    </body>",
            "  </worldbody>",
            "</mujoco>",
        ]
        return "\n".join(lines) + "\n"

    def _solids(self) -> Iterator[str]:
        for region in self.regions:
            yield (
                f'<site name="{region.name}" type="box" size="{_text(region.size)}" '
                f'pos="{_text(self._turn(region.center))}" quat="1 0 0 0" group="0" '
                'rgba="0 0 0 0"/>'
            )
        volume = sum(part.volume() for part in self.parts)
        for part in self.parts:
            boxes = part.collision_boxes()
            mass = self.mass * part.volume() / volume / len(boxes)
            for size in boxes:
                yield (
                    f'<geom type="box" size="{_text(size)}" {self._pose(part)} group="0" '
                    f'mass="{mass:.6g}" rgba="0.5 0.5 0.5 0.3" {_CONTACT}/>'
                )
            # MuJoCo's cylinders have two sizes: radius and half height.
            visible = part.size if part.shape == "box" else part.size[1:]
            yield (
                f'<geom type="{part.shape}" size="{_text(visible)}" {self._pose(part)} group="1" '
                f'contype="0" conaffinity="0" mass="0" rgba="{_text(part.color)} 1"/>'
            )

    def _pose(self, part: Part) -> str:
        axes = self._turn((1.0, 0.0, 0.0)) + self._turn((0.0, 1.0, 0.0))
        return f'pos="{_text(self._turn(part.center))}" xyaxes="{_text(axes)}"'

    def _turn(self, vector: Vector) -> Vector:
        """Upright coordinates to the body's."""
        x, y, z = vector
        return (x, z, -y) if self.up == "y" else vector


def _text(values: tuple[float, ...]) -> str:
    return " ".join(f"{value + 0.0:.5g}" for value in (round(value, 6) for value in values))
