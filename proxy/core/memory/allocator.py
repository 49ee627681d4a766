"""The allocator and the garbage collector, told what a proxy needs.

Every read of a body is a buffer of 256 KB that lives until it is written. By default glibc gives
the memory of each back to the kernel and takes it again for the next, and the kernel clears every
page anew: measured on 50 MB uploads, that was three quarters of the proxy's time (700 against
1,700 MB/s). So freed memory is kept, up to a bound.
"""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc

_KEEP = 32 * 1024 * 1024  # free bytes at the top of the heap before any go back to the kernel
_STEP = 1024 * 1024  # bytes taken from the kernel at a time
_ON_HEAP = 4 * 1024 * 1024  # smaller blocks never get a mapping of their own

#: Objects that are new before the collector looks at them, half a microsecond each; and how many
#: times it looks at younger ones before it looks at older ones.
_COLLECT = (4_000, 10, 20)


def keep_freed_memory() -> bool:
    """Tell glibc; False where the C library has no `mallopt` (musl, macOS), and nothing changed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, _STEP), (_M_MMAP_THRESHOLD, _ON_HEAP))
    return all(mallopt(option, value) == 1 for option, value in options)


def collect_rarely() -> None:
    """Tell Python's cyclic collector that what lives now lives for ever, and to look seldom.

    An exchange makes no cycles: reference counts free all of it. The collector is for the rest, and
    at its default pace it would walk the young objects every twenty requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)


def give_back_freed_memory() -> bool:
    """Have glibc give what is free within its heap back to the kernel: some milliseconds for each
    100 MB. False where there is no `malloc_trim`, or nothing to give."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
