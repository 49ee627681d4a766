"""Every command that the documentation prints is one that exists."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.cli.main import _parser
from tests.deployment import DEPLOY, ROOT, metric_names, rules
from tests.unit.test_deploy_rules import PROMETHEUS_OWN, documented, unknown

PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    DEPLOY / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SHELL = {"sh", "bash", "shell", "console"}

_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_OURS = re.compile(r"(?:^|[\s/])(?:reliability-proxy|rp) ([a-z][^|;&#>]*)")
#: Not commands: names of files, images, units and what a table shows in their place.
_NO_COMMAND = re.compile(r"reliability-proxy (?:\S*[:=]|…|is\b|-o\b|--)")


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of the page's blocks, without the indentation of a list."""
    for indent, info, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        lines = [line.removeprefix(indent) for line in text.splitlines()]
        yield info.split(" ")[0], "\n".join(lines)


def shell(page: Path) -> Iterator[str]:
    """The page's blocks of shell, prompts taken off and what was printed left out."""
    for language, text in fences(page):
        if language == "console":
            lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
            yield "\n".join(lines)
        elif language in SHELL:
            yield text


def spans(page: Path) -> list[str]:
    """What stands between backticks in sentences."""
    return _SPAN.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def ours(page: Path) -> Iterator[str]:
    """What stands behind the name of our own command, in blocks and in sentences."""
    for text in (*shell(page), *spans(page)):
        for line in text.replace("\\\n", " ").splitlines():
            if not _NO_COMMAND.search(line):
                yield from _OURS.findall(line)


COMMANDS = sorted({(page.name, command.strip()) for page in PAGES for command in ours(page)})


def test_commands_are_found() -> None:
    """In the tour, the runbooks and the guides; otherwise the next test proves nothing."""
    assert {name for name, _ in COMMANDS} > {"README.md", "runbooks.md", "deploy.md", "upgrade.md"}
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda one: str(one))
def test_every_command_of_our_own_parses(page: str, command: str) -> None:
    """With its options; capitals and `…` stand for what the reader fills in."""
    words = shlex.split(command)
    if words[-1] == "…":
        words.pop()
    if len(words) == 1 and words[0] in ("jobs", "breakers", "completion"):
        return  # the group as a whole
    if not {"--help", "--version"} & set(words):
        assert _parser().parse_args(words).command, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_shell_is_shell(page: Path) -> None:
    """No quote is left open, nothing is cut off."""
    for block in shell(page):
        done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, timeout=20)
        assert done.returncode == 0, (block, done.stderr)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_commands_name_is_there(page: Path) -> None:
    """In blocks paths below deploy/, config/ and scripts/, globs too; modules run with -m."""
    for block in shell(page):
        for path in re.findall(r"(?<![\w/.:-])((?:deploy|config|scripts)/[\w./*-]*[\w*])", block):
            assert list(ROOT.glob(path)), f"{page.name}: {path}"
    for text in spans(page):
        for module in re.findall(r"python3? -m (tests(?:\.\w+)*)", text):
            where = ROOT / module.replace(".", "/")
            assert where.is_dir() or where.with_suffix(".py").exists(), f"{page.name}: {module}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_query_is_about_metrics_that_exist(page: Path) -> None:
    """Blocks of PromQL, comments left out."""
    known = documented() | PROMETHEUS_OWN | {rule["record"] for rule in rules() if "record" in rule}
    for language, text in fences(page):
        if language == "promql":
            for line in text.splitlines():
                if not line.startswith("#"):
                    assert metric_names(line)
                    assert unknown(line, known) == set(), line


def test_every_make_target_exists() -> None:
    """`make NAME` on any page, CONTRIBUTING included, is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for text in (*shell(page), *spans(page)):
            for name in re.findall(r"^make (?:[A-Z]+=\S+ )*([a-z][a-z-]+)\b", text, re.MULTILINE):
                assert name in targets, f"{page.name}: make {name}"


def commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command that does something, with its options."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for group in groups:
        for name, below in group.choices.items():
            yield from commands(below, f"{before}{name} ")
    if not groups:
        yield (
            before.strip(),
            {o for a in parser._actions for o in a.option_strings if o[:2] == "--"},
        )


def test_the_reference_names_every_command_with_its_options() -> None:
    """Those that all commands of the admin API share stand below the table."""
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    shared = {"--help", "--admin", "--token"}
    assert all(f"`{option}" in page for option in shared)
    documented = {
        name: set(re.findall(r"--[a-z]+", row[1]))
        for row in rows  # those of signals do not begin with a name in backticks
        for name in re.findall(r"`([a-z ]+)`", row[0])
    }
    for name, options in commands(_parser()):
        wanted = options - shared - ({"--json"} if "--admin" in options else set())
        assert documented.pop(name) == wanted, name
    assert documented == {}
