"""What a proxy consists of: every part is built here, and wired to the parts that it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random

from proxy import __version__
from proxy.admin.backend import AdminBackend
from proxy.admin.connections import ConnectionMetrics
from proxy.admin.endpoints.breakers import BreakerControl
from proxy.admin.endpoints.jobs import JobControl
from proxy.admin.endpoints.trace import TraceControl
from proxy.admin.job_backend import JobBackend
from proxy.admin.server import AdminServers
from proxy.admin.status.page import StatusPage
from proxy.admin.status.sampler import StatusSampler
from proxy.admin.status.snapshot import Sources
from proxy.admin.trace_backend import TraceBackend
from proxy.app.hosted_targets import AppTargets
from proxy.app_telemetry.collectors import AppTelemetry
from proxy.config.schema import Config
from proxy.core.clock import SystemClock
from proxy.core.memory.budget import MemoryBudget, default_limit
from proxy.core.memory.cgroup import memory_limit
from proxy.core.process.descriptors import fit, report
from proxy.core.redis.client import AnyRedis, connect
from proxy.core.tasks import Supervised
from proxy.core.vitals import Vitals
from proxy.forward.routing.binding import Stage
from proxy.forward.routing.client_metrics import ClientMetrics
from proxy.forward.routing.compile import Compiler, Engine, Plans
from proxy.forward.routing.descriptors import descriptors_needed
from proxy.forward.watch import UpstreamWatch
from proxy.http1.deadlines import Sweeper
from proxy.http1.shedding import Shedding
from proxy.jobs.service import Mirrors
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.routes import all_stages
from proxy.routes.extensions.runner import Extensions
from proxy.routes.idempotency import IdempotencyStage
from proxy.routes.otel import OtelStage
from proxy.server.listening import Given
from proxy.server.sockets import Sockets
from proxy.spool import Spool
from proxy.telemetry.logs.setup import LogControl
from proxy.telemetry.metrics.loop_lag import sample_loop_lag
from proxy.telemetry.metrics.memory import MemoryMetrics
from proxy.telemetry.metrics.registry import Metrics
from proxy.telemetry.metrics.shortages import watch_shortages
from proxy.telemetry.metrics.spool import SpoolMetrics
from proxy.telemetry.metrics.volumes import Volumes, own_directories
from proxy.telemetry.otel.exporter import OtlpExporter
from proxy.trace.recorder import Trace
from proxy.uploads.probe.pool import ProbePool, memory_within


class Parts:
    """Every part of a proxy, built from `config`; nothing has been started.

    `config` and `plans` are those in force; a reload replaces them, and `app_telemetry` with them.
    `given` are listening sockets that the process was given; `proxy` is what the admin API asks.
    """

    def __init__(self, config: Config, logs: LogControl, given: Given, proxy: AdminBackend) -> None:
        self.apps = AppTargets()
        self.config = config = self.apps.place(config)
        self.plans = Plans({}, {}, {}, ())
        self.logs = logs
        self.given = given
        self.clock = SystemClock()
        self.vitals = vitals = Vitals()
        self.sweeper = Sweeper(self.clock, vitals.tasks)
        self.random = Random()  # noqa: S311 (spreads load, guards nothing)
        self._build_telemetry()
        self._build_storage()
        self._build_routing()
        self._build_admin(proxy)

    def _build_telemetry(self) -> None:
        """Metrics, memory and what watches the process, the machine and the app."""
        config, vitals = self.config, self.vitals
        self.metrics = Metrics(__version__, vitals)
        self.metrics.upstream_connections = self.upstream_connections
        self.metrics.log_lines_dropped = lambda: self.logs.lines_dropped
        self.memory = MemoryBudget(buffer_limit(config))
        self.spool = Spool(
            config.spool.dir,
            config.spool.max_size,
            self.memory.account("spool"),
            self.clock,
            vitals.shortages,
        )
        self.metrics.registry.register(SpoolMetrics(self.spool))
        lag, shortages = self.metrics.loop_lag, vitals.shortages
        self.loop_lag = Supervised("loop-lag", partial(sample_loop_lag, lag), vitals.tasks)
        self.shortages = Supervised(
            "shortage-watch", partial(watch_shortages, shortages), vitals.tasks
        )
        self.app_telemetry = self.new_app_telemetry(config)
        self.volumes = Volumes(lambda: own_directories(self.config))
        self.metrics.registry.register(self.volumes)

    def _build_storage(self) -> None:
        """What keeps state in SQLite and Redis."""
        config, vitals, registry = self.config, self.vitals, self.metrics.registry
        self.trace = Trace(config.trace, self.clock, registry, vitals.tasks)
        self.mirrors = Mirrors(
            config.mirrors,
            self._mirror_redis,
            registry,
            self.clock,
            key_prefix=config.redis.key_prefix if config.redis else "",
            on_event=self.trace.mirror,
            vitals=vitals,
        )
        self.breakers = BreakerRegistry(
            config.upstreams,
            registry=registry,
            redis=config.redis,
            clock=self.clock,
            on_transition=self.trace.breaker,
            vitals=vitals,
        )
        self.idempotency = IdempotencyStage(
            self.mirrors.by_name, registry, self.clock, vitals.tasks
        )

    def _build_routing(self) -> None:
        """The stages, the compiler that makes plans of them, and the sockets."""
        vitals, registry = self.vitals, self.metrics.registry
        self.probes = ProbePool(vitals.tasks, memory=memory_within(memory_limit()))
        self.otlp: OtlpExporter | None = None
        otlp = self.config.telemetry.otlp
        if otlp is not None and otlp.endpoint is not None:
            self.otlp = OtlpExporter(otlp, otlp.endpoint, __version__, registry)
        self.extensions = Extensions(registry)
        self.compiler = Compiler(
            self._stages(),
            Engine(self.clock, self.sweeper, self.memory, self.spool, self.random, vitals),
            lambda upstream: self.metrics.upstream(upstream).connected,
            self.breakers.get,
        )
        self.watch = UpstreamWatch(self.clock, vitals)
        registry.register(self.watch)
        registry.register(ClientMetrics(self.compiler.shares))
        self.shedding = Shedding(self.memory, self.sweeper)
        registry.register(MemoryMetrics(self.memory, lambda: self.shedding.shed))
        self.sockets = Sockets(
            self.clock,
            self.sweeper,
            self.memory,
            self.metrics.listener,
            self.given,
            vitals.shortages,
        )

    def _stages(self) -> Sequence[Stage]:
        otel = OtelStage(self.otlp, self.random.random)
        if self.otlp is not None:
            for mirror in self.mirrors.by_name.values():
                mirror.on_version = otel.job_seen
        return all_stages(
            self.metrics,
            self.logs.access,
            self.probes,
            self.spool,
            self.mirrors.by_name,
            self.trace,
            self.random.random,
            self.idempotency,
            self.memory,
            otel,
            self.vitals.shortages,
            self.extensions,
        )

    def _build_admin(self, proxy: AdminBackend) -> None:
        """The admin API and the status page."""
        self.status = StatusSampler(
            Sources(
                proxy,
                self.metrics,
                self.breakers,
                self.mirrors,
                self.watch,
                self.vitals,
                lambda: [*self.volumes.disks(), *self.app_telemetry.disks()],
                self.memory,
                lambda: self.shedding.shed,
            ),
            self.clock,
        )
        self.admin = AdminServers(
            proxy,
            [
                BreakerControl(self.breakers),
                JobControl(JobBackend(self.mirrors)),
                TraceControl(TraceBackend(self.trace, self.mirrors, self.clock)),
                StatusPage(self.status),
            ],
            self.given,
            self.memory,
        )
        self.metrics.registry.register(ConnectionMetrics(self.admin.connections))

    def _mirror_redis(self) -> AnyRedis:
        """A client for a mirror: RESP3, because its notifications of changes need it."""
        assert self.config.redis is not None, "the loader has checked it"
        return connect(self.config.redis, client_name="mirror", protocol=3)

    # --- what a start and a reload do alike ----------------------------------------------------

    def new_app_telemetry(self, config: Config) -> AppTelemetry:
        """What collects metrics of the app, with the settings of `config`; not started."""
        return AppTelemetry(config, self.metrics, self.clock, self.vitals)

    def fit_descriptors(self, config: Config) -> Mapping[str, int]:
        """How many connections each listener may have; raises the process' limit as needed."""
        need = descriptors_needed(config)
        found = fit(need)
        report(need, found)
        return found.clients

    def check_spool(self, config: Config) -> None:
        """Log a spool directory that cannot be written to, before the first body needs it; only
        where some route or upstream spools bodies."""
        buffers = (upstream.buffering for upstream in config.upstreams.values())
        routes = (route for listener in config.listeners.values() for route in listener.routes)
        if any(b.request or b.response for b in buffers) or any(route.upload for route in routes):
            self.spool.check()

    async def start_probes(self, config: Config) -> None:
        """Start the probe processes if a route checks uploads. Raises `RuntimeError`."""
        routes = (route for listener in config.listeners.values() for route in listener.routes)
        if any(route.upload for route in routes) and not self.probes.ready:
            await self.probes.start()

    # --- figures ------------------------------------------------------------------------------

    def upstream_connections(self) -> list[tuple[str, int, int]]:
        """(name, idle, active) of every upstream."""
        return [
            (
                name,
                sum(pool.idle_connections for pool in plan.upstream.pools),
                sum(pool.active_connections for pool in plan.upstream.pools),
            )
            for name, plan in self.plans.upstreams.items()
        ]


def buffer_limit(config: Config) -> int:
    """Bytes that all buffers together may hold."""
    return config.limits.memory or default_limit(memory_limit())
