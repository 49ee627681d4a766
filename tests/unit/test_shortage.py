"""Which errors are a shortage of our own, what is logged of it, how many descriptors we need."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from redis.exceptions import ConnectionError as RedisConnectionError

from proxy.core.process.descriptors import OTHERS, Need, fit, report
from proxy.core.process.shortage import (
    DESCRIPTORS,
    MEMORY,
    PORTS,
    SYSTEM_DESCRIPTORS,
    Shortages,
    descriptors_left,
    own_shortage,
)
from proxy.telemetry.metrics.shortages import watch_shortages


def failed(number: int) -> OSError:
    """The kernel's error of that number."""
    return OSError(number, os.strerror(number))


def wrapped(inner: BaseException, outer: BaseException, *, cause: bool) -> BaseException:
    """`outer`, raised for or while handling `inner`."""
    try:
        try:
            raise inner
        except BaseException as error:
            if cause:
                raise outer from error
            raise outer  # noqa: B904
    except BaseException as error:
        return error


def connector(inner: OSError) -> aiohttp.ClientConnectorError:
    """As aiohttp reports a failed connect."""
    key = ConnectionKey("app", 80, False, True, None, None, None)
    return aiohttp.ClientConnectorError(key, inner)


MULTIPLE = "Multiple exceptions: [Errno %d] one ('::1', 1, 0, 0), [Errno %d] two ('127.0.0.1', 1)"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (failed(errno.EMFILE), DESCRIPTORS),
        (failed(errno.ENFILE), SYSTEM_DESCRIPTORS),
        (failed(errno.EADDRNOTAVAIL), PORTS),
        (failed(errno.ENOBUFS), MEMORY),
        (failed(errno.ENOMEM), MEMORY),
        (failed(errno.ECONNREFUSED), None),
        (failed(errno.ECONNRESET), None),
        (failed(errno.ENETUNREACH), None),
        (TimeoutError(), None),
        (ValueError("[Errno 24] Too many open files"), None),
        (None, None),
        (OSError(MULTIPLE % (errno.EMFILE, errno.EMFILE)), DESCRIPTORS),
        (OSError(MULTIPLE % (errno.ENETUNREACH, errno.EMFILE)), DESCRIPTORS),
        (OSError(MULTIPLE % (errno.EADDRNOTAVAIL, errno.ECONNREFUSED)), None),
        (OSError(MULTIPLE % (errno.ECONNREFUSED, errno.EMFILE)), None),
        (ExceptionGroup("", [failed(errno.EMFILE), failed(errno.EMFILE)]), DESCRIPTORS),
        (ExceptionGroup("", [failed(errno.EMFILE), failed(errno.ETIMEDOUT)]), None),
        (
            wrapped(failed(errno.EMFILE), RedisConnectionError("Error 24"), cause=False),
            DESCRIPTORS,
        ),
        (wrapped(failed(errno.ENOBUFS), RedisConnectionError("x"), cause=True), MEMORY),
        (wrapped(failed(errno.ECONNREFUSED), RedisConnectionError("x"), cause=False), None),
        (connector(failed(errno.EMFILE)), DESCRIPTORS),
        (connector(failed(errno.ECONNREFUSED)), None),
        (socket.gaierror(socket.EAI_MEMORY, "memory"), MEMORY),
        (socket.gaierror(socket.EAI_AGAIN, "again"), None),
    ],
)
def test_what_is_a_shortage_of_our_own(error: BaseException | None, reason: str | None) -> None:
    """By number, through every wrapping that we meet; one peer that refused outweighs it."""
    assert own_shortage(error, left=lambda: True) == reason


@pytest.mark.parametrize("code", [socket.EAI_AGAIN, socket.EAI_NONAME, socket.EAI_FAIL])
def test_a_name_that_nobody_could_look_up(code: int) -> None:
    """The C library hides that it got no descriptor: whether there is one decides."""
    error = connector(socket.gaierror(code, "Name or service not known"))
    unresolved = wrapped(socket.gaierror(code, "x"), error, cause=True)
    assert own_shortage(unresolved, left=lambda: False) == DESCRIPTORS
    assert own_shortage(unresolved, left=lambda: True) is None


def test_errors_in_a_circle_end() -> None:
    """Two errors that name each other as cause are looked at once each."""
    one, other = RuntimeError(), RuntimeError()
    one.__cause__, other.__cause__ = other, one
    assert own_shortage(one) is None


