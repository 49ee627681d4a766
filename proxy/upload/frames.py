"""Whole MPEG audio frames, counted as they stream.

Rules:
1. A frame is four bytes of header that give its length, and what follows is not looked at: 0.1 µs a
   frame instead of the 4 µs that a demuxer takes. So this counts only what is beyond doubt, a chain
   of frames of one kind without a gap; who uses it has seen the first of them decode.
2. At the first byte that is no such header the count stops for good. `rest` gives that byte and
   all behind it, preceded by the last frames counted, so that FFmpeg can go on in step.
"""

from __future__ import annotations

from proxy.upload.mpeg import SAME_KIND, frame_length, samples_per_frame, sampling_rate

#: Frames before a gap that are handed over with it: FFmpeg's parser wants two to find its feet, and
#: a player's decoder fills its bit reservoir from them.
CONTEXT = 8
_HEADER = 4
_ENOUGH = 32 * 1024  # bytes of counted frames that hold the context, whatever the bit rate


class FrameCounter:
    """Feed it bytes that begin with a frame. `frames` and `size` (bytes) are those counted so far,
    `seconds` what they play; `broken` says that rule 2 has come to pass."""

    def __init__(self, first_header: bytes) -> None:
        header = int.from_bytes(first_header, "big")
        if not frame_length(header):
            raise ValueError("no MPEG audio frame header")
        self._kind = header & SAME_KIND
        self._frame_seconds = samples_per_frame(header) / sampling_rate(header)
        # By header, 0 for what is none of this kind. Few hundred headers can be of one kind.
        self._lengths: dict[bytes, int] = {}
        self._before = b""  # counted frames, the last of those that were put aside
        self._buffer = b""  # counted frames, from `_at` on what is not counted
        self._at = 0
        self.frames = 0
        self.size = 0
        self.broken = False

    @property
    def seconds(self) -> float:
        """What the counted frames play."""
        return self.frames * self._frame_seconds

    def feed(self, data: bytes) -> None:
        """Count on. Must not be called once `broken`."""
        if self._at > _ENOUGH:
            self._before, self._buffer = self._buffer[: self._at], self._buffer[self._at :]
            self._at = 0
        buffer = self._buffer = self._buffer + data
        lengths = self._lengths
        start, end = self._at, len(buffer)
        at, frames = start, 0
        while at + _HEADER <= end:
            header = buffer[at : at + _HEADER]
            length = lengths.get(header)
            if length is None:
                length = self._learn(header)
            if length == 0:
                self.broken = True
                break
            if at + length > end:
                break
            at += length
            frames += 1
        self._at = at
        self.frames += frames
        self.size += at - start

    def _learn(self, header: bytes) -> int:
        """The length of such frames, 0 where they are not of the kind. Not kept for those: the
        count ends there, and hostile bytes must not fill the table."""
        value = int.from_bytes(header, "big")
        if value & SAME_KIND != self._kind:
            return 0
        length = frame_length(value)
        if length:
            self._lengths[header] = length
        return length

    def rest(self) -> bytes:
        """The last frames counted, `CONTEXT` of them or as many as are at hand, followed by all
        bytes fed that belong to no counted frame. These frames are taken off the count: whoever
        gets the bytes will see them again."""
        window = self._before + self._buffer[: self._at]
        starts = []
        at = 0
        while at < len(window):
            starts.append(at)
            at += self._lengths[window[at : at + _HEADER]]
        again = starts[-CONTEXT:]
        start = again[0] if again else len(window)
        self.frames -= len(again)
        self.size -= len(window) - start
        return window[start:] + self._buffer[self._at :]

    @property
    def uncounted(self) -> int:
        """Bytes fed that belong to no counted frame."""
        return len(self._buffer) - self._at
