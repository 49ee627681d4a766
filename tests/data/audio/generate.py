"""Writes the sample files of this directory: `python -m tests.data.audio.generate`.

A second of a 440 Hz tone at 16 kHz in each kind that FFmpeg's libraries write; a few KB each. They
are committed so that the tests examine the same bytes everywhere, whatever version is installed.
"""

from __future__ import annotations

from pathlib import Path

from tests.uploads.audio import KINDS, encode

HERE = Path(__file__).parent
SUFFIX = {"ipod": "m4a", "adts": "aac"}
RATE = 16_000


def path_of(kind: str) -> Path:
    """Where the sample of `kind` is."""
    container = KINDS[kind][0]
    return HERE / f"{kind}.{SUFFIX.get(container, container)}"


def main() -> None:
    """Write them all."""
    for kind in KINDS:
        rate = 8_000 if kind.startswith("wav") else RATE
        path_of(kind).write_bytes(encode(kind, 1.0, rate))


if __name__ == "__main__":
    main()
