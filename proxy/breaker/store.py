"""The Redis side: runs the scripts, listens to the channel. The only file here that imports redis.

Every method raises `StoreError` and nothing else of redis-py's, within the client's time limits.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from proxy.breaker import scripts
from proxy.breaker.circuit import CircuitBreaker
from proxy.breaker.messages import Failure, LogEntry, Report, Snapshot
from proxy.breaker.states import State
from proxy.redis_client import RedisSettings, connect, connect_listener
from proxy.shortage import DETAILS, SHORTAGES

#: Keys live this long after their last change (and after the end of an open time).
KEY_TTL = 7 * 86400.0
#: Seconds of silence on the channel after which the connection must prove that it lives.
_SILENCE = 5.0


_log = logging.getLogger("proxy.breaker")


class StoreError(Exception):
    """Redis is away, refuses, or speaks nonsense: the message says which."""


class BreakerStore:
    """The breakers' shared state in one Redis. Bound to the running loop; `close` when done."""

    def __init__(self, settings: RedisSettings, *, owner: str, key_prefix: str = "") -> None:
        self._settings = settings
        self._owner = owner
        self._prefix = key_prefix
        self._client_name = f"reliability-proxy-breakers-{owner}"
        self._client = connect(settings, client_name=self._client_name)
        self._channel = f"{key_prefix}cb:events"
        self._listens = 0

    async def report(self, breaker: CircuitBreaker, report: Report) -> Snapshot:
        """Send outcomes; what the breaker is after them."""
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
    ) -> Snapshot:
        """Ask for `want` probe leases; ends an open or forced time that is over, and an open time
        of this generation early where `well` says why the upstream is thought to be well."""
        return await self._run(scripts.ACQUIRE, breaker, tid=tid, want=want, well=well)

    async def force(
        self, breaker: CircuitBreaker, to: State, reason: str, seconds: float, tid: str
    ) -> Snapshot:
        """Set the state by hand for `seconds` (0: without end, only for `closed`)."""
        return await self._run(
            scripts.FORCE,
            breaker,
            tid=tid,
            to=to.value,
            reason=reason,
            for_ms=round(seconds * 1000),
        )

    async def merge(self, breaker: CircuitBreaker, now: float, tid: str) -> Snapshot:
        """Bring what is known here to a Redis that has come back."""
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

    async def look(self, breaker: CircuitBreaker) -> Snapshot:
        """What Redis has, changing nothing."""
        return await self._run(scripts.LOOK, breaker)

    async def listen(self) -> AsyncIterator[Snapshot | None]:
        """Transitions of the fleet as they come; None once, when the subscription stands.

        Raises `StoreError` when the connection is lost; the caller begins again.
        """
        client = connect_listener(
            self._settings, client_name=self._client_name + "-events", attempt=self._listens
        )
        self._listens += 1
        channel = client.pubsub()
        try:
            async with asyncio.timeout(self._settings.connect_timeout + 1.0):
                await channel.subscribe(self._channel)
            asked = False
            while True:
                message = await channel.get_message(timeout=_SILENCE)
                if message is None:
                    if asked:
                        raise StoreError("the subscription gives no sign of life")
                    asked = True
                    async with asyncio.timeout(self._settings.command_timeout):
                        await channel.ping()
                    continue
                asked = False
                if message["type"] == "subscribe":
                    yield None
                elif message["type"] == "message":
                    try:
                        news = parse_snapshot(message["data"])
                    except StoreError as error:
                        _log.debug("not understood on %s: %s", self._channel, error)
                        continue
                    yield news
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(_told(error)) from error
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
            "max_open_ms": round(max(rules.open_for, rules.max_open_for or 0.0) * 1000),
            "jitter": round(breaker.jitter(), 4),
            "lease_ms": round(breaker.probe_lease * 1000),
            "ttl_ms": round(KEY_TTL * 1000),
            **more,
        }
        return json.dumps(arguments, separators=(",", ":"))

    async def _run(self, script: str, breaker: CircuitBreaker, **more: Any) -> Snapshot:
        packed = self._arguments(breaker, more)
        keys = self.keys(breaker.name)
        sha = _digest(script)
        client: Any = self._client  # single or Cluster: the same two commands
        try:
            try:
                answer = await client.evalsha(sha, len(keys), *keys, packed)
            except NoScriptError:
                answer = await client.eval(script, len(keys), *keys, packed)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(_told(error)) from error
        return parse_snapshot(answer)


_digests: dict[str, str] = {}


def _digest(script: str) -> str:
    if script not in _digests:
        _digests[script] = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    return _digests[script]


def _told(error: BaseException) -> str:
    ours = SHORTAGES.check(error, "the connection to Redis")
    if ours is not None:
        return DETAILS[ours]
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")


async def _quietly_close(*resources: Any) -> None:
    for resource in resources:
        try:
            async with asyncio.timeout(1.0):
                await resource.aclose()
        except (RedisError, OSError, TimeoutError):
            # It is being thrown away because it is broken, or soon will be: nothing to tell.
            continue


def parse_snapshot(text: bytes | str) -> Snapshot:
    """A script's answer or a published message. Raises `StoreError` for anything else.

    Lua has one kind of empty table, so an empty list may come as an object.
    """
    try:
        raw = json.loads(text)
        now = raw["now"] / 1000
        return Snapshot(
            name=raw["name"],
            generation=int(raw["gen"]),
            state=State(raw["state"]),
            server_time=now,
            remaining=max(0.0, raw["until"] / 1000 - now),
            # 0: no transition yet. It is closed since whoever hears this began, not since 1970.
            age=max(0.0, now - raw["since"] / 1000) if raw["since"] else 0.0,
            failures=int(raw["failures"]),
            successes=int(raw["successes"]),
            opens=int(raw["opens"]),
            reason=raw["reason"],
            by=raw["by"],
            log=tuple(_entry(entry) for entry in raw["log"] or ()),
            recent=tuple(_failure(failure) for failure in raw["recent"] or ()),
            granted=tuple(raw["granted"] or ()),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"not an answer of ours: {error}") from error


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
