"""An MP4's index, believed as far as the samples it tells of are there.

Every sample has an entry with its time, place and size, so that nobody has to read on to know how
long the file plays: 10 ms for ten minutes of AAC, where demuxing takes 80. FFmpeg has followed edit
lists and fragments when it makes the entries. An entry counts only if its bytes were received; that
they are sound, the trial of the first packets has shown.
"""

from __future__ import annotations

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard

from proxy.upload.packets import CONSTANT, GRACE, PastLimit, Undecodable, Walk
from proxy.upload.source import Source

Entry = tuple[int, int]  # time stamp, and where in the file the sample ends


def follow_index(
    walk: Walk,
    container: InputContainer,
    stream: AudioStream,
    source: Source,
    limit: float | None,
) -> None:
    """Replace what the trial gave by what the index says, and read `source` to its end. Raises
    `PastLimit` as soon as the samples up to the limit are there, `Undecodable`."""
    entries = _entries(stream)
    if limit is not None and entries:
        first = entries[0][0]
        past = (limit + GRACE) / walk.tick + first
        for number, (stamp, _) in enumerate(entries):
            if stamp > past:
                needed = max(end for _, end in entries[:number])
                if source.drain(until=needed):
                    raise PastLimit((stamp - first) * walk.tick)
                break
    # FFmpeg reads on without giving out packets: fragments may follow, their entries are added.
    for other in container.streams:
        other.discard = Discard.all
    for _ in container.demux(stream):
        pass
    source.drain()
    if len(stream.index_entries) != len(entries):
        entries = _entries(stream)
    stamps = [stamp for stamp, end in entries if 0 <= end <= source.received]
    if len(stamps) < walk.packets:
        raise Undecodable("broken")
    name = stream.codec_context.name if stream.codec_context else ""
    if name in CONSTANT:  # the index may give them no time, the demuxer knows better
        tried = walk.total * walk.tick / walk.packets
        walk.packet_seconds = max(walk.packet_seconds, tried)
    step = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0
    walk.packets = len(stamps)
    played = max(stamps) - min(stamps) + max(step, 0)
    if stream.duration and abs(played - stream.duration) <= step:
        played = stream.duration  # the last packet is shorter than the one before it
    walk.total = max(walk.total, played)


def _entries(stream: AudioStream) -> list[Entry]:
    return [
        (entry.timestamp, entry.pos + entry.size if entry.pos >= 0 else -1)
        for entry in stream.index_entries
    ]
