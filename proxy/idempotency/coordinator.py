"""One operation per key in the whole fleet: claims, waits, repeats and settles.

1. A request with a key is recorded in SQLite before it goes to the app, and claimed in Redis with a
   lease that its sidecar renews. So a key is executed neither by two sidecars nor again after a
   restart.
2. The first answer is durable before it is sent. Repetitions are answered from SQLite, or from
   Redis if another sidecar did the work.
3. A request that failed before the app can have executed it is forgotten: its key is free again.
4. A request that may have been executed without an answer stays `unknown` until evidence settles
   it: the jobs that have appeared in Redis since, except those whose creator was answered.
5. If Redis or SQLite is unavailable, the other one decides alone. No request fails because of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.core.clock import Clock
from proxy.core.errors import IdempotencyInProgress, IdempotencyMismatch
from proxy.core.waiting import happened
from proxy.idempotency.decide import Repeat, decide
from proxy.idempotency.record import MAX_ANSWER, Record, StoredAnswer, decode, encode

log = logging.getLogger(__name__)

LEASE = 15.0
"""Seconds that a claim in Redis outlives its sidecar."""

RENEW_EVERY = 5.0
WAIT = 10.0
"""Seconds for which a repetition waits for the first request before it gets 409."""

POLL = 0.25  # seconds between two checks of another sidecar's claim
RETRY_AFTER = 2.0
APPEAR_WITHIN = 2.0
"""Seconds after a failure within which a job that it may have created, and others' answers, appear
in Redis: the app writes the job first and answers 15 to 60 ms later."""

OTHERS_WITHIN = 30.0  # seconds to wait for other creations in progress
JOB_MARK = 3600.0  # seconds that a mark "this job's creator was answered" is kept
_MOST_WAITING = 1000


class Storage(Protocol):
    """The stores of records. `read`, `write` and `erase` use SQLite and are durable; the others use
    Redis, are shared, and raise `ConnectionError` while Redis is unreachable."""

    async def read(self, record_id: str) -> bytes | None: ...

    async def write(self, record_id: str, data: bytes, expires_at: float) -> bool:
        """Whether it was committed in time."""
        ...

    def erase(self, record_id: str) -> None: ...

    async def claim(self, record_id: str, data: bytes, lease: float) -> bytes | None:
        """Claim the record: None on success, else the existing data."""
        ...

    async def extend(self, claims: Mapping[str, bytes], lease: float) -> None: ...

    async def share(self, record_id: str, data: bytes, keep: float) -> None: ...

    async def withdraw(self, record_id: str, data: bytes) -> None:
        """Remove a claim if it is still this one."""
        ...

    async def mark_job(self, job_id: str, keep: float) -> bool:
        """Mark that a job's creator was answered; whether it was unmarked before."""
        ...

    async def unmarked(self, job_ids: Sequence[str]) -> list[str]:
        """The jobs among `job_ids` whose creator has not been answered."""
        ...

    async def jobs_created(self, since: float) -> Sequence[tuple[str, Mapping[str, Any]]] | None:
        """(id, document) of each job created since then; None if that cannot be known."""
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that this exchange works on. `fields` has the SHA-256 of each form field, by which its
    job is recognised."""

    record_id: str
    record: Record
    keep: float
    fields: Mapping[str, bytes]


class Coordinator:
    """Applies the rules at the top of this file. Call `renew` regularly, and `stop` at the end.

    `owner` identifies this process. `count` is called with the outcome of each keyed request.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        owner: str,
        count: Callable[[str], None],
        *,
        wait: float = WAIT,
        appear_within: float = APPEAR_WITHIN,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._owner = owner
        self._count = count
        self._patience = wait
        self._appear_within = appear_within
        self._claims: dict[str, Claim] = {}
        self._trying: set[str] = set()  # claims that are not confirmed yet
        self._changed: dict[str, asyncio.Event] = {}
        self._settling: set[asyncio.Task[Any]] = set()
        self._at_app: dict[object, float] = {}

    def sent(self, exchange: object) -> None:
        """A creation is sent to the app, with or without a key; new jobs may be its own."""
        self._at_app[exchange] = self._clock.monotonic()

    def ended(self, exchange: object) -> None:
        """The creation has ended, answered or not."""
        self._at_app.pop(exchange, None)

    async def renew(self) -> None:
        """Extend every lease of this process; to be called every `RENEW_EVERY` seconds."""
        claims = {
            one.record_id: encode(one.record)
            for one in self._claims.values()
            if one.record_id not in self._trying
        }
        if claims:
            with suppress(ConnectionError):  # logged by the owner of the connection
                await self._storage.extend(claims, LEASE)

    async def stop(self) -> None:
        """Cancel the settling tasks."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    # --- before the app -------------------------------------------------------------------------

    async def begin(
        self, record_id: str, fingerprint: str, keep: float, fields: Mapping[str, bytes]
    ) -> Claim | StoredAnswer:
        """A claim to proceed with, or the answer to repeat.

        Raises `IdempotencyMismatch`, and `IdempotencyInProgress` if the first request does not
        finish in time.
        """
        deadline = self._clock.monotonic() + self._patience
        while True:
            here = self._claims.get(record_id)
            found: Record | None
            if here is not None:
                found, alive = here.record, True
            else:
                ours, found, alive = await self._claim(record_id, fingerprint, keep, fields)
                if ours is not None:
                    return ours
            match decide(found, fingerprint, owner_alive=alive):
                case Repeat(answer):
                    self._count("replayed")
                    return answer
                case "mismatch":
                    self._count("mismatch")
                    raise IdempotencyMismatch(
                        "This Idempotency-Key was used for another request: use a new key for it"
                    )
                case "settle":
                    assert found is not None
                    open_claim = Claim(record_id, found, keep, fields)
                    self._claims[record_id] = open_claim  # others of this process wait
                    if (settled := await self.settle(open_claim)) is not None:
                        self._count("replayed")
                        return settled
                    if await self._storage.read(record_id) is None:
                        continue
                case _:
                    pass
            if self._clock.monotonic() >= deadline:
                self._count("in_progress")
                raise IdempotencyInProgress(
                    "The first request with this Idempotency-Key is not finished: try again",
                    retry_after=RETRY_AFTER,
                )
            await self._wait(record_id, here is not None)

    async def _claim(
        self, record_id: str, fingerprint: str, keep: float, fields: Mapping[str, bytes]
    ) -> tuple[Claim | None, Record | None, bool]:
        """A claim of our own, or the record that prevents it and whether its owner is alive."""
        record = Record(fingerprint, "running", self._owner, self._clock.time())
        claim = Claim(record_id, record, keep, fields)
        self._claims[record_id] = claim  # before the first await: others of this process wait
        self._trying.add(record_id)
        data = encode(record)
        owned = False
        try:
            found = decode(await self._storage.read(record_id))
            if found is not None and found.answer is not None:
                return None, found, True
            try:
                shared = await self._storage.claim(record_id, data, LEASE)
            except ConnectionError:
                # SQLite alone decides; a record from before a restart has no living owner.
                shared = None
            # Equal data is our own claim, whose reply was lost.
            if shared is not None and shared != data:
                theirs = decode(shared)
                # Unreadable data counts as a request in progress elsewhere.
                unreadable = Record(fingerprint, "running", "", record.started_at)
                return None, theirs or unreadable, True
            if found is not None:
                await self._withdraw(record_id, data)
                return None, found, False
            await self._storage.write(record_id, data, record.started_at + keep)
            owned = True
            self._count("first")
            return claim, None, True
        finally:
            self._trying.discard(record_id)
            if not owned:
                self._forget(record_id)

    async def _wait(self, record_id: str, here: bool) -> None:
        """Wait until the earlier request may have changed its state."""
        if not here or len(self._changed) >= _MOST_WAITING:
            await asyncio.sleep(POLL)
            return
        event = self._changed.setdefault(record_id, asyncio.Event())
        await happened(event, self._patience)

    # --- after the app --------------------------------------------------------------------------

    async def keep(self, claim: Claim, answer: StoredAnswer) -> bool:
        """Store the answer durably before it is sent. False if it could not be stored at all."""
        if len(answer.body) > MAX_ANSWER:
            log.warning("answer too long to be kept", extra={"size": len(answer.body)})
            await self.release(claim)
            return False
        data = encode(claim.record.finished(answer))
        try:
            written = await self._storage.write(
                claim.record_id, data, self._clock.time() + claim.keep
            )
            try:
                await self._storage.share(claim.record_id, data, claim.keep)
            except ConnectionError:
                return written
            return True
        finally:
            self._forget(claim.record_id)

    async def release(self, claim: Claim) -> None:
        """The app cannot have executed the request: free the key."""
        try:
            self._storage.erase(claim.record_id)
            await self._withdraw(claim.record_id, encode(claim.record))
        finally:
            self._forget(claim.record_id)

    async def settle(self, claim: Claim) -> StoredAnswer | None:
        """Find out what became of a request that may have been executed. Returns its answer, or
        None if the key is free again or the outcome is still unknown (its record then says so)."""
        unknown = claim.record.left_open()
        try:
            await self._storage.write(
                claim.record_id, encode(unknown), self._clock.time() + claim.keep
            )
            candidates = await self._candidates(claim)
            if candidates is not None and not candidates:
                self._count("freed")
                await self.release(claim)
                return None
            if candidates is None or len(candidates) > 1:
                self._count("unknown")
                await self._share_unknown(claim, unknown)
                return None
            if not await self._take(candidates[0]):
                return None  # another sidecar settles it
            answer = accepted_answer(candidates[0])
            self._count("adopted")
            log.info("job of an unanswered creation found", extra={"job_id": candidates[0]})
            await self.keep(claim, answer)
            return answer
        finally:
            self._forget(claim.record_id)

    def close(self, claim: Claim, *, sent: bool) -> None:
        """The exchange has ended without an answer to keep. `sent`: the app may have executed it,
        which is then settled in the background."""
        work = self.settle(claim) if sent else self._free(claim)
        task = asyncio.get_running_loop().create_task(work, name="idempotency:settle")
        self._settling.add(task)
        task.add_done_callback(self._settled)

    async def _free(self, claim: Claim) -> None:
        await self.release(claim)

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("settling failed", exc_info=error)

    async def answered(self, job_id: str) -> None:
        """A creation was answered, so this job does not belong to a lost answer."""
        with suppress(ConnectionError):  # nothing is adopted either while Redis is away
            await self._storage.mark_job(job_id, JOB_MARK)

    async def _candidates(self, claim: Claim) -> list[str] | None:
        """Jobs that this request may have created; None if that cannot be known."""
        failed_at = self._clock.monotonic()
        await asyncio.sleep(self._appear_within)
        while any(at <= failed_at for at in self._at_app.values()):
            # New jobs may belong to other creations: wait until those are answered.
            if self._clock.monotonic() >= failed_at + OTHERS_WITHIN:
                return None
            await asyncio.sleep(POLL)
        created = await self._storage.jobs_created(claim.record.started_at)
        if created is None:
            return None
        alike = [job_id for job_id, document in created if _fits(document, claim.fields)]
        try:
            return await self._storage.unmarked(alike)
        except ConnectionError:
            return None

    async def _take(self, job_id: str) -> bool:
        """Mark the job as this request's; False if another one has it already."""
        try:
            return await self._storage.mark_job(job_id, JOB_MARK)
        except ConnectionError:
            return False

    async def _share_unknown(self, claim: Claim, unknown: Record) -> None:
        with suppress(ConnectionError):
            await self._storage.share(claim.record_id, encode(unknown), claim.keep)

    async def _withdraw(self, record_id: str, data: bytes) -> None:
        with suppress(ConnectionError):  # its lease expires anyway
            await self._storage.withdraw(record_id, data)

    def _forget(self, record_id: str) -> None:
        self._claims.pop(record_id, None)
        event = self._changed.pop(record_id, None)
        if event is not None:
            event.set()


def _fits(document: Mapping[str, Any], fields: Mapping[str, bytes]) -> bool:
    """Whether a job's document contradicts none of the form fields, given as SHA-256."""
    return all(_same(document.get(name), digest) for name, digest in fields.items())


def _same(value: object, digest: bytes) -> bool:
    if value is None or isinstance(value, list | dict | float):
        return True  # absent, or of a type whose form spelling is unknown
    texts = {str(value), str(value).lower(), str(int(value)) if isinstance(value, bool) else ""}
    return any(hashlib.sha256(text.encode()).digest() == digest for text in texts)


def accepted_answer(job_id: str) -> StoredAnswer:
    """The answer that the app would have given, as far as callers use it."""
    body = {"status": "accepted", "message": "The job was accepted", "job_id": job_id}
    return StoredAnswer(202, (b"Content-Type: application/json",), json.dumps(body).encode())
