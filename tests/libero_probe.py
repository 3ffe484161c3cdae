"""Runs the simulator for test_libero_environment.py and saves what it saw.

It is a program of its own because GL must stay out of the process that holds torch:
`python tests/libero_probe.py ASSETS OUTPUT`.
"""

import dataclasses
import gc
import sys

import numpy as np

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.libero.suites import bddl_path
from lightning_ript.types import Context, Perturbation

CHUNK = 8
CHUNKS = 13  # 104 steps
REFERENCE_CHUNKS = 4  # the reference draws both cameras in every step
REFERENCE_KEYS = {
    "agentview_rgb": "agentview_image",
    "eye_in_hand_rgb": "robot0_eye_in_hand_image",
    "joint_states": "robot0_joint_pos",
    "ee_pos": "robot0_eef_pos",
    "ee_quat": "robot0_eef_quat",
    "gripper_states": "robot0_gripper_qpos",
}
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (CHUNKS, CHUNK, 7))


def linear_textures(sim, size):
    """Lets LIBERO's own environment draw the colours of published data."""
    import mujoco  # not before an environment is described: test_gymnasium.py sees to that

    sim.model._model.tex_colorspace[:] = mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR
    sim._render_context_offscreen.gl_ctx.make_current()
    sim._render_context_offscreen.update_offscreen_size(size, size)  # uploads the textures again


def reference_environment(bddl, size):
    """LIBERO's own environment, just reset, with the colours of published data."""
    from libero.libero.envs import OffScreenRenderEnv

    env = OffScreenRenderEnv(bddl_file_name=str(bddl), camera_heights=size, camera_widths=size)
    env.seed(0)
    env.reset()
    linear_textures(env.env.sim, size)
    return env


def run_reference(bddl, state, size, chunks=REFERENCE_CHUNKS):
    """LIBERO's own environment, stepped by itself."""
    env = reference_environment(bddl, size)
    env.set_init_state(state)
    for _ in range(10):
        env.step(np.array([0.0, 0, 0, 0, 0, 0, -1]))
    states, images, proprioception, successes = [], [], [], []
    for chunk in ACTIONS[:chunks]:
        for action in chunk:
            seen, _, success, _ = env.step(action)
            successes.append(success)
        states.append(env.get_sim_state())
        # LIBERO's own images begin with the bottom row.
        images.append([seen[REFERENCE_KEYS[key]][::-1] for key in REFERENCE_KEYS if "rgb" in key])
        proprioception.append(lowdim({k: seen[v] for k, v in REFERENCE_KEYS.items()}))
    env.close()
    return {
        "states": states,
        "images": images,
        "proprioception": proprioception,
        "successes": successes,
    }


def run_blind_reference(bddl, start, state, size):
    """QueST's own evaluation: ten zero actions in another scene, then the state is set."""
    env = reference_environment(bddl, size)
    env.set_init_state(start)
    for _ in range(10):
        seen, *_ = env.step(np.zeros(7))
    env.set_init_state(state)
    found = [seen]
    for chunk in ACTIONS[:2]:
        for action in chunk:
            seen, *_ = env.step(action)
        found.append(seen)
    state = env.get_sim_state()
    env.close()
    images = [[s[REFERENCE_KEYS[k]][::-1] for k in REFERENCE_KEYS if "rgb" in k] for s in found]
    return {"images": images, "state": state}


def run_blind(env, context):
    found = [env.reset(context)]
    found += [env.step_chunk(chunk).observation for chunk in ACTIONS[:2]]
    images = [[seen[key] for key in REFERENCE_KEYS if "rgb" in key] for seen in found]
    return {"images": images, "state": env.sim_state()}


def run_ours(env, context):
    env.reset(context)
    states, images, proprioception, successes = [], [], [], []
    for chunk in ACTIONS:
        result = env.step_chunk(chunk)
        successes.append(result.success)
        states.append(env.sim_state())
        seen = result.observation
        images.append([seen[key] for key in REFERENCE_KEYS if "rgb" in key])
        proprioception.append(lowdim(seen))
    return {
        "states": states,
        "images": images,
        "proprioception": proprioception,
        "successes": successes,
    }


def lowdim(seen):
    return np.concatenate([seen[key] for key in REFERENCE_KEYS if "rgb" not in key]).astype("f4")


def observation_bits(seen):
    return np.concatenate([np.ravel(seen[key]).astype("f4") for key in REFERENCE_KEYS])


