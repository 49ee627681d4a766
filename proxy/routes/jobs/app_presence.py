"""Whether an app is known to be unresponsive, judged by the requests of its routes."""

from __future__ import annotations

from proxy.forward.exchange import Exchange


class AppPresence:
    """The state of one upstream. It is away from the first request that it refused or did not
    answer in time until one that it answers. Meanwhile one request at a time is sent to it as a
    probe; the others do not wait."""

    def __init__(self) -> None:
        self._away = False
        self._probe: Exchange | None = None

    def goes(self, exchange: Exchange) -> bool:
        """Whether this request should be sent to the app before the mirror is asked."""
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
        """The exchange is over; any response shows that the app is back."""
        if self._probe is exchange:
            self._probe = None
        if exchange.upstream_time is not None:
            self._away = False
