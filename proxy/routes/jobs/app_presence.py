"""Whether an app is known to answer nobody, as far as the requests of its routes have found out."""

from __future__ import annotations

from proxy.forward.exchange import Exchange


class AppPresence:
    """One upstream's. Away from the first request that it refused, or kept waiting for too long,
    until one that it answers. Meanwhile one request at a time goes to it and finds out; the others
    need not wait for the same."""

    def __init__(self) -> None:
        self._away = False
        self._probe: Exchange | None = None

    def goes(self, exchange: Exchange) -> bool:
        """Whether this request should go to the app, and not be answered without it."""
        if not self._away:
            return True
        if self._probe is None:
            self._probe = exchange
            return True
        return False

    def missed(self) -> None:
        """The app refused a connection, or did not answer in time."""
        self._away = True

    def ended(self, exchange: Exchange) -> None:
        """The exchange is over; whatever the app answered, it answered."""
        if self._probe is exchange:
            self._probe = None
        if exchange.upstream_time is not None:
            self._away = False
