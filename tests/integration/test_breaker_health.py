"""Active health checks against real sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from proxy.config.units import TargetAddress, parse_target
from proxy.config.upstreams import Health
from proxy.resilience.health_checks import HealthProber
from proxy.resilience.outlier_ejection import TargetHealth
from tests.http1 import PATIENCE
from tests.streams import conversing

RULES = Health(path="/health", every="20ms", timeout="200ms", rise=2, fall=2)

#: Where an answer comes, on however busy a machine.
PATIENT = RULES.model_copy(update={"timeout": PATIENCE})


@asynccontextmanager
async def target(
    answer: Callable[[], bytes | None], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server that gives what `answer` says; None keeps silent. Yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        answered = answer()
        if answered is None:
            await reader.read()  # silent until the client leaves
        else:
            writer.write(answered)

    async with conversing(serve, tls=tls) as port:
        yield port


@dataclass
class Place:
    """What a prober knows of a target."""

    address: TargetAddress
    tls: ssl.SSLContext | None = None
    server_name: str | None = None


def prober(*addresses: TargetAddress, rules: Health = PATIENT) -> HealthProber:
    """A prober that was not started."""
    targets = {str(address): Place(address) for address in addresses}
    return HealthProber("svc", rules, targets, TargetHealth(list(targets), None, rules))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.0 302 Found\r\n\r\n", None),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503"),
        (b"SSH-2.0-x\r\n", "ValueError: not an HTTP answer"),
        (b"x" * 10_000, "ValueError"),
        (None, "no answer within 0.2s"),
    ],
)
async def test_what_counts_as_well(answer: bytes | None, why: str | None) -> None:
    """2xx and 3xx are well; other statuses, other protocols and silence are not."""
    async with target(lambda: answer) as port:
        address = parse_target(f"http://127.0.0.1:{port}")
        rules = PATIENT if answer is not None else RULES
        found = await prober(address, rules=rules).ask(Place(address))
    assert (found is None) if why is None else (found or "").startswith(why)


async def test_a_closed_port_is_unwell() -> None:
    """Refused is an answer too."""
    async with target(lambda: b"") as port:
        pass
    address = parse_target(f"http://127.0.0.1:{port}")
    assert "Refused" in (await prober(address).ask(Place(address)) or "")


async def test_a_unix_socket_is_asked(tmp_path: Path) -> None:
    """`unix:` targets have health too."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with conversing(serve, path=tmp_path / "s"):
        address = parse_target(f"unix:{tmp_path / 's'}")
        assert await prober(address).ask(Place(address)) is None


async def test_tls_targets_are_verified() -> None:
    """The given authority is trusted, the system's are not enough."""
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with target(lambda: b"HTTP/1.1 200 OK\r\n\r\n", theirs) as port:
        address = parse_target(f"https://127.0.0.1:{port}")
        assert await prober(address).ask(Place(address, ours)) is None
        assert "CERTIFICATE_VERIFY_FAILED" in (await prober(address).ask(Place(address)) or "")


async def test_a_target_falls_and_rises() -> None:
    """Two bad answers take it out, two good ones bring it back, with a line for each."""
    well = False
    async with (
        target(lambda: b"HTTP/1.1 200 OK\r\n\r\n" if well else b"HTTP/1.1 500 Oh\r\n\r\n") as one,
        target(lambda: b"HTTP/1.1 200 OK\r\n\r\n") as two,
    ):
        addresses = [parse_target(f"http://127.0.0.1:{port}") for port in (one, two)]
        targets = {str(address): Place(address) for address in addresses}
        health = TargetHealth(list(targets), None, RULES)
        watcher = HealthProber("svc", RULES, targets, health)
        watcher.start()
        try:
            async with asyncio.timeout(PATIENCE):
                while not health.unhealthy():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                assert list(health.usable(0.0)) == [str(addresses[1])]
                well = True
                while health.unhealthy():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        finally:
            await watcher.stop()
