"""What a stage is: its settings, where it is put, and the hooks that it wants there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from proxy.config.extensions import UpstreamRef
from proxy.config.values import Model
from proxy.extend.messages import Outcome, Request, Response

UpstreamName = Annotated[
    str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"), AfterValidator(UpstreamRef)
]
"""A setting that names an upstream; `check` looks whether there is one."""


class Settings(Model):
    """Base of a stage's settings: frozen, and unknown keys are errors. A default that is text is
    read as a value in the config is: `Duration = "500ms"` is half a second."""

    @model_validator(mode="before")
    @classmethod
    def _read_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        texts = {
            name: field.default
            for name, field in cls.model_fields.items()
            if isinstance(field.default, str) and field.validation_alias is None
        }
        return {**texts, **given}


@dataclass(frozen=True, slots=True)
class Route:
    """Where a stage is put: from the config."""

    name: str
    listener: str
    direction: str
    path: str
    methods: tuple[str, ...]
    upstream: str
    upstreams: tuple[str, ...] = field(default=())
    """All upstreams of the config."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a stage does on a route; what it leaves empty costs nothing. Hooks are called on the
    event loop, which must not be blocked.

    `request` sees a request before any of its body is read; it may change what goes upstream, or
    raise `Refused`. It may be `async`, and has `timeout` seconds then. `response` sees the head of
    the upstream's answer, likewise. `finished` is called when all is over, also after an error; it
    is too late to change anything then. Both are plain functions.
    """

    request: Callable[[Request], Awaitable[None] | None] | None = None
    response: Callable[[Request, Response], None] | None = None
    finished: Callable[[Request, Outcome], None] | None = None
    timeout: float = 1.0


class Stage:
    """A stage. One is made for each route that uses it, and anew with each reload."""

    class Settings(Settings):
        """No settings; give the stage a class of this name and base where it has some."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def bind(self, route: Route) -> Hooks | None:
        """Its hooks on that route, or None where it has nothing to do there."""
        raise NotImplementedError(f"{type(self).__name__}.bind")

    async def close(self) -> None:
        """End what the stage holds open: a client, a session. Called once, when no request uses it
        any more: after a reload, and at the stop. It has five seconds."""
