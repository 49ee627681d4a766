"""Creations that carry an Idempotency-Key, or repeat an upload: one operation, one answer.

The stage comes after the upload check and the job's confirmation: only accepted requests are
claimed, and only confirmed answers are kept. If the caller leaves, its request still runs to the
answer, because the caller will ask for it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter

from proxy.config.listeners import Idempotency as Rules
from proxy.core.clock import Clock
from proxy.core.errors import BadRequest, ProxyError
from proxy.core.headers import new_correlation_id
from proxy.core.tasks import Supervised, Tasks
from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.client_shares import Networks, client_key, forwarded_client, trusted
from proxy.forward.routing.plan import Hooks, Reply, Trouble
from proxy.idempotency.coordinator import RENEW_EVERY, Claim, Coordinator
from proxy.idempotency.decide import outcome_of_answer, outcome_of_failure
from proxy.idempotency.key import fingerprint, parse_key, record_id, upload_record_id
from proxy.idempotency.record import KEPT_FIELDS, StoredAnswer
from proxy.jobs.mirror import Mirror
from proxy.uploads.check import UploadCheck

REPLAYED = b"Idempotency-Replayed: true"

#: Fields that identify a caller; without any, its address does.
_CREDENTIALS = (b"x-api-key", b"authorization")

#: Forms without a checked file up to this many bytes are compared without their boundaries.
_SMALL_FORM = 256 * 1024

_BOUNDARY = re.compile(
    rb'^\s*multipart/[^;]*;(?:.*;)?\s*boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE
)

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class IdempotencyStage:
    """Binds to routes with `idempotency:`. Call `start` before use and `stop` after."""

    def __init__(
        self,
        mirrors: Mapping[str, Mirror],
        registry: CollectorRegistry,
        clock: Clock,
        tasks: Tasks | None = None,
    ) -> None:
        self._mirrors = mirrors
        self._clock = clock
        self._owner = new_correlation_id()
        self._coordinators: dict[str, Coordinator] = {}
        self._requests = Counter(
            "proxy_idempotent_requests_total",
            "Creations with an idempotency key, or that may repeat an upload, by outcome: first,"
            " replayed, in_progress, mismatch, adopted, freed, unknown",
            ["mirror", "outcome"],
            registry=registry,
        )
        self._renewing = Supervised("idempotency:renew", self._renew, tasks or Tasks())

    def bind(self, binding: Binding) -> Hooks | None:
        """Nothing on routes without `idempotency:`."""
        route = binding.route
        if route is None or route.idempotency is None:
            return None
        assert route.job is not None, "the loader has seen to that"
        coordinator = self._coordinator(route.job.mirror)
        proxies = binding.listener.trusted_proxies
        guard = _Guard(coordinator, route.idempotency, route.job.mirror, proxies)
        return Hooks(admit=guard.admit, fallback_source=guard, finished=guard.finished)

    def _coordinator(self, mirror: str) -> Coordinator:
        """One coordinator per mirror, kept across reloads with its claims."""
        if mirror not in self._coordinators:
            self._coordinators[mirror] = Coordinator(
                self._mirrors[mirror].answers, self._clock, self._owner, partial(self.count, mirror)
            )
        return self._coordinators[mirror]

    def count(self, mirror: str, outcome: str) -> None:
        """Count the outcome of a request with a key."""
        self._requests.labels(mirror, outcome).inc()

    async def start(self) -> None:
        """Start renewing claims."""
        self._renewing.start()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY)
            for coordinator in list(self._coordinators.values()):
                await coordinator.renew()

    async def stop(self) -> None:
        """Stop. The next process finds the requests that were in progress."""
        await self._renewing.stop()
        for coordinator in self._coordinators.values():
            await coordinator.stop()


class _Guard:
    """Applies idempotency to one route."""

    needs_body = True

    def __init__(
        self, coordinator: Coordinator, rules: Rules, family: str, proxies: Networks
    ) -> None:
        self._coordinator = coordinator
        self._proxies = proxies
        self._rules = rules
        self._family = family
        self._claims: dict[Exchange, Claim] = {}

    # --- before the app -------------------------------------------------------------------------

    async def admit(self, exchange: Exchange) -> Reply | None:
        """The answer to repeat, or None to proceed. Raises `BadRequest` for an invalid key,
        `IdempotencyMismatch` and `IdempotencyInProgress`."""
        if exchange.method in _SAFE:
            return None
        assert exchange.head is not None
        try:
            key = parse_key(exchange.head.values(b"idempotency-key"))
        except ValueError as error:
            raise BadRequest(str(error), reason="idempotency_key") from None
        answer = await self._claim(exchange, key)
        if answer is None:
            self._coordinator.sent(exchange)
            return None
        exchange.note(idempotency="replayed")
        return Reply(answer.status, (*answer.fields, REPLAYED), answer.body)

    async def _claim(self, exchange: Exchange, key: str | None) -> StoredAnswer | None:
        same_within = self._rules.same_upload_within
        if key is None and not same_within:
            return None
        content = _content(exchange)
        if content is None:
            # The spool is full and the body is streamed: its content is known only afterwards.
            exchange.note(idempotency="streamed")
            return None
        print_ = fingerprint(exchange.method, exchange.path, content)
        caller = _caller(exchange)
        if key is not None:
            name, keep = record_id(self._family, caller, key), self._rules.keep
        else:
            caller = caller or [_address(exchange, self._proxies)]
            name, keep = upload_record_id(self._family, caller, print_), same_within
        claimed = await self._coordinator.begin(name, print_, keep, _fields(content))
        if isinstance(claimed, StoredAnswer):
            return claimed
        self._claims[exchange] = claimed
        exchange.see_through = True
        return None

    # --- after the app --------------------------------------------------------------------------

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        """Every outcome of a claimed exchange, and the response to any creation."""
        if exchange in self._claims:
            return True
        return not isinstance(trouble, ProxyError) and exchange.method not in _SAFE

    async def fallback(self, exchange: Exchange, trouble: Trouble) -> Reply | None:
        """Keep the answer before it is sent; if there was none, look for the job."""
        claim = self._claims.pop(exchange, None)
        if claim is None:
            await self._answered(exchange)
            return None
        exchange.see_through = False
        if isinstance(trouble, ProxyError):
            outcome = outcome_of_failure(trouble.code, sent=exchange.sent_at > 0)
        else:
            outcome = outcome_of_answer(trouble.status)
        if outcome == "keep" and not isinstance(trouble, ProxyError):
            await self._answered(exchange)
            if exchange.response_body is not None:
                fields = tuple(line for line in trouble.lines if _kept(line))
                await self._coordinator.keep(
                    claim, StoredAnswer(trouble.status, fields, exchange.response_body)
                )
                return None
            outcome = "unknown"  # too long to be repeated
        self._coordinator.ended(exchange)
        if outcome == "release":
            await self._coordinator.release(claim)
            return None
        settled = await self._coordinator.settle(claim)
        if settled is None:
            return None
        exchange.note(idempotency="adopted")
        return Reply(settled.status, settled.fields, settled.body)

    async def _answered(self, exchange: Exchange) -> None:
        self._coordinator.ended(exchange)
        job_id = (exchange.extra or {}).get("job_id")
        if isinstance(job_id, str):
            await self._coordinator.answered(job_id)

    def finished(self, exchange: Exchange) -> None:
        """The exchange is over: its claim must not outlive it."""
        self._coordinator.ended(exchange)
        claim = self._claims.pop(exchange, None)
        if claim is not None:
            self._coordinator.close(claim, sent=exchange.sent_at > 0)


def _caller(exchange: Exchange) -> list[bytes]:
    assert exchange.head is not None
    return [value for name in _CREDENTIALS for value in exchange.head.values(name)]


def _address(exchange: Exchange, proxies: Networks) -> bytes:
    """The address of a caller without credentials: its own, or the one from a trusted proxy."""
    assert exchange.head is not None
    host = exchange.stream.host_ip
    chain = [v for name, v in exchange.head.forwarded or () if name == b"x-forwarded-for"]
    if chain and trusted(host, proxies):
        host = forwarded_client(host, chain, proxies)
    return client_key(host) or b"unix"


def _content(exchange: Exchange) -> list[tuple[bytes, ...]] | None:
    """The request's content for its fingerprint; None if the whole body is not known."""
    if isinstance(exchange.filter, UploadCheck):
        return exchange.filter.content
    body = exchange.buffered
    if body is None:
        return [] if exchange.body.done else None
    if not body.complete:
        return None
    assert exchange.head is not None
    kinds = exchange.head.values(b"content-type")
    boundary = _BOUNDARY.search(kinds[0]) if kinds else None
    if boundary is not None and body.size <= _SMALL_FORM and not body.in_file:
        # Clients use a new boundary each time; without it, repeated forms are equal.
        content = b"".join(body.in_memory(0, body.size))
        content = content.replace(b"--" + (boundary[1] or boundary[2]), b"--")
        return [(b"form", hashlib.sha256(content).digest())]
    digest = body.digest()
    return None if digest is None else [(b"body", digest)]


def _fields(content: Sequence[tuple[bytes, ...]]) -> dict[str, bytes]:
    """SHA-256 of the form's text fields, which the job's document repeats."""
    return {part[1].decode("utf-8", "replace"): part[2] for part in content if part[0] == b"field"}


def _kept(line: bytes) -> bool:
    return line.partition(b":")[0].strip().lower() in KEPT_FIELDS
