"""What is not installed everywhere, by its documented rules: Express and Go; and nginx itself."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from tests.routers import HANDLERS, Router

_PARAMETER = re.compile(r"\{(\w+)(:\*)?\}")


def _express_pattern(path: str) -> re.Pattern[str]:
    """path-to-regexp as Express sets it up: not strict, not case-sensitive, on the raw path."""
    pattern = _PARAMETER.sub(lambda match: "(.*)" if match[2] else "([^/]+?)", path)
    return re.compile(f"{pattern}/?", re.IGNORECASE | re.ASCII | re.DOTALL)


def express_rules() -> Router:
    """Express 4 and 5: the path is matched undecoded, HEAD falls to GET."""
    routes = [(name, method, _express_pattern(path)) for name, method, path in HANDLERS]

    def route(method: str, target: str) -> str | None:
        path = target.partition("?")[0]
        for name, verb, pattern in routes:
            if verb == method or (verb, method) == ("GET", "HEAD"):
                match = pattern.fullmatch(path)
                if match is None:
                    continue
                return name if all(map(_decodable, match.groups())) else None
        return None

    return route


def _decodable(text: str) -> bool:
    """Whether `decodeURIComponent` takes it."""
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        return False
    try:
        unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return False
    return True


def go_rules() -> Router:
    """net/http's ServeMux since Go 1.22: unclean paths are redirected, the others are split at `/`
    and each segment is unescaped; a pattern with GET takes HEAD."""

    def route(method: str, target: str) -> str | None:
        path = target.partition("?")[0]
        if re.search("%(?![0-9A-Fa-f]{2})", path) or "//" in path:
            return None
        segments = [unquote_to_bytes(part) for part in path[1:].split("/")]
        if any(part in (b".", b"..") for part in path[1:].encode().split(b"/")):
            return None
        for name, verb, pattern in HANDLERS:
            if verb != method and (verb, method) != ("GET", "HEAD"):
                continue
            parts = pattern[1:].split("/")
            if parts[-1] == "{rest:*}":
                head, tail = parts[:-1], segments[: len(parts) - 1]
                if len(segments) >= len(parts) and _same(head, tail):
                    return name
            elif len(parts) == len(segments) and _same(parts, segments):
                return name
        return None

    return route


def _same(parts: list[str], segments: list[bytes]) -> bool:
    return all(
        bool(found) if part[:1] == "{" else part.encode() == found
        for part, found in zip(parts, segments, strict=True)
    )


def nginx_config(port: int) -> str:
    """A server whose locations answer with the name of a handler. Methods are not its business."""
    locations = []
    for path in dict.fromkeys(path for _, _, path in HANDLERS):
        names = ",".join(f"{method}={name}" for name, method, other in HANDLERS if other == path)
        pattern = _PARAMETER.sub(lambda match: ".*" if match[2] else "[^/]+", path)
        where = f"= {path}" if pattern == path else f'~ "^{pattern}$"'
        locations.append(f'location {where} {{ return 200 "{names}"; }}')
    return f"""
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{
    listen 127.0.0.1:{port}; default_type text/plain;
    {" ".join(locations)}
    location / {{ return 200 "-"; }}
  }}
}}
"""
