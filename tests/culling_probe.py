"""Draws random scenes with mirrors, once whole and once culled: `python tests/culling_probe.py`.

Prints a line per picture: how many values differ, how many views it was drawn in, whether a mirror
was in view, and how many geoms were drawn. A program of its own: GL must stay out of the process
that holds torch.
"""

from lightning_ript.envs.libero.graphics import use_backend

use_backend()

import sys  # noqa: E402

import mujoco  # noqa: E402
import numpy as np  # noqa: E402

from lightning_ript.envs.libero.culling import Culling  # noqa: E402

SIZE = 64
SCENES = 100
PICTURES = 5
SHAPES = ("box", "sphere", "cylinder", "capsule", "ellipsoid", "mesh")


def scene(random):
    """A floor, mirrors, things around them and cameras among them."""

    def numbers(values):
        return " ".join(f"{value:.4f}" for value in np.atleast_1d(values))

    def geom(shape, name, size, extra):
        place = f'pos="{numbers(random.uniform(-1.5, 1.5, 3))}"'
        turn = f'euler="{numbers(random.uniform(-180, 180, 3))}"'
        form = 'mesh="wedge"' if shape == "mesh" else f'size="{numbers(size)}"'
        return f'<geom name="{name}" type="{shape}" {form} {place} {turn} {extra}/>'

    things = []
    for i in range(40):
        rgba = f'rgba="{numbers(random.uniform(0, 1, 3))} 1"'
        things.append(geom(SHAPES[i % 6], f"thing{i}", random.uniform(0.05, 0.3, 3), rgba))
    for i in range(random.integers(1, 3)):
        shape = ("box", "plane")[random.integers(2)]
        size = random.uniform(0.1, 0.6, 3)
        things.append(geom(shape, f"mirror{i}", size, 'material="mirror"'))
    cameras = "".join(
        f'<camera name="camera{i}" pos="{numbers(random.uniform(-1.5, 1.5, 3))}" '
        f'euler="{numbers(random.uniform(-180, 180, 3))}" fovy="{random.uniform(30, 80):.1f}"/>'
        for i in range(PICTURES)
    )
    return f"""<mujoco>
      <compiler angle="degree"/>
      <asset>
        <material name="mirror" reflectance="0.7" rgba="0.5 0.5 0.5 1"/>
        <mesh name="wedge" scale="0.3 0.3 0.3" vertex="0 0 0  1 0 0  0 1 0  0 0 1  1 0 1"/>
      </asset>
      <worldbody>
        <light pos="0 0 3" castshadow="false"/>
        <geom name="floor" type="plane" size="0 0 1" pos="0 0 -2" rgba="0.3 0.4 0.3 1"/>
        {"".join(things)}{cameras}
      </worldbody></mujoco>"""


def draw(renderer, data, camera, reflections=True):
    flags = (mujoco.mjtRndFlag.mjRND_REFLECTION,)
    renderer.update_scene(data, camera)
    renderer.scene.flags[flags] = reflections
    return renderer.render()[::-1].copy()  # the first row at the bottom, as robosuite has it


def main():
    random = np.random.default_rng(0)
    for _ in range(SCENES):
        model = mujoco.MjModel.from_xml_string(scene(random))
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        culling = Culling(model, np.ones(mujoco.mjNGROUP))
        group = model.geom_group.copy()
        with mujoco.Renderer(model, SIZE, SIZE) as renderer:
            for camera in range(PICTURES):
                whole = draw(renderer, data, camera)
                views = culling.views(data, camera, SIZE)
                picture = np.zeros_like(whole)
                for view in views:
                    model.geom_group[~view.visible] = mujoco.mjNGROUP - 1
                    part = draw(renderer, data, camera, view.reflections)
                    picture[view.pixels] = part[view.pixels]
                    model.geom_group[:] = group
                drawn = sum((1 + view.reflections) * view.visible.sum() for view in views)
                mirror = any(view.reflections for view in views)
                report = (int((whole != picture).sum()), len(views), int(mirror), int(drawn))
                sys.stdout.write(" ".join(map(str, report)) + "\n")


if __name__ == "__main__":
    main()
