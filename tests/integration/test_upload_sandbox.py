"""The sandbox on this kernel: each call that a hostile file might try, in a process of its own."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import platform
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.uploads.probe import process as probe
from proxy.uploads.probe import sandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="there is no sandbox on this system",
)

KILLED, REFUSED, ALLOWED = "killed", "refused", "allowed"


def outcome(
    attempt: Callable[[], object],
    *,
    memory: int | None = None,
    confine: Callable[[int], bool] = sandbox.confine,
) -> str:
    """What becomes of a confined process that makes `attempt`."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if memory is not None:
                sandbox.limit_resources(memory, 10)
            if not confine(writing):
                os.write(writing, b"no sandbox")
                os._exit(0)
            attempt()
            os.write(writing, ALLOWED.encode())
        except PermissionError:
            os.write(writing, REFUSED.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        output = answers.read().decode()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGSYS
        assert not output
        return KILLED
    return output


LIBC = ctypes.CDLL(None, use_errno=True)
PARENT = os.getpid()
PATH = os.path.join(tempfile.gettempdir(), f"sandboxed-{PARENT}").encode()
PAGE = 4096


class Opened:
    """What the attempts have open: a file at `PATH` and one end of a pair of sockets."""

    file: int
    link: socket.socket


def file() -> int:
    """The descriptor of `Opened.file`."""
    return Opened.file


def link() -> int:
    """The descriptor of `Opened.link`."""
    return Opened.link.fileno()


def call(name: str, *arguments: object) -> Callable[[], object]:
    """A function of the C library, which raises what it sets `errno` to. `file` and `link` stand
    for their descriptors, which are not open yet when the tests are collected."""

    def attempt() -> None:
        ctypes.set_errno(0)
        values = [one() if one in (file, link) else one for one in arguments]
        if getattr(LIBC, name)(*values) == -1 and ctypes.get_errno():
            raise OSError(ctypes.get_errno(), name)

    return attempt


def raw(x86: int, arm: int, *arguments: object) -> Callable[[], object]:
    """A system call by its number."""
    number = x86 if platform.machine() == "x86_64" else arm
    return call("syscall", ctypes.c_long(number), *arguments)


def import_late(module: str) -> None:
    """A module that is not loaded yet."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise PermissionError from error


FORBIDDEN: dict[str, Callable[[], object]] = {
    # files
    "truncate": call("truncate", PATH, ctypes.c_long(0)),
    "ftruncate": call("ftruncate", file, ctypes.c_long(0)),
    "chmod": call("chmod", PATH, 0o777),
    "fchmod": call("fchmod", file, 0o777),
    "chown": call("chown", PATH, 1, 1),
    "link": call("link", PATH, PATH + b".link"),
    "symlink": call("symlink", PATH, PATH + b".link"),
    "rename": call("rename", PATH, PATH + b".new"),
    "unlink": call("unlink", PATH),
    "mkdir": call("mkdir", PATH + b".dir", 0o700),
    "rmdir": call("rmdir", b"/tmp/nothing"),
    "mknod": call("mknod", PATH + b".node", 0o010600, 0),
    "utimes": call("utimes", PATH, None),
    "setxattr": call("setxattr", PATH, b"user.a", b"b", 1, 0),
    "memfd_create": call("memfd_create", b"a", 0),
    "fcntl": call("fcntl", file, 1),
    "ioctl": call("ioctl", file, 0x5412, b"x"),
    "dup": call("dup", file),
    "lseek": call("lseek", file, ctypes.c_long(0), 0),
    "write elsewhere": lambda: os.write(file(), b"x"),
    "pwrite": lambda: os.pwrite(file(), b"x", 0),
    "chdir": call("chdir", b"/"),
    "chroot": call("chroot", b"/"),
    "mount": call("mount", b"a", b"/mnt", b"tmpfs", ctypes.c_long(0), None),
    "open_by_handle_at": raw(304, 265, file, b"\0" * 16, 0),
    # other processes
    "kill": call("kill", PARENT, 0),
    "tgkill": raw(234, 131, PARENT, PARENT, signal.SIGTERM),
    "tgkill to itself": lambda: signal.raise_signal(signal.SIGTERM),
    "tkill": raw(200, 130, PARENT, 0),
    "rt_sigqueueinfo": raw(129, 138, PARENT, 0, b"\0" * 128),
    "pidfd_open": raw(434, 434, PARENT, 0),
    "pidfd_send_signal": raw(424, 424, 3, 0, None, 0),
    "prlimit64 of another": raw(302, 261, PARENT, resource.RLIMIT_NOFILE, None, b"\0" * 16),
    "setrlimit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "ptrace": call("ptrace", 16, PARENT, None, None),
    "process_vm_readv": raw(310, 270, PARENT, None, 0, None, 0, 0),
    "process_vm_writev": raw(311, 271, PARENT, None, 0, None, 0, 0),
    "sched_setaffinity": lambda: os.sched_setaffinity(0, {0}),
    "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, PARENT, 19),
    "getppid": os.getppid,
    # programs and threads
    "execve": call("execve", b"/bin/true", None, None),
    "execveat": raw(322, 281, -100, b"/bin/true", None, None, 0),
    "fork": os.fork,
    "clone": raw(56, 220, signal.SIGCHLD, None, None, None, None),
    "clone3": raw(435, 435, b"\0" * 64, 64),
    # the network, and what crosses processes
    "socket": call("socket", 2, 1, 0),
    "socketpair": call("socketpair", 1, 1, 0, ctypes.create_string_buffer(8)),
    "connect": call("connect", link, b"\0" * 16, 16),
    "bind": call("bind", link, b"\0" * 16, 16),
    "sendto": call("send", link, b"x", 1, 0),
    "sendmsg": lambda: Opened.link.sendmsg([b"x"]),
    "recvmsg": lambda: Opened.link.recvmsg(1, 100, socket.MSG_DONTWAIT),
    "shmget": call("shmget", 1, PAGE, 0o1600),
    "msgget": call("msgget", 1, 0o1600),
    "eventfd": call("eventfd", 0, 0),
    "inotify_init1": call("inotify_init1", 0),
    # the kernel
    "io_uring_setup": raw(425, 425, 8, b"\0" * 120),
    "bpf": raw(321, 280, 0, b"\0" * 128, 128),
    "keyctl": raw(250, 219, 0, -3, 0),
    "add_key": raw(248, 217, b"user", b"a", b"b", 1, -3),
    "perf_event_open": raw(298, 241, b"\0" * 120, 0, -1, -1, 0),
    "userfaultfd": raw(323, 282, 0),
    "unshare": call("unshare", 0),
    "setns": call("setns", file, 0),
    "personality": call("personality", 0),
    "prctl": call("prctl", 4, 1, 0, 0, 0),
    "seccomp": raw(317, 277, 0, 0, None),
    "setuid": call("setuid", 0),
    "init_module": raw(175, 105, b"", 0, b""),
    "reboot": raw(169, 142, 0, 0, 0, None),
    "executable memory": call("mmap", None, PAGE, 7, 0x22, -1, ctypes.c_long(0)),
}
LOOK_UPS: dict[str, Callable[[], object]] = {
    "open for reading": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "open for writing": lambda: os.open(PATH, os.O_WRONLY),
    "create": lambda: os.open(PATH + b".new", os.O_CREAT | os.O_WRONLY),
    "open itself": lambda: os.open(f"/proc/self/fd/{file()}", os.O_RDWR),
    "stat": lambda: os.stat(PATH),
    "readlink": lambda: os.readlink("/proc/self/exe"),
    "import": lambda: import_late("this"),
}


@pytest.fixture(scope="module", autouse=True)
def cleared() -> Iterator[None]:
    """The file comes and goes; nothing was made beside it."""
    Opened.file = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    Opened.link, theirs = socket.socketpair()
    with Opened.link, theirs:
        yield
    os.close(Opened.file)
    os.unlink(PATH)
    for name in (b".link", b".new", b".dir", b".node"):
        assert not os.path.lexists(PATH + name)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_forbidden_call_kills(name: str) -> None:
    """At once, and whatever its arguments."""
    assert outcome(FORBIDDEN[name]) == KILLED


@pytest.mark.parametrize("name", LOOK_UPS)
def test_files_are_not_found(name: str) -> None:
    """Refused, so that an import that comes too late is seen as what it is."""
    assert outcome(LOOK_UPS[name]) == REFUSED


def test_an_import_that_comes_too_late_is_our_trouble() -> None:
    """Not the file's."""
    assert probe._unforeseen(ImportError()) == {"trouble": "sandbox"}
    assert probe._unforeseen(PermissionError()) == {"trouble": "sandbox"}
    assert probe._unforeseen(ValueError()) == {"refused": "unknown", "why": "broken"}


def test_what_a_probe_does_is_allowed() -> None:
    """Memory taken and given back, reads, sorting, a clean end."""

    def work() -> None:
        blocks = [bytes(size) for size in (100, 10_000, 1_000_000, 20_000_000)]
        blocks.sort(key=len)
        del blocks
        os.pread(file(), 10, 0)
        os.urandom(8)

    assert outcome(work) == ALLOWED
    assert outcome(work, memory=64 * 2**20) == ALLOWED


def test_memory_has_an_end() -> None:
    """Beyond the limit there is none, and the process can say so."""

    def balloon() -> None:
        try:
            bytes(200 * 2**20)
        except MemoryError as error:
            raise PermissionError from error

    assert outcome(balloon, memory=64 * 2**20) == REFUSED


def test_an_abort_is_an_abort() -> None:
    """The C library's way to end a process whose heap is broken is told from a forbidden call."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # pytest's
        sandbox.confine(1)
        os.abort()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGABRT


def test_the_sandbox_proves_itself() -> None:
    """As a parent asks before it forks for uploads."""
    assert sandbox.works()


def landlocked(attempt: Callable[[], object]) -> str:
    """What becomes of `attempt` in a process behind Landlock alone, without the filter."""

    def confine(answers: int) -> bool:
        LIBC.prctl(sandbox._PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return sandbox._forbid_files(LIBC)

    return outcome(attempt, confine=confine)


@pytest.mark.skipif(
    LIBC.syscall(sandbox._LANDLOCK_CREATE, None, 0, sandbox._LANDLOCK_VERSION) < 1,
    reason="the kernel has no Landlock",
)
def test_landlock_refuses_files_a_second_time(tmp_path: Path) -> None:
    """Should the filter have a hole: neither reading, writing nor creating a file."""
    there, new = tmp_path / "there", tmp_path / "new"
    there.write_text("secret", encoding="utf-8")
    attempts = {
        "read": there.read_bytes,
        "write": lambda: there.write_bytes(b"changed"),
        "create": lambda: new.write_bytes(b""),
        "link": lambda: new.symlink_to(there),
        "remove": there.unlink,
        "list": lambda: os.listdir("/"),
    }
    assert {name: landlocked(attempt) for name, attempt in attempts.items()} == dict.fromkeys(
        attempts, REFUSED
    )
    assert there.read_text(encoding="utf-8") == "secret"


@pytest.mark.skipif(
    LIBC.syscall(sandbox._LANDLOCK_CREATE, None, 0, sandbox._LANDLOCK_VERSION) < 6,
    reason="this kernel's Landlock knows neither TCP nor signals",
)
def test_landlock_refuses_connections_and_signals_a_second_time() -> None:
    """No TCP connection, not even to this machine, and no signal to another process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        attempts = {
            "connect": lambda: socket.create_connection(address).close(),
            "bind": lambda: socket.create_server(("127.0.0.1", 0)).close(),
            "signal": lambda: os.kill(PARENT, 0),
        }
        assert {name: landlocked(attempt) for name, attempt in attempts.items()} == dict.fromkeys(
            attempts, REFUSED
        )