def test_the_kernel_is_asked() -> None:
    """With a limit of what is open already there is none left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    assert descriptors_left()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        left = descriptors_left()
        resource_error = own_shortage(socket.gaierror(socket.EAI_AGAIN, "again"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not left
    assert resource_error == DESCRIPTORS


def test_one_line_per_episode(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand failures are one line, their end another one, and the next episode a third."""
    now = 0.0
    shortages = Shortages(lambda: now)
    caplog.set_level(logging.INFO, "proxy.core.process.shortage")
    for _ in range(1000):
        shortages.seen(DESCRIPTORS, "the connection to app")
    shortages.seen(PORTS, "the connection to app")
    now = 9.0
    shortages.seen(DESCRIPTORS, "accepting connections")
    shortages.settle()
    now = 10.0
    shortages.settle()
    assert shortages.current() == (DESCRIPTORS,)
    now = 20.0
    shortages.settle()
    shortages.seen(DESCRIPTORS, "the connection to app")
    events = [(record.event, record.reason) for record in caplog.records]
    assert events == [
        ("shortage", DESCRIPTORS),
        ("shortage", PORTS),
        ("shortage_over", PORTS),
        ("shortage_over", DESCRIPTORS),
        ("shortage", DESCRIPTORS),
    ]
    assert shortages.episodes == {DESCRIPTORS: 2, PORTS: 1}
    assert shortages.failures == {DESCRIPTORS: 1002, PORTS: 1}


async def test_the_watch_reports_that_no_descriptor_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing while there are some; the event loop itself says nothing of it."""
    left = True
    monkeypatch.setattr("proxy.telemetry.metrics.shortages.descriptors_left", lambda: left)
    shortages = Shortages()
    watch = asyncio.create_task(watch_shortages(shortages, interval=0.0))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not shortages.episodes
    left = False
    for _ in range(5):
        await asyncio.sleep(0)
    assert shortages.episodes == {DESCRIPTORS: 1}
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


class Kernel:
    """A limit that may be raised up to `ceiling`, the hard one by the superuser only."""

    def __init__(self, soft: int, hard: int, *, superuser: bool = False, ceiling: int = 10**6):
        self.soft, self.hard = soft, hard
        self.superuser, self.ceiling = superuser, ceiling

    def get(self) -> tuple[int, int]:
        return self.soft, self.hard

    def set(self, soft: int, hard: int) -> None:
        if hard > self.ceiling or (hard > self.hard >= 0 and not self.superuser):
            raise PermissionError
        self.soft, self.hard = soft, hard


NEED = Need({"a": 3000, "b": 1000}, others=100)  # 4612 in all


@pytest.mark.parametrize(
    ("kernel", "limit", "clients"),
    [
        (Kernel(1024, 524_288), NEED.total, {"a": 3000, "b": 1000}),
        (Kernel(65_536, 65_536), 65_536, {"a": 3000, "b": 1000}),
        (Kernel(-1, -1), -1, {"a": 3000, "b": 1000}),
        (Kernel(1024, -1), NEED.total, {"a": 3000, "b": 1000}),
        (Kernel(1024, 1024, superuser=True), NEED.total, {"a": 3000, "b": 1000}),
        (Kernel(1024, 2612), 2612, {"a": 1500, "b": 500}),
        (Kernel(2612, 2612, superuser=True, ceiling=3000), 2612, {"a": 1500, "b": 500}),
        (Kernel(256, 256), 256, {"a": 96, "b": 32}),
        (Kernel(20, 20), 20, {"a": 16, "b": 16}),
    ],
)
def test_the_limit_is_raised_or_clients_are_fewer(
    kernel: Kernel, limit: int, clients: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """As far as the kernel lets, never down; what is missing is shared between the listeners."""
    before = kernel.soft
    found = fit(NEED, kernel)
    assert (found.limit, found.before, found.clients) == (limit, before, clients)
    assert kernel.soft == limit
    if limit >= NEED.total:
        assert sum(found.clients.values()) + NEED.others + OTHERS <= limit
    caplog.set_level(logging.INFO, "proxy.core.process.descriptors")
    report(NEED, found)
    (record,) = caplog.records
    assert record.event == "descriptors"
    assert (record.levelname == "WARNING") is (clients["a"] < 3000)
