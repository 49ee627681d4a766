"""Limits for one client of a listener: connections, requests a second, concurrent uploads. Pure.

Rules
1. A client is an address; for IPv6 the /64, which is what one subscriber gets. An IPv4-mapped
   address (`::ffff:192.0.2.1`) counts as IPv4. Behind `trusted_proxies`, the client is the
   right-most address of `X-Forwarded-For` that is not a trusted proxy; addresses further left can
   be forged. A trusted proxy's own connections are not limited, because they carry many clients.
2. Callers over a unix socket have no address and are not limited; file permissions decide who may
   open the socket.
3. A record is dropped once it carries no information: no connection, no upload, a full bucket. So
   nobody gains from being forgotten.
4. The table is bounded (`MAX_CLIENTS`). When it is full, no record in use is evicted, because that
   is what a flood of addresses would aim at: new clients are counted by network (IPv4 /24, IPv6
   /48), in `_NETWORKS` records shared by hash.
5. A refused request takes no token.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

from proxy.config.listeners import PerClient
from proxy.core.errors import TooManyRequests
from proxy.forward.routing.gateway_hint import GatewayHint
from proxy.resilience.rate_limit import TokenBucket

if TYPE_CHECKING:
    from proxy.http1.client import ClientStream
    from proxy.http1.request_head import RequestHead

Networks = Sequence[IPv4Network | IPv6Network]

#: Clients of one listener that are counted separately; a record takes about 350 bytes.
MAX_CLIENTS = 32_768

#: Records that new clients share when the table is full (rule 4).
_NETWORKS = 1024

#: Records checked for removal with each new client: normally, and when the table is full.
_LOOKS, _LOOKS_WHEN_FULL = 2, 16

#: Members of `X-Forwarded-For` that are considered, from the right.
_HOPS = 32

#: `Retry-After` in seconds for a client with too many connections or uploads.
_RETRY_AFTER = 1.0


class ClientShare:
    """What a client currently uses."""

    __slots__ = ("bucket", "connections", "owner", "uploads")

    def __init__(self, owner: ClientShares, bucket: TokenBucket) -> None:
        self.owner = owner
        self.bucket = bucket
        self.connections = 0
        self.uploads = 0


class ClientShares:
    """The clients of one listener. Lives as long as the process; a reload gives it new rules.

    `proxies` are the networks of trusted proxies; `now` is in monotonic seconds.
    """

    def __init__(
        self,
        listener: str,
        rules: PerClient,
        proxies: Networks,
        *,
        most: int = MAX_CLIENTS,
    ) -> None:
        self._most = most
        self._clients: OrderedDict[bytes, ClientShare] = OrderedDict()
        self._networks: dict[int, ClientShare] = {}
        self.refused: Counter[str] = Counter()
        self.crowded = 0  # new clients that were counted by network
        self.hint = GatewayHint(listener)
        self._take_rules(rules, proxies)

    def _take_rules(self, rules: PerClient, proxies: Networks) -> None:
        self.rules = rules
        self._proxies = proxies
        rate = rules.requests
        self._counts = rate is not None
        # Without a limit, the bucket is never used and always full.
        self._rate = rate.count / rate.seconds if rate is not None else 1.0
        self._burst = float(rules.burst or (rate.count if rate is not None else 1))

    def configure(self, rules: PerClient, proxies: Networks) -> None:
        """Apply new rules at a reload; what clients have used stays used."""
        before = (self._rate, self._burst)
        self._take_rules(rules, proxies)
        if before != (self._rate, self._burst):
            for share in (*self._clients.values(), *self._networks.values()):
                share.bucket.configure(self._rate, self._burst)

    def __len__(self) -> int:
        return len(self._clients)

    # --- connections ----------------------------------------------------------------------------

    def arrive(self, client: ClientStream, now: float) -> bool:
        """Count a connection as it is accepted; False if its client has twice the allowed number,
        so that it is not served at all. `disconnect` is owed in either case."""
        share = self._of_connection(client, now)
        most = self.rules.connections
        if share is None or most is None or share.connections <= most:
            return True
        client.excess = True
        if share.connections <= 2 * most:
            return True
        if trusted(client.host_ip, self._proxies):
            return True
        self.refused["client_connections"] += 1
        return False

    def connect(self, client: ClientStream, now: float) -> TooManyRequests | None:
        """Count a connection, unless `arrive` has, as it begins to be served; returns the refusal
        if its client has too many older ones. `disconnect` is owed in either case."""
        judged = client.share is not None and not client.excess
        share = self._of_connection(client, now)
        most = self.rules.connections
        if judged or share is None or most is None or share.connections <= most:
            return None
        if trusted(client.host_ip, self._proxies):
            return None
        return self._refuse(
            "client_connections",
            f"Connections of one client are limited to {most}",
            str(most),
            _RETRY_AFTER,
            # An HTTP/1.1 connection carries one request at a time.
            (f'"connections";q={most};qu="concurrent-requests"', '"connections";r=0'),
            close=True,
        )

    @staticmethod
    def disconnect(client: ClientStream) -> None:
        """The connection has ended."""
        share = client.share
        if share is not None:
            client.share = None
            share.connections -= 1

    def _of_connection(self, client: ClientStream, now: float) -> ClientShare | None:
        """The share of a connection's address; None over a unix socket."""
        share: ClientShare | None = client.share
        if share is not None:
            if share.owner is self:
                return share
            share.connections -= 1  # a reload has renamed the listener
        key = client_key(client.host_ip)
        if key is None:
            return None
        share = client.share = self._find(key, now)
        share.connections += 1
        return share

    # --- requests -------------------------------------------------------------------------------

    def take(self, client: ClientStream, now: float) -> bool:
        """Take a token for a request that names no other client; if False, `admit` refuses it."""
        share = client.share
        if share is None or share.owner is not self:
            share = self._of_connection(client, now)
            if share is None:
                return True
        self.hint.requests += 1
        return not self._counts or share.bucket.take(now)

    def admit(self, client: ClientStream, head: RequestHead, now: float) -> ClientShare | None:
        """The share that a request counts towards. Raises `TooManyRequests` if it is used up."""
        share = self._of_connection(client, now)
        if share is None:
            return None
        self.hint.requests += 1
        if head.forwarded is not None:
            chain = [value for name, value in head.forwarded if name == b"x-forwarded-for"]
            if chain and trusted(client.host_ip, self._proxies):
                key = client_key(forwarded_client(client.host_ip, chain, self._proxies))
                share = self._find(key, now) if key is not None else share
            elif chain:
                self.hint.forwarded(client.host_ip, now)
        if self._counts and not share.bucket.take(now):
            raise self._spent(share.bucket.wait(now))
        return share

    def _spent(self, wait: float) -> TooManyRequests:
        rate = self.rules.requests
        assert rate is not None
        policy = f'"requests";q={rate.count};w={max(1, round(rate.seconds))}'
        return self._refuse(
            "client_requests",
            f"Requests of one client are limited to {rate}",
            str(rate),
            wait,
            (policy, f'"requests";r=0;t={max(1, -int(-wait // 1))}'),
        )

    # --- uploads --------------------------------------------------------------------------------

    def begin_upload(self, share: ClientShare) -> None:
        """Count an upload; `end_upload` is owed, unless this raises `TooManyRequests`."""
        most = self.rules.uploads
        if most is not None and share.uploads >= most:
            raise self._refuse(
                "client_uploads",
                f"Uploads of one client are limited to {most} at a time",
                str(most),
                _RETRY_AFTER,
                (f'"uploads";q={most};qu="concurrent-requests"', '"uploads";r=0'),
            )
        share.uploads += 1

    @staticmethod
    def end_upload(share: ClientShare) -> None:
        """The upload is over."""
        share.uploads -= 1

    def _refuse(
        self,
        reason: str,
        detail: str,
        limit: str,
        wait: float,
        fields: tuple[str, str],
        *,
        close: bool = False,
    ) -> TooManyRequests:
        self.refused[reason] += 1
        return TooManyRequests(
            detail, reason=reason, retry_after=wait, rate_limit=fields, limit=limit, close=close
        )

    # --- the table ------------------------------------------------------------------------------

    def _find(self, key: bytes, now: float) -> ClientShare:
        share = self._clients.get(key)
        if share is not None:
            return share
        full = len(self._clients) >= self._most
        self._forget(_LOOKS_WHEN_FULL if full else _LOOKS, now)
        if len(self._clients) < self._most:
            share = self._clients[key] = ClientShare(self, TokenBucket(self._rate, self._burst))
            return share
        self.crowded += 1
        network = hash(key[:3] if len(key) == 4 else key[:6]) % _NETWORKS  # hash() has a secret
        share = self._networks.get(network)
        if share is None:
            share = ClientShare(self, TokenBucket(self._rate, self._burst))
            self._networks[network] = share
        return share

    def _forget(self, looks: int, now: float) -> None:
        """Check the records that have not been checked for longest (rule 3)."""
        for _ in range(min(looks, len(self._clients))):
            key, share = self._clients.popitem(last=False)
            if share.connections or share.uploads or not share.bucket.full(now):
                self._clients[key] = share


def trusted(address: str, proxies: Networks) -> bool:
    """Whether `address` is in one of `proxies`; that of a unix socket, `""`, never is."""
    if not proxies or not address:
        return False
    parsed = ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in proxies)


def client_key(address: str) -> bytes | None:
    """The client's key for `address` (rule 1); None if it is not an address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address):
        mapped = parsed.ipv4_mapped
        return mapped.packed if mapped is not None else parsed.packed[:8]
    return parsed.packed


def forwarded_client(peer: str, chain: Sequence[bytes], proxies: Networks) -> str:
    """The client behind the trusted proxy at `peer` (rule 1). A member that is not an address ends
    the search: whoever wrote it is the client."""
    hop = peer
    for member in reversed(b",".join(chain).rsplit(b",", _HOPS)[-_HOPS:]):
        address = _address(member)
        if address is None:
            return hop
        hop = address
        if not trusted(hop, proxies):
            return hop
    return hop


def _address(member: bytes) -> str | None:
    """`192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`, bare or in quotes."""
    text = member.strip(b' \t"').decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    text = text.partition("%")[0]
    try:
        ip_address(text)
    except ValueError:
        return None
    return text
