"""What a probe process may do: compute, read its socket, write its spool.

Linux: a seccomp filter refuses (EPERM) to open files, make sockets, start programs or threads and
touch other processes; `no_new_privs` makes that possible without privileges. Memory, CPU time and
file size are limited everywhere. On other systems the limits are all there is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import resource
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _FILTER = 38, 4, 22, 2

# System calls refused, with their numbers on x86-64 and on arm64 (None: not there).
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH, column
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None),
    "creat": (85, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
}
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000  # x86-64's second numbering


def limit_resources(memory: int, cpu_seconds: int, file_size: int) -> None:
    """`memory`: bytes of address space beyond what is in use now."""
    with contextlib.suppress(OSError):  # no /proc: no base to add to
        with open("/proc/self/statm", "rb") as statm:
            pages = int(statm.read().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_FSIZE, file_size)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def forbid_system_calls() -> bool:
    """Install the filter on this process for good. False where the system has none."""
    known = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    architecture, column = known
    numbers = tuple(
        number for numbers in _REFUSED.values() if (number := numbers[column]) is not None
    )
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program(architecture, numbers)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: count, then pointer, with the pointer's natural alignment
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    )
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    installed: int = libc.prctl(_PR_SET_SECCOMP, _FILTER, header, 0, 0)
    return installed == 0


def _program(architecture: int, numbers: tuple[int, ...]) -> bytes:
    """Classic BPF: `struct sock_filter {u16 code; u8 jt, jf; u32 k}`. A foreign architecture and
    x32 calls are refused as a whole."""
    count = len(numbers)
    instructions = [
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_JUMP_EQUAL, 0, count + 3, architecture),
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_AT_LEAST, count + 1, 0, _X32),
        *((_JUMP_EQUAL, count - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
