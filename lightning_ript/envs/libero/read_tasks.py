"""Says what is wrong with BDDL files: `python -m lightning_ript.envs.libero.read_tasks`.

It takes `{"files": [...], "assets": ..., "object_modules": [...]}` on stdin and prints a list of
sentences, JSON both. It is a program of its own since it loads LIBERO, and with it OpenGL.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_ript.envs.libero import graphics
from lightning_ript.envs.libero.assets import configure_libero, register_objects

# What the arenas bring along, and no class of objects is registered for.
_SURFACES = ("table", "floor", "kitchen_table", "living_room_table", "study_table", "coffee_table")


def problems(file: str) -> Iterator[str]:
    """What keeps LIBERO from building the task of a file, a sentence each."""
    from libero.libero.envs import TASK_MAPPING
    from libero.libero.envs.bddl_utils import robosuite_parse_problem
    from libero.libero.envs.objects import get_object_dict
    from libero.libero.envs.predicates import get_predicate_fn_dict

    try:
        parsed: dict[str, Any] = robosuite_parse_problem(file)
    except Exception as error:  # LIBERO's parser asserts, pops and indexes
        yield f"{file} is no BDDL problem that LIBERO can read ({error!r})."
        return
    if parsed["problem_name"] not in TASK_MAPPING:
        known = ", ".join(sorted(TASK_MAPPING))
        yield f"{file} is a problem {parsed['problem_name']!r}, but LIBERO has {known}."
    instances: set[str] = set()
    for section in ("fixtures", "objects"):
        for category, names in parsed[section].items():
            instances.update(names)
            if category.lower() not in (*_SURFACES, *get_object_dict()):
                yield (
                    f"{file} has {section} of the class {category!r}, which nobody registered: "
                    "name the module that does in object_modules."
                )
    # LIBERO's own files have regions on things that are not there, which they do not use.
    regions: dict[str, Any] = parsed["regions"]
    things = instances | {name for name in regions if regions[name]["target"] in instances}
    if not parsed["goal_state"]:
        yield f"{file} has no goal."
    for what, conditions in (("initial state", "initial_state"), ("goal", "goal_state")):
        for predicate, *names in parsed[conditions]:
            if predicate.lower() not in get_predicate_fn_dict():
                known = ", ".join(get_predicate_fn_dict())
                yield f"{file} has {predicate!r} in its {what}, but LIBERO knows {known}."
            for name in names:
                if name not in things:
                    yield f"{file} has {name!r} in its {what}, but no object or region of the name."


def main() -> None:
    """Reads what is asked, and answers."""
    asked = json.load(sys.stdin)
    graphics.use_backend()
    configure_libero(Path(asked["assets"]))
    register_objects(asked["object_modules"])
    found = [sentence for file in asked["files"] for sentence in problems(file)]
    sys.stdout.write(f"\n{json.dumps(found)}\n")  # a line of its own: LIBERO's parser prints, too


if __name__ == "__main__":
    main()
