"""Detects a gateway missing from `trusted_proxies`: nearly all requests come from one address that
sends `X-Forwarded-For`, so all its callers share the limits of one client. Pure."""

from __future__ import annotations

import logging

_log = logging.getLogger("proxy.clients")

#: The window in seconds, the fewest requests in it for a judgement, and the share of them that
#: counts as nearly all.
_WINDOW, _FEWEST, _NEARLY_ALL = 60.0, 200, 0.9


class GatewayHint:
    """The detector of one listener. `requests` counts those in this window; `gateway` is the
    address that the last full window pointed to, or None.

    The majority is found with a single candidate (Boyer and Moore), so that memory does not depend
    on the number of callers.
    """

    __slots__ = ("_candidate", "_ends", "_hits", "_listener", "_logged", "_votes", "gateway",
                 "requests")  # fmt: skip

    def __init__(self, listener: str) -> None:
        self._listener = listener
        self.requests = 0
        self.gateway: str | None = None
        self._candidate = ""
        self._votes = 0
        self._hits = 0
        self._ends: float | None = None
        self._logged: str | None = None

    def forwarded(self, address: str, now: float) -> None:
        """A request from `address` had an `X-Forwarded-For` that is not trusted."""
        if self._ends is None:
            self._ends, self.requests = now + _WINDOW, 1
        elif now >= self._ends:
            self._judge()
            self._ends, self.requests, self._hits, self._votes = now + _WINDOW, 1, 0, 0
        if self._votes == 0:
            if address != self._candidate:
                self._candidate, self._hits = address, 0
            self._votes = 1
            self._hits += 1
        elif address == self._candidate:
            self._votes += 1
            self._hits += 1
        else:
            self._votes -= 1

    def _judge(self) -> None:
        if self.requests < _FEWEST:
            return
        one = self._hits >= _NEARLY_ALL * self.requests
        self.gateway = self._candidate if one else None
        if self.gateway is None or self.gateway == self._logged:
            return
        self._logged = self.gateway
        _log.warning(
            "Nearly all requests to listener %s come from %s, which sends X-Forwarded-For: all its "
            "callers share the limits of one client. If it is a gateway of yours, name it in "
            "trusted_proxies",
            self._listener,
            self.gateway,
            extra={
                "event": "untrusted_gateway",
                "listener": self._listener,
                "client": self.gateway,
                "requests": self.requests,
            },
        )
