"""Makes request targets safe to log: no secrets, no control characters. Pure.

1. Only targets that are not plain (`is_plain`) are processed here; most are plain.
2. A query value is masked if its *name* looks like a secret's, however it is written: upper or
   lower case, percent-encoded (even twice), with dashes, or in brackets (`user[password]`). The
   query of a URL inside a value is masked as a whole, and so is everything after a stray `;`.
3. The user and password before an `@` in an absolute target are masked.
4. Bytes outside printable ASCII are shown as `\\xNN`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_plus

from proxy.core.text import printable

MASK = "***"
_LIMIT = 100  # parameters of a query that are examined; the rest is cut off

_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]")
_SECRET = re.compile(
    r"token|secret|passw|passphrase|passcode|pwd|key|signature|credential|auth|session|bearer|cookie"
    r"|csrf|xsrf|nonce|private|assertion|ticket|saml|wresult|hmac|verifier|challenge|refresh|mnemonic"
    r"|(?:sig|jwt|jws|jwe|otp|pin|sid|code|pass|pw|creds|cvv|cvc)$|^(?:mac|hash|salt|seed|proof)$"
)
_HARMLESS = re.compile(
    r"(?:status|error|language|country|currency|postal|zip|exit)code$|keywords?$|^authors?$|compass$"
)
_NESTED = re.compile(r"(\?|%(?:25)*3f|;)(?=.*(?:=|%(?:25)*3d)).*", re.IGNORECASE)
_USERINFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:)?//[^/?#]*@")


def is_plain(target: str) -> bool:
    """Whether `target` is a path without a query, in printable ASCII: nothing to hide or clean."""
    return target[:1] == "/" and "?" not in target and target.isascii() and target.isprintable()


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Whether the value of a query parameter of that name, as it was sent, must be masked."""
    for _ in range(3):  # a server behind us may decode more than once
        if "%" not in name and "+" not in name:
            break
        name = unquote_plus(name)
    plain = _NOT_ALPHANUMERIC.sub("", name.lower())
    return _SECRET.search(plain) is not None and _HARMLESS.search(plain) is None


def clean_target(target: str) -> str:
    """`/search?q=x&api_key=123` as `/search?q=x&api_key=***`."""
    if target[:1] != "/":
        target = _USERINFO.sub(lambda match: f"{match[1] or ''}//{MASK}@", target, count=1)
    path, mark, query = target.partition("?")
    if mark:
        path = f"{path}?{_clean_query(query)}"
    return clean_text(path)


def _clean_query(query: str) -> str:
    separator = ";" if ";" in query and "&" not in query else "&"
    pairs = query.split(separator, _LIMIT)
    if len(pairs) > _LIMIT:
        pairs[_LIMIT] = "..."
    changed = len(pairs) > _LIMIT
    for position, pair in enumerate(pairs):
        name, _, value = pair.partition("=")
        if not value:
            continue
        if is_secret_name(name):
            pairs[position] = f"{name}={MASK}"
            changed = True
        elif "?" in value or "%" in value or ";" in value:
            pairs[position] = f"{name}={_NESTED.sub(_mask_nested, value)}"
            changed = True
    return separator.join(pairs) if changed else query


def _mask_nested(query: re.Match[str]) -> str:
    return query[1] + MASK


def clean_text(text: str, limit: int = 16 * 1024) -> str:
    """`text` in printable ASCII, of at most `limit` characters."""
    return printable(text, limit, ascii_only=True)
