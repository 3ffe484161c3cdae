"""Runs the Gymnasium environment for test_gymnasium.py and saves what it saw.

It is a program of its own because GL must stay out of the process that holds torch:
`python tests/gymnasium_probe.py ASSETS OUTPUT`.
"""

import sys
import warnings

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from libero_probe import in_the_basket, refusal

import lightning_ript.envs.libero.gymnasium_env as registering

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 7)).astype(np.float32)


def bits(observation):
    return np.concatenate([np.ravel(observation[key]).astype("f4") for key in sorted(observation)])


def one_by_one(env, actions, render=False):
    for action in actions:
        observation, *_ = env.step(action)
        if render:
            env.render()
    return np.concatenate([bits(observation), env.unwrapped.sim_state()])


def at_once(env, actions):
    observation, *_ = env.unwrapped.step_chunk(actions)
    return np.concatenate([bits(observation), env.unwrapped.sim_state()])


def main(assets, output):
    gymnasium.register_envs(registering)
    settings = {
        **{"suite": "libero_object", "task": 0, "assets": assets, "render": "light"},
        **{"image_size": 32, "max_steps": 20, "render_mode": "rgb_array"},
    }
    env = gymnasium.make("lightning_ript/Libero-v0", **settings)
    ours = env.unwrapped
    found = {"early_modules": [name for name in ("mujoco", "OpenGL") if name in sys.modules]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(ours)
    texts = [str(warning.message) for warning in caught]
    found["warnings"] = [text for text in texts if "WARN" in text]  # Gymnasium's logger's

    first, info = env.reset(seed=3)
    found["first"], found["language"], found["upside_down"] = (
        bits(first),
        info["language"],
        first["agentview_rgb"],
    )
    found["upright"] = env.render()
    found["single"] = one_by_one(env, ACTIONS)
    found["second"] = bits(env.reset()[0])
    found["first_again"] = bits(env.reset(seed=3)[0])
    found["chunk"] = at_once(env, ACTIONS)
    found["second_again"] = bits(env.reset()[0])

    context = ours.settings.test_contexts(ours.task)[5]
    found["by_id"] = bits(env.reset(options={"init_state_id": 5})[0])
    found["by_state"] = bits(env.reset(options={"init_state": context.init_state})[0])
    ends = []
    for _ in range(3):
        _, reward, terminated, truncated, info = ours.step_chunk(ACTIONS)
        ends.append([info["steps"], reward, terminated, truncated])
    found["ends"] = ends
    found["refusal_over"] = refusal(env.step, ACTIONS[0])
    env.reset()
    found["refusal_shape"] = refusal(env.step, ACTIONS[0, :6])
    found["refusal_nan"] = refusal(ours.step_chunk, np.full((8, 7), np.nan))
    found["refusal_state"] = refusal(ours.reset, options={"init_state": np.zeros(5)})
    found["refusal_after_refusal"] = refusal(env.step, ACTIONS[0])

    wins = in_the_basket(ours._environment, context).init_state
    env.reset(options={"init_state": wins})
    stay = np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (8, 1))
    _, reward, terminated, truncated, info = ours.step_chunk(stay)
    found["win"] = [reward, terminated, truncated, info["success"]]
    found["win_steps"] = info["steps"]
    found["refusal_won"] = refusal(env.step, stay[0])
    env.close()

    settings |= {"mode": "exact", "cameras": ("eye_in_hand_rgb",)}
    blind = gymnasium.make("lightning_ript/Libero-v0", **settings)
    found["blind_keys"] = sorted(blind.reset(seed=3)[0])
    found["exact_single"] = one_by_one(blind, ACTIONS, render=True)
    blind.reset(seed=3)
    found["exact_chunk"] = at_once(blind, ACTIONS)
    blind.reset(seed=3)
    found["drawn"] = blind.render()
    blind.close()

    chunks = gymnasium.make("lightning_ript/Libero-v0", **{**settings, "chunk": 8})
    chunks.reset(seed=3)
    observation, _, _, _, info = chunks.step(ACTIONS)
    found["chunk_steps"] = info["steps"]
    found["exact_chunk_step"] = np.concatenate([bits(observation), chunks.unwrapped.sim_state()])
    found["refusal_one"] = refusal(chunks.step, ACTIONS[0])
    chunks.close()
    found["late_modules"] = [name for name in ("torch", "robomimic") if name in sys.modules]
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
