"""Redis clients from the config: one server, a unix socket, Sentinel or Cluster.

Every client fails fast: connect and command times are bounded, and the library does not retry,
because each user of Redis in this proxy has its own way to go on without it.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.sentinel import MasterNotFoundError

from proxy.core.redis.url import RedisAddress, parse_redis_url

#: Both have the same commands and `aclose()`.
AnyRedis = Redis | RedisCluster


class _MasterClient(Redis):
    """The client of a master found through Sentinel; redis-py leaves those connections open."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        pool: Any = self.connection_pool
        await super().aclose(close_connection_pool)
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


Address = tuple[str, int]
STRAGGLERS = 0.3  # seconds that the other Sentinels get once one has answered


class _NewestSentinel(Sentinel):
    """Asks all Sentinels at once and trusts the one with the newest configuration: a Sentinel that
    was cut off from the others keeps naming the old master."""

    async def discover_master(self, service_name: str) -> Address:
        """Host and port. Raises `MasterNotFoundError`."""
        asked = {
            asyncio.ensure_future(self._ask(sentinel, service_name)) for sentinel in self.sentinels
        }
        best: tuple[int, Address] | None = None
        try:
            while asked:
                wait = None if best is None else STRAGGLERS
                done, asked = await asyncio.wait(
                    asked, timeout=wait, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for one in done:
                    answer = one.result()
                    if answer is not None and (best is None or answer[0] > best[0]):
                        best = answer
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if best is None:
            raise MasterNotFoundError(f"No Sentinel knows a living master {service_name!r}")
        return best[1]

    async def _ask(self, sentinel: Any, name: str) -> tuple[int, Address] | None:
        """The epoch of this Sentinel's configuration, and the master; None when it knows none.

        The question is the one that redis-py asks, which the app may use: while a replica is being
        promoted, both still see the old master, so writes to it then are not missed.
        """
        try:
            state = (await sentinel.sentinel_masters()).get(name)
            if not state or not self.check_master_state(state, name):
                return None
            return int(state["config-epoch"]), (str(state["ip"]), int(state["port"]))
        except (RedisError, OSError, ValueError, TypeError, KeyError):
            return None


class MasterFinder:
    """Finds the current master of a client made through Sentinel. Call `aclose()` before the
    client's own."""

    def __init__(self, pool: Any) -> None:
        self._sentinel = pool.sentinel_manager
        self._name: str = pool.service_name
        self._turn = 0
        self._pubsub: Any = None

    async def where(self, within: float = 2.0) -> Address | None:
        """The master's current address; None if no Sentinel answers within so many seconds."""
        try:
            async with asyncio.timeout(within):
                host, port = await self._sentinel.discover_master(self._name)
        except (RedisError, OSError, TimeoutError):
            return None
        return str(host), int(port)

    async def switched(self, within: float) -> None:
        """Wait until a Sentinel announces another master, `within` seconds at most."""
        end = asyncio.get_running_loop().time() + within
        try:
            async with asyncio.timeout(within):
                while True:
                    try:
                        await self._announcement()
                    except (RedisError, OSError):
                        await self.aclose()
                        self._turn += 1
                        await asyncio.sleep(min(1.0, within))
                    else:
                        return
        except TimeoutError:
            if asyncio.get_running_loop().time() < end:
                raise

    async def _announcement(self) -> None:
        if self._pubsub is None:
            sentinels = self._sentinel.sentinels
            self._pubsub = sentinels[self._turn % len(sentinels)].pubsub()
            await self._pubsub.subscribe("+switch-master")
        while True:
            message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=60.0)
            words = bytes(message["data"]).split() if message else []
            if words and words[0] == self._name.encode():
                return

    async def aclose(self) -> None:
        """Close the subscription."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(RedisError, OSError):
                await pubsub.aclose()


def master_finder(client: AnyRedis) -> MasterFinder | None:
    """The finder for a client; None if it was not made through Sentinel."""
    pool: Any = getattr(client, "connection_pool", None)
    return MasterFinder(pool) if hasattr(pool, "sentinel_manager") else None


class TlsSettings(Protocol):
    """`redis.tls` of the config."""

    @property
    def ca(self) -> Path | None: ...
    @property
    def cert(self) -> Path | None: ...
    @property
    def key(self) -> Path | None: ...
    @property
    def verify(self) -> bool: ...


class RedisSettings(Protocol):
    """`redis` of the config."""

    @property
    def url(self) -> SecretStr: ...
    @property
    def username(self) -> str | None: ...
    @property
    def password(self) -> SecretStr | None: ...
    @property
    def tls(self) -> TlsSettings: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def command_timeout(self) -> float: ...


def address_of(settings: RedisSettings) -> RedisAddress:
    """The parsed URL; its `str()` is safe to log. Raises `ValueError`."""
    return parse_redis_url(settings.url.get_secret_value())


def connect(settings: RedisSettings, *, client_name: str | None, protocol: int = 2) -> AnyRedis:
    """A client with its own pool; it connects with the first command.

    `client_name` is shown by `CLIENT LIST`; None sets none. `protocol` 2 or 3 is RESP2 or RESP3.
    The owner awaits `aclose()`. Raises `ValueError` for an invalid URL.
    """
    address = address_of(settings)
    common = _common(settings, address, client_name, protocol)
    if address.kind == "cluster":
        return RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
            **common,
            **(_tls(settings) | {"ssl": True} if address.tls else {}),
            # The retry is the one after the slot map has been read again.
            retry=Retry(NoBackoff(), 1),
        )
    return _plain(settings, address, common)


def connect_listener(
    settings: RedisSettings, *, client_name: str | None, attempt: int = 0
) -> Redis:
    """A client to open `pubsub()` or another long-lived connection on.

    A Cluster sends every published message to all its nodes, so one node is enough; `attempt` picks
    the next one if the last did not answer. Reads never time out by themselves: the caller bounds
    them. The owner awaits `aclose()`.
    """
    address = address_of(settings)
    common = _common(settings, address, client_name, 2) | {"socket_timeout": None}
    if address.kind == "cluster":
        node = address.hosts[attempt % len(address.hosts)]
        address = replace(address, kind="single", hosts=(node,))
    return _plain(settings, address, common)


def _common(
    settings: RedisSettings,
    address: RedisAddress,
    client_name: str | None,
    protocol: int,
) -> dict[str, Any]:
    password = settings.password.get_secret_value() if settings.password else None
    return {
        "username": settings.username or address.username,
        "password": password or address.password,
        "socket_connect_timeout": settings.connect_timeout,
        "socket_timeout": settings.command_timeout,
        "client_name": client_name,
        "protocol": protocol,
    }


def _plain(settings: RedisSettings, address: RedisAddress, common: dict[str, Any]) -> Redis:
    no_retry = Retry(NoBackoff(), 0)
    if address.kind == "sentinel":
        tls = _tls(settings) | {"ssl": True} if address.tls else {}
        sentinel: Any = _NewestSentinel(  # type: ignore[no-untyped-call]
            list(address.hosts),
            sentinel_kwargs={
                "username": address.sentinel_username,
                "password": address.sentinel_password,
                "socket_connect_timeout": settings.connect_timeout,
                "socket_timeout": settings.command_timeout,
                "protocol": 2,
                "retry": no_retry,
                **tls,
            },
        )
        master: Redis = sentinel.master_for(
            str(address.master),
            redis_class=_MasterClient,
            db=address.db,
            retry=no_retry,
            **common,
            **tls,
        )
        return master
    where: dict[str, Any] = {"db": address.db, "retry": no_retry}
    if address.path is not None:
        where |= {"connection_class": UnixDomainSocketConnection, "path": address.path}
    else:
        where |= {"host": address.hosts[0][0], "port": address.hosts[0][1]}
        if address.tls:
            where |= {"connection_class": SSLConnection, **_tls(settings)}
    return Redis.from_pool(ConnectionPool(**where, **common))


def _tls(settings: RedisSettings) -> dict[str, Any]:
    tls = settings.tls
    return {
        "ssl_ca_certs": str(tls.ca) if tls.ca else None,
        "ssl_certfile": str(tls.cert) if tls.cert else None,
        "ssl_keyfile": str(tls.key) if tls.key else None,
        "ssl_cert_reqs": "required" if tls.verify else "none",
        "ssl_check_hostname": tls.verify,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }
