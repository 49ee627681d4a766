"""The running proxy: the one place where its parts are built, started, reloaded, drained, stopped.

Order of a start: config, plans, admin, stores, listeners. A stop goes the other way: the admin is
up while anything else is, so that `/readyz` can say 503 during a start and a drain.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from proxy import __version__
from proxy.admin.backend import Check, Readiness, ReloadResult
from proxy.admin.connections import ConnectionMetrics
from proxy.admin.endpoints.breakers import BreakerControl
from proxy.admin.endpoints.jobs import JobControl
from proxy.admin.endpoints.trace import TraceControl
from proxy.admin.job_backend import MirroredJobs
from proxy.admin.server import AdminServers
from proxy.admin.status.page import StatusPage
from proxy.admin.status.sampler import StatusSampler
from proxy.admin.status.snapshot import Sources
from proxy.admin.trace_backend import TracedStories
from proxy.app.hosted_targets import AppTargets
from proxy.app_telemetry.collectors import AppTelemetry
from proxy.config.load import load_config
from proxy.config.problems import ConfigError
from proxy.config.redact import redacted
from proxy.config.schema import Config
from proxy.config.units import Bind
from proxy.core.clock import SystemClock
from proxy.core.memory.budget import MemoryBudget, default_limit
from proxy.core.memory.cgroup import memory_limit
from proxy.core.process.descriptors import fit, report
from proxy.core.process.handover import HandoverFailed, Predecessor, Successor, ends_its_container
from proxy.core.process.shortage import DETAILS
from proxy.core.redis.client import AnyRedis, connect
from proxy.core.vitals import Vitals
from proxy.forward.routing.client_metrics import ClientMetrics
from proxy.forward.routing.compile import Compiler, Plans, descriptors_needed
from proxy.forward.watch import UpstreamWatch
from proxy.http1.deadlines import Sweeper
from proxy.http1.shedding import Shedding
from proxy.jobs.requeue.requeuer import requeue_problem
from proxy.jobs.service import Mirrors
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.routes import all_stages
from proxy.routes.extensions.runner import Extensions
from proxy.routes.idempotency import IdempotencyStage
from proxy.routes.otel import OtelStage
from proxy.server.listening import Given
from proxy.server.sockets import Sockets
from proxy.spool import Spool
from proxy.telemetry.logs.outputs import Output, open_output
from proxy.telemetry.logs.setup import LogControl
from proxy.telemetry.metrics.loop_lag import LoopLag
from proxy.telemetry.metrics.memory import MemoryMetrics
from proxy.telemetry.metrics.registry import Metrics
from proxy.telemetry.metrics.shortages import ShortageWatch
from proxy.telemetry.metrics.spool import SpoolMetrics
from proxy.telemetry.metrics.volumes import Volumes, own_directories
from proxy.telemetry.otel.exporter import OtlpExporter
from proxy.trace.recorder import Trace
from proxy.uploads.probe.pool import ProbePool, memory_within

logger = logging.getLogger(__name__)

#: Sections that a reload cannot change: stores and doors that outlive the plans.
_FIXED = ("redis", "mirrors", "admin", "metrics", "telemetry")

#: What is told about the app; started and stopped as a whole.
_APP_SIDE = ("statsd", "app_metrics", "resources")


#: Seconds in which kept connections are closed with an answer before a handover, and not between
#: two, when a request may be on its way. Nobody waits for it.
EASE = 2.0

#: Seconds that exchanges with jobs have to end before their stores change hands.
SETTLE = 2.0

#: Seconds that Redis then has to answer the mirrors: until it has, creations would be refused, and
#: callers who wait in the kernel are better off.
HANDOVER_PATIENCE = 5.0


class CannotStart(Exception):
    """The config is right but the machine refuses: a port in use, a file that cannot be opened."""


class Stopping(Exception):
    """The proxy takes no orders any more."""


class Proxy:
    """A proxy built from `config`, which was read from `file`; a reload reads that file again, or
    asks `load` for it. `given` are listening sockets that the process has got from others."""

    def __init__(
        self,
        file: Path,
        config: Config,
        logs: LogControl,
        load: Callable[[Path], Config] = load_config,
        *,
        given: Given | None = None,
    ) -> None:
        self._file = file
        self._load = load
        self._apps = AppTargets()
        self._config = config = self._apps.place(config)
        self._logs = logs
        self._clock = SystemClock()
        self.vitals = vitals = Vitals()
        self._sweeper = Sweeper(self._clock, vitals.tasks)
        self.metrics = Metrics(__version__, vitals)
        self.metrics.upstream_connections = self.upstream_connections
        self.metrics.log_lines_dropped = lambda: logs.lines_dropped
        self._memory = MemoryBudget(_budget(config))
        self._spool = Spool(
            config.spool.dir,
            config.spool.max_size,
            self._memory.account("spool"),
            self._clock,
            vitals.shortages,
        )
        self.metrics.registry.register(SpoolMetrics(self._spool))
        self._lag = LoopLag(self.metrics.loop_lag, vitals.tasks)
        self._shortages = ShortageWatch(vitals)
        self._app_side = AppTelemetry(config, self.metrics, self._clock, self.vitals)
        self._volumes = Volumes(lambda: own_directories(self._config))
        self.metrics.registry.register(self._volumes)
        self._probes = ProbePool(vitals.tasks, memory=memory_within(memory_limit()))
        self._trace = Trace(config.trace, self._clock, self.metrics.registry, vitals.tasks)
        self._mirrors = Mirrors(
            config.mirrors,
            self._redis_client,
            self.metrics.registry,
            self._clock,
            key_prefix=config.redis.key_prefix if config.redis else "",
            on_event=self._trace.mirror,
            vitals=vitals,
        )
        self._breakers = BreakerRegistry(
            config.upstreams,
            registry=self.metrics.registry,
            redis=config.redis,
            clock=self._clock,
            told=self._trace.breaker,
            vitals=vitals,
        )
        self._idempotency = IdempotencyStage(
            self._mirrors.by_name, self.metrics.registry, self._clock, vitals.tasks
        )
        random = Random()  # noqa: S311 (spreads load, guards nothing)
        otlp = config.telemetry.otlp
        self._otlp = None
        if otlp is not None and otlp.endpoint is not None:
            self._otlp = OtlpExporter(otlp, otlp.endpoint, __version__, self.metrics.registry)
        otel = OtelStage(self._otlp, random.random)
        self._extensions = Extensions(self.metrics.registry)
        if self._otlp is not None:
            for mirror in self._mirrors.by_name.values():
                mirror.on_version = otel.job_seen
        self._compiler = Compiler(
            all_stages(
                self.metrics,
                logs.access,
                self._probes,
                self._spool,
                self._mirrors.by_name,
                self._trace,
                random.random,
                self._idempotency,
                self._memory,
                otel,
                vitals.shortages,
                self._extensions,
            ),
            self._clock,
            self._sweeper,
            random,
            lambda upstream: self.metrics.upstream(upstream).connected,
            self._breakers.get,
            self._memory,
            self._spool,
            vitals,
        )
        self._watch = UpstreamWatch(self._clock, vitals)
        self.metrics.registry.register(self._watch)
        self.metrics.registry.register(ClientMetrics(self._compiler.shares))
        self._plans = Plans({}, {}, {}, ())
        self._shedding = Shedding(self._memory, self._sweeper)
        self.metrics.registry.register(MemoryMetrics(self._memory, lambda: self._shedding.shed))
        self._given = given or Given()
        self._sockets = Sockets(
            self._clock,
            self._sweeper,
            self._memory,
            self.metrics.listener,
            self._given,
            vitals.shortages,
        )
        self._status = StatusSampler(
            Sources(
                self,
                self.metrics,
                self._breakers,
                self._mirrors,
                self._watch,
                vitals,
                lambda: [*self._volumes.disks(), *self._app_side.disks()],
                self._memory,
                lambda: self._shedding.shed,
            ),
            self._clock,
        )
        self._admin = AdminServers(
            self,
            [
                BreakerControl(self._breakers),
                JobControl(MirroredJobs(self._mirrors)),
                TraceControl(TracedStories(self._trace, self._mirrors, self._clock)),
                StatusPage(self._status),
            ],
            self._given,
            self._memory,
        )
        self.metrics.registry.register(ConnectionMetrics(self._admin.connections))
        self._starting = "plans"  # what is being started; empty when all is
        self._draining = False
        self._handed_over = False
        #: Called with the pid of a successor that serves: this process should drain. None: it is
        #: not the proxy's own, and cannot be replaced.
        self.on_handed_over: Callable[[int], None] | None = None
        self._reloading = asyncio.Lock()

    # --- life ---------------------------------------------------------------------------------

    async def start(self, predecessor: Predecessor | None = None) -> None:
        """Open everything: the admin's doors first, which answer "starting" until the rest is open.
        With a predecessor, which answers there, they come last, and what it writes to is opened
        when it no longer does. Raises `CannotStart`; nothing is left open then, nor when it is
        cancelled."""
        try:
            await self._start(predecessor)
        except (OSError, RuntimeError, HandoverFailed) as error:
            await self.stop()
            said = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                said = f"{self._starting} did not start in time: {said}"
            raise CannotStart(said) from error
        except asyncio.CancelledError:
            await self.stop()
            raise
        self._starting = ""
        for name, addresses in self._sockets.addresses().items():
            logger.info("listening", extra={"listener": name, "addresses": addresses})

    async def _start(self, predecessor: Predecessor | None) -> None:
        """Raises `OSError`, `RuntimeError`; `_starting` says at what."""
        connections = self._fit_descriptors(self._config)
        self._plans = self._compiler.compile(self._config, connections=connections)
        self._compiler.settle(self._config, self._plans)
        self._sweeper.start()
        self._lag.start()
        self._shedding.start()
        self._shortages.start()
        self._volumes.start()
        if predecessor is None:
            self._starting = "admin"
            await self._admin.start(self._config)
        self._starting = "upload probes"
        await self._start_probes(self._config)
        self._check_spool(self._config)
        self._starting = "spans"
        if self._otlp is not None:
            self._otlp.start()
        self._starting = "breakers"
        await self._breakers.start()
        self._starting = "applications"
        await self._apps.start(self._config)
        await self._watch.follow(self._config.upstreams, self._plans.upstreams)
        if predecessor is not None:
            self._starting = "handover"
            await predecessor.yours()
            await self._start_writers(HANDOVER_PATIENCE)
        else:
            await self._start_writers()
        self._starting = "listeners"
        listeners, plans = self._config.listeners, self._plans.listeners
        self._sockets.make(await self._sockets.prepare(listeners, plans), listeners, plans)
        if predecessor is not None:
            self._starting = "admin"
            await self._admin.start(self._config)
        self._given.close_rest()
        await self._status.start()

    async def _start_writers(self, patience: float = 1.0) -> None:
        """Whatever only one process may have at a time: stores, leases, statsd's addresses; Redis
        has `patience` seconds to answer. Raises `OSError`."""
        self._starting = "statsd, app metrics and resources"
        self._app_side.start()
        self._starting = "trace"
        await self._trace.start()
        self._starting = "mirrors"
        await self._mirrors.start(patience)
        await self._idempotency.start()

    async def _stop_writers(self) -> None:
        await self._idempotency.stop()
        await self._mirrors.stop()
        await self._trace.stop()
        await self._app_side.stop()

    async def drain(self) -> None:
        """Take nothing new and let exchanges in progress end, for `drain_timeout` at most."""
        self._draining = True
        limit = self._config.drain_timeout
        logger.info("draining", extra={"limit_s": limit})
        await self._sockets.drain(limit)

    async def stop(self) -> None:
        """Close everything at once."""
        self._draining = True
        await self._sockets.stop()
        await self._extensions.stop()
        for plan in self._plans.upstreams.values():
            plan.upstream.close()
            await plan.upstream.wait_closed()
        if not self._handed_over:
            await self._idempotency.stop()
            await self._mirrors.stop()
        await self._breakers.stop()
        await self._probes.stop()
        await self._watch.stop()
        await self._apps.stop()
        await self._status.stop()
        await self._admin.stop()
        if not self._handed_over:
            await self._trace.stop()
            await self._app_side.stop()
        if self._otlp is not None:
            await asyncio.to_thread(self._otlp.stop)
        self._shedding.stop()
        self._volumes.stop()
        await self._lag.stop()
        await self._shortages.stop()
        self._sweeper.stop()

    # --- a new version ------------------------------------------------------------------------

    async def upgrade(self) -> int:
        """Hand everything over to a new process of the program on disk, and return its pid. Raises
        `HandoverFailed` when it does not get so far: then nothing has changed."""
        if self._reloading.locked():
            raise HandoverFailed("a reload or another upgrade is under way")
        async with self._reloading:
            if self._draining or self._starting:
                raise HandoverFailed("the proxy is starting or stopping")
            if self.on_handed_over is None:
                raise HandoverFailed("this process is not the proxy's alone")
            if ends_its_container():
                raise HandoverFailed(
                    "this process is the first of its container, which ends with it: start a new"
                    " container instead"
                )
            try:
                pid = await self._hand_over()
            except HandoverFailed as error:
                logger.error("upgrade failed", extra={"reason": str(error)})
                raise
            logger.info("handed over", extra={"to_pid": pid})
        self.on_handed_over(pid)
        return pid

    def taken_over(self) -> list[str]:
        """The labels of the sockets of a predecessor that serve here."""
        return self._given.taken

    async def _hand_over(self) -> int:
        labelled = [*self._given.named(), *self._sockets.labelled(), *self._admin.labelled()]
        successor = await Successor.start(labelled)
        paused = False
        try:
            await successor.prepared()
            await self._sockets.ease(EASE)
            paused = True
            self._sockets.pause()
            self._admin.pause()
            await self._jobs_settled()
            await self._stop_writers()
            taken = await successor.take_over()
        except BaseException as error:
            await successor.end()
            if not isinstance(error, Exception):  # we are about to stop
                await self._sockets.resume()
                await self._admin.resume()
                raise
            if paused:
                await self._take_back()
            raise HandoverFailed(str(error) or type(error).__name__) from error
        successor.leave()
        self._draining = self._handed_over = True
        self._admin.release()
        await self._sockets.release(taken)
        return successor.pid

    async def _jobs_settled(self) -> None:
        """Until no exchange needs the stores: every open connection is in the middle of one that
        has nothing to do with jobs. Newcomers wait meanwhile, so there is a limit; what goes on
        beyond it gets the app's answer as it is."""
        with_jobs = {
            (name, route.name)
            for name, listener in self._config.listeners.items()
            for route in listener.routes
            if route.job is not None
        }
        end = self._clock.monotonic() + SETTLE
        while self._clock.monotonic() < end:
            others = sum(
                tally.in_flight
                for tally in self.metrics.route_tallies()
                if (tally.listener, tally.endpoint) not in with_jobs
            )
            if self._sockets.clients() <= others:
                return
            await asyncio.sleep(0.01)  # clients leave one by one, and tell nobody

    async def _take_back(self) -> None:
        """The successor is gone: go on as before."""
        self._app_side.forget()
        self._app_side = AppTelemetry(self._config, self.metrics, self._clock, self.vitals)
        try:
            await self._start_writers(HANDOVER_PATIENCE)
        except OSError as error:
            logger.error("not all is as before the upgrade", extra={"reason": str(error)})
        finally:
            self._starting = ""
            await self._sockets.resume()
            await self._admin.resume()

    # --- reload -------------------------------------------------------------------------------

    async def reload(self) -> ReloadResult:
        """Read the file again and swap every plan at once, or change nothing and say why.

        Exchanges in progress keep the plans they began with; connections stay open.
        """
        async with self._reloading:
            try:
                self._refuse_while_stopping()
                config = await asyncio.to_thread(self._load, self._file)
                self._refuse_while_stopping()
                await self._swap(config)
            except Stopping as error:
                return ReloadResult(ok=False, problems=[str(error)], stopping=True)
            except ConfigError as error:
                problems = [str(problem) for problem in error.problems]
            except (OSError, RuntimeError) as error:
                problems = [f"{self._file}: {error}"]
            else:
                problems = []
            self.metrics.reloaded(problems[0] if problems else None)
            self._trace.proxy(
                "reload_refused" if problems else "reloaded",
                config=str(self._file),
                problems=problems or None,
            )
            if problems:
                logger.error("reload refused", extra={"problems": problems})
            else:
                logger.info("reloaded", extra={"config": str(self._file)})
            return ReloadResult(ok=not problems, problems=problems)

    def _refuse_while_stopping(self) -> None:
        """A reload now would open listeners whose requests are cut in a moment."""
        if self._draining:
            raise Stopping("the proxy is stopping: nothing is loaded any more")

    async def _swap(self, config: Config) -> None:
        """Raises `OSError` before anything has changed when a socket or certificate is refused."""
        for section in _FIXED:
            if getattr(config, section) != getattr(self._config, section):
                raise OSError(
                    f"{section} cannot be changed by a reload: what depends on it holds data that"
                    " must be written first. Restart the proxy"
                )
        config = self._apps.place(config)
        before = {n: u for n, u in self._config.upstreams.items() if u.breaker is not None}
        self._breakers.reload({**config.upstreams, **before})  # so far it only adds
        try:
            connections = self._fit_descriptors(config)
            plans = self._compiler.compile(config, (self._config, self._plans), connections)
            await self._start_probes(config)
            await self._apps.start(config)
            change = await self._sockets.prepare(config.listeners, plans.listeners)
        except (OSError, RuntimeError):
            self._breakers.reload(self._config.upstreams)
            self._apps.keep(self._config)
            raise
        try:
            output = self._new_output(config)
            await self._renew_app_side(config)
        except OSError:
            self._sockets.discard(change)
            self._apps.keep(self._config)
            self._breakers.reload(self._config.upstreams)
            raise
        # From here on nothing can fail and nothing waits: the swap is atomic for every exchange.
        self._sockets.make(change, config.listeners, plans.listeners)
        for upstream, plan in self._plans.upstreams.items():
            if plans.upstreams.get(upstream) is not plan:
                plan.upstream.close()
        before_trace = self._config.trace
        self._config, self._plans = config, plans
        self._apps.keep(config)
        self._breakers.reload(config.upstreams)
        self._compiler.settle(config, plans)
        self._memory.resize(_budget(config))
        self._spool.configure(config.spool.dir, config.spool.max_size)
        self._check_spool(config)
        self._logs.set_level(config.logging.level)
        if output is not None:
            self._logs.redirect(output)
        await self._watch.follow(config.upstreams, plans.upstreams)
        if config.trace != before_trace:
            await self._trace.replace(config.trace)

    def _new_output(self, config: Config) -> Output | None:
        """Where the log goes from now on; None: where it went. Raises `OSError`."""
        if config.logging.output == self._config.logging.output:
            return None
        return open_output(config.logging.output)

    async def _renew_app_side(self, config: Config) -> None:
        """Stop what is told about the app, and start it with its new settings. Raises `OSError`,
        and goes on with the old ones then."""
        if all(getattr(config, one) == getattr(self._config, one) for one in _APP_SIDE):
            return
        await self._app_side.stop()
        self._app_side.forget()
        self._app_side = AppTelemetry(config, self.metrics, self._clock, self.vitals)
        try:
            self._app_side.start()
        except OSError:
            await self._app_side.stop()
            self._app_side.forget()
            self._app_side = AppTelemetry(self._config, self.metrics, self._clock, self.vitals)
            self._app_side.start()
            raise

    def _fit_descriptors(self, config: Config) -> Mapping[str, int]:
        """How many connections each listener may have; raises the process' limit as needed."""
        need = descriptors_needed(config)
        found = fit(need)
        report(need, found)
        return found.clients

    def _check_spool(self, config: Config) -> None:
        """A directory that cannot be written to is worth a line in the log before the first body
        needs it, where bodies are to wait at all."""
        buffers = (upstream.buffering for upstream in config.upstreams.values())
        routes = (route for listener in config.listeners.values() for route in listener.routes)
        if any(b.request or b.response for b in buffers) or any(route.upload for route in routes):
            self._spool.check()

    async def _start_probes(self, config: Config) -> None:
        """Probe processes exist only where some route checks uploads. Raises `RuntimeError`."""
        routes = (route for listener in config.listeners.values() for route in listener.routes)
        if any(route.upload for route in routes) and not self._probes.ready:
            await self._probes.start()

    def _redis_client(self) -> AnyRedis:
        """A connection for a mirror: RESP3, because Redis tells of changes over it."""
        assert self._config.redis is not None, "the loader has seen to that"
        return connect(self._config.redis, client_name="mirror", protocol=3)

    # --- what an embedding program sees --------------------------------------------------------

    @property
    def admin_addresses(self) -> list[Bind]:
        """Where the admin listens, and the metrics port behind it where there is one."""
        return self._admin.addresses

    def listener_urls(self) -> dict[str, str]:
        """Where each listener can be reached: `http://HOST:PORT`, or `https`."""
        listeners = self._config.listeners
        return {
            name: f"{'https' if listeners[name].tls else 'http'}://{addresses[0]}"
            for name, addresses in self._sockets.addresses().items()
        }

    # --- what the admin sees (`Operated`) ----------------------------------------------------

    def live(self) -> bool:
        """While this can be asked, the loop runs."""
        return True

    @property
    def starting(self) -> bool:
        """Whether some part cannot be asked yet."""
        return bool(self._starting)

    def readiness(self) -> Readiness:
        """Ready while started and not draining."""
        if self._starting:  # some parts have no state yet
            detail = "draining" if self._draining else f"starting: {self._starting}"
            return Readiness(ready=False, checks={"listeners": Check(ok=False, detail=detail)})
        state = "draining" if self._draining else "serving"
        listening = Check(ok=state == "serving", detail=state)
        checks = {"listeners": listening}
        dying = [task for task in self.vitals.tasks.reports() if task.troubled]
        checks["tasks"] = Check(
            ok=not dying,
            detail="; ".join(f"{task.name} keeps dying ({task.error})" for task in dying)
            or "all run",
        )
        # These inform: callers are better off here, even with Redis away, than anywhere else.
        for name, mirror in self._mirrors.by_name.items():
            told = mirror.state()
            redis, sqlite = told["redis"], told["sqlite"]
            detail = told["capture"] if mirror.redis_up else told["reason"]
            if told["writes"] != "ok":
                detail = f"refuses writes: {told['writes']}"
            writable = redis == "live" and told["writes"] == "ok"
            checks[f"mirror:{name}:redis"] = Check(ok=writable, detail=f"{redis}: {detail}")
            lacking = told["missing_rights"]
            checks[f"mirror:{name}:rights"] = Check(
                ok=not lacking, detail="missing: " + "; ".join(lacking) if lacking else "complete"
            )
            checks[f"mirror:{name}:sqlite"] = Check(
                ok=sqlite == "ok", detail=told["sqlite_reason"] or sqlite
            )
            if (requeue := told["requeue"]) is not None:
                problem = requeue_problem(requeue)
                detail = problem or f"workers: {requeue['workers']}"
                checks[f"mirror:{name}:workers"] = Check(ok=problem is None, detail=detail)
        shared = self._breakers.redis_reachable
        if shared is not None:
            missing = self._breakers.missing_rights
            detail = "; ".join(f"Redis refuses {right}" for right in missing)
            checks["breakers:redis"] = Check(
                ok=shared and not missing,
                detail=detail or ("shared" if shared else "out of reach: decided locally"),
            )
        if (store := self._trace.store) is not None and store.degraded:
            detail = f"the trace cannot be written: {store.degraded}"
            checks["trace"] = Check(ok=False, detail=detail)
        for reason in self.vitals.shortages.current():
            checks[f"shortage:{reason}"] = Check(ok=False, detail=DETAILS[reason])
        for name, plan in self._plans.listeners.items():
            gateway = plan.shares.hint.gateway if plan.shares is not None else None
            if gateway is not None:
                detail = f"nearly all come from {gateway}, which is not in trusted_proxies"
                checks[f"listener:{name}:clients"] = Check(ok=False, detail=detail)
        return Readiness(ready=listening.ok, checks=checks)

    def config(self) -> dict[str, object]:
        """The config in force, secrets redacted."""
        return redacted(self._config)

    def routes(self) -> list[dict[str, object]]:
        """Every route in matching order, with the addresses that it is reached at."""
        addresses = self._sockets.addresses()
        return [
            {
                "listener": name,
                "addresses": addresses.get(name, []),
                "direction": listener.direction,
                "route": route.name,
                "methods": list(route.methods) if route.methods else None,
                "path": route.path,
                "upstream": route.upstream,
                "targets": [str(t) for t in self._config.upstreams[route.upstream].targets],
            }
            for name, listener in self._config.listeners.items()
            for route in listener.routes
        ]

    def upstream_names(self) -> list[str]:
        """Every upstream, in the config's order."""
        return list(self._config.upstreams)

    def log_level(self) -> str:
        """The level in force."""
        return self._logs.level

    def set_log_level(self, level: str) -> None:
        """Change the level until the next reload."""
        self._logs.set_level(level)

    def upstream_connections(self) -> list[tuple[str, int, int]]:
        """(name, idle, active) of every upstream."""
        return [
            (
                name,
                sum(pool.idle_connections for pool in plan.upstream.pools),
                sum(pool.active_connections for pool in plan.upstream.pools),
            )
            for name, plan in self._plans.upstreams.items()
        ]


def _budget(config: Config) -> int:
    """Bytes that all buffers together may hold."""
    return config.limits.memory or default_limit(memory_limit())
