"""Turns a config file into a `Config`, or into a list of all its problems.

1. The file is read into a tree that knows its lines (document.py), then validated by the schema.
2. Values that the schema refuses are removed and the rest is validated again, so that the rules
   between keys (rules/) run as well. All problems are reported at once, except those that are only
   consequences of others.
3. Secrets are never shown: the values of secret keys and of variables with a secret's name, and the
   user and password in URLs.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.config import removed, shape
from proxy.config.document import Element, merge, read_document, read_mapping
from proxy.config.problems import ConfigError, ConfigWarning, Key, Problem, dotted
from proxy.config.rules.check import check
from proxy.config.rules.findings import Findings, nearest
from proxy.config.schema import Config
from proxy.config.units import without_userinfo

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|PWD|CREDENTIAL|KEY|AUTH", re.IGNORECASE)
_MESSAGE = re.compile(r"(?:(\w+): )?expected (.*), found (.*)", re.DOTALL)
_LONGEST_SHOWN = 80

# Texts by pydantic's error type; `{...}` are filled in from the error's context.
_EXPECTED = {
    "missing": "this key",
    "string_type": "text",
    "string_too_short": "some text",
    "too_short": "at least {min_length} of them",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "path_type": "a file name",
    "ip_v4_network": "a network such as 10.0.0.0/8 or fd00::/8, host bits zero",
    "ip_v6_network": "a network such as 10.0.0.0/8 or fd00::/8, host bits zero",
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}
_EXPECTED_PATTERN = {
    "^[A-Za-z][A-Za-z0-9_]{": "a label name of letters, digits and _ that begins with a letter",
    "^[A-Za-z][": "a name of letters, digits, - and _ that begins with a letter",
    "^[A-Z][": "a method in upper case",
    "^[A-Za-z_:][": "a metric name of letters, digits, _ and :",
    "^[A-Za-z_][A-Za-z0-9_.-]": "a statsd name, such as video.processing or video.{operation}",
    "^[A-Za-z0-9_./:@+ -]": "a label value of at most 64 ordinary characters",
    "^0?[0-7]": "octal permissions such as 0660",
}
# Put in place of a removed required value, so that everything that depends on it is still checked.
_PLACEHOLDERS = {
    "bind": "127.0.0.1:0",
    "name": "stand-in",
    "path": "/stand-in",
    "targets": "http://stand-in.invalid",
    "upstream": "stand-in",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid config, and warnings about what is legal but probably a mistake."""

    config: Config
    warnings: tuple[ConfigWarning, ...]


