"""`limits.per_client.uploads`: the number of concurrent uploads of one client."""

from __future__ import annotations

from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks

_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


class UploadShares:
    """Binds to routes with `upload:` on listeners that limit uploads."""

    def bind(self, binding: Binding) -> Hooks | None:
        """Refuses before any of the body is read and before a probe is requested."""
        route, per_client = binding.route, binding.listener.limits.per_client
        if route is None or route.upload is None or per_client is None:
            return None
        return Hooks(request=_begin, finished=_end) if per_client.uploads is not None else None


def _begin(exchange: Exchange) -> None:
    assert exchange.head is not None
    if exchange.share is not None and (exchange.head.has_body or exchange.method in _BODY_METHODS):
        exchange.share.owner.begin_upload(exchange.share)
        exchange.uploads = True


def _end(exchange: Exchange) -> None:
    if exchange.uploads:
        assert exchange.share is not None
        exchange.uploads = False
        exchange.share.owner.end_upload(exchange.share)
