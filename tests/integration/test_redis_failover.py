"""A mirror behind real Sentinels follows the master, also while the old one lives on."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio import Sentinel as LibrarySentinel
from redis.exceptions import RedisError

from proxy.config.schema import Redis as RedisSection
from proxy.core.clock import SystemClock
from proxy.core.redis.client import connect, master_finder
from proxy.demo.redis_server import RedisServer, free_port
from proxy.jobs.answers import Known
from proxy.jobs.creations import Creation
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.connection import RedisAccess
from tests.jobs_kit import PREFIX, deleted, eventually, followed, holds, job, settings, write

GROUP = "jobs-master"
#: In Redis; whether SQLite said so in time is a matter of the machine.
STORED = {Creation.CONFIRMED, Creation.DEGRADED}


class Sentinel(RedisServer):
    """One Sentinel that watches a master, alone responsible for its group."""

    def __init__(self, directory: Path, master: RedisServer) -> None:
        port = free_port()
        directory.mkdir(parents=True)
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {GROUP} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {GROUP} 1000\n"
            f"sentinel failover-timeout {GROUP} 20000\n"
        )
        super().__init__(directory, port)
        self.config = config

    def command(self) -> list[str]:
        """The Sentinel's own command line."""
        return [super().command()[0], str(self.config), "--sentinel"]


@dataclass
class Topology:
    """A master with a replica, and what the Sentinels say of them."""

    master: RedisServer
    replica: RedisServer
    sentinels: list[Sentinel] = field(default_factory=list)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{hosts}/{GROUP}"

    @property
    def section(self) -> RedisSection:
        return RedisSection(url=SecretStr(self.url))

    @asynccontextmanager
    async def app(self) -> AsyncIterator[Redis]:
        """A client as the app has one: redis-py's own, which asks when it connects."""
        library = LibrarySentinel(
            [("127.0.0.1", one.port) for one in self.sentinels], socket_timeout=1
        )
        client = library.master_for(GROUP, socket_timeout=1)
        try:
            yield client
        finally:
            await client.aclose()
            await library.aclose()


@pytest.fixture
def topology(tmp_path: Path) -> Iterator[Topology]:
    """Started, and in agreement with each other."""
    master = RedisServer(tmp_path / "one", None, "--repl-diskless-sync-delay", "0")
    master.start()
    replica = RedisServer(
        tmp_path / "two",
        None,
        *("--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0"),
    )
    replica.start()
    whole = Topology(master, replica)
    try:
        for number in range(2):
            sentinel = Sentinel(tmp_path / f"sentinel{number}", master)
            sentinel.start()
            whole.sentinels.append(sentinel)
        yield whole
    finally:
        for one in (*whole.sentinels, replica, master):
            one.kill()


@asynccontextmanager
async def mirror_of(topology: Topology, path: Path) -> AsyncIterator[Mirror]:
    """A started mirror behind the Sentinels."""
    section = topology.section
    mirror = Mirror(
        "make_video",
        settings(path),
        RedisAccess(lambda: connect(section, client_name="mirror", protocol=3)),
        JobMetrics(CollectorRegistry()),
        SystemClock(),
    )
    await mirror.start()
    try:
        yield mirror
    finally:
        await mirror.stop()


async def knows_the_replica(topology: Topology) -> None:
    """Wait until the Sentinels know whom they could promote, and each other."""
    async with contextlib.AsyncExitStack() as stack:
        for sentinel in topology.sentinels:
            client = Redis(port=sentinel.port)
            stack.push_async_callback(client.aclose)

            async def ready(client: Redis = client) -> bool:
                master = (await client.sentinel_masters())[GROUP]
                replicas = await client.sentinel_slaves(GROUP)
                return master["num-other-sentinels"] == len(topology.sentinels) - 1 and any(
                    one.get("master-link-status") == "ok" for one in replicas
                )

            await eventually(ready, "the Sentinels know the replica", 60)


async def fail_over(topology: Topology) -> None:
    """As an operator does it, with the old master alive."""
    client = Redis(port=topology.sentinels[0].port)
    try:

        async def begun() -> bool:
            with contextlib.suppress(RedisError):
                await client.execute_command("SENTINEL FAILOVER", GROUP)
                return True
            return False

        await eventually(begun, "a failover began", 60)
    finally:
        await client.aclose()


