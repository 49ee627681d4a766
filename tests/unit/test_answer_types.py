"""Good answers that cannot be what a route is for, by the media type that they name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.http1.response_head import parse_response
from proxy.routes.answer_types import AnswerTypes
from proxy.telemetry.metrics.registry import Metrics

HTML = b"text/html; charset=utf-8"
JSON = b"application/json"


def answers(direction: str, job: dict[str, Any] | None, *types: bytes | None) -> list[object]:
    """What was noted of answers of these media types, in order; None: no `Content-Type`."""
    stage = AnswerTypes(Metrics("1"))
    route = SimpleNamespace(
        upstream="app", job=None if job is None else SimpleNamespace(**{"deletes": None, **job})
    )
    binding: Any = SimpleNamespace(
        route=route,
        route_name="r",
        listener_name="l",
        listener=SimpleNamespace(direction=direction),
    )
    hooks = stage.bind(binding)
    if hooks is None:
        return ["not bound"]
    assert hooks.finished is not None
    noted: list[object] = []
    for media_type in types:
        field = b"" if media_type is None else b"\r\nContent-Type: " + media_type
        data = b"HTTP/1.1 200 OK\r\nX: y" + field + b"\r\n\r\n"
        facts: dict[str, object] = {}
        x = SimpleNamespace(response=parse_response(data, len(data) - 4, 16), note=facts.update)
        hooks.finished(cast(Any, x))
        noted.append(facts.get("unexpected_type"))
    return noted


@pytest.mark.parametrize(
    ("direction", "job", "types", "noted"),
    [
        ("ingress", None, [HTML], ["not bound"]),
        ("ingress", {"reads": "id"}, [HTML, b"text/plain"], ["text/html", "text/plain"]),
        ("ingress", {"reads": "id"}, [JSON, b"application/hal+JSON", None], [None, None, None]),
        ("ingress", {"deletes": "id"}, [HTML], ["not bound"]),
        # A service of web pages is none that has begun to fail; one of data is.
        ("egress", None, [HTML, HTML], [None, None]),
        ("egress", None, [JSON, HTML, b"video/mp4"], [None, "text/html", None]),
        ("egress", None, [b"video/mp4", b"application/xhtml+xml"], [None, "application/xhtml+xml"]),
    ],
)
def test_what_is_unexpected(
    direction: str, job: dict[str, Any] | None, types: list[bytes | None], noted: list[object]
) -> None:
    """Jobs are JSON; elsewhere only a page where there was something else before."""
    assert answers(direction, job, *types) == noted
