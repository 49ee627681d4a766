"""Parses Redis URLs: single server, unix socket, Sentinel or Cluster. Pure; opens no connection.

redis-py parses only the first three schemes, so all are parsed here, by one set of rules:

    redis://[USER:PASSWORD@]HOST[:6379][/DB]          rediss:// is the same over TLS
    unix://[USER:PASSWORD@]/PATH[?db=N]
    redis+sentinel://[USER:PASSWORD@]HOST[:26379][,HOST...]/MASTER[/DB]     also rediss+sentinel://
        ?sentinel_username=NAME&sentinel_password=WORD   if the Sentinels need their own
    redis+cluster://[USER:PASSWORD@]HOST[:6379][,HOST...]                   also rediss+cluster://

User and password are percent-decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, unquote

from proxy.core.text import host_port

EXPECTED = (
    "redis://HOST:PORT/DB, rediss://, unix:///PATH, redis+sentinel://HOST,HOST/MASTER/DB "
    "or redis+cluster://HOST,HOST"
)

_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#@]*)"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?")
_SCHEMES: dict[str, tuple[Literal["single", "sentinel", "cluster"], bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_OPTIONS = {
    "single": {"db"},
    "sentinel": {"db", "sentinel_username", "sentinel_password"},
    "cluster": set[str](),
}


@dataclass(frozen=True)
class RedisAddress:
    """Where Redis is, and the credentials. Passwords are left out of `repr`.

    `hosts` are the server itself, the Sentinels, or the first nodes of the cluster to ask; empty
    for a unix socket, which has `path` instead. `master` is the master's name in Sentinel.
    """

    kind: Literal["single", "sentinel", "cluster"]
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    path: str | None = None
    master: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """For logs: without user and password."""
        if self.path is not None:
            return f"unix:{self.path}"
        hosts = ",".join(host_port(*one) for one in self.hosts)
        return {
            "single": f"{hosts}/{self.db}",
            "sentinel": f"{self.master} at sentinels {hosts}",
            "cluster": f"cluster {hosts}",
        }[self.kind]


def parse_redis_url(url: str) -> RedisAddress:
    """The address in a URL. Raises `ValueError`, whose message names what was expected and never
    repeats the URL, which may hold a password."""
    match = _URL.fullmatch(url.strip())
    if match is None or match["scheme"] not in _SCHEMES:
        raise ValueError(f"expected {EXPECTED}, found another scheme or shape")
    kind, tls = _SCHEMES[match["scheme"]]
    options = _options(match["query"] or "", kind)
    username, _, password = (match["login"] or "").partition(":")
    path = unquote(match["path"] or "")
    user, word = unquote(username) or None, unquote(password) or None
    if match["scheme"] == "unix":
        if match["hosts"] or len(path) < 2:
            raise ValueError("expected unix:///PATH with three slashes, found another shape")
        db = _db(options.get("db", ""))
        return RedisAddress("single", tls, (), path, db=db, username=user, password=word)
    standard_port = 26379 if kind == "sentinel" else 6379
    hosts = tuple(_host(part, standard_port) for part in match["hosts"].split(","))
    segments = [segment for segment in path.split("/") if segment]
    if kind == "sentinel":
        if not 1 <= len(segments) <= 2:
            raise ValueError("expected redis+sentinel://HOST,HOST/MASTER/DB, found no MASTER")
        return RedisAddress(
            kind,
            tls,
            hosts,
            master=segments[0],
            db=_db(segments[1] if len(segments) == 2 else options.get("db", "")),
            username=user,
            password=word,
            sentinel_username=options.get("sentinel_username"),
            sentinel_password=options.get("sentinel_password"),
        )
    if kind == "cluster":
        if segments not in ([], ["0"]):
            raise ValueError("expected no database in redis+cluster://, a cluster has only 0")
        return RedisAddress(kind, tls, hosts, username=user, password=word)
    if len(hosts) != 1 or len(segments) > 1:
        raise ValueError("expected redis://HOST:PORT/DB with one host, found several parts")
    db = _db(segments[0] if segments else options.get("db", ""))
    return RedisAddress(kind, tls, hosts, db=db, username=user, password=word)


def _options(query: str, kind: str) -> dict[str, str]:
    found = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if unknown := sorted(set(found) - _OPTIONS[kind]):
        allowed = ", ".join(sorted(_OPTIONS[kind])) or "no options"
        raise ValueError(f"expected {allowed} behind the ?, found {unknown[0]!r}")
    return found


def _db(text: str) -> int:
    if text and not text.isdecimal():
        raise ValueError("expected a database number such as 0, found another word")
    return int(text or 0)


def _host(text: str, standard_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match[3] or standard_port) <= 65535:
        raise ValueError("expected HOST or HOST:PORT (separated by commas), found another shape")
    return match[1] or match[2], int(match[3] or standard_port)
