"""From a config file to a `Config`, or to every problem it has.

1. The file is read into a tree that knows its lines (document.py), then checked by the schema.
2. What the schema refuses is cut out and the rest validated again, so that the rules between keys
   (rules/) run as well: all problems are told at once, and none that another one caused.
3. Nothing secret is shown: neither values of secret keys nor of variables with a secret's name nor
   what stands before the `@` of a URL.
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

from proxy.config import shape
from proxy.config.document import Element, merge, read_document, read_mapping
from proxy.config.problems import ConfigError, ConfigWarning, Key, Problem, dotted
from proxy.config.rules.check import check
from proxy.config.rules.findings import Findings, nearest
from proxy.config.schema import Config
from proxy.config.units import without_userinfo

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|PWD|CREDENTIAL|KEY|AUTH", re.IGNORECASE)
_SAID = re.compile(r"(?:(\w+): )?expected (.*), found (.*)", re.DOTALL)
_LONGEST_SHOWN = 80

# By pydantic's error type; `{...}` are filled from the error's context.
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
# Put where a required value was cut out, so that what hangs on it is checked all the same.
_STAND_INS = {
    "bind": "127.0.0.1:0",
    "name": "stand-in",
    "path": "/stand-in",
    "targets": "http://stand-in.invalid",
    "upstream": "stand-in",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A sound config, and what in it is legal but hardly meant."""

    config: Config
    warnings: tuple[ConfigWarning, ...]


def load_config(file: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The config in `file`, YAML or JSON. Raises `ConfigError` with every problem there is.

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
    """The config in a file or a mapping, with `overrides` merged into it: mappings key by key, all
    else as a whole. `targets` take the place of those of upstreams, by name. Raises `ConfigError`
    with every problem there is."""
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
    """With `overrides`; what they replace is no problem any more."""
    more, found = read_mapping(Path(name), overrides, environ)
    replaced = [dotted(one.key) for one in more.walk() if not isinstance(one.value, dict)]
    left = [one for one in problems if not _within(one.key, replaced)]
    return merge(tree, more), left + found


def _unknown(targets: Mapping[str, str], tree: Element, file: Path) -> list[Problem]:
    """Those that would replace nothing: the real targets would stay where they are."""
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
    """Raises `ConfigError` with `problems` and all further ones."""
    trimmed = copy.deepcopy(tree)
    config = _validate(file, trimmed, problems)
    if config is None:
        raise ConfigError(problems)
    found = Findings(file, tree, trimmed)
    check(config, found)
    if problems or found.problems:
        raise ConfigError([*problems, *found.problems])
    return Loaded(
        config, tuple(sorted(found.warnings, key=lambda warning: (warning.line, warning.key)))
    )


def _validate(file: Path, tree: Element, problems: list[Problem]) -> Config | None:
    """Appends what the schema refuses and cuts it out of `tree` until the rest is sound.

    Each round cuts an element or fills in a missing one, so the rounds are bounded by the size of
    the file. Returns None when nothing sound is left.
    """
    told = {problem.key for problem in problems}
    wounded: set[Key] = set()
    while True:
        try:
            return Config.model_validate(tree.plain())
        except ValidationError as refusal:
            refused = refusal.errors(include_url=False, include_input=False)
        problems += [
            refusal.problem(file)
            for refusal in _refusals(tree, refused)
            if refusal.element.key not in wounded and dotted(refusal.element.key) not in told
        ]
        doomed: set[Key] = set()
        above = _above(refused)
        for error in refused:
            if error["type"] == "too_short" and error["loc"] in above:
                continue  # pydantic counts its sound members alone, and has told of the others
            element, name = tree.find(error["loc"]), error["loc"][-1:]
            if error["type"] == "missing" and name[0] in _STAND_INS:
                assert isinstance(element.value, dict)
                element.value[str(name[0])] = _stand_in(element.key + name, element.line)
                wounded.add(element.key)
            else:
                doomed.add(element.key)
        if () in doomed:
            return None
        for key in doomed:
            wounded.update(key[:depth] for depth in range(len(key)))
        _cut(tree, doomed)


def _stand_in(key: Key, line: int) -> Element:
    one = Element(key, line, _STAND_INS[str(key[-1])], placeholder=True)
    return Element(key, line, [one], placeholder=True) if key[-1] == "targets" else one


def _cut(element: Element, doomed: set[Key]) -> None:
    if isinstance(element.value, dict):
        kept: dict[str, Element] = {}
        for name, child in element.value.items():
            if child.key not in doomed:
                kept[name] = child
                _cut(child, doomed)
            elif name in _STAND_INS and name in shape.known_keys(element.key):
                kept[name] = _stand_in(child.key, child.line)
        element.value = kept
    elif isinstance(element.value, list):
        element.value = [child for child in element.value if child.key not in doomed]
        for child in element.value:
            _cut(child, doomed)


@dataclass(slots=True)
class _Refusal:
    """One or several errors of pydantic (a union has one per member) at one place."""

    element: Element
    key: Key
    expected: list[str]
    found: str

    def problem(self, file: Path) -> Problem:
        expected = " or ".join(self.expected)
        return Problem(file, self.element.line, dotted(self.key), expected, self.found)


def _above(errors: list[ErrorDetails]) -> set[tuple[int | str, ...]]:
    """The places that have a refused one in them."""
    return {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}


def _refusals(tree: Element, errors: list[ErrorDetails]) -> list[_Refusal]:
    """Where an error is, is the deepest element on its `loc`: what pydantic appends there for
    members of unions and for keys is in no file, and neither is a missing key."""
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
            continue  # pydantic counts the sound ones only
        expected, found = _expected(error), _show(element)
        said = _SAID.fullmatch(str(error.get("ctx", {}).get("error", "")))
        if said:
            expected = said[2]
            if isinstance(element.value, dict | list):
                key, found = (*key, said[1]) if said[1] else key, without_userinfo(said[3])
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
    """An element as a problem may quote it."""
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
