"""The configs that come with the package, which commands find by name from any folder.

Nothing here imports torch: `lightning-ript configs` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_ript.console.near_match import did_you_mean
from lightning_ript.running.paths import expanded

CONFIGS = Path(__file__).parents[1] / "configs"
_OPTIONS = ("--config", "-c")


def find_config(name: str) -> str:
    """The path of a config.

    Args:
        name: A path, which wins, or YAML itself, or the name of a config of the package, as
            `quest/ript`, `quest/ript.yaml` or `configs/quest/ript.yaml`.

    Returns:
        `name` itself where there is none.
    """
    name = expanded(name)
    inner = name.removeprefix("configs/")
    if os.path.isfile(name) or ".." in inner.split("/"):
        return name
    candidates = (os.path.join(CONFIGS, inner), os.path.join(CONFIGS, f"{inner}.yaml"))
    return next((each for each in candidates if os.path.isfile(each)), name)


def read_config(place: str) -> dict[str, Any]:
    """The settings in a config.

    Args:
        place: A path, or YAML itself.

    Raises:
        OSError: There is no such file, or it may not be read.
        ValueError: It holds something other than settings.
    """
    import yaml

    if os.path.isdir(place):
        raise IsADirectoryError(f"--config names {place}, which is a folder: name a file in it.")
    is_file = os.path.isfile(place)
    what = place if is_file else "--config"
    try:
        text = Path(place).read_text(encoding="utf-8") if is_file else place
        content = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise ValueError(f"{place} is not text: name a config in YAML.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = [*text.splitlines(), ""][mark.line] if mark else ""
        why = "a tab, where YAML wants spaces" if "\t" in line else getattr(error, "problem", error)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{what} is not YAML{where}: {why}.") from None
    if isinstance(content, dict):
        return content
    if not is_file:
        inner = place.removeprefix("configs/").removesuffix(".yaml")
        near = did_you_mean(inner, names(), ": `lightning-ript configs` lists them.")
        raise FileNotFoundError(f"--config names {place}, which does not exist{near}")
    found = "nothing" if content is None else "a list" if isinstance(content, list) else "one value"
    raise ValueError(f"{place} holds {found}, but a config holds settings, as in `run_dir: here`.")


def with_config_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command, with the paths of the configs that they name.

    Raises:
        OSError: There is no such config, or it may not be read.
        ValueError: One holds something other than settings.
    """
    found: list[str] = []
    is_name = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if is_name:
            found.append(_checked(argument))
        elif equals and option in _OPTIONS:
            found.append(f"{option}={_checked(value)}")
        else:
            found.append(argument)
        is_name = argument in _OPTIONS
    return found


def _checked(name: str) -> str:
    path = find_config(name)
    read_config(path)
    return path


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
        from lightning_ript.console.described import described

        sys.stdout.write(f"usage: lightning-ript configs [PATTERN]\n\n{described(show_configs)}\n")
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
