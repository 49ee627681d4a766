"""The contenders, in the order of the table; those of `OPTIONAL` run only when named."""

from __future__ import annotations

from tests.bench.contenders.aiohttp_forwarder import AiohttpForwarder
from tests.bench.contenders.base import Contender
from tests.bench.contenders.envoy import Envoy
from tests.bench.contenders.fastapi_httpx import FastapiHttpx
from tests.bench.contenders.haproxy import Haproxy
from tests.bench.contenders.nginx import Nginx
from tests.bench.contenders.ours import Ours

OURS = Ours.name
STANDARD: tuple[Contender, ...] = (
    Ours(),
    Nginx(),
    Haproxy(),
    Envoy(),
    AiohttpForwarder(),
    FastapiHttpx(),
)
OPTIONAL: tuple[Contender, ...] = (Nginx("nginx-64k", buffer="64k"),)


def chosen(names: list[str] | None) -> list[Contender]:
    """The named contenders in table order, or the standard ones. Raises ValueError on a name that
    does not exist."""
    if not names:
        return list(STANDARD)
    known = {contender.name: contender for contender in (*STANDARD, *OPTIONAL)}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"no contender {', '.join(unknown)}; there are: {', '.join(known)}")
    return [contender for name, contender in known.items() if name in names]
