"""The house: who may import whom, and that nothing outside its rooms knows LIBERO."""

import ast
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_ript"
# From below; a module imports its own layer and those below it, within functions too.
LAYERS = [
    ["types"],
    ["storage", "distributed", "console"],
    ["envs"],
    ["demos"],
    ["policies"],
    [
        *(
            "contexts",
            "rollouts",
            "scheduling",
            "filtering",
            "advantages",
            "minibatches",
            "ppo",
            "evaluation",
        ),
        *("datamodule", "module"),
    ],
    ["extensions", "reports"],
    ["callbacks"],
    ["cli", "commands", "running"],
    ["__main__"],
]
LOOP = ["types", "cli", *LAYERS[5]]
SHARED_BY_ALL = {"storage", "distributed", "console"}  # they know nothing of each other
LIBERO = ("agentview", "eye_in_hand", "standin", "found_assets")
# What may know LIBERO: its simulator, its files, the commands that make and check those, and the
# inputs of published checkpoints, which bear its names.
LIBEROS = (
    "envs/libero/",
    "demos/",
    "commands/collect_demos.py",
    "commands/check_data.py",
    "commands/download_data.py",
    "commands/doctor.py",
    "policies/quest/model.py",
    "policies/libero_robot.py",
)
# Reads a flag that version 0.1 wrote.
EXCEPTIONS = {("storage/evaluation_result.py", "standin")}


def sources():
    """Module name below the package -> its file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    for path in (ROOT / "callbacks").glob("*.py"):
        found[f"callbacks.{path.stem}".removesuffix(".__init__")] = path
    return {name: path for name, path in found.items() if name}


def _walk(node):
    """All nodes but those that only a type checker sees."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _walk(child)


@cache
def imports(path):
    """The project's modules that a file names in an import, below the package."""
    names = set()
    for node in _walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            base = node.module
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    known = sources()
    found = set()
    for name in names:
        if name.startswith("lightning_ript."):
            parts = name.removeprefix("lightning_ript.").split(".")
            while parts and ".".join(parts) not in known:
                parts.pop()
            found |= {".".join(parts)} if parts else set()
    return found


def layer(module):
    room = module.partition(".")[0]
    (found,) = [number for number, rooms in enumerate(LAYERS) if room in rooms]
    return found


def test_the_top_level_is_the_loop():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert files == set(LOOP)


def test_every_package_is_installed():
    """Without this, an installation that is not editable lacks what is not listed."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    here = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(config["options"]["packages"].split()) == here | {
        "lightning_ript.callbacks",
        "lightning_ript.configs",
    }


def test_every_room_stands_in_the_packages_docstring():
    text = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text()))
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__", "configs"}
    for name in {*rooms, *LOOP}:
        assert f"\n    {name} " in text, name


@pytest.mark.parametrize("module", sorted(sources()))
def test_nobody_looks_up(module):
    for other in imports(sources()[module]):
        assert layer(other) <= layer(module), f"{module} imports {other}"
        one, two = module.partition(".")[0], other.partition(".")[0]
        if one != two and {one, two} <= SHARED_BY_ALL:
            raise AssertionError(f"{module} imports {other}")


def test_there_is_no_cycle():
    graph = {module: imports(path) for module, path in sources().items()}
    done, above = set(), []

    def visit(module):
        if module in above:
            raise AssertionError(" -> ".join([*above[above.index(module) :], module]))
        if module in done:
            return
        above.append(module)
        for other in sorted(graph[module]):
            visit(other)
        above.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


def test_simulators_and_records_need_no_torch():
    allowed = {"types.py"}  # for annotations
    for path in [PACKAGE / "types.py", *(PACKAGE / "envs").rglob("*.py")]:
        loaded = [
            line
            for line in path.read_text().splitlines()
            if line.startswith(("import torch", "from torch"))
        ]
        assert not loaded, path
        assert path.name in allowed or "torch import" not in path.read_text(), path


def test_the_command_line_and_sweeps_know_no_policy():
    for name in ("cli", "commands", "commands.sweep"):
        policies = {each for each in imports(sources()[name]) if each.startswith("policies.")}
        assert policies <= {"policies.base"}, name


def test_libero_stays_at_home():
    for module, path in sources().items():
        place = module.replace(".", "/")
        if any(f"{place}.py".startswith(home) or f"{place}/".startswith(home) for home in LIBEROS):
            continue
        text = path.read_text()
        for word in LIBERO:
            if (f"{place}.py", word) not in EXCEPTIONS:
                assert word not in text, f"{path} mentions {word}"
