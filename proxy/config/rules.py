"""What the schema cannot say: rules between keys, and files that must fit together.

A rule looks at the validated model and speaks of it through `Findings`, which knows the lines. The
model may lack parts that the schema refused, so whether a name exists is asked of the file, not of
the model: one mistake is told once.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import ssl
import time
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path

from proxy.config import patterns, telemetry_rules
from proxy.config.certificates import Certificate, read_chain
from proxy.config.document import Element
from proxy.config.extensions import upstreams_named
from proxy.config.imports import CannotImport, load_object
from proxy.config.listeners import Listener, Route
from proxy.config.problems import ConfigWarning, Key, Problem, dotted
from proxy.config.schema import Config
from proxy.config.units import Bind
from proxy.config.upstreams import Upstream
from proxy.core.clock import iso_utc
from proxy.core.headers import NOT_EDITABLE
from proxy.core.redis.url import parse_redis_url

#: Seconds before its end at which a certificate is warned of.
EXPIRES_SOON = 30 * 86400.0


class Findings:
    """Collects what the rules find, with file and line.

    `tree` is the file as written; `trimmed` what of it the model was made of, so that the model's
    list indices are its own.
    """

    def __init__(self, file: Path, tree: Element, trimmed: Element) -> None:
        self.file = file
        self.tree = tree
        self.trimmed = trimmed
        self.problems: list[Problem] = []
        self.notices: list[ConfigWarning] = []

    def problem(self, key: Key, expected: str, found: str) -> None:
        """A rule is broken at `key`, a path in the file as the model has it."""
        if self.invented(key):
            return
        line, name = self._locate(key)
        self.problems.append(Problem(self.file, line, name, expected, found))

    def notice(self, key: Key, text: str) -> None:
        """Legal, but hardly meant."""
        line, name = self._locate(key)
        self.notices.append(ConfigWarning(self.file, line, name, text))

    def names(self, section: str) -> tuple[str, ...]:
        """The names that the file defines in a section such as `upstreams`."""
        element = self.tree.child(section)
        return tuple(element.value) if element and isinstance(element.value, dict) else ()

    def given(self, *key: str) -> bool:
        """Whether the file has a value at `key`, sound or not."""
        element = self.tree.find(key)
        return element.key == key and element.value is not None

    def invented(self, key: Key) -> bool:
        """Whether the loader put a stand-in here, having told why."""
        return self.trimmed.find(key).invented

    def _locate(self, key: Key) -> tuple[int, str]:
        element = self.trimmed.find(key)
        rest = key[len(element.key) :]
        return element.line, dotted((*element.key, *rest))


def check(config: Config, found: Findings) -> None:
    """Runs every rule."""
    _binds(config, found)
    for name, listener in config.listeners.items():
        _listener(("listeners", name), listener, found)
    for name, upstream in config.upstreams.items():
        _upstream(("upstreams", name), upstream, found)
    _loops(config, found)
    _unused(config, found)
    _redis(config, found)
    if found.given("spool", "dir") and not config.spool.dir.is_dir():
        found.notice(("spool", "dir"), "no such directory here: bodies would not wait, but stream")
    telemetry_rules.check(config, found)


# --- addresses ----------------------------------------------------------------------------------


def _binds(config: Config, found: Findings) -> None:
    taken: list[tuple[Key, Bind]] = []
    for key, bind in _all_binds(config):
        for other_key, other in taken:
            if bind.overlaps(other):
                found.problem(key, "an address of its own", f"{bind} beside {dotted(other_key)}")
                break
        taken.append((key, bind))
    if not config.admin.bind.loopback and not found.given("admin", "token"):
        found.problem(
            ("admin", "bind"), "a loopback address, or a token beside it", str(config.admin.bind)
        )


def _loops(config: Config, found: Findings) -> None:
    """A target that is one of our own listeners would send each request round in a circle."""
    for name, upstream in config.upstreams.items():
        for index, target in enumerate(upstream.targets):
            for listener, settings in config.listeners.items():
                if target.host and _reaches(target.host, target.port, settings.bind):
                    found.problem(
                        ("upstreams", name, "targets", index),
                        "an address of the service itself",
                        f"{target}, where our own listener {listener} is bound",
                    )


def _reaches(host: str, port: int, bind: Bind) -> bool:
    """Whether a connection to `host` on this machine arrives at `bind`, as far as names tell."""
    if port != bind.port or port == 0:
        return False
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False  # a name: it may be another machine
    if not bind.host:
        return address.is_loopback or address.is_unspecified
    bound = ipaddress.ip_address(bind.host)
    same_kind = bound.version == address.version
    return bound == address or (bound.is_unspecified and same_kind and address.is_loopback)


def _all_binds(config: Config) -> Iterator[tuple[Key, Bind]]:
    for name, listener in config.listeners.items():
        yield ("listeners", name, "bind"), listener.bind
    yield ("admin", "bind"), config.admin.bind
    if config.metrics:
        yield ("metrics", "bind"), config.metrics.bind


# --- listeners and routes -----------------------------------------------------------------------


def _listener(key: Key, listener: Listener, found: Findings) -> None:
    names: set[str] = set()
    for index, route in enumerate(listener.routes):
        at: Key = (*key, "routes", index)
        if route.name in names:
            found.problem((*at, "name"), "a name used once in its listener", repr(route.name))
        names.add(route.name)
        _reference((*at, "upstream"), route.upstream, found.names("upstreams"), "upstreams", found)
        _upload(at, route, found)
        _job(at, route, found)
        _headers(at, route, found)
        _stages(at, route, found)
        _shadow(at, route, listener.routes[:index], found)
        _spelled(at, route, listener.routes, found)
    if listener.tls:
        _server_certificate((*key, "tls"), listener.tls.cert, listener.tls.key, found)
    for index, network in enumerate(listener.trusted_proxies):
        if network.prefixlen == 0:
            found.notice((*key, "trusted_proxies", index), "any client can pose as any other")
    limits = listener.limits
    own = limits.per_client.connections if limits.per_client else None
    if own is not None and own > limits.connections:
        found.notice((*key, "limits", "per_client", "connections"), "more than all may have")


def _reference(key: Key, name: str, known: Collection[str], kind: str, found: Findings) -> None:
    if name in known:
        return
    near = nearest(name, known)
    hint = f" (did you mean {near!r}?)" if near else f" (there is {', '.join(known) or 'none'})"
    found.problem(key, f"the name of one of the {kind}", f"{name!r}{hint}")


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that was probably meant, or `""`."""
    near = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.6)
    return near[0] if near else ""


def _job(key: Key, route: Route, found: Findings) -> None:
    job = route.job
    if route.idempotency is not None and (job is None or not job.creates):
        found.problem((*key, "idempotency"), "job: {creates: true} beside it", "none")
    if job is None:
        return
    at: Key = (*key, "job")
    _reference((*at, "mirror"), job.mirror, found.names("mirrors"), "mirrors", found)
    roles = [name for name in ("creates", "reads", "deletes", "lists") if getattr(job, name)]
    if len(roles) != 1:
        found.problem(
            at, "exactly one of creates, reads, deletes and lists", " and ".join(roles) or "none"
        )
    known = patterns.parameters(patterns.parse_pattern(route.path))
    for role in ("reads", "deletes"):
        parameter = getattr(job, role)
        if parameter and parameter not in known and not found.invented((*key, "path")):
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
    if route.upload.buffer is not None:
        found.notice(
            (*key, "upload", "buffer"),
            "not used: the whole upload waits in the spool (see `spool`)",
        )


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
    """Upstreams that the settings of stages name are there."""
    known = found.names("upstreams")
    for index, use in enumerate(route.use):
        for setting, name in upstreams_named(use.settings):
            if name not in known:
                near = nearest(name, known)
                hint = f" (did you mean {near!r}?)" if near else ""
                where = (*key, "use", index, use.name, *setting)
                found.problem(where, f"the name of an upstream{hint}", repr(name))


def _shadow(key: Key, route: Route, earlier: tuple[Route, ...], found: Findings) -> None:
    """A route that never wins. Several earlier ones may take its methods between them."""
    pattern = patterns.parse_pattern(route.path)
    left = None if route.methods is None else set(route.methods)
    for other in earlier:
        if not patterns.covers(patterns.parse_pattern(other.path), pattern):
            continue
        if other.methods is None or (left is not None and not (left := left - {*other.methods})):
            found.notice(key, f"never reached: {other.name!r} comes first and matches the same")
            return


def _spelled(key: Key, route: Route, routes: tuple[Route, ...], found: Findings) -> None:
    """A route whose path is another spelling of a checked route's, which takes them all."""
    if route.guards:
        return
    for other in routes:
        spelled = other.path != route.path and _folded(other.path) == _folded(route.path)
        apart = other.methods and route.methods and not {*other.methods} & {*route.methods}
        if other.guards and spelled and not apart:
            text = f"never reached: {other.name!r} is checked and takes every spelling of its path"
            found.notice(key, text)
            return


def _folded(path: str) -> str:
    return path.casefold().rstrip("/")


def _importable(key: Key, name: str, found: Findings) -> None:
    """What the file names is there: better known now than at the start."""
    try:
        load_object(name)
    except CannotImport as error:
        found.problem(key, "PACKAGE.MODULE:NAME that can be imported", str(error))


# --- upstreams ----------------------------------------------------------------------------------


def _upstream(key: Key, upstream: Upstream, found: Findings) -> None:
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
        _authorities((*key, "tls", "ca"), upstream.tls.ca, found)
    if found.given(*map(str, key), "tls") and True not in secure:
        found.notice((*key, "tls"), "not used: no target is https://")
    elif not upstream.tls.verify:
        found.notice((*key, "tls", "verify"), "anyone on the way can pose as this upstream")
    if upstream.retry and upstream.retry.max_backoff < upstream.retry.backoff:
        found.problem((*key, "retry", "max_backoff"), "at least backoff", "less")


def _unused(config: Config, found: Findings) -> None:
    routes = [route for listener in config.listeners.values() for route in listener.routes]
    used = {route.upstream for route in routes}
    used |= {
        name for route in routes for use in route.use for _, name in upstreams_named(use.settings)
    }
    for name in config.upstreams.keys() - used:
        found.notice(("upstreams", name), "no route leads here")


# --- Redis --------------------------------------------------------------------------------------


def _redis(config: Config, found: Findings) -> None:
    if config.redis is not None and not found.invented(("redis", "url")):
        kind = parse_redis_url(config.redis.url.get_secret_value()).kind
        if config.mirrors and kind == "cluster":
            found.problem(
                ("redis", "url"), "one Redis, or Sentinels, where there are mirrors", "a cluster"
            )
    files: dict[str, str] = {}
    for name, mirror in config.mirrors.items():
        if config.redis is None and not found.given("redis"):
            found.problem(("mirrors", name), "redis.url, where the jobs to mirror are", "no redis")
        if mirror.rescue is not None:
            found.notice(("mirrors", name, "rescue"), "the former name of requeue: rename it")
        other = files.setdefault(os.path.realpath(mirror.sqlite), name)
        if other != name:
            # One writer to a file: each would take the other's jobs for its own.
            found.problem(
                ("mirrors", name, "sqlite"), "a file of its own", f"that of mirrors.{other}"
            )
    if config.trace is not None:
        mirror_of = files.get(os.path.realpath(config.trace.sqlite))
        if mirror_of is not None:
            # Each would take the other's file for a foreign one, and set it aside.
            found.problem(("trace", "sqlite"), "a file of its own", f"that of mirrors.{mirror_of}")
        for name in config.trace.called_in:
            if found.given("trace", "called_in"):
                key = ("trace", "called_in", name)
                _reference(key, name, found.names("upstreams"), "upstreams", found)


# --- TLS files ----------------------------------------------------------------------------------


def _server_certificate(key: Key, cert: Path, private: Path, found: Findings) -> None:
    readable = _readable((*key, "cert"), cert, found)
    if not (_readable((*key, "key"), private, found) and readable):
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty passphrase: OpenSSL must never ask for one on the terminal.
        context.load_cert_chain(cert, private, password="")
        _in_time((*key, "cert"), read_chain(cert), time.time(), found)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or ""
        if reason == "KEY_VALUES_MISMATCH":
            found.problem((*key, "key"), f"the private key of {cert}", "another one's")
        elif "BEGIN CERTIFICATE" not in _text(cert):
            found.problem((*key, "cert"), "a PEM certificate", f"none in {cert}")
        elif "ENCRYPTED" in _text(private):
            found.problem((*key, "key"), "a key without a passphrase", f"{private} encrypted")
        elif "PRIVATE KEY-----" not in _text(private):
            found.problem((*key, "key"), "a PEM private key", f"none in {private}")
        else:
            told = reason.replace("_", " ").lower() or str(error)
            found.problem(key, "a certificate and key that OpenSSL can load", told)


def _in_time(key: Key, chain: list[Certificate], now: float, found: Findings) -> None:
    """Warn of what clients refuse: a certificate out of its time, a chain that does not hold."""
    for number, one in enumerate(chain, 1):
        which = "the certificate" if number == 1 else f"certificate {number} of the chain"
        ends = iso_utc(one.ends)[:10]
        if one.ends <= now:
            found.notice(key, f"{which} has expired ({ends}): clients refuse it")
        elif one.begins > now:
            found.notice(key, f"{which} is not valid before {iso_utc(one.begins)[:10]}")
        elif one.ends - now < EXPIRES_SOON:
            days = int((one.ends - now) // 86400)
            found.notice(key, f"{which} expires in {days} days ({ends})")
    for number, (one, issuer) in enumerate(pairwise(chain), 2):
        if one.issuer != issuer.subject:
            found.notice(key, f"certificate {number} did not issue the one before it")


def _authorities(key: Key, file: Path, found: Findings) -> None:
    if not _readable(key, file, found):
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except (ssl.SSLError, ValueError):
        found.problem(key, "PEM certificates of authorities", f"none in {file}")


def _readable(key: Key, file: Path, found: Findings) -> bool:
    try:
        with file.open("rb") as stream:
            stream.read(1)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        found.problem(key, "a readable file", f"{str(file)!r}: {reason}")
        return False
    return True


def _text(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(1024 * 1024).decode("latin-1")
