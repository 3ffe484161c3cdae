"""The configs that come with the package, which commands find by name from any folder.

Nothing here imports torch: `lightning-ript configs` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_ript.running.paths import expanded

CONFIGS = Path(__file__).parents[1] / "configs"
_OPTIONS = ("--config", "-c")


def find_config(name: str) -> str:
    """The path of a config.

    Args:
        name: A path, which wins, or YAML itself, or the name of a config of the package, as
            `quest/ript`, `quest/ript.yaml` or `configs/quest/ript.yaml`.

    Returns:
        `name` itself where there is none, for a parser to refuse.
    """
    name = expanded(name)
    inner = name.removeprefix("configs/")
    if os.path.isfile(name) or ".." in inner.split("/"):
        return name
    candidates = (os.path.join(CONFIGS, inner), os.path.join(CONFIGS, f"{inner}.yaml"))
    return next((each for each in candidates if os.path.isfile(each)), name)


def with_config_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command, with the paths of the configs that they name."""
    found: list[str] = []
    is_name = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if is_name:
            found.append(find_config(argument))
        elif equals and option in _OPTIONS:
            found.append(f"{option}={find_config(value)}")
        else:
            found.append(argument)
        is_name = argument in _OPTIONS
    return found


def names() -> Iterator[str]:
    """Of all configs of the package."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        yield str(path.relative_to(CONFIGS).with_suffix(""))


def show_configs(arguments: Sequence[str]) -> None:
    """Lists the package's configs, a sentence each, or shows one.

    Args:
        arguments: A part of the names to list, or a whole name to show; all are listed by default.

    Raises:
        SystemExit: No config is called like that.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        sys.stdout.write("usage: lightning-ript configs [PATTERN]\n\n" + str(show_configs.__doc__))
        return
    wanted = arguments[0] if arguments else ""
    everything = list(names())
    exact = wanted.removeprefix("configs/").removesuffix(".yaml")
    if exact in everything:
        sys.stdout.write((CONFIGS / f"{exact}.yaml").read_text(encoding="utf-8"))
        return
    found = [name for name in everything if wanted in name]
    if not found:
        raise SystemExit(
            f"No config has {wanted!r} in its name; `lightning-ript configs` lists all."
        )
    width = max(map(len, found))
    for name in found:
        sys.stdout.write(f"{name:{width}}  {_summary(CONFIGS / f'{name}.yaml')}\n")


def _summary(path: Path) -> str:
    """The first sentence of the comment that a config begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words += line.removeprefix("#").split()
    return " ".join(words).partition(". ")[0].rstrip(".")
