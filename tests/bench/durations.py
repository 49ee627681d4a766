"""Measured durations beside the truth and beside what headers claim.

`python -m tests.bench.durations [SECONDS]`: a Markdown table over the ffmpeg corpus. "truth" is the
length of the tone that was encoded, "header" what the container claims when it is opened as a
stream, "measured" what the probe says, with the time it takes.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

import av
import av.error
import av.logging

from proxy.uploads.formats import families, measure
from tests.uploads.corpus import FILES, write
from tests.uploads.growing import Growing


class _Pipe:
    """No more than `read`: what a stream offers."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def claimed(data: bytes, family: families.FormatFamily) -> str:
    """The duration that FFmpeg reports without walking."""
    try:
        with av.open(_Pipe(data), "r", format=family.demuxer) as container:
            return f"{container.duration / 1e6:.2f}" if container.duration else "none"
    except av.error.FFmpegError:
        return "error"


def main() -> None:
    """Print the table."""
    av.logging.set_level(av.logging.PANIC)
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    print("| file | bytes | header s | measured s | off by | ms |\n|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in FILES.items():
            data = write(Path(folder, name), arguments, seconds)
            tagged = families.skip_tags(head := Growing(data))
            family = families.recognise(
                head.peek(families.HEAD), families.UNKNOWN_LABEL, tagged=tagged
            )
            assert family is not None
            source = Growing(data)
            start = time.perf_counter()
            families.skip_tags(source)
            found = measure.measure(source, family, None)
            taken = (time.perf_counter() - start) * 1000
            off = (found - seconds) / seconds
            print(
                f"| {name} | {len(data)} | {claimed(data, family)} | {found:.3f} "
                f"| {off:+.2%} | {taken:.1f} |"
            )


if __name__ == "__main__":
    main()
