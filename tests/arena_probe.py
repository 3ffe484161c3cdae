"""Runs one task as LIBERO does and as both modes do, for test_libero_arenas.py.

`python tests/arena_probe.py ASSETS SUITE TASK OUTPUT`, a program of its own as libero_probe.py is.
"""

import dataclasses
import sys

import numpy as np
from libero_probe import ACTIONS, CHUNKS, run_ours, run_reference

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.libero.suites import bddl_path, suite_tasks
from lightning_ript.types import Context

SIZE = 48


def articulations(problem):
    """Hinges and slides of fixtures: where each is in a state, and how far it goes."""
    model = problem.sim.model._model
    for joint in range(model.njnt):
        name = model.joint(joint).name
        if model.jnt_type[joint] in (2, 3) and not name.startswith(("robot0", "gripper0")):
            yield name, 1 + model.jnt_qposadr[joint], model.jnt_range[joint]


def main(assets, suite, index, output):
    spec = LiberoSpec(suite, [int(index)], image_size=SIZE, mode="exact", assets=assets)
    (task,) = spec.tasks()
    first, other = spec.test_contexts(task)[:2]
    ours = spec.make()
    ours.reset(first)
    moving = list(articulations(ours.problem))
    # An episode before the one that counts: every door, drawer and knob elsewhere.
    state = np.array(other.init_state)
    for _, place, (low, high) in moving:
        state[place] = high if abs(high) > abs(low) else low
    ours.reset(Context(task, 1, state))
    ours.step_chunk(-ACTIONS[0])
    elsewhere = ours.sim_state()
    found = {f"ours_{key}": np.array(value) for key, value in run_ours(ours, first).items()}
    goal = ours.problem.parsed_problem
    ours.close()
    fast = dataclasses.replace(spec, mode="fast").make()
    # Where other tasks share the scene, one of them has used the simulator before.
    sharing = [t for t in suite_tasks(suite) if t != task and spec.scene(t) == spec.scene(task)]
    if sharing:
        fast.reset(Context(sharing[0], 0, spec.test_contexts(sharing[0])[0].init_state))
        fast.step_chunk(ACTIONS[0])
        assert fast.problem.parsed_problem["goal_state"] != goal["goal_state"]
    found |= {f"fast_{key}": np.array(value) for key, value in run_ours(fast, first).items()}
    assert fast.problem.parsed_problem == goal
    found["scenes_prepared"] = len(fast._simulations)
    found["tasks_run"] = 1 + bool(sharing)
    fast.close()
    reference = run_reference(bddl_path(task), first.init_state, SIZE, CHUNKS)
    found |= {f"reference_{key}": np.array(value) for key, value in reference.items()}
    found["articulated"] = [name for name, *_ in moving]
    found["moved"] = [abs(elsewhere[p] - first.init_state[p]) for _, p, _ in moving]
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
