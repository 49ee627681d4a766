"""Rules about upstreams."""

from __future__ import annotations

from proxy.config.extensions import upstreams_named
from proxy.config.imports import CannotImport, load_object
from proxy.config.problems import Key
from proxy.config.rules.findings import Findings
from proxy.config.rules.tls_files import check_authorities
from proxy.config.schema import Config
from proxy.config.upstreams import Upstream


def check_upstream(key: Key, upstream: Upstream, found: Findings) -> None:
    """One upstream."""
    secure = {target.scheme == "https" for target in upstream.targets}
    if len(secure) > 1:
        found.problem((*key, "targets"), "targets all http:// or all https://", "both")
    seen: set[str] = set()
    for index, target in enumerate(upstream.targets):
        if str(target) in seen:
            found.problem((*key, "targets", index), "each target once", f"{target} again")
        seen.add(str(target))
        if target.app is not None:
            _importable((*key, "targets", index), target.app, found)
    if upstream.tls.ca:
        check_authorities((*key, "tls", "ca"), upstream.tls.ca, found)
    if found.given(*map(str, key), "tls") and True not in secure:
        found.warn((*key, "tls"), "not used: no target is https://")
    elif not upstream.tls.verify:
        found.warn((*key, "tls", "verify"), "anyone on the way can pose as this upstream")
    if upstream.retry and upstream.retry.max_backoff < upstream.retry.backoff:
        found.problem((*key, "retry", "max_backoff"), "at least backoff", "less")


def _importable(key: Key, name: str, found: Findings) -> None:
    """Named code can be imported; `check` should report it before the start does."""
    try:
        load_object(name)
    except CannotImport as error:
        found.problem(key, "PACKAGE.MODULE:NAME that can be imported", str(error))


def check_unused(config: Config, found: Findings) -> None:
    """Warn of upstreams that no route uses."""
    routes = [route for listener in config.listeners.values() for route in listener.routes]
    used = {route.upstream for route in routes}
    used |= {
        name for route in routes for use in route.use for _, name in upstreams_named(use.settings)
    }
    for name in config.upstreams.keys() - used:
        found.warn(("upstreams", name), "no route leads here")
