"""Runs a task given by files, as we do and as LIBERO does, for test_task_files.py.

`python tests/task_files_probe.py ASSETS BDDL STATES OUTPUT`: a program of its own, as
libero_probe.py is.
"""

import sys
from pathlib import Path

import numpy as np
from libero_probe import CHUNKS, run_ours, run_reference

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.types import Context

SIZE = 48


def main(assets, bddl, states, output):
    spec = LiberoSpec("mine", bddl=[bddl], init_states=[states], image_size=SIZE, assets=assets)
    spec.check()
    (task,) = spec.tasks()
    contexts = spec.test_contexts(task)
    environment = spec.make()
    found = {f"ours_{key}": value for key, value in run_ours(environment, contexts[0]).items()}
    sampled = [
        environment.reset(Context(task, 0, seed=seed))["agentview_rgb"] for seed in (1, 2, 1)
    ]
    environment.close()
    reference = run_reference(Path(bddl), contexts[0].init_state, SIZE, CHUNKS)
    found |= {f"reference_{key}": value for key, value in reference.items()}
    np.savez(
        output, language=task.language, tests=len(contexts), sampled=np.array(sampled), **found
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