async def test_no_creation_is_false_while_the_old_master_lives(
    topology: Topology, tmp_path: Path
) -> None:
    """What the app stored on the new master is confirmed, and what it held before is there."""
    await knows_the_replica(topology)
    async with mirror_of(topology, tmp_path / "j.db") as mirror:
        await followed(mirror)
        raws: dict[str, bytes] = {}
        outcomes: dict[str, Creation] = {}

        async def create(number: int) -> None:
            job_id = f"mv_{number}"
            try:
                async with topology.app() as app:
                    raw = await write(app, job_id)
                    written_to = app.connection_pool.master_address  # type: ignore[attr-defined]
            except RedisError:
                return  # the app would have answered 500
            outcomes[job_id] = await mirror.creations.confirm(job_id)
            if outcomes[job_id] in STORED:
                raws[job_id] = raw
            elif written_to == old:
                del outcomes[job_id]  # it is lost: a master that was replaced took it

        link = mirror._session.link
        assert link is not None
        old = link.address
        await asyncio.gather(*(create(number) for number in range(20)))
        creations = []
        await fail_over(topology)

        async def moved() -> bool:
            creations.append(asyncio.create_task(create(100 + len(creations))))
            await asyncio.sleep(0.05)
            link = mirror._session.link
            return link is not None and link.address not in (None, old)

        await eventually(moved, "the mirror follows the new master", 60)
        creations += [asyncio.create_task(create(number)) for number in range(20, 40)]
        await asyncio.gather(*creations)
        assert len(outcomes) > 40
        assert set(outcomes.values()) <= STORED
        async with topology.app() as app:

            async def all_there() -> bool:
                with contextlib.suppress(RedisError):
                    values = await app.mget([PREFIX + one for one in raws])
                    return values == list(raws.values())
                return False

            await eventually(all_there, "every accepted job is on the new master", 60)
            for job_id in raws:
                assert isinstance(await mirror.reads.lookup(job_id), Known)
            # Deletions are believed on the new master as they were on the old one.
            await mirror.sync()
            raw = await write(app, "mv_last")
            await eventually(holds(mirror, "mv_last", raw), "captured")
            await app.delete(PREFIX + "mv_last")
            await eventually(deleted(mirror, "mv_last"), "deleted")


async def test_a_dead_master_is_replaced(topology: Topology, tmp_path: Path) -> None:
    """kill -9 of the master: its jobs are on the promoted replica, and new ones are confirmed."""
    await knows_the_replica(topology)
    async with mirror_of(topology, tmp_path / "j.db") as mirror:
        await followed(mirror)
        async with topology.app() as app:
            raw = await write(app, "mv_1")
        await eventually(holds(mirror, "mv_1", raw), "captured")
        await asyncio.to_thread(topology.master.kill)
        await eventually(lambda: mirror.creations.refusal() is not None, "creations are refused")

        async def there() -> bool:
            with contextlib.suppress(RedisError):
                async with topology.app() as app:
                    return bool(await app.get(PREFIX + "mv_1") == raw)
            return False

        await eventually(there, "the job is on the new master", 60)
        await eventually(lambda: mirror.redis_whole, "the mirror is there", 60)
        async with topology.app() as app:
            await write(app, "mv_2", job("mv_2"))
            assert await mirror.creations.confirm("mv_2") in STORED


async def test_the_newest_configuration_counts(topology: Topology) -> None:
    """A Sentinel that still names the old master is outvoted by one that knows better."""
    await knows_the_replica(topology)
    stale = topology.sentinels[1]
    before = stale.config.read_text()
    await asyncio.to_thread(stale.kill)
    await fail_over(topology)
    client = connect(topology.section, client_name="test")
    finder = master_finder(client)
    assert finder is not None

    async def moved() -> bool:
        return await finder.where() == ("127.0.0.1", topology.replica.port)

    await eventually(moved, "the switch is seen", 60)
    # As one that was cut off: it knows what it knew, and nobody tells it better.
    stale.config.write_text(re.sub(r"(?m)^sentinel known-.*\n", "", before))
    await asyncio.to_thread(stale.start)
    alone = Redis(port=stale.port)

    async def names_the_old_one() -> bool:
        with contextlib.suppress(RedisError):
            found = await alone.sentinel_get_master_addr_by_name(GROUP)
            return found is not None and int(found[1]) == topology.master.port
        return False

    await eventually(names_the_old_one, "one Sentinel is behind the times", 60)
    assert await moved()
    await alone.aclose()
    await finder.aclose()
    await client.aclose()
