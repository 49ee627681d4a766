"""The metrics that the stand-in worker sends through statsd, like an ordinary client.

In the real worker this takes two lines with any statsd client
(docs/how-to/report-from-the-worker.md). This file is the client, so the demo needs no package.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_PACKED = 100  # values in one packet, which then fits into a network frame


@dataclass(frozen=True, slots=True)
class Receiver:
    """The UDP address for statsd packets. Nothing needs to listen there."""

    host: str
    port: int


class Reports:
    """A statsd client. Without a receiver it does nothing; it never fails or blocks."""

    def __init__(self, receiver: Receiver | None = None) -> None:
        self._socket: socket.socket | None = None
        if receiver is not None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.connect((receiver.host, receiver.port))

    def close(self) -> None:
        """Stop sending."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Time an operation on video, even if it fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = (time.perf_counter() - began) * 1000
            self._send(f"video.processing:{took:.3f}|ms|#operation:{name}")

    def text_search(self, seconds: float, confidences: list[float]) -> None:
        """Report a video that was searched for text, with the confidence for each frame."""
        self._send(f"ocr.frames_processed:{len(confidences)}|c")
        self._send(f"ocr.processing:{seconds * 1000:.3f}|ms")
        for start in range(0, len(confidences), _PACKED):
            packed = ":".join(f"{value:.4f}" for value in confidences[start : start + _PACKED])
            self._send(f"ocr.confidence:{packed}|h")

    def _send(self, line: str) -> None:
        if self._socket is not None:
            # Metrics may be lost; the work must not fail.
            with suppress(OSError):
                self._socket.send(line.encode())


def receiver_from(environment: dict[str, str]) -> Receiver | None:
    """The usual `STATSD_HOST` and `STATSD_PORT`; None without the host."""
    host = environment.get("STATSD_HOST", "")
    return Receiver(host, int(environment.get("STATSD_PORT", "8125"))) if host else None
