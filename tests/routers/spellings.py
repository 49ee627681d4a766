"""Targets that may mean a guarded path, or nearly: by system, and by chance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import product

from hypothesis import strategies as st

#: (method, target) of requests that reach each handler in every framework.
CLEAN = (
    ("POST", "/make-video"),
    ("GET", "/jobs"),
    ("HEAD", "/jobs/mv_1"),
    ("DELETE", "/jobs/mv_1"),
    ("POST", "/jobs/mv_1/parts/2"),
    ("PUT", "/files/a/b.txt"),
)


def _last_slash(path: str, slash: str) -> str:
    before, _, last = path.rpartition("/")
    return f"{before}{slash}{last}"


#: All of the product takes minutes (`READINGS_STEP=1`): a prime part of it every time.
STEP = int(os.environ.get("READINGS_STEP", "11"))

MUTATIONS: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    *(
        lambda path, end=end: path + end
        for end in (
            *("/", "//", "/;", ";", ";a=b", ";/x", "%0a", "%0A%0a", "%0d", "%00", "%20", ".", "/."),
            *("%2f", "%2F", "%5c", "\\", "%3b", "%3f", "%3Fa=b", "%23", "?", "?a=/../b", "%250a"),
            *("%252f", "%25", "%", "%ff", "%c2%85", "%e2%80%a8", "%c0%af", "%e0%80%af", "/x"),
            *("%2e", "/..", "/%2e%2e", "/x/..", "\x27", "%u002f", "+", "&", ":", "@", "!", "|"),
        )
    ),
    *(
        lambda path, start=start: start + path
        for start in ("/", "//", "/;x", "/.", "/..", "/%2e", "/x/..", "/x/%2e%2E", "/;", "/x/..;")
    ),
    *(lambda path, host=host: f"{host}{path}" for host in ("//host", "/\\host", "http://h")),
    lambda path: "/\\" + path[1:],
    lambda path: "/%2f" + path[1:],
    lambda path: "/%5c" + path[1:],
    *(
        lambda path, slash=slash: _last_slash(path, slash)
        for slash in ("//", "\\", "%2f", "%2F", "%5c", "%252f", "/./", "/x/../", ";/", "%c0%af")
    ),
    lambda path: path[:3] + "%ff" + path[3:],
    lambda path: path[:2] + "%e2%82" + path[2:] + "%c3",
    lambda path: path.upper(),
    lambda path: path.title(),
    lambda path: path.swapcase(),
    lambda path: path.replace("a", "%61").replace("j", "%6A"),
    lambda path: path.replace("a", "%2561").replace("j", "%256a"),
    lambda path: path.replace("o", "%4f").replace("e", "%45"),
    lambda path: path.replace("s", "%c5%bf"),
    lambda path: "/" + "".join(f"%{ord(letter):02x}" for letter in path[1:]),
    lambda path: path.replace("/", ";x=1/"),
    lambda path: path.replace("/", "\\"),
    lambda path: path.replace("-", "%2d").replace("_", "%5f"),
)  # fmt: skip


def product_of_two(step: int = STEP) -> Iterator[tuple[str, str]]:
    """The clean requests with one mutation, and every `step`th of those with two."""
    seen: set[tuple[str, str]] = set()
    numbered = enumerate(product(CLEAN, MUTATIONS, MUTATIONS))
    for number, ((method, path), first, second) in numbered:
        target = second(first(path))
        wanted = number % step == 0 or first is MUTATIONS[0]
        if wanted and (target[:1] == "/" or target.startswith("http")):
            seen.add((method, target))
    yield from sorted(seen)


_FRAGMENTS = (
    *("/", "//", "\\", "%2f", "%5C", "%252f", ".", "..", "%2e", ";", "%3b", ";a", "%0a", "%00"),
    *("make-video", "jobs", "files", "parts", "mv_1", "a", "J", "obs", "%6a", "%6f", "Make-"),
    *("%3f", "%23", "%", "%c0%af", "%ff", "%25", "%20", "%c3%a9", "host", "%e2%84%aa", "+"),
)  # fmt: skip

METHODS = st.sampled_from(("GET", "HEAD", "POST", "PUT", "DELETE", "post", "Get", "delete"))
TARGETS = st.lists(st.sampled_from(_FRAGMENTS), min_size=1, max_size=9).map(
    lambda parts: "/" + "".join(parts)
)
