"""What a route does with jobs: create, read, list or delete them, with the mirror at its side.

The rules, from what the real service does (its answers about jobs cannot be believed as they are):

 1. creates: refused at once while Redis cannot keep a job; an accepting answer leaves only after
    the job's key was seen in Redis and its row committed, and else becomes 503 `job_not_stored`.
 2. reads: a 200 passes, unless the job was deleted through us. A 404 proves nothing: what the
    mirror holds is put back into Redis and the app asked once more. Where that fails, where the app
    fails, or where it is silent for `fallback_after`, the mirror answers. Where the mirror cannot
    look either, a 404 becomes 503 `store_away` as long as it may be untrue.
    An app that is known to answer nobody is not waited for: the mirror is asked first.
    An answer about an unfinished job also has its place in the queue and when it will be done.
 3. lists: the mirror answers where the app fails, is silent, or has no Redis to look into.
 4. deletes: leave a tombstone. Where the app could not do it, it is told later. Of a 404 the same
    holds as for reads.
 5. The app may want an API key. Where the config knows it, the mirror answers for the app only who
    sends it, deletions included: an app that is away must not open its jobs to anyone.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from urllib.parse import parse_qs

from proxy.config.listeners import JobRole
from proxy.core.clock import iso_utc
from proxy.core.errors import (
    ApiKeyNeeded,
    JobExpired,
    ProxyError,
    StillWaiting,
    Unavailable,
    UpstreamFailure,
)
from proxy.core.process.shortage import Shortages
from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import reserve
from proxy.forward.routing.compile import Binding, client_tls
from proxy.forward.routing.plan import AskAgain, Hooks, Reply, Trouble
from proxy.jobs.mirror import Answer, Creation, Expired, Known, Mirror, NoAnswer, Tombstoned
from proxy.routes.jobs.app_presence import AppPresence
from proxy.routes.jobs.late_deletes import LateDeletes
from proxy.uploads.check import UploadCheck

logger = logging.getLogger(__name__)

#: Seconds between two looks of a mirror whose store did not answer, while the app is silent too.
_LOOK_AGAIN = 1.0

MirrorOf = Callable[[str], Mirror]


#: Methods that create nothing, where a route takes them beside the one that does (RFC 9110 §9.2.1).
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class JobRoles:
    """Binds to routes with `job:`."""

    def __init__(self, mirror_of: MirrorOf, shortages: Shortages) -> None:
        self._shortages = shortages
        self._mirror_of = mirror_of
        self._presence: dict[str, AppPresence] = {}  # by upstream

    def bind(self, binding: Binding) -> Hooks | None:
        """Exactly one of the four roles, as the config says."""
        if binding.route is None or binding.route.job is None:
            return None
        role = binding.route.job
        mirror = self._mirror_of(role.mirror)
        secret = mirror.settings.api_key
        api_key = secret.get_secret_value() if secret is not None else None
        door = _Door(api_key)
        if role.creates:
            creates = _Creates(mirror)
            return Hooks(
                request=creates.refuse if role.require_redis else None, fallback_source=creates
            )
        if role.deletes is not None:
            assert binding.upstream is not None
            late = LateDeletes(
                binding.upstream.targets[0],
                client_tls(binding.upstream),
                binding.route.path,
                role.deletes,
                api_key,
                self._shortages,
            )
            return Hooks(
                fallback_source=_Deletes(mirror, door, role.deletes),
                adopted=partial(mirror.pass_deletions_to, late),
            )
        fallback_source = (
            _Reads(mirror, door, role.reads) if role.reads is not None else _Lists(mirror, door)
        )
        presence = self._presence.setdefault(binding.route.upstream, AppPresence())
        patience = _Patience(mirror, fallback_source, role, presence)
        return Hooks(started=patience.begin, fallback_source=fallback_source, finished=patience.end)


class _Door:
    """Rule 5. Without a key everybody may come in."""

    def __init__(self, api_key: str | None) -> None:
        self._key = None if api_key is None else api_key.encode()

    def admits(self, exchange: Exchange, trouble: Trouble) -> bool:
        """Whether the mirror may answer. False when the app's own answer is to stand; raises
        `ApiKeyNeeded` when there is none."""
        if self._key is None:
            return True
        assert exchange.head is not None
        given = exchange.head.values(b"x-api-key")
        if len(given) == 1 and hmac.compare_digest(given[0], self._key):
            return True
        if isinstance(trouble, ProxyError):
            raise ApiKeyNeeded("Invalid or missing API key")
        return False


class _Creates:
    """Rule 1."""

    needs_body = True

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def refuse(self, exchange: Exchange) -> None:
        if exchange.method in _SAFE:
            return
        refusal = self._mirror.creation_refusal()
        if refusal is not None:
            if (problem := self._mirror.store_problem) is not None:
                exchange.note(store_problem=problem)
            raise refusal

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        if isinstance(trouble, ProxyError) or exchange.method in _SAFE:
            return False
        return 200 <= trouble.status < 300

    async def rescue(self, exchange: Exchange, trouble: Trouble) -> Reply | None:
        job_id = _job_id(exchange.held)
        if job_id is None:
            # No creation, or none that can be recognised: an operator has to know of the second.
            exchange.note(job_stored="unknown")
            self._mirror.unreadable_creation()
            return None
        exchange.note(job_id=job_id)
        result = await self._mirror.confirm_created(job_id)
        exchange.note(job_stored=result.value)
        self._mirror.active.created(job_id, exchange.correlation_id)
        if result is Creation.NOT_STORED:
            raise self._mirror.not_stored()
        exchange.added = self._mirror.forecast(job_id)
        seconds = (
            exchange.filter.facts.get("duration")
            if isinstance(exchange.filter, UploadCheck)
            else None
        )
        if seconds is not None:
            self._mirror.input_measured(job_id, seconds)
        return None


class _Reads:
    """Rule 2."""

    needs_body = False

    def __init__(self, mirror: Mirror, door: _Door, parameter: str) -> None:
        self._mirror = mirror
        self._door = door
        self._parameter = parameter

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        if exchange.method not in ("GET", "HEAD"):
            return False
        if isinstance(trouble, ProxyError):
            return _upstream_is_away(trouble)
        if trouble.status == 200:
            job_id = exchange.parameters[self._parameter]
            if self._mirror.is_gone(job_id):
                return True
            if not exchange.asked_again:  # its answer has fields of ours already
                exchange.added = self._mirror.forecast(job_id)
            return False
        return trouble.status == 404 or trouble.status >= 500

    async def rescue(self, exchange: Exchange, trouble: Trouble) -> Reply | AskAgain | None:
        found = await self.look(exchange, trouble)
        return None if isinstance(found, NoAnswer) else found

    async def look(
        self, exchange: Exchange, trouble: Trouble
    ) -> Reply | AskAgain | NoAnswer | None:
        """As `rescue`, and `NoAnswer` where another look may find what this one could not."""
        job_id = exchange.parameters[self._parameter]
        exchange.added = b""  # the answer to a second question was no better: nothing was repaired
        if not self._door.admits(exchange, trouble):
            return None
        match await self._mirror.lookup(job_id):
            case Tombstoned():
                return _reply(self._mirror.not_found())
            case Expired(expired_at):
                raise JobExpired(
                    f"Job {job_id} expired at {iso_utc(expired_at)}", expired_at=iso_utc(expired_at)
                )
            case Known() as known:
                exchange.note(job_id=job_id)
                said_404 = not isinstance(trouble, ProxyError) and trouble.status == 404
                again = (
                    said_404
                    and not exchange.asked_again
                    and exchange.body.done
                    and not exchange.bytes_in
                )
                if again and await self._mirror.revive(job_id):
                    fields = self._mirror.headers("redis", known.as_of)
                    lines = _lines(f for f in fields if f[0] != "Content-Type")
                    forecast = self._mirror.forecast(job_id).split(b"\r\n")[1:]
                    return AskAgain((*lines, *forecast))
                answer = self._mirror.app_answer(known)
                return None if answer is None else _reply(answer)
            case NoAnswer() as silent:
                _doubt(self._mirror, job_id, trouble)
                return silent
        return None


class _Lists:
    """Rule 3."""

    needs_body = False

    def __init__(self, mirror: Mirror, door: _Door) -> None:
        self._mirror = mirror
        self._door = door

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        if exchange.method not in ("GET", "HEAD"):
            return False
        if isinstance(trouble, ProxyError):
            return _upstream_is_away(trouble)
        return trouble.status >= 500 or (trouble.status == 200 and not self._mirror.redis_whole)

    async def rescue(self, exchange: Exchange, trouble: Trouble) -> Reply | None:
        found = await self.look(exchange, trouble)
        return None if isinstance(found, NoAnswer) else found

    async def look(self, exchange: Exchange, trouble: Trouble) -> Reply | NoAnswer | None:
        """As `_Reads.look`."""
        if not self._door.admits(exchange, trouble):
            return None
        query = parse_qs(exchange.path.partition("?")[2])
        limit = query.get("limit", [""])[0]
        answer = await self._mirror.listing(
            query.get("status", [None])[0],
            int(limit[:9]) if limit.isdecimal() else None,
            partial(reserve, exchange),
        )
        if answer is None and exchange.holding is not None:
            exchange.holding.clear()
        return NoAnswer() if answer is None else _reply(answer)


class _Deletes:
    """Rule 4."""

    needs_body = False

    def __init__(self, mirror: Mirror, door: _Door, parameter: str) -> None:
        self._mirror = mirror
        self._door = door
        self._parameter = parameter

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        if exchange.method != "DELETE":
            return False
        if isinstance(trouble, ProxyError):
            return _upstream_is_away(trouble)
        return trouble.status < 300 or trouble.status == 404 or trouble.status >= 500

    async def rescue(self, exchange: Exchange, trouble: Trouble) -> Reply | None:
        job_id = exchange.parameters[self._parameter]
        exchange.note(job_id=job_id)
        if not isinstance(trouble, ProxyError) and trouble.status < 300:
            await self._mirror.tombstone(job_id, told=True)
            return None
        if not self._door.admits(exchange, trouble):
            return None
        match await self._mirror.lookup(job_id):
            case Tombstoned():
                return _reply(self._mirror.not_found())
            case Known():
                pass
            case NoAnswer():
                _doubt(self._mirror, job_id, trouble)
                return None
            case _:
                return None
        # The app's 404 is its word that there is nothing left for it to do, if it could look.
        told = not isinstance(trouble, ProxyError) and trouble.status == 404
        told = told and self._mirror.redis_whole
        if not await self._mirror.tombstone(job_id, told=told):
            _doubt(self._mirror, job_id, trouble)
            return None
        return _reply(self._mirror.deleted_answer(job_id))


class _Patience:
    """`fallback_after`: asks the mirror while the app is still silent, or as soon as it refuses.

    The request to the app goes on meanwhile; only an answer of the mirror ends it. A mirror that is
    too slow to look is asked again until the app answers or gives up. While the app is
    known to answer nobody, the mirror is asked first, and the app only for what the mirror does not
    know, and by one request at a time.
    """

    def __init__(
        self, mirror: Mirror, fallback_source: _Reads | _Lists, role: JobRole, presence: AppPresence
    ) -> None:
        self._mirror = mirror
        self._rescuer = fallback_source
        self._after = role.fallback_after
        self._presence = presence
        self._running: dict[Exchange, asyncio.TimerHandle | asyncio.Task[None]] = {}

    def begin(self, exchange: Exchange) -> None:
        """Start the clock of one exchange."""
        loop = asyncio.get_running_loop()
        self._running[exchange] = loop.call_later(self._after, self._over, exchange)
        exchange.on_refused = self._refused
        if not self._presence.goes(exchange):
            away = StillWaiting("The service answers nobody")
            if self._rescuer.wants(exchange, away):
                exchange.away = away

    def end(self, exchange: Exchange) -> None:
        """The exchange is over."""
        self._presence.ended(exchange)
        running = self._running.pop(exchange, None)
        if running is not None:
            running.cancel()

    def _refused(self, exchange: Exchange) -> None:
        self._mirror.app_is_down()
        self._over(exchange)

    def _over(self, exchange: Exchange) -> None:
        """No answer in time, or every target refused; once for each exchange."""
        exchange.on_refused = None
        if isinstance(running := self._running.get(exchange), asyncio.TimerHandle):
            running.cancel()
        if not exchange.replied:
            self._presence.missed()
        waited = StillWaiting(f"No answer within {self._after:g}s")
        if exchange.replied or not self._rescuer.wants(exchange, waited):
            return
        loop = asyncio.get_running_loop()
        self._running[exchange] = loop.create_task(
            self._ask(exchange, waited), name="mirror answers for the app"
        )

    async def _ask(self, exchange: Exchange, waited: StillWaiting) -> None:
        try:
            reply = await self._rescuer.look(exchange, waited)
            while isinstance(reply, NoAnswer):
                await asyncio.sleep(_LOOK_AGAIN)
                reply = await self._rescuer.look(exchange, waited)
        except ProxyError:
            return  # the job expired, or no key: the app's own word is worth waiting for
        except Exception:
            # Nobody awaits us but the exchange, which goes on waiting for the app.
            logger.exception("rescue failed", extra={"correlation_id": exchange.correlation_id})
            return
        if isinstance(reply, Reply) and not exchange.replied:
            exchange.note(rescued_from="silence")
            exchange.instead = reply
            exchange.stream.wake()


def _doubt(mirror: Mirror, job_id: str, trouble: Trouble) -> None:
    """Raise, rather than pass on a 404 that may be untrue. Other trouble passes as what it is."""
    if not isinstance(trouble, ProxyError) and trouble.status == 404:
        doubt = mirror.cannot_tell(job_id)
        if doubt is not None:
            raise doubt


def _upstream_is_away(trouble: ProxyError) -> bool:
    return isinstance(trouble, UpstreamFailure | StillWaiting) or (
        isinstance(trouble, Unavailable) and trouble.code in ("circuit_open", "overloaded")
    )


def _job_id(body: bytes | None) -> str | None:
    """The ID in an accepting answer, of either version of the app."""
    try:
        document = json.loads(body or b"")
    except (ValueError, RecursionError):  # deep nesting ends in the latter
        return None
    if not isinstance(document, dict):
        return None
    job_id = document.get("job_id") or document.get("id")
    return job_id if isinstance(job_id, str) and job_id else None


def _lines(fields: Iterable[tuple[str, str]]) -> tuple[bytes, ...]:
    return tuple(f"{name}: {value}".encode("latin-1") for name, value in fields)


def _reply(answer: Answer) -> Reply:
    return Reply(answer.status, _lines(answer.headers), answer.body)
