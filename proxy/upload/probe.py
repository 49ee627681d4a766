"""The other side of the socket: `python -m proxy.upload.probe FD`.

A parent that has loaded FFmpeg and libmagic forks a process for each upload, one ahead: so it costs
the upload no time, and every upload has limits, a sandbox and a death of its own. The parent never
touches a byte of an upload.

Control socket, FD (stream): `b"S" + 8-byte id` with the upload's socket attached hands it to a
process, `b"K" + id` kills that; the parent says `b"R"` once, when it is ready, and leaves when the
socket closes.

Upload's socket: the proxy sends a 4-byte length and a `Job` in JSON, then the file in pieces
(transfer.py), then shuts down its side. The process answers in lines of JSON: `{"label", "type"}`
as soon as the type is known; `{"leave_out": [start, end]}`, any number of times, for bytes of the
file that it can do without; and at last one of `{"duration"}`,
`{"refused": "type"|"long"|"unknown"|"busy", ...}`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
from typing import IO, Any

import av.logging

from proxy.memory import keep_freed_memory
from proxy.upload import measure, sandbox
from proxy.upload.boxes import is_sequential
from proxy.upload.families import BY_MEDIA_TYPE, HEAD, MP4, recognise
from proxy.upload.packets import NotAudio, PastLimit, Undecodable
from proxy.upload.sniff import Sniffer, load_sniffer
from proxy.upload.source import Source
from proxy.upload.spool import Spool
from proxy.upload.transfer import Receiver, Sender

_ID = 8
_MAX_JOB = 64 * 1024


def main() -> None:
    """Serve until the control socket closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the proxy's to handle
    sniffer = prepare()
    control.sendall(b"R")
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 2)  # a hostile file must not write into the proxy's log
    os.close(quiet)
    _Parent(control, sniffer).serve()


def prepare() -> Sniffer:
    """Everything that a child needs, once for all of them."""
    keep_freed_memory()
    av.logging.set_level(av.logging.PANIC)
    sniffer = load_sniffer()
    sniffer.from_buffer(b"warm")
    _rehearse(sniffer)
    gc.collect()
    gc.freeze()  # the children share these pages as long as nobody writes to them
    return sniffer


def _rehearse(sniffer: Sniffer) -> None:
    """Walk through one silent file, so that every lazy import has happened before the fork."""
    header = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for piece in Sender().send(header + b"data\xff\xff\xff\xff" + bytes(4096)):
            ours.sendall(piece)
        ours.shutdown(socket.SHUT_WR)
        _examine(theirs, sniffer, None, _no_spool())
        json.loads(ours.recv(4096).splitlines()[0])


