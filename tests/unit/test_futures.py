"""Coroutines without a task wait for futures as those with one do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from proxy.core.futures import when_done


def drive(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine from one future to the next, as a client's connection does."""

    def step(_: object = None) -> None:
        try:
            future = coroutine.send(None)
        except StopIteration:
            return
        when_done(future, step)

    step()


async def test_several_may_wait_for_one_future() -> None:
    """Two driven by hand and one task get its result; the order is that in which they waited."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    got: list[tuple[str, int]] = []

    async def wait(name: str) -> None:
        got.append((name, await future))

    drive(wait("first"))
    task = asyncio.create_task(wait("a task"))
    await asyncio.sleep(0)
    drive(wait("last"))
    future.set_result(7)
    await task
    await asyncio.sleep(0)
    assert got == [("first", 7), ("a task", 7), ("last", 7)]


async def test_an_exception_arrives_and_a_coroutine_waits_again() -> None:
    """The future's exception is raised where it was awaited; what follows may wait once more."""
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    got: list[object] = []

    async def wait() -> None:
        try:
            await first
        except ValueError as error:
            got.append(str(error))
        got.append(await second)

    drive(wait())
    first.set_exception(ValueError("no"))
    await asyncio.sleep(0)
    assert got == ["no"]
    second.set_result("yes")
    await asyncio.sleep(0)
    assert got == ["no", "yes"]