def load_config(file: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The config in `file`, YAML or JSON. Raises `ConfigError` with every problem.

    Paths in it (`sqlite`, `cert`, `logging.output`) are relative to the current directory.
    """
    return load(file, environ).config


def load(file: Path, environ: Mapping[str, str] = os.environ) -> Loaded:
    """As `load_config`, with the warnings."""
    return _loaded(file, *read_document(file, environ))


def load_source(
    source: Path | Mapping[str, object],
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
    targets: Mapping[str, str] | None = None,
) -> Config:
    """The config in a file or a mapping, with `overrides` merged into it: mappings key by key,
    other values as a whole. `targets` replace those of upstreams, by name. Raises `ConfigError`
    with every problem."""
    name = source if isinstance(source, Path) else Path("<config>")
    if isinstance(source, Path):
        tree, problems = read_document(source, environ)
    else:
        tree, problems = read_mapping(name, source, environ)
    if overrides:
        tree, problems = _merged(tree, problems, "<overrides>", overrides, environ)
    if targets:
        unknown = _unknown(targets, tree, name)
        given = {"upstreams": {name: {"targets": [target]} for name, target in targets.items()}}
        tree, problems = _merged(tree, problems, "<apps>", given, {})
        problems += unknown
    return _loaded(name, tree, problems).config


def _merged(
    tree: Element,
    problems: list[Problem],
    name: str,
    overrides: Mapping[str, object],
    environ: Mapping[str, str],
) -> tuple[Element, list[Problem]]:
    """The tree with `overrides`, and the problems without those of replaced values."""
    more, found = read_mapping(Path(name), overrides, environ)
    replaced = [dotted(one.key) for one in more.walk() if not isinstance(one.value, dict)]
    left = [one for one in problems if not _within(one.key, replaced)]
    return merge(tree, more), left + found


def _unknown(targets: Mapping[str, str], tree: Element, file: Path) -> list[Problem]:
    """Problems for targets of unknown upstreams: the real targets would stay in use."""
    section = tree.find(("upstreams",))
    known = list(section.value) if isinstance(section.value, dict) else []
    return [
        Problem(file, section.line, f"upstreams.{name}", _one_of(name, known), "an app for it")
        for name in targets
        if name not in known
    ]


def _one_of(name: str, known: list[str]) -> str:
    near = nearest(name, known)
    return f"the name of an upstream (did you mean {near!r}?)" if near else "an upstream"


def _within(key: str, places: list[str]) -> bool:
    return any(key == place or key.startswith((f"{place}.", f"{place}[")) for place in places)


def _loaded(file: Path, tree: Element, problems: list[Problem]) -> Loaded:
    """Raises `ConfigError` with `problems` and all others."""
    outdated = removed.update(file, tree)
    trimmed = copy.deepcopy(tree)
    config = _validate(file, trimmed, problems)
    if config is None:
        raise ConfigError(problems)
    found = Findings(file, tree, trimmed)
    check(config, found)
    if problems or found.problems:
        raise ConfigError([*problems, *found.problems])
    warnings = sorted(outdated + found.warnings, key=lambda warning: (warning.line, warning.key))
    return Loaded(config, tuple(warnings))


def _validate(file: Path, tree: Element, problems: list[Problem]) -> Config | None:
    """Append to `problems` what the schema refuses, and remove it from `tree` until the rest is
    valid.

    Each round removes an element or fills in a missing one, so the size of the file bounds the
    rounds. Returns None if nothing valid is left.
    """
    reported = {problem.key for problem in problems}
    has_errors: set[Key] = set()
    while True:
        try:
            return Config.model_validate(tree.plain())
        except ValidationError as refusal:
            refused = refusal.errors(include_url=False, include_input=False)
        problems += [
            refusal.problem(file)
            for refusal in _refusals(tree, refused)
            if refusal.element.key not in has_errors and dotted(refusal.element.key) not in reported
        ]
        to_remove: set[Key] = set()
        above = _above(refused)
        for error in refused:
            if error["type"] == "too_short" and error["loc"] in above:
                continue  # pydantic counts only valid members, and has reported the others
            element, name = tree.find(error["loc"]), error["loc"][-1:]
            if error["type"] == "missing" and name[0] in _PLACEHOLDERS:
                assert isinstance(element.value, dict)
                element.value[str(name[0])] = _placeholder(element.key + name, element.line)
                has_errors.add(element.key)
            else:
                to_remove.add(element.key)
        if () in to_remove:
            return None
        for key in to_remove:
            has_errors.update(key[:depth] for depth in range(len(key)))
        _cut(tree, to_remove)


def _placeholder(key: Key, line: int) -> Element:
    one = Element(key, line, _PLACEHOLDERS[str(key[-1])], placeholder=True)
    return Element(key, line, [one], placeholder=True) if key[-1] == "targets" else one


def _cut(element: Element, to_remove: set[Key]) -> None:
    if isinstance(element.value, dict):
        kept: dict[str, Element] = {}
        for name, child in element.value.items():
            if child.key not in to_remove:
                kept[name] = child
                _cut(child, to_remove)
            elif name in _PLACEHOLDERS and name in shape.known_keys(element.key):
                kept[name] = _placeholder(child.key, child.line)
        element.value = kept
    elif isinstance(element.value, list):
        element.value = [child for child in element.value if child.key not in to_remove]
        for child in element.value:
            _cut(child, to_remove)


@dataclass(slots=True)
class _Refusal:
    """The errors of pydantic at one place (a union has one per member)."""

    element: Element
    key: Key
    expected: list[str]
    found: str

    def problem(self, file: Path) -> Problem:
        expected = " or ".join(self.expected)
        return Problem(file, self.element.line, dotted(self.key), expected, self.found)


def _above(errors: list[ErrorDetails]) -> set[tuple[int | str, ...]]:
    """The places that contain a refused one."""
    return {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}


def _refusals(tree: Element, errors: list[ErrorDetails]) -> list[_Refusal]:
    """Group errors by place, which is the deepest element on an error's `loc`: the file has neither
    missing keys, nor what pydantic appends for members of unions and for keys."""
    refusals: dict[tuple[Key, str], _Refusal] = {}
    misspelt: set[Key] = set()
    above = _above(errors)
    for error in sorted(errors, key=lambda error: error["type"] != "extra_forbidden"):
        element = tree.find(error["loc"])
        kind, key = error["type"], element.key
        if kind == "extra_forbidden":
            known = shape.known_keys(key[:-1])
            near = nearest(str(key[-1]), known)
            misspelt.add((*key[:-1], near))
            wanted = (
                f"a known key (did you mean {near!r}?)"
                if near
                else f"one of {', '.join(known)}"
                if known
                else "no key here"
            )
            refusals[key, kind] = _Refusal(element, key, [wanted], repr(key[-1]))
            continue
        if kind == "missing":
            if isinstance(element.value, str) and error["loc"][-2:-1] == (element.value,):
                key = (*key, element.value)  # `use: [NAME]`, short for `{NAME: {}}`
            key = (*key, error["loc"][-1])
            if key in misspelt:
                continue
            refusals[key, kind] = _Refusal(element, key, [_EXPECTED[kind]], "nothing")
            continue
        if kind == "too_short" and error["loc"] in above:
            continue  # pydantic counts only the valid ones
        expected, found = _expected(error), _show(element)
        message = _MESSAGE.fullmatch(str(error.get("ctx", {}).get("error", "")))
        if message:
            expected = message[2]
            if isinstance(element.value, dict | list):
                key, found = (*key, message[1]) if message[1] else key, without_userinfo(message[3])
        refusal = refusals.setdefault((key, ""), _Refusal(element, key, [], found))
        if expected not in refusal.expected:
            refusal.expected.append(expected)
    return list(refusals.values())


def _expected(error: ErrorDetails) -> str:
    context: dict[str, Any] = error.get("ctx", {})
    if error["type"] == "string_pattern_mismatch":
        for start, words in _EXPECTED_PATTERN.items():
            if str(context["pattern"]).startswith(start):
                return words
    words = _EXPECTED.get(error["type"], "")
    return words.format(**context) if words else f"something else ({error['msg']})"


def _show(element: Element) -> str:
    """An element as a problem quotes it."""
    value = element.value
    if isinstance(value, dict):
        return "keys with values" if value else "no keys"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    origin = "".join(f" (from ${name})" for name in element.variables[:1])
    if value is None:
        return f"nothing{origin}"
    if shape.is_secret(element.key) or any(map(_SECRET_NAME.search, element.variables)):
        return f"a value that is not shown{origin}"
    shown = without_userinfo(value)
    return repr(shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "…") + origin
