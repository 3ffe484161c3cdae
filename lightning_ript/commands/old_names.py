"""Configs and command lines of version 0.1: what they name by places that have moved since."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_ript.running.configs import read_config

_MOVED = {
    "lightning_ript.demos.supervised": "lightning_ript.policies.quest.stages",
    "lightning_ript.strategies": "lightning_ript.distributed.strategies",
    "lightning_ript.critic": "lightning_ript.extensions.critic",
}
_OLD_CLASS = re.compile(rf"({'|'.join(map(re.escape, _MOVED))})\.(\w+)")
_OLD_MODULE = "lightning_ript.module.RIPTLightningModule"
_CRITIC_MODULE = "lightning_ript.extensions.critic.CriticModule"
_CRITIC_ARGUMENT = re.compile(r"--model\.(init_args\.)?critic([.=]|$)")
_NOTHING = ("null", "None")


def with_current_names(arguments: Sequence[str]) -> list[str]:
    """Renames what has moved since version 0.1, with a warning each; all else stays as it is.

    Classes that are somewhere else now, and the critic, which was a setting of
    `RIPTLightningModule` and is a module of its own.

    Args:
        arguments: Of `fit`, `validate` or `sweep`. A config file that needs a change is replaced by
            its changed content.
    """
    changed: list[str] = []
    module = _OLD_MODULE  # that the words so far choose
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            value = value if equals else next(words, "")
            content = read_config(value)
            current = _without_old_critic(_renamed(content))
            module = _module_of(current) or module
            changed += [name, value if current == content else yaml.safe_dump(current)]
        elif name in ("--model", "--model.class_path"):
            module = _class(value if equals else next(words, ""))
            changed += [f"{name}={module}"] if equals else [name, module]
        elif _CRITIC_ARGUMENT.match(word) and module in (_OLD_MODULE, _CRITIC_MODULE):
            whole = [word] if equals or not name.endswith("critic") else [word, next(words, "")]
            if whole[-1].rpartition("=")[2] in _NOTHING:
                continue
            if module == _OLD_MODULE:
                _say(name.removeprefix("--"), f"model.class_path {_CRITIC_MODULE}")
                changed.append(f"--model={_CRITIC_MODULE}")
                module = _CRITIC_MODULE
            changed += whole
        else:
            changed.append(_class(word))
    return changed


def _module_of(content: Any) -> str | None:
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, str):
        return model
    return model.get("class_path") if isinstance(model, dict) else None


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    return _class(value) if isinstance(value, str) else value


def _class(text: str) -> str:
    """A text with the class that it names, if any, where it is now."""

    def current(found: re.Match[str]) -> str:
        name = f"{_MOVED[found[1]]}.{found[2]}"
        _say(found[0], name)
        return name

    return _OLD_CLASS.sub(current, text)


def _without_old_critic(content: Any) -> Any:
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("class_path", _OLD_MODULE) != _OLD_MODULE:
        return content
    settings = model["init_args"] if isinstance(model.get("init_args"), dict) else model
    if "critic" not in settings:
        return content
    if settings["critic"] is not None:
        _say("model.critic", f"model.class_path {_CRITIC_MODULE}")
        return {**content, "model": {**model, "class_path": _CRITIC_MODULE}}
    rest = {name: value for name, value in settings.items() if name != "critic"}
    return {**content, "model": rest if settings is model else {**model, "init_args": rest}}


def _say(old: str, new: str) -> None:
    rank_zero_warn(
        f"{old} is {new} now: rename it, as the next version no longer knows the old name.",
        category=FutureWarning,
    )
