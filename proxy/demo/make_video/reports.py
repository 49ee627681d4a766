"""What the stand-in worker reports about itself through statsd, as an ordinary client would.

Two lines in the real worker, with any statsd client (docs/how-to/report-from-the-worker.md); here
the client is this file, so that the demo needs no further package.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_PACKED = 100  # values in one packet, which is then shorter than a frame of a network


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where statsd packets go. UDP: nobody needs to listen there."""

    host: str
    port: int


class Reports:
    """A statsd client. Without a receiver it does nothing; it never fails and never waits."""

    def __init__(self, receiver: Receiver | None = None) -> None:
        self._socket: socket.socket | None = None
        if receiver is not None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.connect((receiver.host, receiver.port))

    def close(self) -> None:
        """Send nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Time an operation on video, also one that fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = (time.perf_counter() - began) * 1000
            self._send(f"video.processing:{took:.3f}|ms|#operation:{name}")

    def text_search(self, seconds: float, confidences: list[float]) -> None:
        """One video was searched for text, with a confidence for each of its frames."""
        self._send(f"ocr.frames_processed:{len(confidences)}|c")
        self._send(f"ocr.processing:{seconds * 1000:.3f}|ms")
        for start in range(0, len(confidences), _PACKED):
            packed = ":".join(f"{value:.4f}" for value in confidences[start : start + _PACKED])
            self._send(f"ocr.confidence:{packed}|h")

    def _send(self, line: str) -> None:
        if self._socket is not None:
            # Metrics may be lost; the work they are about may not.
            with suppress(OSError):
                self._socket.send(line.encode())


def receiver_from(environment: dict[str, str]) -> Receiver | None:
    """`STATSD_HOST` and `STATSD_PORT`, as statsd clients have them; None without the host."""
    host = environment.get("STATSD_HOST", "")
    return Receiver(host, int(environment.get("STATSD_PORT", "8125"))) if host else None
