"""The Redis side: runs the scripts and reads the channel. The only file here that imports redis.

Every method raises `StoreError` instead of redis-py's errors, within the client's time limits.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.exceptions import NoPermissionError, NoScriptError, RedisError

from proxy.core.process.shortage import DETAILS
from proxy.core.redis.client import RedisSettings, address_of, connect, connect_listener
from proxy.core.vitals import Vitals
from proxy.resilience.circuit.circuit import CircuitBreaker
from proxy.resilience.circuit.fleet import scripts
from proxy.resilience.circuit.messages import (
    ChangeNotice,
    Failure,
    Glance,
    LogEntry,
    Report,
    SharedState,
)
from proxy.resilience.circuit.states import State

#: Seconds that keys live after their last change (and after the end of an open time).
KEY_TTL = 7 * 86400.0
#: Seconds of silence on the channel after which the connection is pinged. Heartbeats come more
#: often (sync.py), unless we may not publish.
SILENCE = 20.0

#: Longest time in seconds that a state set by hand lasts.
FORCED_MOST = 366 * 86400.0

#: Upper bound for numbers from Redis: milliseconds since 1970, in a hundred thousand years.
_MOST = 4e15

#: A message of ours has two short names; longer ones come from others.
_NOTICE_SIZE = 4096

_META = scripts.KEYS.index("meta")

_RIGHTS = {
    "publish": "PUBLISH on {channel}: others learn of transitions by polling, up to a second later",
    "subscribe": "SUBSCRIBE on {channel}: transitions are found by polling, up to a second later",
    "client": "CLIENT SETNAME: connections have no name in CLIENT LIST",
}


_log = logging.getLogger("proxy.resilience")


class StoreError(Exception):
    """Redis is unreachable, refuses a command, or sends an invalid reply; the message tells
    which."""


class BreakerStore:
    """The breakers' shared state in one Redis. Bound to the running loop; `close` when done."""

    def __init__(
        self, settings: RedisSettings, *, owner: str, vitals: Vitals, key_prefix: str = ""
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._vitals = vitals
        self._prefix = key_prefix
        self._named = True
        self._clustered = address_of(settings).kind == "cluster"
        self._client = connect(settings, client_name=self._name())
        self._client_named = True  # its connections set the name
        self._channel = f"{key_prefix}cb:events"
        self._listens = 0
        #: The rights that Redis denies, in words, by right.
        self.missing_rights: dict[str, str] = {}

    async def report(self, breaker: CircuitBreaker, report: Report) -> SharedState:
        """Send outcomes; returns the breaker's state after them."""
        return await self._run(
            scripts.REPORT,
            breaker,
            gen=report.generation,
            tid=report.tid,
            reset=report.reset,
            failures=report.failures,
            trip=report.trip,
            last_kind=report.recent[-1].kind if report.recent else "slow",
            recent=[failure.document() for failure in report.recent],
            probes=report.probes,
        )

    async def acquire(
        self, breaker: CircuitBreaker, want: int, tid: str, well: str = ""
    ) -> SharedState:
        """Request `want` probe leases. Also ends an open or forced time that is over, and ends an
        open time of this generation early if `well` gives a reason to think the upstream
        healthy."""
        return await self._run(scripts.ACQUIRE, breaker, tid=tid, want=want, well=well)

    async def force(
        self, breaker: CircuitBreaker, to: State, reason: str, seconds: float, tid: str
    ) -> SharedState:
        """Set the state by hand for `seconds` (0: without limit, only for `closed`)."""
        return await self._run(
            scripts.FORCE,
            breaker,
            tid=tid,
            to=to.value,
            reason=reason,
            for_ms=round(min(seconds, FORCED_MOST) * 1000),
        )

    async def merge(self, breaker: CircuitBreaker, now: float, tid: str) -> SharedState:
        """Restore the state known here to a Redis that has come back."""
        state = State.OPEN if breaker.state is State.HALF_OPEN else breaker.state
        remaining = max(0.0, breaker.until - now) if breaker.state is not State.HALF_OPEN else 0.0
        return await self._run(
            scripts.MERGE,
            breaker,
            tid=tid,
            gen=breaker.generation,
            state=state.value,
            remaining_ms=-1 if state is State.CLOSED else round(remaining * 1000),
            age_ms=round((now - breaker.since) * 1000),
            reason=breaker.reason,
            opens=breaker.opens,
            recent=[failure.document() for failure in breaker.recent],
        )

    async def look(self, breaker: CircuitBreaker) -> SharedState:
        """Read the state in Redis without changing it."""
        return await self._run(scripts.LOOK, breaker)

    async def peek(self, breakers: Sequence[CircuitBreaker]) -> list[Glance]:
        """The least state of each of `breakers`, in one command; in a Cluster, where each has its
        own slot, in one command each."""
        keys = [self.keys(breaker.name)[_META] for breaker in breakers]
        if self._clustered:
            return [glance for key in keys for glance in await self._peek([key])]
        return await self._peek(keys)

    async def _peek(self, keys: list[str]) -> list[Glance]:
        if not keys:
            return []
        answer = await self._evaluate(scripts.PEEK, keys, "{}")
        try:
            return [
                Glance(_whole(gen), _whole(failures), bool(ahead))
                for gen, failures, ahead in json.loads(answer)
            ]
        except (ValueError, TypeError) as error:
            raise StoreError(f"not an answer of ours: {error}") from error

    async def beat(self) -> None:
        """Publish a heartbeat to all subscribers, this process included."""
        client: Any = self._client
        try:
            await client.publish(self._channel, json.dumps({"by": self._owner}))
        except NoPermissionError as error:
            self._lacks("publish", error)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(self._reason_of(error)) from error

    async def listen(self) -> AsyncIterator[ChangeNotice]:
        """Messages from the channel; also an unpublished notice when the subscription is confirmed
        and after each ping.

        Raises `StoreError` when the connection is lost; the caller subscribes again.
        """
        client = connect_listener(
            self._settings,
            client_name=self._name("-events"),
            attempt=self._listens,
        )
        self._listens += 1
        channel = client.pubsub()
        try:
            async with asyncio.timeout(self._settings.connect_timeout + 1.0):
                await channel.subscribe(self._channel)
            asked = False
            while True:
                message = await channel.get_message(timeout=SILENCE)
                if message is None:
                    if asked:
                        raise StoreError("the subscription gives no sign of life")
                    asked = True
                    async with asyncio.timeout(self._settings.command_timeout):
                        await channel.ping()
                    continue
                asked = False
                if message["type"] == "message":
                    yield parse_notice(message["data"])
                else:
                    yield ChangeNotice(published=False)
        except NoPermissionError as error:
            if self._is_about_name(error):
                self._lacks("client", error)
                self._named = False
            else:
                self._lacks("subscribe", error)
            raise StoreError(self._reason_of(error)) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(self._reason_of(error)) from error
        finally:
            await _quietly_close(channel, client)

    async def close(self) -> None:
        """Close the connections."""
        await _quietly_close(self._client)

    def keys(self, name: str) -> list[str]:
        """The keys of one breaker, in the scripts' order."""
        return [f"{self._prefix}cb:{{{name}}}:{suffix}" for suffix in scripts.KEYS]

    def _arguments(self, breaker: CircuitBreaker, more: dict[str, Any]) -> str:
        rules = breaker.rules
        arguments = {
            "name": breaker.name,
            "owner": self._owner,
            "channel": self._channel,
            "known": breaker.generation,
            "tid": "",
            "threshold": rules.failure_threshold,
            "max_calls": rules.half_open_max_calls,
            "open_ms": round(rules.open_for * 1000),
            "longest_ms": round(breaker.open_time.longest * 1000),
            "forced_ms": round(FORCED_MOST * 1000),
            "max_open_ms": round(max(rules.open_for, rules.max_open_for or 0.0) * 1000),
            "jitter": round(breaker.open_time.jitter(), 4),
            "lease_ms": round(breaker.probe_lease * 1000),
            "ttl_ms": round(KEY_TTL * 1000),
            **more,
        }
        return json.dumps(arguments, separators=(",", ":"))

    async def _run(self, script: str, breaker: CircuitBreaker, **more: Any) -> SharedState:
        packed = self._arguments(breaker, more)
        seen = parse_snapshot(await self._evaluate(script, self.keys(breaker.name), packed))
        self._vitals.skews.note("redis", seen.server_time)
        if seen.unpublished:
            self._lacks("publish", seen.unpublished)
        return seen

    async def _evaluate(self, script: str, keys: list[str], packed: str) -> Any:
        sha = _digest(script)
        while True:
            client: Any = self._client  # single or Cluster: the same two commands
            try:
                try:
                    return await client.evalsha(sha, len(keys), *keys, packed)
                except NoScriptError:
                    return await client.eval(script, len(keys), *keys, packed)
            except NoPermissionError as error:
                if not self._is_about_name(error):
                    raise StoreError(self._reason_of(error)) from error
                self._lacks("client", error)
                self._named = False
                await _quietly_close(self._client)
                self._client = connect(self._settings, client_name=None)
                self._client_named = False
            except (RedisError, OSError, TimeoutError) as error:
                raise StoreError(self._reason_of(error)) from error

    def _is_about_name(self, error: NoPermissionError) -> bool:
        """Whether CLIENT SETNAME was refused. The name only helps people who read CLIENT LIST, so
        the connection is made again without it."""
        return (self._named or self._client_named) and "client" in str(error).lower()

    def _name(self, suffix: str = "") -> str | None:
        return f"reliability-proxy-breakers-{self._owner}{suffix}" if self._named else None

    def _reason_of(self, error: BaseException) -> str:
        ours = self._vitals.shortages.check(error, "the connection to Redis")
        if ours is not None:
            return DETAILS[ours]
        return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")

    def _lacks(self, right: str, error: object) -> None:
        """Record a missing right that the breakers can do without; one warning for each."""
        if right in self.missing_rights:
            return
        self.missing_rights[right] = _RIGHTS[right].format(channel=self._channel)
        _log.warning(
            "Redis refuses %s",
            self.missing_rights[right],
            extra={"event": "breaker_rights", "right": right, "error": str(error)[:200]},
        )


#: SHA-1 of each script, by its text.
_digests: dict[str, str] = {}


def _digest(script: str) -> str:
    if script not in _digests:
        _digests[script] = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    return _digests[script]


async def _quietly_close(*resources: Any) -> None:
    for resource in resources:
        try:
            async with asyncio.timeout(1.0):
                await resource.aclose()
        except (RedisError, OSError, TimeoutError):
            # It is being discarded, so its errors do not matter.
            continue


def parse_snapshot(text: bytes | str) -> SharedState:
    """Parse a script's reply. Raises `StoreError` if it is invalid.

    Lua has only one kind of empty table, so an empty list may arrive as an object.
    """
    try:
        raw = json.loads(text)
        now = raw["now"] / 1000
        return SharedState(
            name=raw["name"],
            generation=_whole(raw["gen"]),
            state=State(raw["state"]),
            server_time=now,
            remaining=max(0.0, raw["until"] / 1000 - now),
            # 0: no transition yet. It has been closed since this process began, not since 1970.
            age=max(0.0, now - raw["since"] / 1000) if raw["since"] else 0.0,
            failures=int(raw["failures"]),
            successes=int(raw["successes"]),
            opens=int(raw["opens"]),
            reason=raw["reason"],
            by=raw["by"],
            log=tuple(_entry(entry) for entry in raw["log"] or ()),
            recent=tuple(_failure(failure) for failure in raw["recent"] or ()),
            granted=tuple(raw["granted"] or ()),
            unpublished=str(raw.get("unpublished") or ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise StoreError(f"not an answer of ours: {error}") from error


def parse_notice(data: bytes | str) -> ChangeNotice:
    """Parse a message from the channel. A foreign message becomes an empty notice: it shows that
    the channel works, whoever sent it."""
    if len(data) > _NOTICE_SIZE:
        return ChangeNotice()
    try:
        raw = json.loads(data)
        return ChangeNotice(str(raw.get("name") or ""), _whole(raw.get("gen") or 0), str(raw["by"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return ChangeNotice()


def _whole(value: Any) -> int:
    """A count, or milliseconds. Raises `ValueError` for values that our scripts never write."""
    number = int(value)
    if not 0 <= number <= _MOST:
        raise ValueError(f"{number} is out of range")
    return number


def _entry(raw: dict[str, Any]) -> LogEntry:
    return LogEntry(
        int(raw["gen"]),
        State(raw["from"]),
        State(raw["to"]),
        raw["reason"],
        raw["by"],
        raw["tid"],
        bool(raw["restored"]),
    )


def _failure(raw: dict[str, Any]) -> Failure:
    return Failure(raw["at"], raw["kind"], raw.get("target"), raw.get("correlation_id"))
