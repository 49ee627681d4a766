"""The other side of the socket: `python -m proxy.uploads.probe.process FD`.

A parent that has loaded FFmpeg and libmagic forks a process for each upload, so that each has its
own limits, its own sandbox and dies alone. The parent never reads a byte of an upload.

Control socket, FD (stream): once ready, the parent sends `b"R"` and whether processes can be
confined (`b"1"` or `b"0"`). `b"S" + 8-byte id`, with the upload's socket attached, forks a process
for it; `b"K" + id` kills that process, `b"N" + id` lowers its priority; the parent answers each
with `b"A" + id + 4 bytes`. When a process has ended, the parent sends `b"D" + id + wait status` (4
bytes). It exits when the socket closes.

Upload's socket: the proxy sends a 4-byte length and a `ProbeTask` in JSON, with the descriptor of
the spool file attached. The process answers in lines of JSON: `{"label", "type"}` as soon as the
type is known; `{"want": size}` to wait for that many bytes of the file, which the proxy answers
with the bytes so far (8 bytes) and whether that is all (1); and finally one of `{"duration"}`,
`{"refused": "type"|"long"|"unknown", ...}` and `{"trouble": ...}`, a failure of ours.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import av.error
import av.logging

from proxy.core.memory.allocator import keep_freed_memory
from proxy.uploads.formats import measure
from proxy.uploads.formats.families import BY_MEDIA_TYPE, HEAD, recognise, skip_tags
from proxy.uploads.formats.polyglots import refuse_polyglot
from proxy.uploads.probe import sandbox
from proxy.uploads.probe.refused import NotAudio, PastLimit, Undecodable
from proxy.uploads.probe.source import Source, SpoolUnreadable

Sniffer = Callable[[bytes], str]  # the media type of what starts with these bytes

#: How much nicer than the proxy a process is that has computed for long: with all processors busy,
#: it has a tenth of the proxy's share. Young ones are no nicer: there are few of them, and somebody
#: waits for their result.
_OLD = 10
_ID = 8
_MAX_TASK = 64 * 1024
_GROWN = struct.Struct(">Q?")
#: Text codecs that tags are written in; the interpreter imports each when it is first used.
_CODECS = ("ascii", "utf-8", "latin-1", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-32")


def main() -> None:
    """Serve until the control socket closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the proxy's to handle
    sniffer = prepare()
    confined = sandbox.works()
    control.sendall(b"R1" if confined else b"R0")
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 2)  # a hostile file must not write into the proxy's log
    os.close(quiet)
    _Parent(control, sniffer, confined=confined).serve()


def prepare() -> Sniffer:
    """Load everything that the processes need: once confined, they cannot load anything."""
    keep_freed_memory()
    av.logging.set_level(av.logging.PANIC)
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # a part that this build of PyAV lacks
                importlib.import_module(module.name)
    for codec in _CODECS:
        "a".encode(codec).decode(codec)
    sniffer = load_sniffer()
    _rehearse(sniffer)
    gc.collect()
    gc.freeze()  # the children share these pages until somebody writes to them
    return sniffer


def load_sniffer() -> Sniffer:
    """libmagic with its database loaded: the system's, or the one in the `pylibmagic` wheel.
    Raises `ImportError` if neither is usable."""
    if ctypes.util.find_library("magic") is None:
        import pylibmagic  # noqa: F401 - makes its copy findable, changes environment and ctypes
    import magic

    sniffer: Sniffer = magic.Magic(mime=True).from_buffer
    return sniffer


def _rehearse(sniffer: Sniffer) -> None:
    """Examine one silent file, so that everything that initialises lazily has done so."""
    header = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0"
    data = header + b"data\xff\xff\xff\xff" + bytes(4096)
    with open(os.memfd_create("rehearsal"), "w+b", buffering=0) as file:
        file.write(data)
        source = Source(file.fileno(), len(data), True, lambda _: (len(data), True))
        verdict = judge(source, sniffer, tuple(BY_MEDIA_TYPE), None, lambda **_: None)
    if "duration" not in json.loads(_line(**verdict)):
        raise RuntimeError(f"the upload probe cannot read a plain WAV: {verdict}")


