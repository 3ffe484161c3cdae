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
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pkgutil import resolve_name

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
_LINK_FAILED = re.compile(r"Call to compute_fn of link .* failed: (?P<why>.*)")
_OPTION = re.compile(r"unrecognized arguments: --(?P<name>[\w-]+)")
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
    if found := _LINK_FAILED.match(message):
        return found["why"]
    if found := _OPTION.match(message):
        near = near_match(found["name"], _names(parser))
        return f"{message}: did you mean --{near}?" if near else message
    if found := _CHOICE.search(message):
        choices = ast.literal_eval(f"[{found['choices']}]")
        return (
            f"{found['choice']!r} is none of {', '.join(choices)}{_hint(found['choice'], choices)}"
        )
    if found := _SETTING.match(message):
        return f"There is no setting {found['name']}{_hint(found['name'], _names(parser)) or '.'}"
    if message.startswith('expected "subcommand"'):
        return "No command is given: begin with lightning-ript fit or lightning-ript validate."
    return _of_a_setting(message) or _without_noise(message)


def near_match(name: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    return next(iter(get_close_matches(name, sorted(set(known)), n=1)), None)


def _hint(name: str, known: Iterable[str]) -> str:
    near = near_match(name, known)
    return f": did you mean {near}?" if near else ""


def _names(parser: ArgumentParser) -> set[str]:
    """What may be set by options of a parser, or of its commands."""
    found = {option.lstrip("-") for option in parser._option_string_actions}
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found.update(*map(_names, action.choices.values()))
    return found


def _of_a_setting(message: str) -> str | None:
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
        return _missing(name, class_path, reason["missing"])
    if not name:
        return None
    if unknown := reason["unknown"] or reason["extra"]:
        return _unknown(name, reason["partial"] or class_path, unknown)
    if reason["attribute"]:
        module, attribute = reason["module"], reason["attribute"]
        hint = _hint(attribute, dir(resolve_name(module))) or ": see how it is spelt."
        return f"{name} names {module}.{attribute}, which does not exist{hint}"
    if reason["failed"]:
        wrong = class_path or value
        return f"{name} names {wrong}, which cannot be imported: {reason['failed']}."
    if reason["kind"]:
        return f"{name} names {value}, which is no {reason['kind']}."
    return _of_another_type(name, value, message[reason.start() : given.start() if given else None])


def _missing(name: str, class_path: str, names: str) -> str:
    """Which settings have to be given; those of `fit` begin with its name."""
    wanted = [each.partition(".")[2] or each for each in names.split(", ")]
    if name:
        of = f"{name} is a {_short(class_path)} and needs" if class_path else f"{name} needs"
        return (
            f"{of} {_listed(wanted, 'and')}: set {_listed([f'{name}.{n}' for n in wanted], 'and')}."
        )
    if not {"model", "data"} & set(wanted):
        return f"{_listed(wanted, 'and')} {'are' if len(wanted) > 1 else 'is'} missing."
    return (
        f"Nothing says what {_listed(wanted, 'and')} {'are' if len(wanted) > 1 else 'is'}: name a "
        "--config; `lightning-ript configs` lists those that come with the package."
    )


def _unknown(name: str, class_path: str, setting: str) -> str:
    parameters = inspect.signature(resolve_name(class_path)).parameters if class_path else {}
    hint = _hint(setting, parameters)
    if not hint and parameters:
        hint = f": {_short(class_path)} has {', '.join(parameters)}."
    return f"{name} has no setting {setting}{hint or '.'}"


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
