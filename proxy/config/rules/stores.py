"""Rules about Redis and the SQLite files."""

from __future__ import annotations

import os

from proxy.config.rules.findings import Findings, reference
from proxy.config.schema import Config
from proxy.core.redis.url import parse_redis_url


def check_stores(config: Config, found: Findings) -> None:
    """Redis is there for the mirrors, and every store has a file of its own."""
    if config.redis is not None and not found.placeholder(("redis", "url")):
        kind = parse_redis_url(config.redis.url.get_secret_value()).kind
        if config.mirrors and kind == "cluster":
            found.problem(
                ("redis", "url"), "one Redis, or Sentinels, where there are mirrors", "a cluster"
            )
    files: dict[str, str] = {}
    for name, mirror in config.mirrors.items():
        if config.redis is None and not found.given("redis"):
            found.problem(("mirrors", name), "redis.url, where the jobs to mirror are", "no redis")
        other = files.setdefault(os.path.realpath(mirror.sqlite), name)
        if other != name:
            # A file has one writer; each mirror would take the other's jobs for its own.
            found.problem(
                ("mirrors", name, "sqlite"), "a file of its own", f"that of mirrors.{other}"
            )
    if config.trace is not None:
        mirror_of = files.get(os.path.realpath(config.trace.sqlite))
        if mirror_of is not None:
            # Each would take the other's file for a foreign one and set it aside.
            found.problem(("trace", "sqlite"), "a file of its own", f"that of mirrors.{mirror_of}")
        for name in config.trace.called_in:
            if found.given("trace", "called_in"):
                key = ("trace", "called_in", name)
                reference(key, name, found.names("upstreams"), "upstreams", found)