class _Parent:
    """Forks a process for each upload."""

    def __init__(self, control: socket.socket, sniffer: Sniffer, *, confined: bool) -> None:
        self._control = control
        self._sniffer = sniffer
        self._confined = confined
        self._children: dict[int, bytes] = {}  # by process ID
        self._woken, self._waker = socket.socketpair()

    def serve(self) -> None:
        """Until the control socket closes."""
        for end in (self._woken, self._waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as ready:
            ready.register(self._control, selectors.EVENT_READ)
            ready.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is self._woken:
                        self._woken.recv(4096)
                        self._reap()
                    elif not self._handle_command():
                        return

    def _handle_command(self) -> bool:
        """One command; whether there was one."""
        command, fds, _, _ = socket.recv_fds(self._control, 1 + _ID, 1)
        if not command:
            return False
        while len(command) < 1 + _ID:
            command += self._control.recv(1 + _ID - len(command))
        if command[:1] == b"S" and fds:
            with socket.socket(fileno=fds[0]) as upload:
                self._fork(upload, command[1:])
        else:
            for pid, name in self._children.items():
                if name != command[1:]:
                    continue
                if command[:1] == b"K":
                    os.kill(pid, signal.SIGKILL)
                elif command[:1] == b"N":
                    _lower_priority(pid)
        self._answer(b"A" + command[1:] + bytes(4))
        return True

    def _answer(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the proxy is gone: the next read reports it
            self._control.sendall(message)

    def _fork(self, upload: socket.socket, name: bytes) -> None:
        try:
            pid = os.fork()
        except OSError:
            upload.sendall(_line(trouble="fork"))
            return
        if pid:
            self._children[pid] = name
            return
        status = 1
        try:
            sandbox.die_with_parent()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for parents_own in (self._control, self._woken, self._waker):
                parents_own.close()
            examine_upload(upload, self._sniffer, confined=self._confined)
            status = 0
        finally:
            os._exit(status)  # never back into the parent's loop

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                self._answer(b"D" + self._children.pop(pid) + status.to_bytes(4, "big"))


def _lower_priority(pid: int) -> None:
    """Make the child `pid` nicer by `_OLD`."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, pid, min(19, nice + _OLD))


def examine_upload(upload: socket.socket, sniffer: Sniffer, *, confined: bool) -> None:
    """Read the task, drop all rights that it does not need, and do it. Raises `OSError`, before any
    byte of the file is read, if the process should be `confined` and is not."""
    upload.setblocking(True)
    data, fds, _, _ = socket.recv_fds(upload, _MAX_TASK, 1)
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        piece = upload.recv(_MAX_TASK)
        if not piece:
            return  # the proxy gave up before it began
        data += piece
    task: dict[str, Any] = json.loads(data[4:])
    sandbox.limit_resources(task["memory"], task["cpu"])
    if not sandbox.confine(upload.fileno()) and confined:
        raise OSError("the sandbox cannot be closed")
    link = _Link(upload.fileno())
    source = Source(fds[0], task["received"], task["whole"], link.wait)
    limit = task["max_duration"]
    link.answer(**judge(source, sniffer, task["types"], limit, link.answer))


class _Link:
    """The upload's socket, used with the two system calls that the sandbox allows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def answer(self, **members: Any) -> None:
        """Send one line to the proxy."""
        line = _line(**members)
        while line:
            line = line[os.write(self._descriptor, line) :]

    def wait(self, size: int) -> tuple[int, bool]:
        """Wait for `size` bytes or the whole file. Returns (bytes so far, whether that is all)."""
        self.answer(want=size)
        data = b""
        while len(data) < _GROWN.size:
            piece = os.read(self._descriptor, _GROWN.size - len(data))
            if not piece:
                os._exit(0)  # the proxy has given up
            data += piece
        received, whole = _GROWN.unpack(data)
        return received, whole


def judge(
    source: Source,
    sniffer: Sniffer,
    types: tuple[str, ...] | list[str],
    limit: float | None,
    answer: Any,
) -> dict[str, Any]:
    """Detect the type and measure the file. Returns the final answer; `answer` gets the type as
    soon as it is known."""
    try:
        head = source.peek(HEAD)
        label = sniffer(head)
        tagged = skip_tags(source)
        family = recognise(source.peek(HEAD), label, tagged=tagged)
        if family is None or family.media_type not in types:
            known = any(label in other.labels for other in BY_MEDIA_TYPE.values())
            what = family.media_type if family else "unreadable data" if known else label
            seen = family.media_type if family else None
            return {"refused": "type", "what": what, "label": label, "family": seen}
        answer(label=label, type=family.media_type)
        duration = measure.measure(source, family, limit)
        refuse_polyglot(source, head)
    except NotAudio as error:
        return {"refused": "type", "what": error.what}
    except PastLimit as error:
        return {"refused": "long", "duration": error.seconds}
    except Undecodable as error:
        return {"refused": "unknown", "why": error.why}
    except MemoryError:
        return {"refused": "unknown", "why": "memory"}
    except SpoolUnreadable:
        return {"trouble": "spool"}
    except Exception as error:
        return _unforeseen(error)
    return {"duration": duration}


def _unforeseen(error: Exception) -> dict[str, Any]:
    """Whatever hostile bytes make a library raise rejects the upload. But a failed import is a
    defect of ours (sandbox.py, rule 2)."""
    ours = isinstance(error, (ImportError, PermissionError))
    if ours and not isinstance(error, av.error.FFmpegError):
        return {"trouble": "sandbox"}
    return {"refused": "unknown", "why": "broken"}


def _line(**members: Any) -> bytes:
    return json.dumps(members).encode() + b"\n"


if __name__ == "__main__":
    main()
