"""What a probe process is to do, and its limits."""

from __future__ import annotations

import json
from dataclasses import dataclass

PROBE_MEMORY = 64 * 1024 * 1024  # bytes: FFmpeg's index of a three-hour MP4 takes 30 MiB
FIRST_MEMORY = 12 * 1024 * 1024  # bytes: three times what 50 MB of any family take
PROBE_CPU = 8  # seconds: a hundred times what 50 MB take


@dataclass(frozen=True)
class ProbeTask:
    """`memory`: bytes beyond what it starts with; `cpu`: seconds."""

    types: tuple[str, ...]
    max_duration: float | None
    memory: int = PROBE_MEMORY
    cpu: int = PROBE_CPU

    @classmethod
    def of(cls, types: tuple[str, ...], max_duration: float | None, max_size: int) -> ProbeTask:
        """Limits that suit files of up to `max_size` bytes."""
        memory = max(cls.memory, max_size // 8)  # an index entry of 24 bytes for a packet of 200
        return cls(types, max_duration, memory, cls.cpu + max_size // 100_000_000)

    def encode(self, received: int, *, whole: bool) -> bytes:
        """The message for the process: 4-byte length, JSON. `received`: bytes of the file so
        far."""
        body = json.dumps(self.__dict__ | {"received": received, "whole": whole}).encode()
        return len(body).to_bytes(4, "big") + body
