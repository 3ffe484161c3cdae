"""What jsonargparse says about a setting, in a sentence that a person understands.

It nests one message in another, one for each class on the way to a setting, and lists each type
that the value might have had. Here the way becomes a name, `model.policy.hidden`, and the types
become words. A message of any other form stays as it is, without the lines that only repeat it.
"""

from __future__ import annotations

import ast
import inspect
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from pkgutil import resolve_name

from lightning_ript.console.near_match import did_you_mean

_KEY = re.compile(r'Parser key "([\w.-]+)"')
_CLASS = re.compile(r"given class_path '([\w.]+)'")
_VALUE = re.compile(r"(?:Given|Got) value: (.*?)(?:\. Got value: .*)?$", re.MULTILINE)
# The first of these in a message says what is wrong.
_REASON = re.compile(
    r"Option '(?P<unknown>[\w.]+)' is not accepted(?:.*class_path='(?P<partial>[\w.]+)')?"
    r"|module '(?P<module>[\w.]+)' has no attribute '(?P<attribute>\w+)'"
    r"|(?P<failed>No module named '[\w.]+')"
    r"|does not correspond to a subclass of (?P<kind>\w+)"
    r"|the following arguments are required: (?P<missing>[\w., ]+)"
    r"|unrecognized arguments: --(?P<extra>[\w.-]+)"
    r"|(?P<type>Expected an? (?!path but|<class 'NoneType'>).*)"
)
_NESTED = re.compile(r"NestedArg\(key='.*', val=(.*)\)")
_LINK = re.compile(r"argument (?:\w+\()?(?P<source>\w+)\)? --> (?P<target>[\w.]+): invalid")
_OPTION = re.compile(r"unrecognized arguments: --(?P<name>[\w.-]+)")
_CHOICE = re.compile(r"invalid choice: '(?P<choice>[^']*)' \(choose from (?P<choices>.*)\)")
_SETTING = re.compile(r"Subcommand '\w+' does not accept option '(?P<name>[\w.-]+)'")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "Mapping": "a mapping",
    **dict.fromkeys(("list", "tuple", "set", "Sequence", "Iterable"), "a list"),
}
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value",
)


def in_words(message: str, parser: ArgumentParser) -> str:
    """What is wrong with what was typed, or written in a config.

    Args:
        message: A parser's.
        parser: The parser, which knows what could have been meant.
    """
    if found := _LINK.search(message):
        source, target = found["source"], found["target"]
        return f"{target} is what --{source} says: set --{source}, and leave {target} out."
    if found := _OPTION.match(message):
        return message + did_you_mean(f"--{found['name']}", {f"--{n}" for n in _names(parser)})
    if found := _CHOICE.search(message):
        choices = [choice.strip(" '") for choice in found["choices"].split(",")]
        near = did_you_mean(found["choice"], choices, ".")
        return f"{found['choice']!r} is none of {', '.join(choices)}{near}"
    if found := _SETTING.match(message):
        near = did_you_mean(found["name"], _names(parser), ".")
        return f"There is no setting {found['name']}{near}"
    if message.startswith('expected "subcommand"'):
        return "No command is given: begin with lightning-ript fit or lightning-ript validate."
    return _of_a_setting(message, parser) or _without_noise(message)


def _names(parser: ArgumentParser) -> set[str]:
    """What may be set by options of a parser, or of its commands."""
    found = {option.lstrip("-") for option in parser._option_string_actions}
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found.update(*map(_names, action.choices.values()))
    return found


def _of_a_setting(message: str, parser: ArgumentParser) -> str | None:
    """What is wrong with a setting, or with one of a class that a setting names."""
    reason = _REASON.search(message)
    if reason is None:
        return None
    name = ".".join(_KEY.findall(message, 0, reason.start()))
    (*_, class_path) = ("", *_CLASS.findall(message, 0, reason.start()))
    given = _VALUE.search(message, reason.start())
    value = given[1].strip() if given else ""
    if nested := _NESTED.fullmatch(value):
        value = str(ast.literal_eval(nested[1]))
    if reason["missing"]:
        return _missing(name, class_path, reason["missing"], parser)
    if not name:
        return None
    if unknown := reason["unknown"] or reason["extra"]:
        return _unknown(name, reason["partial"] or class_path, unknown)
    if reason["attribute"]:
        module, attribute = reason["module"], reason["attribute"]
        near = did_you_mean(attribute, _names_in(module), ": check its spelling.")
        return f"{name} names {module}.{attribute}, which does not exist{near}"
    if reason["failed"]:
        wrong = class_path or value
        return f"{name} names {wrong}, which cannot be imported: {reason['failed']}."
    if reason["kind"]:
        return f"{name} names {value}, which is not a {reason['kind']}."
    return _of_another_type(name, value, message[reason.start() : given.start() if given else None])


def _missing(name: str, class_path: str, names: str, parser: ArgumentParser) -> str:
    """Which settings have to be given; those of `fit` begin with its name."""
    wanted = [each.partition(".")[2] or each for each in names.split(", ")]
    if name:
        of = f"{name} is a {_short(class_path)} and needs" if class_path else f"{name} needs"
        full = [f"{name}.{each}" for each in wanted]
        return f"{of} {_listed(wanted, 'and')}: set {_listed(full, 'and')}."
    verb = "are" if len(wanted) > 1 else "is"
    if {"model", "data"} & set(wanted):
        return (
            f"Nothing says what {_listed(wanted, 'and')} {verb}: name a --config; "
            "`lightning-ript configs` lists those that come with the package."
        )
    options = _names(parser)
    typed = [f"--{each}" if each in options else each.upper() for each in wanted]
    return f"{_listed(typed, 'and')} {verb} missing."


def _unknown(name: str, class_path: str, setting: str) -> str:
    known = _parameters(class_path) if class_path else []
    others = f": {_short(class_path)} has {', '.join(known)}." if known else "."
    return f"{name} has no setting {setting}{did_you_mean(setting, known, others)}"


def _names_in(module: str) -> list[str]:
    """What a module has; nothing if importing it fails."""
    try:
        return dir(resolve_name(module))
    except (ImportError, AttributeError):
        return []


def _parameters(class_path: str) -> list[str]:
    """What a class takes; nothing if that cannot be found out."""
    try:
        return list(inspect.signature(resolve_name(class_path)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def _of_another_type(name: str, value: str, expected: str) -> str:
    """What a value should have been, from the lines that say which types were tried."""
    found: list[str] = []
    for line in expected.splitlines():
        if choices := re.search(r"typing\.Literal\[(.*)\]", line):
            found += map(str, ast.literal_eval(f"[{choices[1]}]"))
        elif kind := re.search(r"Expected an? <class '(?:[\w.]+\.)?(\w+)'>", line):
            found += [_WORDS.get(kind[1], f"a {kind[1]}")] if kind[1] != "NoneType" else []
        elif "Expected a dot import path" in line or "a function or a callable class" in line:
            found.append("the import path of a class or function")
        elif kind := re.search(r"Expected an? ([^:.]*)", line):
            found.append(kind[1])
    said = f"is {value!r}" if value else "is empty"
    return f"{name} {said}, but must be {_listed(list(dict.fromkeys(found)), 'or')}."


def _listed(words: Sequence[str], last: str) -> str:
    """`a, b or c`."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _without_noise(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()]
    return "\n".join(line.removeprefix("- ") for line in lines if not line.startswith(_NOISE))
