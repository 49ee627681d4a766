"""Forms to order, and one upload driven as the engine drives it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multipart import PushMultipartParser

from proxy.core.clock import SystemClock
from proxy.core.errors import ProxyError
from proxy.core.memory.budget import MemoryBudget
from proxy.spool import Spool, SpooledBody
from proxy.uploads.check import UploadCheck
from proxy.uploads.rules import UploadRules

BOUNDARY = b"------------------------d74496d66958873e"  # as curl makes them
SCHEDULE = Path("/proc/thread-self/schedstat")
CONTENT_TYPE = b"multipart/form-data; boundary=" + BOUNDARY


def part(
    data: bytes, name: bytes = b"audio_file", filename: bytes | None = b"song.mp3", *more: bytes
) -> bytes:
    """One part with its leading boundary; `more` are further header lines."""
    disposition = b'Content-Disposition: form-data; name="' + name + b'"'
    if filename is not None:
        disposition += b'; filename="' + filename + b'"'
    lines = b"".join(line + b"\r\n" for line in (disposition, *more))
    return b"--" + BOUNDARY + b"\r\n" + lines + b"\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole body."""
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


async def feed_until_refused(check: UploadCheck, piece: bytes, times: int) -> ProxyError | None:
    """Feed the same bytes over and over; what ends it, or None where nothing does."""
    try:
        for _ in range(times):
            check.feed(piece)
            await room(check)
    except ProxyError as error:
        return error
    return None


def new_spool(max_size: int = 2**31) -> Spool:
    """One in the temporary directory, with a memory budget of its own."""
    budget = MemoryBudget().account("spool")
    return Spool(Path(tempfile.gettempdir()), max_size, budget, SystemClock())


async def room(check: UploadCheck) -> None:
    """Wait while the disk is behind, or for the next turn of the loop, as an engine does."""
    await asyncio.sleep(0)
    while check.blocked:  # noqa: ASYNC110 - the engine is notified, but not we
        await asyncio.sleep(0.001)


async def read_back(body: list[bytes] | SpooledBody) -> bytes:
    """What goes upstream."""
    if isinstance(body, list):
        return b"".join(body)
    reader, out = body.reader(), bytearray()
    while not reader.done:
        for piece in reader.take():
            out += piece
        await asyncio.sleep(0)
    return bytes(out)


@dataclass
class Outcome:
    """What became of an upload: what went upstream, and the refusal, if any."""

    sent: bytes = b""
    error: ProxyError | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    content_type: bytes | None = None
    forward_length: int | None = None
    fed: int = 0
    slowest_feed: float = 0.0
    content: list[tuple[bytes, ...]] | None = None

    @property
    def code(self) -> str:
        return self.error.code if self.error else "accepted"

    def parts(self) -> list[tuple[str, str | None, str | None, bytes]]:
        """(name, filename, content type, data) as the app's parser finds them."""
        assert self.content_type is not None
        boundary = self.content_type.partition(b"boundary=")[2]
        found: list[tuple[str, str | None, str | None, bytes]] = []
        data = b""
        with PushMultipartParser(boundary, strict=True) as parser:
            for event in parser.parse(self.sent):
                if event is None:
                    found[-1] = (*found[-1][:3], data)
                elif isinstance(event, bytes):
                    data += event
                else:
                    found.append((event.name, event.filename, event.header("Content-Type"), b""))
                    data = b""
        return found


def own_time() -> float:
    """Seconds of this thread in which it could run, worked or not: without the time for which
    others had the core, where the kernel counts that."""
    try:
        waited = int(SCHEDULE.read_text().split()[1]) / 1e9
    except OSError:
        waited = 0.0
    return time.monotonic() - waited


async def upload(
    validator: UploadRules,
    body: bytes,
    *,
    chunk: int = 64 * 1024,
    content_type: bytes | None = CONTENT_TYPE,
    length: int | None = None,
    encoding: bytes | None = None,
) -> Outcome:
    """Send `body` in pieces of `chunk` bytes and wait for the result."""
    outcome = Outcome()
    try:
        check = validator.begin(content_type, length, encoding)
    except ProxyError as error:
        outcome.error = error
        return outcome
    try:
        outcome.forward_length = check.forward_length
        outcome.content_type = check.content_type
        for at in range(0, len(body), chunk):
            before = own_time()
            outcome.sent += b"".join(check.feed(body[at : at + chunk]))
            outcome.slowest_feed = max(outcome.slowest_feed, own_time() - before)
            outcome.fed += chunk
            if check.blocked or at // chunk % 64 == 0:
                await room(check)
        outcome.sent += await read_back(await check.finish())
        outcome.forward_length, outcome.content = check.forward_length, check.content
    except ProxyError as error:
        outcome.error = error
    finally:
        check.close()
        outcome.facts = check.facts
    return outcome
