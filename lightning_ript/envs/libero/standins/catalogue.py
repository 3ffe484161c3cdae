"""The objects of LIBERO-Object as stand-ins.

Outer dimensions, masses and placement sites are those of LIBERO's objects, so that the shipped
initial states fit and the gripper (opening 8 cm) meets the same widths. Colours are ours, chosen
to be told apart in a 64x64 image.
"""

from lightning_ript.envs.libero.standins.shapes import Color, Part, Region, StandIn

_HOPE = "stable_hope_objects"
_WHITE: Color = (0.95, 0.95, 0.95)
_TAN: Color = (0.62, 0.44, 0.25)
_DARK_TAN: Color = (0.42, 0.28, 0.15)


def _box(x: float, y: float, bottom: float, top: float, color: Color) -> Part:
    """A box with half extents x and y between two heights."""
    return Part("box", (x, y, (top - bottom) / 2), (0.0, 0.0, (top + bottom) / 2), color)


def _cylinder(radius: float, bottom: float, top: float, color: Color) -> Part:
    """A cylinder between two heights."""
    center = (0.0, 0.0, (top + bottom) / 2)
    return Part("cylinder", (radius, radius, (top - bottom) / 2), center, color)


def _can(name: str, mass: float, bottom_site: float, body: Color, lid: Color) -> StandIn:
    parts = (_cylinder(0.0312, -0.0386, 0.022, body), _cylinder(0.0312, 0.022, 0.0376, lid))
    return StandIn(name, _HOPE, "y", mass, parts, bottom_site, 0.04, 0.025)


def _carton(name: str, radius: float, body: Color, roof: Color) -> StandIn:
    parts = (
        _box(0.0265, 0.0263, -0.0698, 0.04, body),
        _box(0.0265, 0.0165, 0.04, 0.05, roof),
        _box(0.0265, 0.0060, 0.05, 0.0614, roof),
    )
    return StandIn(name, _HOPE, "y", 0.0317, parts, -0.06, 0.04, radius)


def _packet(
    name: str, mass: float, half: tuple[float, float, float], sites: tuple[float, float, float],
    color: Color,
) -> StandIn:  # fmt: skip
    parts = (Part("box", half, (0.0, 0.0, 0.0), color),)
    return StandIn(name, _HOPE, "z", mass, parts, *sites)


def _basket() -> StandIn:
    floor, rim, x, y, wall = 0.0216, 0.1456, 0.0848, 0.0787, 0.0067
    middle, height = (floor + rim) / 2, (rim - floor) / 2
    parts = (
        _box(x, y, 0.0046, floor, _DARK_TAN),
        Part("box", (wall, y, height), (x - wall, 0.0, middle), _TAN),
        Part("box", (wall, y, height), (wall - x, 0.0, middle), _TAN),
        Part("box", (x - 2 * wall, wall, height), (0.0, y - wall, middle), _TAN),
        Part("box", (x - 2 * wall, wall, height), (0.0, wall - y, middle), _TAN),
    )
    inside = Region("contain_region", (0.06108, 0.06108, 0.06949), (0.0, 0.0, 0.07185))
    return StandIn(
        "basket", "stable_scanned_objects", "z", 0.1361, parts, -0.06, 0.04, 0.025, (inside,)
    )


OBJECTS: tuple[StandIn, ...] = (
    _can("alphabet_soup", 0.0259, -0.04, (0.10, 0.25, 0.85), _WHITE),
    _can("tomato_sauce", 0.0266, -0.06, (0.75, 0.10, 0.55), (0.15, 0.65, 0.15)),
    _carton("milk", 0.03, _WHITE, (0.10, 0.10, 0.12)),
    _carton("orange_juice", 0.025, (1.00, 0.50, 0.05), (0.10, 0.50, 0.20)),
    _packet(
        "butter", 0.0052, (0.0381, 0.0198, 0.0087), (-0.02, 0.02, 0.02),
        (1.00, 0.85, 0.10),
    ),
    _packet(
        "cream_cheese", 0.0062, (0.0406, 0.0213, 0.0089), (-0.025, 0.025, 0.03),
        (0.20, 0.80, 0.85),
    ),
    _packet(
        "chocolate_pudding", 0.0102, (0.0401, 0.0232, 0.0137), (-0.06, 0.04, 0.025),
        (0.40, 0.20, 0.10),
    ),
    StandIn(
        "bbq_sauce", _HOPE, "z", 0.0122,
        (
            _box(0.0235, 0.0145, -0.0546, -0.001, (0.12, 0.06, 0.04)),
            _box(0.0146, 0.0143, -0.001, 0.030, (0.12, 0.06, 0.04)),
            _cylinder(0.0135, 0.030, 0.0525, (1.00, 0.60, 0.10)),
        ),
        -0.06, 0.06, 0.015,
    ),
    StandIn(
        "ketchup", _HOPE, "y", 0.0232,
        (
            _box(0.0281, 0.0180, -0.0724, -0.006, (0.85, 0.08, 0.08)),
            _box(0.0210, 0.0150, -0.006, 0.036, (0.85, 0.08, 0.08)),
            _cylinder(0.0165, 0.036, 0.0732, _WHITE),
        ),
        -0.06, 0.04, 0.025,
    ),
    StandIn(
        "salad_dressing", _HOPE, "y", 0.0218,
        (
            _box(0.0262, 0.0176, -0.0727, -0.004, (0.20, 0.70, 0.25)),
            _box(0.0210, 0.0150, -0.004, 0.0355, (0.20, 0.70, 0.25)),
            _cylinder(0.0158, 0.0355, 0.0729, (0.95, 0.90, 0.30)),
        ),
        -0.06, 0.04, 0.025,
    ),
    _basket(),
)  # fmt: skip
"""Every movable object of the ten tasks."""
