"""All listening sockets: opened all or none, kept or drained by a reload, shut down together."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from proxy.config.certificates import ends_of
from proxy.config.listeners import Listener
from proxy.core.clock import Clock
from proxy.core.errors import cannot_listen
from proxy.core.memory.budget import MemoryBudget
from proxy.core.process.shortage import Shortages
from proxy.forward.routing.plan import ListenerPlan
from proxy.http1.deadlines import Sweeper
from proxy.server.listener import ListenerRuntime
from proxy.server.listening import Given, label
from proxy.telemetry.metrics.counters import ListenerTally

logger = logging.getLogger(__name__)

#: Seconds in which exchanges cut at the end of a drain can still send an error to their clients.
_LAST_WORDS = 1.0


@dataclass
class OpenListener:
    """A listener's sockets and the config that they were opened for."""

    runtime: ListenerRuntime
    config: Listener

    def serves(self, wanted: Listener) -> bool:
        """Whether the sockets can be kept for `wanted`."""
        mine = (self.config.bind, self.config.tls is None, self.config.reuse_port)
        return mine == (wanted.bind, wanted.tls is None, wanted.reuse_port)


@dataclass(frozen=True)
class Change:
    """What a new config changes, by listener name: the sockets kept and those newly opened."""

    kept: Mapping[str, OpenListener]
    fresh: Mapping[str, OpenListener]
    #: For TLS listeners that are kept: their certificates, reloaded from the files.
    tls: Mapping[str, ServerTls]


@dataclass(frozen=True, slots=True)
class ServerTls:
    """A TLS listener's certificate as it was loaded, and when it expires (Unix seconds)."""

    context: ssl.SSLContext
    ends: float | None


