"""Rules about listeners and their routes."""

from __future__ import annotations

from proxy.config import patterns
from proxy.config.extensions import upstreams_named
from proxy.config.listeners import Listener, Route
from proxy.config.problems import Key
from proxy.config.rules.findings import Findings, nearest, reference
from proxy.config.rules.tls_files import check_certificate
from proxy.core.headers import NOT_EDITABLE


def check_listener(key: Key, listener: Listener, found: Findings) -> None:
    """One listener and its routes."""
    names: set[str] = set()
    for index, route in enumerate(listener.routes):
        at: Key = (*key, "routes", index)
        if route.name in names:
            found.problem((*at, "name"), "a name used once in its listener", repr(route.name))
        names.add(route.name)
        reference((*at, "upstream"), route.upstream, found.names("upstreams"), "upstreams", found)
        _upload(at, route, found)
        _job(at, route, found)
        _headers(at, route, found)
        _stages(at, route, found)
        _shadow(at, route, listener.routes[:index], found)
        _spelled(at, route, listener.routes, found)
    if listener.tls:
        check_certificate((*key, "tls"), listener.tls.cert, listener.tls.key, found)
    for index, network in enumerate(listener.trusted_proxies):
        if network.prefixlen == 0:
            found.warn((*key, "trusted_proxies", index), "any client can pose as any other")
    limits = listener.limits
    own = limits.per_client.connections if limits.per_client else None
    if own is not None and own > limits.connections:
        found.warn((*key, "limits", "per_client", "connections"), "more than all may have")


def _job(key: Key, route: Route, found: Findings) -> None:
    job = route.job
    if route.idempotency is not None and (job is None or not job.creates):
        found.problem((*key, "idempotency"), "job: {creates: true} beside it", "none")
    if job is None:
        return
    at: Key = (*key, "job")
    reference((*at, "mirror"), job.mirror, found.names("mirrors"), "mirrors", found)
    roles = [name for name in ("creates", "reads", "deletes", "lists") if getattr(job, name)]
    if len(roles) != 1:
        found.problem(
            at, "exactly one of creates, reads, deletes and lists", " and ".join(roles) or "none"
        )
    known = patterns.parameters(patterns.parse_pattern(route.path))
    for role in ("reads", "deletes"):
        parameter = getattr(job, role)
        if parameter and parameter not in known and not found.placeholder((*key, "path")):
            found.problem((*at, role), f"a parameter of the path {route.path}", repr(parameter))


def _upload(key: Key, route: Route, found: Findings) -> None:
    if route.upload is None:
        return
    also = (*key, "upload", "also")
    if route.upload.also and route.upload.field is None:
        found.problem(also, "nothing, where `field` is null: the body is the file", "fields")
    names = {route.upload.field}
    for index, rule in enumerate(route.upload.also):
        if rule.field in names:
            found.problem((*also, index, "field"), "a field named once", repr(rule.field))
        names.add(rule.field)


def _headers(key: Key, route: Route, found: Findings) -> None:
    if route.headers is None:
        return
    for side in ("request", "response"):
        rules = getattr(route.headers, side)
        for action, names in (("set", tuple(rules.set)), ("remove", rules.remove)):
            for index, name in enumerate(names):
                if name.lower() in NOT_EDITABLE:
                    at = name if action == "set" else index
                    found.problem(
                        (*key, "headers", side, action, at),
                        "a field that the proxy does not set itself",
                        repr(name),
                    )


def _stages(key: Key, route: Route, found: Findings) -> None:
    """The upstreams that stages' settings name must exist."""
    known = found.names("upstreams")
    for index, use in enumerate(route.use):
        for setting, name in upstreams_named(use.settings):
            if name not in known:
                near = nearest(name, known)
                hint = f" (did you mean {near!r}?)" if near else ""
                where = (*key, "use", index, use.name, *setting)
                found.problem(where, f"the name of an upstream{hint}", repr(name))


def _shadow(key: Key, route: Route, earlier: tuple[Route, ...], found: Findings) -> None:
    """Warn of a route that earlier ones hide, possibly several of them together."""
    pattern = patterns.parse_pattern(route.path)
    left = None if route.methods is None else set(route.methods)
    for other in earlier:
        if not patterns.covers(patterns.parse_pattern(other.path), pattern):
            continue
        if other.methods is None or (left is not None and not (left := left - {*other.methods})):
            found.warn(key, f"never reached: {other.name!r} comes first and matches the same")
            return


def _spelled(key: Key, route: Route, routes: tuple[Route, ...], found: Findings) -> None:
    """Warn of a route whose path is another spelling of a checked route's, which matches them
    all."""
    if route.guards:
        return
    for other in routes:
        spelled = other.path != route.path and _folded(other.path) == _folded(route.path)
        apart = other.methods and route.methods and not {*other.methods} & {*route.methods}
        if other.guards and spelled and not apart:
            text = f"never reached: {other.name!r} is checked and takes every spelling of its path"
            found.warn(key, text)
            return


def _folded(path: str) -> str:
    return path.casefold().rstrip("/")
