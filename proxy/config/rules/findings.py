"""Problems and warnings that the rules find, with file and line."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path

from proxy.config.document import Element
from proxy.config.problems import ConfigWarning, Key, Problem, dotted


class Findings:
    """Collects the problems and warnings of the rules, with file and line.

    `tree` is the file as written; `trimmed` is the part that the model was built from, so its list
    indices are those of the model.
    """

    def __init__(self, file: Path, tree: Element, trimmed: Element) -> None:
        self.file = file
        self.tree = tree
        self.trimmed = trimmed
        self.problems: list[Problem] = []
        self.warnings: list[ConfigWarning] = []

    def problem(self, key: Key, expected: str, found: str) -> None:
        """Report a violation at `key`, a path in the model."""
        if self.placeholder(key):
            return
        line, name = self._locate(key)
        self.problems.append(Problem(self.file, line, name, expected, found))

    def warn(self, key: Key, text: str) -> None:
        """Report something legal that is probably a mistake."""
        line, name = self._locate(key)
        self.warnings.append(ConfigWarning(self.file, line, name, text))

    def names(self, section: str) -> tuple[str, ...]:
        """The names that the file defines in a section such as `upstreams`."""
        element = self.tree.child(section)
        return tuple(element.value) if element and isinstance(element.value, dict) else ()

    def given(self, *key: str) -> bool:
        """Whether the file has a value at `key`, valid or not."""
        element = self.tree.find(key)
        return element.key == key and element.value is not None

    def placeholder(self, key: Key) -> bool:
        """Whether the loader put a placeholder here, having reported why."""
        return self.trimmed.find(key).placeholder

    def _locate(self, key: Key) -> tuple[int, str]:
        element = self.trimmed.find(key)
        rest = key[len(element.key) :]
        return element.line, dotted((*element.key, *rest))


def reference(key: Key, name: str, known: Collection[str], kind: str, found: Findings) -> None:
    """A name must be one of the `known` ones."""
    if name in known:
        return
    near = nearest(name, known)
    hint = f" (did you mean {near!r}?)" if near else f" (there is {', '.join(known) or 'none'})"
    found.problem(key, f"the name of one of the {kind}", f"{name!r}{hint}")


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that was probably meant, or `""`."""
    near = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.6)
    return near[0] if near else ""
