"""The base class of stages, their settings, and their hooks."""

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
"""A setting that names an upstream; `check` verifies that it exists."""


class Settings(Model):
    """The base of a stage's settings: frozen, and unknown keys are errors. A default that is text
    is parsed like a value of the config: `Duration = "500ms"` is half a second."""

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
    """The route that a stage is bound to, from the config."""

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
    """The hooks of a stage on a route; unused ones cost nothing. They are called on the event loop,
    which they must not block.

    `request` gets a request before any of its body is read; it may change what goes upstream, or
    raise `Refused`. It may be `async`, and then has `timeout` seconds. `response` gets the head of
    the upstream's response, and may do the same. `finished` is called at the end of every exchange,
    also after an error, and cannot change anything. These two are plain functions.
    """

    request: Callable[[Request], Awaitable[None] | None] | None = None
    response: Callable[[Request, Response], None] | None = None
    finished: Callable[[Request, Outcome], None] | None = None
    timeout: float = 1.0


class Stage:
    """A stage. Each route that uses it has its own instance, and each reload makes new ones."""

    class Settings(Settings):
        """No settings; a stage with settings has a class of this name and base."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def bind(self, route: Route) -> Hooks | None:
        """Its hooks on that route, or None if it has nothing to do there."""
        raise NotImplementedError(f"{type(self).__name__}.bind")

    async def close(self) -> None:
        """Close resources of the stage, such as a client or a session. Called once, after a reload
        or at the stop, when no request uses the stage any more. It has five seconds."""
