"""The tour says why a step failed, and children are restarted and ended."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from rich.console import Console

from proxy.config.load import load_config
from proxy.demo import run, world
from proxy.demo.guard import Guard
from proxy.demo.processes import Child, ChildFailed
from proxy.demo.redis_server import free_port
from proxy.demo.tour import tour
from proxy.demo.tour.narrator import Narrator
from tests.http1 import PATIENCE


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    """A guard over a folder of the test."""
    guard = Guard(tmp_path / "guarded")
    yield guard
    guard.close()


def child(tmp_path: Path, guard: Guard, code: str, **options: Any) -> Child:
    """A child that runs a line of Python."""
    command = [sys.executable, "-c", code]
    return Child("child", command, tmp_path / "child.log", guard, environment={}, **options)


async def test_a_failed_step_says_why(tmp_path: Path) -> None:
    """With nobody at the ingress the first step fails by name and the tour stops."""
    output = io.StringIO()
    fake = SimpleNamespace(ingress=f"http://127.0.0.1:{free_port()}", folder=tmp_path)
    narrator = Narrator(Console(file=output, width=200))
    assert not await tour.give(cast(world.World, fake), narrator)
    assert "FAILED: POST /download: ClientConnectorError" in output.getvalue()
    assert "[2/" not in output.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    """On a terminal progress is drawn; elsewhere each change is a plain line."""
    for terminal in (True, False):
        output = io.StringIO()
        console = Console(file=output, width=80, force_terminal=terminal)
        with Narrator(console).bar() as bar:
            bar.show(0.5, "Assembling video")
            bar.show(0.5, "Assembling video")
        assert ("━" in output.getvalue()) == terminal
        assert (output.getvalue() == "       50%  Assembling video\n") == (not terminal)


def test_missing_config_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without config/demo.yaml the demo says so and returns 1."""
    monkeypatch.setattr(world, "CONFIG", tmp_path / "demo.yaml")
    assert run(once=True) == 1
    assert capsys.readouterr().err.startswith(f"demo: {tmp_path / 'demo.yaml'} is missing")


async def test_a_child_that_does_not_start(tmp_path: Path, guard: Guard) -> None:
    """The error carries the end of the child's output."""
    broken = child(tmp_path, guard, "raise SystemExit('no luck')", ready_url="http://127.0.0.1:1/")
    with pytest.raises(ChildFailed, match="ended at once:\nno luck"):
        await broken.start()
    await broken.stop()


async def test_a_child_is_restarted_until_it_is_stopped(tmp_path: Path, guard: Guard) -> None:
    """A child that ends by itself is started again; a killed one is not."""
    short = child(tmp_path, guard, "print('up')", restart_after=0.0)
    await short.start()
    deadline = time.monotonic() + PATIENCE
    while short.tail().count("up") < 3:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await short.kill()
    assert short.pid is None


async def test_the_guard_kills_what_is_left(tmp_path: Path) -> None:
    """When the demo's end of the pipe closes, watched processes die and the folder goes."""
    folder = tmp_path / "guarded"
    folder.mkdir()
    guard = Guard(folder)
    left = child(tmp_path, guard, "import time; time.sleep(60)")
    await left.start()
    assert left.pid is not None
    process = psutil.Process(left.pid)
    guard.close()
    await left.stop()
    assert not process.is_running()
    assert not folder.exists()


def test_config_is_valid() -> None:
    """config/demo.yaml loads, with its defaults in place."""
    config = load_config(world.CONFIG, {})
    assert config.upstreams["make-video"].pool.max_connections == 4
