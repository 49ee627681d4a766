"""Every command in the README and on the how-to pages works as printed.

A block's info string says how: `sh demo` runs against the demo's world, `sh here` in a copy of the
checkout's ready configs, `sh make` as a dry run of make; `sh shown` is only parsed. Blocks run in
order under `bash -eu -o pipefail`, so every line has to succeed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import proxy
from proxy.config.load import load
from proxy.demo.world import World

ROOT = Path(proxy.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs/how-to").glob("*.md"))]
KINDS = {"demo", "here", "make", "shown"}

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LOG = "/tmp/reliability-proxy-demo-*/proxy.log"
# README address -> the demo's name for it: its usual ports may be taken.
_PORTS = {8000: "INGRESS", 9901: "ADMIN", 9464: "METRICS"}


def blocks(kind: str, tmp: Path | None = None) -> list[str]:
    """The blocks of that kind in the README and then in the guides, in order, writing into `tmp`
    instead of /tmp."""
    pages = [README] if kind == "make" else [README, *GUIDES]
    found = [text for page in pages for info, text in _FENCE.findall(page) if info == f"sh {kind}"]
    return [re.sub(r"/tmp/(?!reliability-proxy-demo-)", f"{tmp}/", text) for text in found]


def checkout(folder: Path) -> Path:
    """A folder in which the README's relative paths work: its command and its configs."""
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    script = binaries / "reliability-proxy"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m proxy "$@"\n')
    script.chmod(0o755)
    (folder / "config").symlink_to(ROOT / "config")
    return folder


async def run(script: str, folder: Path) -> str:
    """What the block prints. Fails, with its output, when a line of it fails."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-eu",
        "-o",
        "pipefail",
        "-c",
        script,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PROXY_")}
        | {"PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    text = output.decode()
    assert process.returncode == 0, f"{script}\n--- printed, then ended with an error:\n{text}"
    return text


def at_home(script: str, world: World) -> str:
    """The block with this world's addresses instead of the usual ones."""
    script = re.sub(
        r"http://127\.0\.0\.1:(\d+)", lambda found: world.at.url(_PORTS[int(found[1])]), script
    )
    script = script.replace(_LOG, str(world.proxy_log))
    admin = world.at.url("ADMIN")
    return re.sub(
        r"(reliability-proxy (?:jobs|breakers|trace) [^\n]*)", rf"\1 --admin {admin}", script
    )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """The demo, up."""
    async with World() as world:
        yield world


def test_every_shell_block_says_how_it_is_tested() -> None:
    """No command stands on the page that nobody looks at."""
    infos = [info for info, _ in _FENCE.findall(README)]
    shell = [info for info in infos if info.split(" ")[0] in ("sh", "bash", "shell", "console")]
    assert {info.removeprefix("sh ") for info in shell} == KINDS


@pytest.mark.slow
async def test_the_tour(world: World, tmp_path: Path) -> None:
    """The commands of the tour and of operating print what the page promises."""
    if missing := [name for name in ("curl", "jq", "python3") if shutil.which(name) is None]:
        pytest.skip(f"the README's commands need {', '.join(missing)}")
    folder = checkout(tmp_path)
    printed = []
    for block in blocks("demo", tmp_path):
        printed.append(await run(at_home(block, world), folder))
    text = "\n".join(printed)
    assert "HTTP/1.1 202" in text
    assert "x-correlation-id: my-first-job" in text.lower()
    assert "HTTP/1.1 405" in text
    assert '"method_not_allowed"' in text
    assert '"route":"create-video"' in text
    assert 'endpoint="create-video"' in text
    assert "correlation my-first-job" in text
    assert "suspected" in text


@pytest.mark.slow
async def test_commands_in_a_checkout(tmp_path: Path) -> None:
    """`check`, `schema` and `--help` work from the top of the repository."""
    folder = checkout(tmp_path)
    for block in blocks("here", tmp_path):
        await run(block, folder)
    assert json.loads((folder / "schema.json").read_text()) == json.loads(
        (ROOT / "config" / "schema.json").read_text()
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_targets_exist() -> None:
    """Every `make` command of the page, and those in the text, would do something."""
    commands = [line for block in blocks("make") for line in block.splitlines()]
    assert commands == ["make run", "make test"]
    for command in [*commands, *re.findall(r"`(make [^`]+)`", README)]:
        # The outer make's variables (MAKEFLAGS) must not steer this one.
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("MAKE", "MFLAGS"))}
        subprocess.run(
            [*command.split(), "--dry-run"],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            timeout=120,
        )


def test_shown_blocks_are_shell() -> None:
    """What is only shown is at least correct shell."""
    for block in blocks("shown"):
        subprocess.run(["bash", "-n", "-c", block], check=True, timeout=10)


def test_configs_on_the_page_are_valid(tmp_path: Path) -> None:
    """Every YAML example loads."""
    examples = [text for info, text in _FENCE.findall(README) if info == "yaml"]
    assert examples
    for example in examples:
        file = tmp_path / "example.yaml"
        file.write_text(example, encoding="utf-8")
        assert load(file).config.listeners


def test_links_lead_somewhere() -> None:
    """Relative links in the README and the documentation name files, and headings in them."""
    pages = [*sorted(ROOT.glob("*.md")), ROOT / "deploy" / "README.md"]
    pages += sorted((ROOT / "docs").rglob("*.md"))
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            name, _, heading = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists() or (heading and heading not in headings(file)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
