"""Compiles one route: binds its stages and collects their hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.config.listeners import FieldRules
from proxy.forward.routing.binding import Binding, Stage, with_timeouts
from proxy.forward.routing.header_edits import FieldEdits
from proxy.forward.routing.plan import (
    Admission,
    Check,
    FallbackSource,
    FilterFactory,
    HeadObserver,
    Observer,
    RoutePlan,
    UpstreamPlan,
)


def compile_route(
    stages: Sequence[Stage],
    binding: Binding,
    upstream: UpstreamPlan | None,
    adopted: list[Callable[[], None]],
) -> RoutePlan:
    """The plan of one route. `adopted` collects what stages do when it comes into force."""
    route = binding.route
    started: list[Observer] = []
    checks: list[Check] = []
    filters: list[FilterFactory] = []
    admissions: list[Admission] = []
    fallback_sources: list[FallbackSource] = []
    answered: list[HeadObserver] = []
    finished: list[Observer] = []
    traced = False
    for stage in stages:
        hooks = stage.bind(binding)
        if hooks is None:
            continue
        if hooks.started is not None:
            started.append(hooks.started)
        if hooks.request is not None:
            checks.append(hooks.request)
        if hooks.filter is not None:
            filters.append(hooks.filter)
        if hooks.admit is not None:
            admissions.append(hooks.admit)
        if hooks.fallback_source is not None:
            fallback_sources.append(hooks.fallback_source)
        if hooks.response is not None:
            answered.append(hooks.response)
        if hooks.finished is not None:
            finished.append(hooks.finished)
        traced = traced or hooks.traced
        if hooks.adopted is not None:
            adopted.append(hooks.adopted)
    if len(filters) > 1:
        raise ValueError("two stages filter the body of one route")
    return RoutePlan(
        name=binding.route_name,
        upstream=with_timeouts(upstream, route),
        started=tuple(started),
        filter=filters[0] if filters else None,
        checks=tuple(checks),
        admissions=tuple(admissions),
        fallback_sources=tuple(fallback_sources),
        guards=bool(filters) or (route is not None and route.guards),
        reads_answers=any(fallback_source.needs_body for fallback_source in fallback_sources),
        finished=tuple(finished),
        max_body=_max_body(binding),
        body_timeout=(route and route.timeouts.body) or binding.listener.timeouts.body,
        request_edits=_edits(route.headers.request if route and route.headers else None),
        response_edits=_edits(route.headers.response if route and route.headers else None),
        repeatable=route is not None and route.repeatable,
        min_rate=binding.listener.timeouts.min_rate,
        answered=tuple(answered),
        traced=traced,
    )


def _edits(rules: FieldRules | None) -> FieldEdits | None:
    if rules is None or not (rules.set or rules.remove):
        return None
    return FieldEdits(rules.set, rules.remove)


def _max_body(binding: Binding) -> int | None:
    """The largest request body in bytes. An enforced upload check has its own limit instead."""
    route = binding.route
    if route is not None and route.limits is not None:
        return route.limits.body
    if route is not None and route.upload is not None and route.upload.mode == "enforce":
        return None
    return binding.listener.limits.body