class _Parent:
    """Hands each upload to a process that has been forked ahead for it, and forks the next."""

    def __init__(self, control: socket.socket, sniffer: Sniffer) -> None:
        self._control = control
        self._sniffer = sniffer
        self._children: dict[int, bytes] = {}  # at work, by process ID
        self._spare: tuple[int, socket.socket] | None = None  # process ID, and where it waits
        self._woken, self._waker = socket.socketpair()

    def serve(self) -> None:
        """Until the control socket closes."""
        for end in (self._woken, self._waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._fork_ahead()
        with selectors.DefaultSelector() as ready:
            ready.register(self._control, selectors.EVENT_READ)
            ready.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is self._woken:
                        self._woken.recv(4096)
                        self._reap()
                    elif not self._obey():
                        return

    def _obey(self) -> bool:
        """One command; whether there was one."""
        command, fds, _, _ = socket.recv_fds(self._control, 1 + _ID, 1)
        if not command:
            return False
        while len(command) < 1 + _ID:
            command += self._control.recv(1 + _ID - len(command))
        if command[:1] == b"S" and fds:
            with socket.socket(fileno=fds[0]) as upload:
                if not self._hand_over(upload, command[1:]):
                    _answer(upload, refused="busy")
            self._fork_ahead()
        elif command[:1] == b"K":
            for pid, name in self._children.items():
                if name == command[1:]:
                    os.kill(pid, signal.SIGKILL)
        return True

    def _hand_over(self, upload: socket.socket, name: bytes) -> bool:
        """To the process that waits, or to a new one where that has died. False: none to be had."""
        while self._spare is not None or self._fork_ahead():
            assert self._spare is not None
            pid, link = self._spare
            self._spare = None
            with link, contextlib.suppress(OSError):
                socket.send_fds(link, [b"U"], [upload.fileno()])
                self._children[pid] = name
                return True
        return False

    def _fork_ahead(self) -> bool:
        """Have a process ready for the next upload. Whether there is one."""
        if self._spare is not None:
            return True
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            return False
        if pid:
            theirs.close()
            self._spare = pid, ours
            return True
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for parents_own in (self._control, self._woken, self._waker, ours):
                parents_own.close()
            _child(theirs, self._sniffer)
            status = 0
        finally:
            os._exit(status)  # never back into the parent's loop

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._children.pop(pid, None)
            if self._spare is not None and self._spare[0] == pid:
                self._spare[1].close()
                self._spare = None


def _child(link: socket.socket, sniffer: Sniffer) -> None:
    """Get everything ready, then wait for an upload and examine it."""
    spool = _open_spool()
    with link:
        _, fds, _, _ = socket.recv_fds(link, 1, 1)
    if fds:
        _examine_upload(socket.socket(fileno=fds[0]), sniffer, spool)


def _examine_upload(upload: socket.socket, sniffer: Sniffer, spool: IO[bytes]) -> None:
    upload.setblocking(True)
    size = int.from_bytes(_exactly(upload, 4), "big")
    job: dict[str, Any] = json.loads(_exactly(upload, min(size, _MAX_JOB)))
    sandbox.limit_resources(job["memory"], job["cpu"], job["max_size"] + 1024 * 1024)
    sandbox.forbid_system_calls()
    _examine(upload, sniffer, job, spool)


def _exactly(upload: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = upload.recv(size - len(data))
        if not piece:
            os._exit(0)  # the proxy gave up before it began
        data += piece
    return data


def _open_spool() -> IO[bytes]:
    """Made before the sandbox closes, whether needed or not: 20 µs. On disk if there is one."""
    try:
        return tempfile.TemporaryFile(prefix="upload-probe-")
    except OSError:
        return _no_spool()


def _no_spool() -> IO[bytes]:
    """In memory, outside the address-space limit but inside that of the file size."""
    return os.fdopen(os.memfd_create("upload-probe"), "w+b")


def _examine(
    upload: socket.socket, sniffer: Sniffer, job: dict[str, Any] | None, spool: IO[bytes]
) -> None:
    """Sniff, choose the family, walk. Answers always, unless this process dies."""
    accepted = set(job["types"]) if job else set(BY_MEDIA_TYPE)
    limit = job["max_duration"] if job else None
    try:
        source = Source(
            Receiver(upload.recv), HEAD, lambda *place: _answer(upload, leave_out=place)
        )
        label = sniffer.from_buffer(source.head)
        family = recognise(source.head, label)
        if family is None or family.media_type not in accepted:
            known = any(label in other.labels for other in BY_MEDIA_TYPE.values())
            what = family.media_type if family else "unreadable data" if known else label
            _answer(upload, refused="type", what=what)
            return
        _answer(upload, label=label, type=family.media_type)
        copy = None
        if family is MP4 and not is_sequential(source.head):
            copy = Spool(spool)
            copy.fill(source)
        duration = measure.measure(source, family, limit, spool=copy)
        measure.refuse_polyglot(source.head, source.tail)
    except NotAudio as error:
        _answer(upload, refused="type", what=error.what)
    except PastLimit as error:
        _answer(upload, refused="long", duration=error.seconds)
    except Undecodable as error:
        _answer(upload, refused="unknown", why=error.why)
    except MemoryError:
        _answer(upload, refused="unknown", why="memory")
    except Exception:  # whatever hostile bytes did to a library: this upload is refused
        _answer(upload, refused="unknown", why="broken")
    else:
        _answer(upload, duration=duration)


def _answer(upload: socket.socket, **members: Any) -> None:
    upload.sendall(json.dumps(members).encode() + b"\n")


if __name__ == "__main__":
    main()
