"""The processes of each component of the app, and their memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import psutil

from proxy.app_telemetry.resources.pace import Pace

_BATCH = 20
_ARGUMENTS = 4  # `python -m celery`, `python -u -m celery`: the program is among the first


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the machine. `memory` is resident bytes; None if it may not be read."""

    pid: int
    parent: int
    name: str
    arguments: tuple[str, ...]
    memory: int | None


@dataclass(slots=True)
class Usage:
    """The usage of one component."""

    processes: int = 0
    memory: int = 0


def running(pace: Pace) -> Iterator[Process]:
    """Every process except zombies; those that end meanwhile are skipped. Raises `Stopped`."""
    attributes = ["pid", "ppid", "name", "cmdline", "memory_info", "status"]
    for number, process in enumerate(psutil.process_iter(attributes), 1):
        facts = process.info
        if facts["status"] != psutil.STATUS_ZOMBIE:
            memory = facts["memory_info"]
            yield Process(
                facts["pid"],
                facts["ppid"] or 0,
                facts["name"] or "",
                tuple((facts["cmdline"] or [])[:_ARGUMENTS]),
                None if memory is None else memory.rss,
            )
        if number % _BATCH == 0:
            pace.rest()


def by_component(
    processes: Iterable[Process], components: Mapping[str, Iterable[str]], own: int
) -> tuple[dict[str, Usage], int]:
    """The usage of each component, of `proxy` (the process `own` and all below it) and of `total`
    (all of these), and the number of processes whose memory could not be read. Each process counts
    once, for the first component that matches."""
    everything = list(processes)
    ours = _family(everything, own)
    usage = {name: Usage() for name in (*components, "proxy", "total")}
    wanted = [(name, frozenset(programs)) for name, programs in components.items()]
    silent = 0
    for process in everything:
        if process.pid in ours:
            component = "proxy"
        else:
            names = programs_of(process)
            component = next((name for name, those in wanted if not those.isdisjoint(names)), "")
        if not component:
            continue
        if process.memory is None:
            silent += 1
        for part in (usage[component], usage["total"]):
            part.processes += 1
            part.memory += process.memory or 0
    return usage, silent


def programs_of(process: Process) -> set[str]:
    """The names of a process: its own, its program's, and those of a Python's arguments. Titles
    that a process gave itself (`[celeryd: celery@host:MainProcess]`, `redis-server *:6379`) are
    read up to the first space."""
    names = {process.name}
    if process.arguments:
        title = process.arguments[0].split(None, 1)[:1]
        program = os.path.basename(title[0].strip("[]:")) if title else ""
        names.add(program)
        if program.startswith("python"):
            names |= {os.path.basename(argument) for argument in process.arguments[1:]}
    return names - {""}


def _family(processes: list[Process], own: int) -> set[int]:
    """`own` and all processes below it."""
    children: dict[int, list[int]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process.pid)
    family, waiting = set[int](), [own]
    while waiting:
        pid = waiting.pop()
        if pid not in family:
            family.add(pid)
            waiting += children.get(pid, ())
    return family
