"""Durations, sizes, percentages, times of day and addresses, as people write them in YAML.

Every parser accepts a value from YAML (a string or a number) and raises `ValueError` with a message
of the form "expected ..., found ...", which the loader shows after file, line and key. The
`format_` functions write a value as a person would.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from proxy.core.text import bracketed, host_port

_DURATION = re.compile(
    r"(?=[0-9])(?:([0-9.]+)\s*d)?\s*(?:([0-9.]+)\s*h)?\s*(?:([0-9.]+)\s*m)?\s*(?:([0-9.]+)\s*s)?"
    r"\s*(?:([0-9.]+)\s*ms)?"
)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PARTS = tuple(_SECONDS[unit] for unit in ("d", "h", "m", "s", "ms"))
_LONGEST = 36_525 * 86400.0

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?)?B?")
_BYTES = {"K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def parse_duration(value: object) -> float:
    """`250ms`, `2s`, `1m30s`, `24h`, `7d` as seconds. A bare number is refused, except 0.

    The limit is a hundred years, because longer ones overflow timers and dates.
    """
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        try:
            parts = zip(match.groups(), _PARTS, strict=True)
            seconds = sum(float(part) * unit for part, unit in parts if part is not None)
        except ValueError:  # two full stops in one number
            seconds = _LONGEST + 1
        if seconds <= _LONGEST:
            return seconds
    elif value == "0" or (value == 0 and not isinstance(value, bool)):
        return 0.0
    raise ValueError(f"expected a duration such as 250ms, 2s, 10m, 24h or 7d, found {value!r}")


def format_duration(seconds: float) -> str:
    """Seconds as `250ms`, `2s`, `90s`, `10m`, `1h`, `7d`: the largest unit that stays whole."""
    if seconds == 0:
        return "0s"
    milliseconds = round(seconds * 1000, 6)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{round(milliseconds / size)}{unit}"
    return f"{milliseconds:f}".rstrip("0").rstrip(".") + "ms"


def parse_size(value: object) -> int:
    """`50MiB`, `64KiB`, `10MB` or a number of bytes, as bytes. KB is 1000 bytes, KiB 1024."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = float(match[1]) * _BYTES.get(match[2] or "", 1)
        if size < 2**53:  # above that a float is not exact
            return round(size)
    raise ValueError(f"expected a size such as 50MiB, 64KiB or 10MB, found {value!r}")


def format_size(size: int) -> str:
    """Bytes as `50MiB`, `64KiB`, `10MB`: the largest unit that stays whole, else `1234B`."""
    for unit in ("Gi", "Mi", "Ki", "G", "M", "K"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}B"
    return f"{size}B"


_RATIO = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(%)?")


def parse_ratio(value: object) -> float:
    """`20%` or `0.2`, as a number from 0 to 1."""
    ratio = -1.0
    if isinstance(value, str) and (match := _RATIO.fullmatch(value.strip())):
        ratio = float(match[1]) / (100 if match[2] else 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        ratio = float(value)
    if not 0 <= ratio <= 1:
        raise ValueError(f"expected a share such as 20% or 0.2, found {value!r}")
    return ratio


def format_ratio(share: float) -> str:
    """0.2 as `20%`."""
    return f"{round(share * 100, 6):g}%"


@dataclass(frozen=True)
class Rate:
    """`count` per `seconds`."""

    count: int
    seconds: float

    def __str__(self) -> str:
        unit = next((unit for unit, size in _SECONDS.items() if size == self.seconds), "s")
        return f"{self.count}/{unit}"


_RATE = re.compile(r"([0-9]{1,9})\s*/\s*(s|m|h)")


def parse_rate(value: object) -> Rate:
    """`50/s`, `600/m` or `1000/h`: how many in a second, a minute, an hour."""
    if isinstance(value, Rate):
        return value
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError(f"expected a rate such as 50/s, 600/m or 1000/h, found {value!r}")
    return Rate(int(match[1]), _SECONDS[match[2]])


def parse_byte_rate(value: object) -> int:
    """`1KiB/s` in bytes a second."""
    size, slash, second = value.rpartition("/") if isinstance(value, str) else ("", "", "")
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if slash and second.strip() == "s":
        try:
            rate = parse_size(size.strip())
        except ValueError:
            rate = 0
        if rate > 0:
            return rate
    raise ValueError(f"expected a rate such as 1KiB/s or 500B/s, found {value!r}")


def format_byte_rate(rate: int) -> str:
    """Bytes a second as `1KiB/s`."""
    return f"{format_size(rate)}/s"


def parse_time_of_day(value: object) -> tuple[int, int]:
    """`03:00` as (hour, minute)."""
    if isinstance(value, str) and (match := re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", value)):
        return int(match[1]), int(match[2])
    raise ValueError(f"expected a time of day from 00:00 to 23:59, found {value!r}")


def format_time_of_day(time: tuple[int, int]) -> str:
    """(3, 0) as `03:00`."""
    return f"{time[0]:02d}:{time[1]:02d}"


@dataclass(frozen=True)
class Bind:
    """Where a listener listens. `host` is an IP address, or `""` for every address. `given`, used
    instead of both, names a socket that somebody else has opened."""

    host: str
    port: int
    given: str = ""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return bool(self.host) and ipaddress.ip_address(self.host).is_loopback

    def overlaps(self, other: Bind) -> bool:
        """Whether the kernel refuses the second of the two. Port 0 never clashes."""
        if self.given or other.given:
            return self.given == other.given
        if self.port != other.port or self.port == 0:
            return False
        if not self.host or not other.host or self.host == other.host:
            return True
        mine, theirs = ipaddress.ip_address(self.host), ipaddress.ip_address(other.host)
        if mine.version != theirs.version:
            return False  # IPv6 sockets are opened with IPV6_V6ONLY, as asyncio does
        return mine == theirs or mine.is_unspecified or theirs.is_unspecified

    def __str__(self) -> str:
        if self.given:
            return f"fd:{self.given}"
        return host_port(self.host, self.port)


_BIND = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([0-9.]+|localhost|\*|)):([0-9]{1,5})")


def parse_bind(value: object) -> Bind:
    """`0.0.0.0:8000`, `[::1]:8000`, `localhost:8000` (which is 127.0.0.1), or `:8000` and `*:8000`
    (every address, IPv4 and IPv6). Port 0 lets the kernel choose. Other host names are refused,
    because their addresses decide who can connect, and may change between two starts."""
    if isinstance(value, Bind):
        return value
    match = _BIND.fullmatch(value) if isinstance(value, str) else None
    if match is not None and int(match[3]) <= 65535:
        host = {"localhost": "127.0.0.1", "*": ""}.get(match[2] or "", match[1] or match[2] or "")
        try:
            if not host or ipaddress.ip_address(host).version == (6 if match[1] else 4):
                return Bind(host, int(match[3]))
        except ValueError:
            pass  # reported below
    raise ValueError(
        "expected an IP address and port such as 127.0.0.1:8000, [::1]:8000 or :8000, "
        f"found {value!r}"
    )


_GIVEN = re.compile(r"fd:([A-Za-z0-9._@-]{1,255})")


def parse_listener_bind(value: object) -> Bind:
    """Like `parse_bind`, or `fd:NAME`: the socket of that name that systemd gave the process
    (`FileDescriptorName=` of a `.socket` unit)."""
    if isinstance(value, str) and value.startswith("fd:"):
        match = _GIVEN.fullmatch(value)
        if match is None:
            raise ValueError(
                f"expected fd:NAME, the FileDescriptorName of a socket unit, found {value!r}"
            )
        return Bind("", 0, match[1])
    return parse_bind(value)


def expand_home(value: object) -> object:
    """`~/x` as a path below the home directory. Raises `ValueError` if there is none."""
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"expected a path whose home directory exists, found {value!r}") from None