def refusal(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def in_the_basket(env, context):
    """The initial state with the object to pick hanging just over the basket's floor."""
    env.reset(context)
    problem = env.problem
    _, thing, region = problem.parsed_problem["goal_state"][0]
    basket = problem.sim.data.get_site_xpos(region)
    state = context.init_state.copy()
    joint = problem.objects_dict[thing].joints[-1]
    address = 1 + problem.sim.model.get_joint_qpos_addr(joint)[0]
    state[address : address + 3] = basket + np.array([0.0, 0.0, 0.02])
    return dataclasses.replace(context, init_state=state)


def objects(env):
    """Where the movable objects stand, (objects, 3), in the order of the simulator's joints."""
    sim = env.problem.sim
    things = env.problem.objects_dict.values()
    addresses = sorted(sim.model.get_joint_qpos_addr(thing.joints[-1])[0] for thing in things)
    return np.array([sim.data.qpos[a : a + 3] for a in addresses])


def main(assets, output):
    spec = LiberoSpec("libero_object", [0, 1, 2], image_size=64, mode="exact", assets=assets)
    task, other, third = spec.tasks()
    contexts = spec.test_contexts(task)
    found = {}

    def keep(prefix, values):
        found.update({f"{prefix}_{key}": np.array(value) for key, value in values.items()})

    exact = spec.make()
    found["refusal_too_early"] = refusal(exact.step_chunk, ACTIONS[0])
    keep("exact", run_ours(exact, contexts[0]))
    exact.problem.horizon = 1
    exact.reset(contexts[0])
    found["horizon_steps"] = exact.step_chunk(ACTIONS[0]).steps
    exact.close()
    keep("reference", run_reference(bddl_path(task), contexts[0].init_state, 64))

    for mode in ("exact", "fast"):
        blind = dataclasses.replace(spec, mode=mode, protocol="reference").make()
        start = blind._simulation(task).sample_state(contexts[1].index, 0.0)
        blind.reset(contexts[2])  # leaves no trace
        keep(f"blind_{mode}", run_blind(blind, contexts[1]))
        blind.close()
    keep("blind_reference", run_blind_reference(bddl_path(task), start, contexts[1].init_state, 64))

    fast = dataclasses.replace(spec, mode="fast", render="light").make()
    keep("fast", run_ours(fast, contexts[0]))
    found["refusal_shape"] = refusal(fast.step_chunk, np.zeros((8, 6)))
    found["refusal_nan"] = refusal(fast.step_chunk, np.full((8, 7), np.nan))
    found["refusal_state"] = refusal(fast.reset, Context(task, 0, np.zeros(5)))

    sampled = Context(task, 0, seed=7)
    found["sampled_first"] = observation_bits(fast.reset(sampled))
    found["sampled_state"] = fast.sample_state(task, 7)
    found["sampled_other"] = fast.sample_state(task, 8)
    fast.reset(Context(other, 0, seed=3))  # another task, so another GL context
    fast.step_chunk(-ACTIONS[0])
    evicted = fast._simulations[spec.scene(other)]
    fast.reset(Context(task, 0, seed=1))
    last = Context(third, 0, seed=1)
    found["third_first"] = observation_bits(fast.reset(last))  # a third task: `other` has to go
    found["evicted"] = spec.scene(other) not in fast._simulations
    del evicted  # collected only now, while the third task's GL context is current
    gc.collect()
    found["third_again"] = observation_bits(fast.reset(last))
    keep("again", run_ours(fast, contexts[0]))
    found["sampled_again"] = observation_bits(fast.reset(sampled))
    found["sampled_many"] = [fast.sample_state(task, seed) for seed in range(50)]

    for name, context in (("tested", contexts[0]), ("drawn", sampled)):
        moved = dataclasses.replace(context, perturbation=Perturbation(0.01, (0, 1)))
        for kind, start in (("plain", context), ("moved", moved), ("again", moved)):
            found[f"{name}_{kind}_first"] = observation_bits(fast.reset(start))
            found[f"{name}_{kind}_objects"] = objects(fast)

    fast.reset(in_the_basket(fast, contexts[0]), film=True)
    result = fast.step_chunk(np.tile([0.0, 0, 0, 0, 0, 0, -1], (8, 1)))
    found["success"] = result.success
    found["success_steps"] = result.steps
    found["success_frames"] = np.array(result.frames)
    found["success_image"] = result.observation["agentview_rgb"]
    fast.close()
    found["modules"] = [name for name in ("torch", "robomimic") if name in sys.modules]
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
