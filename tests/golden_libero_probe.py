"""Runs the goldens' tasks for test_libero_golden.py and saves what both modes come to.

`python tests/golden_libero_probe.py GOLDENS ASSETS OUTPUT`, a program of its own as libero_probe.py
is.
"""

import sys

import mujoco
import numpy as np

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.types import Context


def main(goldens, assets, output):
    golden = np.load(goldens)
    tasks = sorted({tuple(name.split("/")[:2]) for name in golden.files if "/" in name})
    found = {}
    for suite, number in tasks:
        start = golden[f"{suite}/{number}/init"]
        for mode in ("fast", "exact"):
            spec = LiberoSpec(suite, [int(number)], image_size=128, mode=mode, assets=assets)
            (task,) = spec.tasks()
            assert task.name == str(golden[f"{suite}/{number}/name"])
            env = spec.make()
            env.reset(Context(task, 3, start))
            simulation = env._running()
            seen = simulation.look(spec.cameras)
            key = f"{mode}/{suite}/{number}"
            for camera in spec.cameras:
                found[f"{key}/{camera}"] = seen[camera][::-1]  # as the simulator gives them
            found[f"{key}/settled"] = env.sim_state()
            heights = 1 + simulation.model.jnt_qposadr[simulation.model.jnt_type == 0] + 2
            found[f"{key}/rise"] = np.max(env.sim_state()[heights] - start[heights], initial=0.0)
            srgb = simulation.model.tex_colorspace == mujoco.mjtColorSpace.mjCOLORSPACE_SRGB
            found[f"{key}/srgb"] = srgb.sum()
            states = []
            for action in golden[f"{suite}/{number}/actions"]:
                simulation.step(action, None)
                states.append(env.sim_state())
            found[f"{key}/states"] = np.array(states)
            env.close()
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