_USERINFO = re.compile(r"(?<=://)\S*@")  # greedy: people forget to escape a / in a password


def without_userinfo(text: str) -> str:
    """`redis://me:pw@host/0` as `redis://***@host/0`; other text as it is."""
    return _USERINFO.sub("***@", text)


def mask(secret: str) -> str:
    """A secret as it may be shown: a URL without userinfo and query, anything else as `***`."""
    if re.fullmatch(r"[a-z+]+://\S*", secret):
        return without_userinfo(secret.partition("?")[0])
    return "***"


@dataclass(frozen=True)
class TargetAddress:
    """One place to connect to. `path` is set for a unix socket, else `host` and `port`. `app` is
    the `MODULE:NAME` of an application in our own process, whose `path` is known once the proxy has
    been built."""

    scheme: str
    host: str
    port: int
    path: str | None = None
    app: str | None = None

    @property
    def authority(self) -> str:
        """The value of `Host` if the route does not preserve the client's."""
        if self.path is not None or self.app is not None:
            return "localhost"
        default = 443 if self.scheme == "https" else 80
        if self.port == default:
            return bracketed(self.host)
        return host_port(self.host, self.port)

    def __str__(self) -> str:
        if self.app is not None:
            return f"aiohttp:{self.app}"
        if self.path is not None:
            return f"unix:{self.path}"
        return f"{self.scheme}://{host_port(self.host, self.port)}"


#: The name of a class or function: `package.module:Name`.
OBJECT_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_TARGET = re.compile(
    r"(https?)://(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?/?", re.IGNORECASE
)


def parse_target(value: object) -> TargetAddress:
    """`http://host:port`, `https://host`, `http://[::1]:8005`, `unix:/run/app.sock` or
    `aiohttp:package.module:make_app`."""
    if isinstance(value, TargetAddress):
        return value
    if isinstance(value, str) and value.startswith("aiohttp:"):
        name = value.removeprefix("aiohttp:")
        if not OBJECT_NAME.fullmatch(name):
            raise ValueError(f"expected aiohttp:PACKAGE.MODULE:NAME, found {value!r}")
        return TargetAddress("http", "", 0, app=name)
    if isinstance(value, str) and value.startswith("unix:/") and "\0" not in value:
        return TargetAddress("http", "", 0, value.removeprefix("unix:"))
    match = _TARGET.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 0 < int(match[4] or 80) <= 65535:
        raise ValueError(
            "expected http://HOST:PORT, https://HOST or unix:/PATH without a path behind it, or "
            f"aiohttp:PACKAGE.MODULE:NAME, found {value!r}"
        )
    scheme = match[1].lower()
    return TargetAddress(
        scheme, match[2] or match[3], int(match[4] or (443 if scheme == "https" else 80))
    )
