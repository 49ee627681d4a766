"""libmagic, wherever it comes from: the system's own, else the one in the `pylibmagic` wheel.

python-magic looks for the shared library when it is imported, so `pylibmagic`, which makes its
copy findable, has to be imported first. Its import changes the environment and patches ctypes:
one more reason why only the probe process loads libmagic.
"""

from __future__ import annotations

import ctypes.util
from typing import Protocol


class Sniffer(Protocol):
    """What we use of `magic.Magic`."""

    def from_buffer(self, buf: bytes) -> str:
        """The media type of the file that starts with `buf`."""
        ...


def load_sniffer() -> Sniffer:
    """libmagic with its database loaded. Raises `ImportError` where neither copy is usable."""
    if ctypes.util.find_library("magic") is None:
        import pylibmagic  # noqa: F401
    import magic

    sniffer: Sniffer = magic.Magic(mime=True)
    return sniffer
