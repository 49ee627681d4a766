"""What a probe process may find against a file."""

from __future__ import annotations


class NotAudio(Exception):
    """The bytes are something else, or more: `what` is a media type or half a sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Undecodable(Exception):
    """No sane walk through the packets; `why` is a key of the proxy's list of reasons."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class PastLimit(Exception):
    """The walk went past the limit after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds
