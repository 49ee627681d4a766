"""Sets of header fields: which ones a proxy passes on, checks, or sets itself.

Names are bytes, as on the wire. Pure.
"""

from __future__ import annotations

import os
import re

#: Fields that apply to one connection only (RFC 9110 §7.6.1), and those meant for a forward proxy
#: (`Proxy-*`, and `Proxy` itself, which CGI turns into HTTP_PROXY).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy",
        b"http2-settings",
    }
)

#: Fields that stay even if `Connection` names them: removing them would change the message's
#: meaning or framing, which is how hop-by-hop abuse works.
NOT_NOMINABLE = frozenset(
    {b"host", b"content-length", b"content-type", b"date", b"close", b"keep-alive"}
)

#: Fields with which a client could ask for a path other than the one in its request line. They are
#: honoured by Symfony, Zend and IIS; by gunicorn (which by default trusts any peer on loopback); by
#: a well-known snippet for Flask; and by apps behind Traefik.
READDRESSING = frozenset(
    {
        b"x-original-url",
        b"x-rewrite-url",
        b"script_name",
        b"path_info",
        b"x-script-name",
        b"x-forwarded-uri",
        b"x-forwarded-path",
        b"x-forwarded-method",
    }
)

#: What a client may claim about the request that it forwards; trusted only from
#: `trusted_proxies`.
FORWARDED = READDRESSING | frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-server",
    }
)

#: Fields with which some frameworks let a POST stand for another method.
METHOD_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})

#: Fields that must not appear in a trailer section (RFC 9110 §6.5.1), nor spelled with `_` for `-`:
#: framing, routing, request modifiers, authentication, content description, and what this proxy
#: itself decides.
NOT_IN_TRAILERS = (
    HOP_BY_HOP
    | FORWARDED
    | {name.replace(b"_", b"-") for name in READDRESSING}
    | METHOD_OVERRIDES
    | {
        b"content-length",
        b"content-encoding",
        b"content-type",
        b"content-range",
        b"host",
        b"trailer",
        b"expect",
        b"range",
        b"cache-control",
        b"max-forwards",
        b"authorization",
        b"www-authenticate",
        b"cookie",
        b"set-cookie",
        b"age",
        b"date",
        b"expires",
        b"location",
        b"retry-after",
        b"vary",
        b"warning",
        b"via",
        b"x-correlation-id",
    }
)

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110 §9.2.2, less TRACE

_CORRELATION_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

# RFC 3986 §3.2.2 less userinfo, empty hosts and percent-encoded names: what DNS and IP can mean.
_AUTHORITY = re.compile(
    rb"(?:[A-Za-z0-9_](?:[A-Za-z0-9._~-]*)|\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\])(?::[0-9]{0,5})?"
)

_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
#: A stock of random numbers, shared by all proxies of the process; each is used once.
_random: list[str] = []


#: Fields that belong to the message's framing, to the connection, or to the proxy itself. Editing
#: them would break the message, so `check` refuses it. `Host` is `upstreams.NAME.host`.
NOT_EDITABLE = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "expect",
        "host",
        "keep-alive",
        "max-forwards",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-correlation-id",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    }
)


def new_correlation_id() -> str:
    """A random UUIDv4 (RFC 9562 §5.4) in its usual form, at a fifth of the cost of
    `uuid.uuid4`: the kernel is asked for randomness once for many."""
    try:
        one = _random.pop()
    except IndexError:  # no check beforehand: a proxy in another thread may take the last one
        digits = os.urandom(16 * 256).hex()
        one, *more = (digits[at : at + 32] for at in range(0, len(digits), 32))
        _random.extend(more)
    return f"{one[:8]}-{one[8:12]}-4{one[13:16]}-{_VARIANT[one[16]]}{one[17:20]}-{one[20:]}"


def is_correlation_id(value: bytes) -> bool:
    """Whether a client's ID may be used as it is: 1 to 128 of `A-Za-z0-9._-` (contract A3)."""
    return _CORRELATION_ID.fullmatch(value) is not None


def is_authority(value: bytes) -> bool:
    """Whether `value` is a host with an optional port, and nothing else."""
    return _AUTHORITY.fullmatch(value) is not None


def list_members(value: bytes) -> list[bytes]:
    """The lower-case members of a comma-separated list, empty ones left out (RFC 9110 §5.6.1)."""
    return [part for member in value.lower().split(b",") if (part := member.strip(b" \t"))]


def with_underscores(name: bytes) -> list[bytes]:
    """The other spellings of a field name that CGI and WSGI cannot distinguish: both turn
    `X-Forwarded-For` and `X_Forwarded_For` into HTTP_X_FORWARDED_FOR."""
    first, *others = name.split(b"-")
    spelled = [first]
    for part in others:
        spelled = [before + dash + part for before in spelled for dash in (b"-", b"_")]
    return spelled[1:]
