"""The sandbox's program, run by an interpreter of its few instructions: on both machines, every
call that there is."""

from __future__ import annotations

import signal
import struct
from typing import Final

import pytest

from proxy.uploads.probe import sandbox

ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050001
ANSWERS, OWN = 7, 4711
MACHINES: Final = sandbox._AUDIT_ARCH
X86, ARM = "x86_64", "aarch64"
TABLES: Final = (
    sandbox._ALLOWED
    | sandbox._NOT_EXECUTABLE
    | sandbox._WRITE
    | sandbox._TGKILL
    | sandbox._AFFINITY
    | sandbox._LOOKUPS
)


def run(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter of `machine` says of a call."""
    audit, column = MACHINES[machine]
    program = sandbox._program(audit, column, answers=ANSWERS, own=OWN)
    data = struct.pack("<IIQ", number, audit if architecture is None else architecture, 0)
    data += struct.pack("<6Q", *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    at, loaded = 0, 0
    while True:
        what, if_true, if_false, value = code[at]
        at += 1
        match what:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += if_true if loaded == value else if_false
            case 0x35:
                at += if_true if loaded >= value else if_false
            case 0x45:
                at += if_true if loaded & value else if_false
            case 0x06:
                return int(value)


def number_of(name: str, machine: str) -> int:
    """A call's number, by the sandbox's own tables."""
    number = TABLES[name][MACHINES[machine][1]]
    assert number is not None
    return number


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_in_no_table_kills(machine: str) -> None:
    """Of all numbers, and with any argument."""
    column = MACHINES[machine][1]
    known = {numbers[column] for numbers in TABLES.values()}
    for number in range(600):
        if number not in known:
            assert run(machine, number) == KILL
            assert run(machine, number, ANSWERS, OWN, signal.SIGABRT) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_probe_needs_passes(machine: str) -> None:
    """Reading, memory, answers; look-ups are refused without a kill."""
    for name in sandbox._ALLOWED:
        assert run(machine, number_of(name, machine)) == ALLOW
    for name, numbers in sandbox._LOOKUPS.items():
        if numbers[MACHINES[machine][1]] is not None:
            assert run(machine, number_of(name, machine)) == REFUSE


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide(machine: str) -> None:
    """Writes to the answers only, memory that is not executable, an abort of one's own."""
    for name in ("write", "writev"):
        number = number_of(name, machine)
        assert [run(machine, number, fd) for fd in (ANSWERS, 2)] == [ALLOW, ALLOW]
        assert {run(machine, number, fd) for fd in (0, 1, 3, 6, 8, 2**32 - 1)} == {KILL}
    for name in ("mmap", "mprotect"):
        number = number_of(name, machine)
        assert run(machine, number, 0, 4096, 3) == ALLOW
        assert {run(machine, number, 0, 4096, protection) for protection in (4, 5, 7)} == {KILL}
    tgkill = number_of("tgkill", machine)
    affinity = number_of("sched_getaffinity", machine)
    assert run(machine, tgkill, OWN, OWN, signal.SIGABRT) == ALLOW
    assert run(machine, tgkill, OWN, OWN, signal.SIGKILL) == KILL
    assert run(machine, tgkill, OWN + 1, OWN + 1, signal.SIGABRT) == KILL
    assert run(machine, affinity, 0) == ALLOW
    assert run(machine, affinity, 1) == KILL


def test_other_numberings_kill() -> None:
    """32-bit calls on a 64-bit machine, x32, and the other machine's."""
    read = number_of("read", X86)
    assert run(X86, read, architecture=0x40000003) == KILL  # AUDIT_ARCH_I386
    assert run(X86, read | 0x40000000) == KILL
    assert run(ARM, number_of("read", ARM), architecture=MACHINES[X86][0]) == KILL
