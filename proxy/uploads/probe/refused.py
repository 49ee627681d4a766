"""Why a probe process rejects a file."""

from __future__ import annotations


class NotAudio(Exception):
    """The bytes are something else, or more: `what` is a media type or half a sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Undecodable(Exception):
    """The packets cannot be measured; `why` is a key of `rejections._REASONS`."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class PastLimit(Exception):
    """The file plays longer than the limit: `seconds` when measuring stopped."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds
