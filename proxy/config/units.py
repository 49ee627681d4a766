"""Durations, sizes, percentages, times of day and addresses, as people write them in YAML.

Every parser takes what YAML gave (a string or a number) and raises `ValueError` with a message of
the form "expected ..., found ...", which the loader shows behind file, line and key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?)?B?")
_BYTES = {"K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def parse_duration(value: object) -> float:
    """`250ms`, `2s`, `10m`, `24h`, `7d` as seconds. A bare number is refused, except 0."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _SECONDS[match[2]]
    if value == 0 and not isinstance(value, bool):
        return 0.0
    raise ValueError(f"expected a duration such as 250ms, 2s, 10m, 24h or 7d, found {value!r}")


def parse_size(value: object) -> int:
    """`50MiB`, `64KiB`, `10MB` or a number of bytes, as bytes. KB is 1000 bytes, KiB 1024."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return round(float(match[1]) * _BYTES.get(match[2] or "", 1))
    raise ValueError(f"expected a size such as 50MiB, 64KiB or 10MB, found {value!r}")


def parse_ratio(value: object) -> float:
    """`20%` or `0.2`, as a number from 0 to 1."""
    ratio = -1.0
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())):
        ratio = float(match[1]) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        ratio = float(value)
    if not 0 <= ratio <= 1:
        raise ValueError(f"expected a share such as 20% or 0.2, found {value!r}")
    return ratio


def parse_time_of_day(value: object) -> tuple[int, int]:
    """`"03:00"` as (hour, minute)."""
    if isinstance(value, str) and (match := re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", value)):
        return int(match[1]), int(match[2])
    raise ValueError(f'expected a time of day such as "03:00" (in quotes), found {value!r}')


@dataclass(frozen=True)
class Bind:
    """Where a listener listens. `host` is an IP address, or `""` for every address there is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_BIND = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]]*)):(\d{1,5})")


def parse_bind(value: object) -> Bind:
    """`0.0.0.0:8000`, `[::1]:8000` or `:8000` (every address, IPv4 and IPv6). Port 0 picks one."""
    if isinstance(value, Bind):
        return value
    match = _BIND.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[3]) > 65535:
        raise ValueError(
            f"expected an address such as 127.0.0.1:8000, [::1]:8000 or :8000, found {value!r}"
        )
    return Bind(match[1] or match[2] or "", int(match[3]))


@dataclass(frozen=True)
class TargetAddress:
    """One place to connect to. `path` is set for a unix socket, else `host` and `port`."""

    scheme: str
    host: str
    port: int
    path: str | None = None

    @property
    def authority(self) -> str:
        """What stands in `Host` when the route does not preserve the client's."""
        if self.path is not None:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


_TARGET = re.compile(
    r"(https?)://(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?/?", re.IGNORECASE
)


def parse_target(value: object) -> TargetAddress:
    """`http://host:port`, `https://host`, `http://[::1]:8005` or `unix:/run/app.sock`."""
    if isinstance(value, TargetAddress):
        return value
    if isinstance(value, str) and value.startswith("unix:/"):
        return TargetAddress("http", "", 0, value.removeprefix("unix:"))
    match = _TARGET.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[4] or 0) > 65535:
        raise ValueError(
            "expected http://HOST:PORT, https://HOST or unix:/PATH without a path behind it, "
            f"found {value!r}"
        )
    scheme = match[1].lower()
    return TargetAddress(
        scheme, match[2] or match[3], int(match[4] or (443 if scheme == "https" else 80))
    )
