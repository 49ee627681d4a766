"""The interface for custom stages, which process requests and responses of a route in Python.

See docs/how-to/extending.md. A stage is a subclass of `Stage` with a model of its settings;
`bind(route)` returns its `Hooks` for that route. The names exported here are stable; changes are in
the changelog. `messages` is what hooks see and may change, `refusal` how they refuse a request.
"""

from __future__ import annotations

from proxy.config.values import Duration, HeaderName, Secret, Size
from proxy.config.values import Share as Ratio
from proxy.extend.messages import Outcome, Request, Response
from proxy.extend.refusal import Refused
from proxy.extend.stage import Hooks, Route, Settings, Stage, UpstreamName

__all__ = [
    "Duration",
    "HeaderName",
    "Hooks",
    "Outcome",
    "Ratio",
    "Refused",
    "Request",
    "Response",
    "Route",
    "Secret",
    "Settings",
    "Size",
    "Stage",
    "UpstreamName",
]
