"""The room of LIBERO-Object as a stand-in: a floor, four plain walls, two lights, cameras."""

import io

from PIL import Image, ImageDraw

SCENE_PATH = "scenes/libero_floor_base_style.xml"
FLOOR_TEXTURE = "textures/light-gray-floor-tile.png"
WALL_TEXTURE = "textures/light-gray-plaster.png"

# The names are those LIBERO's arena class and floor problem look up. It sets `agentview`,
# `frontview` and `galleryview` itself. Lights cast no shadows and surfaces do not mirror: both
# would render the scene again. A plane's third size is how finely it is cut
# into squares, and software renders each of them: walls are cut coarsely.
_SCENE = """\
<mujoco model="floor_arena">
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.9 0.9 1" rgb2="0.3 0.4 0.5" width="32" \
height="32"/>
    <texture name="texplane" type="2d" file="../{floor}"/>
    <texture name="tex-wall" type="2d" file="../{wall}"/>
    <material name="floorplane" texture="texplane" texrepeat="2 2" texuniform="true" \
reflectance="0" shininess="0" specular="0"/>
    <material name="walls_mat" texture="tex-wall" texrepeat="1 1" texuniform="true" \
reflectance="0" shininess="0" specular="0"/>
  </asset>
  <worldbody>
    <body name="floor" pos="0 0 0">
      <geom name="floor" type="plane" size="4 4 0.125" material="floorplane" condim="3" group="1"/>
    </body>
{walls}
    <light name="light1" pos="1 1 4" dir="0 -0.15 -1" diffuse="0.8 0.8 0.8" \
specular="0.3 0.3 0.3" directional="false" castshadow="false"/>
    <light name="light2" pos="-3 -3 4" dir="0 -0.15 -1" diffuse="0.8 0.8 0.8" \
specular="0.3 0.3 0.3" directional="false" castshadow="false"/>
    <camera name="frontview" mode="fixed" pos="1 0 1.45" quat="0.56 0.43 0.43 0.56"/>
    <camera name="birdview" mode="fixed" pos="-0.2 0 3" quat="0.7071 0 0 0.7071"/>
    <camera name="agentview" mode="fixed" pos="0.5 0 1.35" quat="0.653 0.271 0.271 0.653"/>
    <camera name="sideview" mode="fixed" pos="0 1.28 1.49" quat="0.0099 0.0069 0.5912 0.8064"/>
  </worldbody>
</mujoco>
"""

# Name, middle, and the two axes that span the wall: their cross product points into the room.
_WALLS = (
    ("rear", "-2 0 1.5", "0 1 0 0 0 1"),
    ("front", "4 0 1.5", "0 -1 0 0 0 1"),
    ("left", "0 3 1.5", "1 0 0 0 0 1"),
    ("right", "0 -3 1.5", "-1 0 0 0 0 1"),
)


def scene_mjcf() -> str:
    """The arena's model file."""
    walls = "\n".join(
        f'    <geom name="wall_{name}_visual" type="plane" pos="{position}" xyaxes="{axes}" '
        'size="4 1.5 2" material="walls_mat" contype="0" conaffinity="0" group="1"/>'
        for name, position, axes in _WALLS
    )
    return _SCENE.format(floor=FLOOR_TEXTURE, wall=WALL_TEXTURE, walls=walls)


def floor_texture() -> bytes:
    """PNG of 4x4 stone tiles in slightly different greys, with joints."""
    tile, joint = 32, (168, 160, 152)
    image = Image.new("RGB", (4 * tile, 4 * tile), joint)
    draw = ImageDraw.Draw(image)
    for row in range(4):
        for column in range(4):
            shade = (5 * row + 3 * column + row * column) % 7 * 3
            left, top = column * tile, row * tile
            color = (186 + shade, 177 + shade, 168 + shade)
            draw.rectangle((left + 1, top + 1, left + tile - 2, top + tile - 2), fill=color)
    return _png(image)


def wall_texture() -> bytes:
    """PNG of plain plaster."""
    return _png(Image.new("RGB", (8, 8), (222, 218, 212)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
