"""A YAML or JSON file as a tree of elements with line numbers, environment variables filled in.

1. Every scalar stays the text that was written; the schema interprets it. So the traps of YAML 1.1
   do not exist: the key `on` is not a boolean, `03:00` is not 180, the country `no` is not false,
   and a token of digits keeps its leading zeros. Only an unquoted empty value, `~` or `null` is
   null.
2. `${NAME}` and `${NAME:-default}` are replaced in scalar values after parsing, once: a value from
   the environment can never add keys, quotes or further references. `$${` is a literal `${`.
   As in a shell, the default also replaces a variable that is set but empty.
3. A file is bounded in bytes, depth and nodes; nodes are counted after aliases are expanded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from yaml.composer import Composer
from yaml.error import MarkedYAMLError, YAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner
from yaml.tokens import ScalarToken

from proxy.config.problems import ConfigError, Key, Problem, dotted

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 40
MAX_NODES = 20_000

_STANDARD_TAG = re.compile(r"tag:yaml\.org,2002:(str|int|float|bool|null|map|seq|merge)")
_NULL = {"", "~", "null", "Null", "NULL"}
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_NAME_AND_DEFAULT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)

_NOT_IN_REFERENCE = "{}'\"\r\n\0"  # the scanner's text ends with NUL


@dataclass(slots=True)
class Element:
    """One value of the file. `line` is that of its key, or of the value itself inside a list.

    `variables` names the environment variables that went into a scalar. `placeholder` is set if
    the loader put the value in place of one that the schema refused.
    """

    key: Key
    line: int
    value: dict[str, Element] | list[Element] | str | None
    variables: tuple[str, ...] = ()
    placeholder: bool = False

    def plain(self) -> object:
        """Dicts, lists, strings and None, as pydantic takes them."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, part: str | int) -> Element | None:
        """The element under a key or index, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(part))
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

    def find(self, path: Key) -> Element:
        """The deepest existing element along `path`."""
        here = self
        for part in path:
            below = here.child(part)
            if below is None:
                break
            here = below
        return here

    def children(self) -> list[Element]:
        """The elements directly below; none of a scalar."""
        if isinstance(self.value, dict):
            return list(self.value.values())
        return self.value if isinstance(self.value, list) else []

    def walk(self) -> Iterator[Element]:
        """This element and everything below it."""
        yield self
        for child in self.children():
            yield from child.walk()


def read_document(file: Path, environ: Mapping[str, str]) -> tuple[Element, list[Problem]]:
    """The file as a tree, and the problems that did not prevent reading it.

    Raises `ConfigError` without a tree: no such file, not UTF-8, not YAML, empty, too big.
    """
    root = _compose(file, _read_text(file))
    reading = _Reading(file, environ)
    try:
        tree = reading.element(root, (), root.start_mark.line + 1, 0)
    except _TooMuch as error:
        raise ConfigError([*reading.problems, error.problem]) from None
    return tree, reading.problems


def read_mapping(
    name: Path, mapping: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[Element, list[Problem]]:
    """Like `read_document`, for a config in memory; `name` is the file name in problems. Raises
    `ConfigError` also for values that JSON cannot represent."""
    try:
        text = json.dumps(mapping, default=str, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _fail(name, 1, "what can be written as JSON", str(error)) from None
    root = _compose(name, text)
    reading = _Reading(name, environ)
    try:
        tree = reading.element(root, (), 1, 0)
    except _TooMuch as error:
        raise ConfigError([*reading.problems, error.problem]) from None
    return tree, reading.problems


def merge(tree: Element, overrides: Element) -> Element:
    """`tree` with the values of `overrides` in place of its own: mappings key by key, other values
    as a whole. New values get the line of their parent."""
    if not (isinstance(tree.value, dict) and isinstance(overrides.value, dict)):
        for element in overrides.walk():
            element.line = tree.line
        return overrides
    merged = dict(tree.value)
    for name, value in overrides.value.items():
        merged[name] = merge(merged.get(name, Element(value.key, tree.line, None)), value)
    return Element(tree.key, tree.line, merged)


def _fail(file: Path, line: int, expected: str, found: str) -> ConfigError:
    return ConfigError([Problem(file, line, "", expected, found)])


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        # ValueError: a NUL byte in the path.
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise _fail(file, 1, "a readable config file", reason) from None
    if len(data) > MAX_BYTES:
        raise _fail(file, 1, f"at most {MAX_BYTES} bytes", "more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{data[error.start]:02x}"
        raise _fail(file, line, "UTF-8 text", found) from None


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to nodes: no objects are constructed, so nothing can be executed."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: object) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise MarkedYAMLError(
                problem=f"more than {MAX_DEPTH} levels",
                problem_mark=self.get_mark(),
            )
        try:
            node: Node | None = super().compose_node(parent, index)  # type: ignore[arg-type]
        finally:
            self._depth -= 1
        return node

    def scan_plain(self) -> ScalarToken:
        """An unquoted value. In `{token: ${TOKEN}}` the reference belongs to it, although YAML
        would end the value at the inner brace."""
        value = super().scan_plain()
        while self.flow_level and value.value.endswith("$") and self._ended_here(value):
            length = self._reference_length()
            if not length:
                break
            while self.peek(length) == "#":  # no comment: nothing stands between
                length += 1
            text = value.value + self.prefix(length)
            self.forward(length)
            end = self.get_mark()
            spaces = self.scan_plain_spaces(self.indent + 1, value.start_mark) or []
            rest = super().scan_plain()
            if rest.value:
                text += "".join(spaces) + rest.value
                end = rest.end_mark
            value = ScalarToken(text, True, value.start_mark, end)
        return value

    def _ended_here(self, value: ScalarToken) -> bool:
        return bool(value.end_mark.index == self.index)

    def _reference_length(self) -> int:
        """The length of `{NAME}` here; 0 if something else is here."""
        if self.peek() != "{":
            return 0
        length = 1
        while self.peek(length) not in _NOT_IN_REFERENCE:
            length += 1
        return length + 1 if self.peek(length) == "}" else 0


def _compose(file: Path, text: str) -> Node:
    try:
        json.loads(text)
        # Valid JSON has tabs only between tokens, where YAML does not allow them.
        text = text.replace("\t", " ")
    except (ValueError, RecursionError):
        pass
    try:
        root = _Composer(text).get_single_node()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise _fail(file, line, "text", f"the control character U+{code:04X}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        if error.context and "single document" in error.context:
            raise _fail(file, line, "one YAML document", "another one") from None
        raise _fail(file, line, "valid YAML", _syntax_error(error, text)) from None
    except (YAMLError, ValueError, OverflowError) as error:
        # ValueError, OverflowError: `\U` escapes beyond Unicode.
        raise _fail(file, 1, "valid YAML", str(error)) from None
    if root is None or (isinstance(root, ScalarNode) and root.value in _NULL):
        raise _fail(file, 1, "listeners and upstreams", "an empty file")
    return root


def _syntax_error(error: MarkedYAMLError, text: str) -> str:
    """The parser's message, with a hint if a certain mistake is likely."""
    problem = (error.problem or "").removeprefix("found ")
    found = f"{problem} {error.context or ''}".strip()
    mark = error.problem_mark or error.context_mark
    source = text.splitlines()[mark.line : mark.line + 1] if mark else []
    line = source[0] if source else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{found}: a tab; YAML is indented with spaces"
    if re.search(r"\{[^{}\"']*/[^{}\"']*\{", line):
        return f'{found}: a value with braces needs quotes here, as in path: "/jobs/{{job_id}}"'
    return found