class Sockets:
    """The sockets of every listener. A change is first prepared, which may fail, and then made,
    which cannot."""

    def __init__(
        self,
        clock: Clock,
        sweeper: Sweeper,
        memory: MemoryBudget,
        tally: Callable[[str], ListenerTally],
        given: Given | None = None,
        shortages: Shortages | None = None,
    ) -> None:
        self._shortages = shortages or Shortages()
        self._given = given or Given()
        self._clock = clock
        self._sweeper = sweeper
        self._memory = memory
        self._tally = tally
        self._open: dict[str, OpenListener] = {}
        self._leaving: dict[asyncio.Task[None], OpenListener] = {}  # removed, but still in use

    def addresses(self) -> dict[str, list[str]]:
        """The addresses of each listener."""
        return {name: one.runtime.addresses for name, one in self._open.items()}

    async def prepare(
        self, listeners: Mapping[str, Listener], plans: Mapping[str, ListenerPlan]
    ) -> Change:
        """Open the sockets that are missing, all or none. Raises `OSError`, also for a certificate
        that cannot be loaded."""
        fresh: dict[str, OpenListener] = {}
        try:
            kept = self._kept(listeners)
            for name, wanted in listeners.items():
                if name not in kept:
                    fresh[name] = await self._listen(name, wanted, plans[name])
            tls = {name: made for name in kept if (made := _server_tls(listeners[name]))}
        except OSError:
            self.discard(Change({}, fresh, {}))
            raise
        return Change(kept, fresh, tls)

    def discard(self, change: Change) -> None:
        """Drop a prepared change: close the sockets that were opened for it."""
        for opened in change.fresh.values():
            opened.runtime.close()

    def _kept(self, listeners: Mapping[str, Listener]) -> dict[str, OpenListener]:
        """The sockets to keep: first by the same listener name, then for a renamed listener. Each
        is used once, although several listeners may ask for any port."""
        kept = {
            name: self._open[name]
            for name, wanted in listeners.items()
            if name in self._open and self._open[name].serves(wanted)
        }
        left = [one for name, one in self._open.items() if name not in kept]
        for name, wanted in listeners.items():
            renamed = next((one for one in left if one.serves(wanted)), None)
            if name not in kept and renamed is not None:
                kept[name] = renamed
                left.remove(renamed)
        return kept

    def make(
        self,
        change: Change,
        listeners: Mapping[str, Listener],
        plans: Mapping[str, ListenerPlan],
    ) -> None:
        """Make the sockets serve these plans. Never waits, so it is atomic for every exchange."""
        for name, one in change.kept.items():
            wanted = listeners[name]
            if name in change.tls:
                one.runtime.use_tls(change.tls[name].context)
                self._tally(name).certificate_ends = change.tls[name].ends
            one.config = wanted
            one.runtime.service.plan = plans[name]
            one.runtime.count_at(self._tally(name))
        stays = {id(one) for one in change.kept.values()}
        for old in self._open.values():
            if id(old) not in stays:
                self._let_go(old)
        for name in self._open.keys() - listeners.keys():
            self._tally(name).certificate_ends = None
        self._open = {**change.kept, **change.fresh}

    async def _listen(self, name: str, wanted: Listener, plan: ListenerPlan) -> OpenListener:
        runtime = ListenerRuntime(
            plan, self._clock, self._sweeper, self._memory, self._tally(name), self._shortages
        )
        try:
            tls = _server_tls(wanted)
            # An address that was given up a moment ago is ours until its last callers are accepted.
            for leaving in list(self._leaving.values()):
                if leaving.config.bind.overlaps(wanted.bind):
                    await leaving.runtime.emptied()
            sockets = self._given.open(name, wanted.bind, reuse_port=wanted.reuse_port)
            context = tls.context if tls else None
            runtime.open(sockets, context, shared=bool(wanted.bind.given))
            self._tally(name).certificate_ends = tls.ends if tls else None
        except OSError as error:
            raise cannot_listen(f"listener {name}", wanted.bind, error) from error
        return OpenListener(runtime, wanted)

    def _let_go(self, one: OpenListener) -> None:
        """Drain a listener that is no longer wanted."""
        one.runtime.drain()
        ending = one.runtime.drained()
        task = asyncio.get_running_loop().create_task(ending, name="leaving listener")
        self._leaving[task] = one
        task.add_done_callback(self._leaving.pop)

    async def drain(self, limit: float) -> None:
        """Accept nothing new and wait up to `limit` seconds for exchanges in progress to end."""
        for one in self._open.values():
            self._let_go(one)
        if not self._leaving:
            return
        _, late = await asyncio.wait(self._leaving, timeout=limit)
        if late:
            if any(one.runtime.clients for one in self._leaving.values()):
                logger.warning("drain limit reached", extra={"limit_s": limit})
            for one in self._leaving.values():
                one.runtime.cut()
            await asyncio.wait(late, timeout=_LAST_WORDS)

    # --- handing over (core/process/handover.py) ----------------------------------------------

    def labelled(self) -> list[tuple[str, socket.socket]]:
        """The sockets that a successor may inherit, with their labels: all but the named ones."""
        return [
            (label(name, one.config.bind), sock)
            for name, one in self._open.items()
            if not one.config.bind.given
            for sock in one.runtime.sockets
        ]

    async def ease(self, seconds: float) -> None:
        """Let the connections open now end with their next exchange; waits up to `seconds`."""
        before = [client for one in self._open.values() for client in one.runtime.clients]
        for one in self._open.values():
            one.runtime.ease(seconds)
        end = self._clock.monotonic() + seconds
        while before and self._clock.monotonic() < end:
            await asyncio.sleep(0.02)
            before = [client for client in before if not client.ended]

    def pause(self) -> None:
        """Stop accepting and let connections end; new connections wait in the kernel."""
        for one in self._open.values():
            one.runtime.pause()

    async def resume(self) -> None:
        """Accept again. Raises `OSError`."""
        for one in self._open.values():
            one.runtime.resume()

    def clients(self) -> int:
        """The number of open connections, including those in their TLS handshake."""
        return sum(
            one.runtime.connections for one in (*self._open.values(), *self._leaving.values())
        )

    async def release(self, taken: Collection[str]) -> None:
        """Close the sockets with these labels, which a successor serves now. The drain empties the
        queues of the others."""
        for name, one in self._open.items():
            if one.config.bind.given or label(name, one.config.bind) in taken:
                one.runtime.close()
            else:
                one.runtime.resume()

    async def stop(self) -> None:
        """Close everything at once."""
        for one in self._open.values():
            await one.runtime.abort()
        leaving = dict(self._leaving)
        for one in leaving.values():
            await one.runtime.abort()
        await asyncio.gather(*leaving)


def _server_tls(listener: Listener) -> ServerTls | None:
    """The context of a TLS listener: TLS 1.2 and up, HTTP/1.1 only. Raises `OSError`."""
    if listener.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(listener.tls.cert, listener.tls.key)
    context.set_alpn_protocols(["http/1.1"])
    return ServerTls(context, ends_of(listener.tls.cert))
