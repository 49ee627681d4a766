"""The sandbox of a probe process: it may compute, read its descriptors and write to one of them.

Linux, x86-64 and arm64:
1. seccomp allows only the calls that FFmpeg and the interpreter make once everything is loaded,
   some only with certain arguments: no executable memory, writes only to the answer socket and
   /dev/null, no signal except its own abort. Any other call kills the process.
2. File lookups fail with EPERM instead. They come from modules that were not imported before the
   fork: a defect of ours, which so shows as an `ImportError` and not as a crash.
3. Landlock, if the kernel has it, takes away the file system, TCP and signals to other processes
   as well, should the filter ever have a hole; `no_new_privs` rules out gaining privileges.
4. `works` proves it on the running kernel, once per parent, with a process that breaks the rules.

Address space, CPU time, file size and core dumps are limited on every system. Outside Linux these
limits are the only protection.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from typing import Final

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _FILTER = 38, 4, 22, 2
_AUDIT_ARCH: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # and our column
_X32: Final = 0x40000000  # x86-64's second numbering

# Instructions of classic BPF, and offsets in `struct seccomp_data` (both machines little-endian).
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_PROT_EXEC: Final = 4

_Numbers = tuple[int | None, int | None]  # on x86-64 and on arm64; None: not there
_Instruction = tuple[int, int, int, int]

_ALLOWED: Final[dict[str, _Numbers]] = {
    "read": (0, 63),
    "pread64": (17, 67),
    "futex": (202, 98),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "close": (3, 57),
    "getrandom": (318, 278),
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "sched_yield": (24, 124),
    "sysinfo": (99, 179),  # `qsort` of the C library asks how much memory there is
    "rt_sigprocmask": (14, 135),  # `abort`, as the next three
    "rt_sigreturn": (15, 139),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_NOT_EXECUTABLE: Final[dict[str, _Numbers]] = {"mmap": (9, 222), "mprotect": (10, 226)}
_WRITE: Final[dict[str, _Numbers]] = {"write": (1, 64), "writev": (20, 66)}
_TGKILL: Final[dict[str, _Numbers]] = {"tgkill": (234, 131)}
_AFFINITY: Final[dict[str, _Numbers]] = {"sched_getaffinity": (204, 123)}  # the number of cores
_LOOKUPS: Final[dict[str, _Numbers]] = {
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
}

_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_VERSION = 1
#: By version: all access rights to files and to TCP ports, and all scopes that it knows.
_LANDLOCK_ALL: Final = {
    1: (0x1FFF, 0, 0),
    2: (0x3FFF, 0, 0),
    3: (0x7FFF, 0, 0),
    4: (0x7FFF, 3, 0),
    5: (0xFFFF, 3, 0),
    6: (0xFFFF, 3, 3),
}


def limit_resources(memory: int, cpu_seconds: int) -> None:
    """`memory`: bytes of address space beyond what is in use now. A process that uses up
    `cpu_seconds` dies of SIGXCPU, which differs from a kill from outside. Files cannot be written
    at all."""
    with contextlib.suppress(OSError):  # no /proc: no base to add to
        with open("/proc/self/statm", "rb") as statm:
            pages = int(statm.read().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
    _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 5)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    most = resource.getrlimit(which)[1]
    if hard is None:
        hard = soft
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(which, (soft, hard))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def confine(answers: int) -> bool:
    """Install the filter on this process for good; `answers` is the one descriptor that it may
    write to. False if the system has no such filter. Raises `OSError` if the filter was accepted
    but does not work."""
    known = _AUDIT_ARCH.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    _forbid_files(libc)
    program = _program(*known, answers=answers, own=os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: count, then pointer, with the pointer's natural alignment
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    )
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, header, 0, 0) != 0:
        return False
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        return True
    raise OSError("the system call filter is installed but not in force")


def works() -> bool:
    """Whether a forbidden call really kills a confined process."""
    pid = os.fork()
    if pid == 0:
        try:
            if confine(2):
                os.getppid()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGSYS


def _forbid_files(libc: ctypes.CDLL) -> bool:
    """Enable Landlock without exceptions. False without Landlock: then seccomp protects alone."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return False
    members = _LANDLOCK_ALL[min(version, max(_LANDLOCK_ALL))]
    used = 1 + bool(members[1]) + bool(members[2])
    attributes = struct.pack(f"={used}Q", *members[:used])
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    restricted: bool = libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return restricted


def _program(architecture: int, column: int, *, answers: int, own: int) -> bytes:
    """`struct sock_filter {u16 code; u8 jt, jf; u32 k}`, one rule after the other."""
    instructions: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    rules: tuple[tuple[dict[str, _Numbers], list[_Instruction], int], ...] = (
        (_ALLOWED, [], _ALLOW),
        (_NOT_EXECUTABLE, [_load(2), (_ANY_BIT, 0, 1, _PROT_EXEC), (_RETURN, 0, 0, _KILL)], _ALLOW),
        (_WRITE, _among(0, answers, 2), _ALLOW),  # 2: /dev/null, for the C library's last words
        (_TGKILL, _among(0, own) + _among(2, signal.SIGABRT), _ALLOW),
        (_AFFINITY, _among(0, 0), _ALLOW),
        (_LOOKUPS, [], _REFUSE),
    )
    for calls, checks, verdict in rules:
        then = [*checks, (_RETURN, 0, 0, verdict)]
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                instructions += [(_EQUAL, 0, len(then), number), *then]
    instructions.append((_RETURN, 0, 0, _KILL))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _load(argument: int) -> _Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + argument * 8)


def _among(argument: int, *values: int) -> list[_Instruction]:
    """Kill, unless that argument is one of `values`."""
    last = len(values) - 1
    tests = [(_EQUAL, last - at + 1, 0, value) for at, value in enumerate(values)]
    return [_load(argument), *tests, (_RETURN, 0, 0, _KILL)]
