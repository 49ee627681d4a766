"""The checks of `/readyz`.

Only the listeners decide whether the proxy is ready. The other checks inform: callers are better
served here, even without Redis, than anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.admin.backend import Check, Readiness
from proxy.app.lifecycle import Lifecycle
from proxy.app.parts import Parts
from proxy.core.process.shortage import DETAILS
from proxy.core.tasks import Tasks
from proxy.forward.routing.compile import Plans
from proxy.jobs.requeue.requeuer import requeue_problem
from proxy.jobs.service import Mirrors
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.trace.recorder import Trace

_Checks = Iterator[tuple[str, Check]]


def readiness(parts: Parts, lifecycle: Lifecycle) -> Readiness:
    """Ready while started and not draining."""
    if lifecycle.starting:  # some parts have no state yet
        detail = "draining" if lifecycle.draining else f"starting: {lifecycle.starting}"
        return Readiness(ready=False, checks={"listeners": Check(ok=False, detail=detail)})
    serving = not lifecycle.draining
    return Readiness(
        ready=serving,
        checks={
            "listeners": Check(ok=serving, detail="serving" if serving else "draining"),
            "tasks": _tasks(parts.vitals.tasks),
            **dict(_mirrors(parts.mirrors)),
            **dict(_breakers(parts.breakers)),
            **dict(_trace(parts.trace)),
            **{
                f"shortage:{reason}": Check(ok=False, detail=DETAILS[reason])
                for reason in parts.vitals.shortages.current()
            },
            **dict(_clients(parts.plans)),
        },
    )


def _tasks(tasks: Tasks) -> Check:
    dying = [task for task in tasks.reports() if task.troubled]
    detail = "; ".join(f"{task.name} keeps dying ({task.error})" for task in dying)
    return Check(ok=not dying, detail=detail or "all run")


def _mirrors(mirrors: Mirrors) -> _Checks:
    for name, mirror in mirrors.by_name.items():
        state = mirror.state()
        redis, sqlite = state["redis"], state["sqlite"]
        detail = state["capture"] if mirror.redis_up else state["reason"]
        if state["writes"] != "ok":
            detail = f"refuses writes: {state['writes']}"
        writable = redis == "live" and state["writes"] == "ok"
        yield f"mirror:{name}:redis", Check(ok=writable, detail=f"{redis}: {detail}")
        missing = state["missing_rights"]
        detail = "missing: " + "; ".join(missing) if missing else "complete"
        yield f"mirror:{name}:rights", Check(ok=not missing, detail=detail)
        detail = state["sqlite_reason"] or sqlite
        yield f"mirror:{name}:sqlite", Check(ok=sqlite == "ok", detail=detail)
        if (requeue := state["requeue"]) is not None:
            problem = requeue_problem(requeue)
            detail = problem or f"workers: {requeue['workers']}"
            yield f"mirror:{name}:workers", Check(ok=problem is None, detail=detail)


def _breakers(breakers: BreakerRegistry) -> _Checks:
    shared = breakers.redis_reachable
    if shared is None:
        return
    missing = breakers.missing_rights
    detail = "; ".join(f"Redis refuses {right}" for right in missing)
    yield (
        "breakers:redis",
        Check(
            ok=shared and not missing,
            detail=detail or ("shared" if shared else "out of reach: decided locally"),
        ),
    )


def _trace(trace: Trace) -> _Checks:
    if trace.store is not None and trace.store.degraded:
        detail = f"the trace cannot be written: {trace.store.degraded}"
        yield "trace", Check(ok=False, detail=detail)


def _clients(plans: Plans) -> _Checks:
    for name, plan in plans.listeners.items():
        gateway = plan.shares.hint.gateway if plan.shares is not None else None
        if gateway is not None:
            detail = f"nearly all come from {gateway}, which is not in trusted_proxies"
            yield f"listener:{name}:clients", Check(ok=False, detail=detail)