class _TooMuch(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Reading:
    """Turns composed nodes into elements, and collects problems."""

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self.file = file
        self.environ = environ
        self.problems: list[Problem] = []
        self.nodes = 0

    def problem(self, key: Key, line: int, expected: str, found: str) -> None:
        self.problems.append(Problem(self.file, line, dotted(key), expected, found))

    def element(self, node: Node, key: Key, line: int, depth: int) -> Element:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise _TooMuch(
                Problem(
                    self.file,
                    line,
                    dotted(key),
                    f"at most {MAX_NODES} values in {MAX_DEPTH} levels",
                    "more, aliases expanded",
                )
            )
        if node.tag != "!" and not _STANDARD_TAG.fullmatch(node.tag):
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            self.problem(key, line, "plain YAML without tags", f"the tag {tag!r}")
        if isinstance(node, MappingNode):
            return Element(key, line, self.mapping(node, key, depth))
        if isinstance(node, SequenceNode):
            return Element(
                key,
                line,
                [
                    self.element(item, (*key, index), item.start_mark.line + 1, depth + 1)
                    for index, item in enumerate(node.value)
                ],
            )
        assert isinstance(node, ScalarNode)
        return self.scalar(node, key, line)

    def mapping(self, node: MappingNode, key: Key, depth: int) -> dict[str, Element]:
        own: dict[str, Element] = {}
        merged: dict[str, Element] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, ScalarNode):
                self.problem(key, line, "a word as key", "a list or mapping as key")
                continue
            name = name_node.value
            if name == "<<" and name_node.style is None:
                for source in self.merge_sources(value_node, key, line, depth):
                    for inherited, element in source.items():
                        merged.setdefault(inherited, element)
            elif name in own:
                found = f"it again (first on line {own[name].line})"
                self.problem((*key, name), line, "each key once", found)
            else:
                own[name] = self.element(value_node, (*key, name), line, depth + 1)
        return {**merged, **own}

    def merge_sources(
        self, node: Node, key: Key, line: int, depth: int
    ) -> Iterator[dict[str, Element]]:
        """The mappings that `<<` merges, in order of precedence."""
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            element = self.element(source, key, line, depth + 1)
            if isinstance(element.value, dict):
                yield element.value
            else:
                self.problem((*key, "<<"), line, "a mapping to merge", "something else")

    def scalar(self, node: ScalarNode, key: Key, line: int) -> Element:
        text: str = node.value
        if node.style is None and text in _NULL:
            return Element(key, line, None)
        variables: list[str] = []

        def fill(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            parts = _NAME_AND_DEFAULT.fullmatch(match[1] or "")
            if parts is None:
                self.problem(key, line, "${NAME} or ${NAME:-default}", repr(match[0]))
                return ""
            name, default = parts.groups()
            variables.append(name)
            value = self.environ.get(name)
            if default is not None:
                return value or default
            if value is None:
                found = "it unset, and no default such as ${" + name + ":-value}"
                self.problem(key, line, f"the environment variable {name}", found)
                return ""
            return value

        filled = _REFERENCE.sub(fill, text)
        try:
            # JSON writes characters beyond the BMP as two `\u` escapes; YAML reads them separately.
            filled = filled.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self.problem(key, line, "Unicode text", "half a surrogate pair or undecodable bytes")
            filled = ""
        if not filled and variables:
            return Element(key, line, None, tuple(variables))
        return Element(key, line, filled, tuple(variables))
