"""Resources, decided without a machine: who belongs to which component, and how long to rest."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from proxy.app_telemetry.resources.pace import Pace, Stopped
from proxy.app_telemetry.resources.processes import Process, by_component, programs_of

COMPONENTS = {
    "ffmpeg": ("ffmpeg", "ffprobe"),
    "celery": ("celery", "celeryd"),
    "redis": ("redis-server",),
}


def process(pid: int, *arguments: str, parent: int = 1, **facts: Any) -> Process:
    """A process of 100 bytes."""
    given = {
        "name": arguments[0].rpartition("/")[2][:15] if arguments else "",
        "memory": 100,
        **facts,
    }
    return Process(pid, parent, given["name"], arguments, given["memory"])


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        (("/usr/bin/ffmpeg", "-i", "x"), "ffmpeg"),
        (("/opt/py/bin/python3.11", "-m", "celery", "-A"), "celery"),
        (("python", "/usr/local/bin/celery", "worker"), "celery"),
        (("[celeryd: celery@host:MainProcess] -active- (worker /x)",), "celeryd"),
        (("redis-server 127.0.0.1:6379",), "redis-server"),
    ],
)
def test_programs_are_known_by_their_names(arguments: tuple[str, ...], program: str) -> None:
    """However they were started, and whatever title they gave themselves."""
    assert program in programs_of(process(1, *arguments, name="x"))


@pytest.mark.parametrize("arguments", [("grep", "ffmpeg"), ("vim", "celery"), ("",), (" ",), ()])
def test_what_only_mentions_a_program_is_none(arguments: tuple[str, ...]) -> None:
    """A name among the arguments counts for Python alone."""
    assert not {"ffmpeg", "celery"} & programs_of(process(1, *arguments, name="x"))


def test_each_process_counts_once() -> None:
    """For the first component that it fits; our own children are ours, whatever they run."""
    usage, silent = by_component(
        [
            process(10, "ffmpeg"),
            process(11, "ffprobe"),
            process(20, "python", "-m", "celery", "ffmpeg"),
            process(30, "python", "-m", "proxy"),
            process(31, "ffmpeg", parent=30),
            process(32, "python", parent=31),
            process(40, "nginx"),
            process(50, "redis-server", memory=None),
        ],
        COMPONENTS,
        own=30,
    )
    assert {name: (part.processes, part.memory) for name, part in usage.items()} == {
        "ffmpeg": (3, 300),
        "celery": (0, 0),
        "redis": (1, 0),
        "proxy": (3, 300),
        "total": (7, 600),
    }
    assert silent == 1


def test_a_circle_of_parents_ends() -> None:
    """Process ids are used again while we look: parents may seem to go round."""
    usage, _ = by_component(
        [process(30, "a", parent=31), process(31, "b", parent=30)], COMPONENTS, own=30
    )
    assert usage["proxy"].processes == 2


class Resting(threading.Event):
    """An event that notes how long it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.rests: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.rests.append(timeout)
        return self.is_set()


def test_rests_follow_the_work() -> None:
    """A tenth of a core: nine times as long as the work took, and never longer than a second."""
    event, now = Resting(), [0.0]
    pace = Pace(0.1, event, lambda: now[0])
    for worked in (0.001, 0.0, 0.02, 5.0):
        now[0] += worked
        pace.rest()
    assert event.rests == pytest.approx([0.009, 0.0, 0.18, 1.0])
    whole = Pace(1.0, event, lambda: now[0])
    now[0] += 1.0
    whole.rest()
    assert event.rests[-1] == 0


def test_a_rest_ends_when_the_owner_wants_the_end() -> None:
    """At once, with an exception that ends the walk."""
    event = threading.Event()
    event.set()
    pace = Pace(0.1, event)
    with pytest.raises(Stopped):
        pace.rest()
    with pytest.raises(Stopped):
        pace.wait(3600)
