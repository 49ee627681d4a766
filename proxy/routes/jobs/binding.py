"""Binds routes with `job:` to their role: create, read, list or delete jobs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from proxy.core.process.shortage import Shortages
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.compile import client_tls
from proxy.forward.routing.plan import Hooks
from proxy.jobs.mirror import Mirror
from proxy.routes.jobs.app_presence import AppPresence
from proxy.routes.jobs.common import ApiKeyCheck
from proxy.routes.jobs.create import CreatesJob
from proxy.routes.jobs.delete import DeletesJob
from proxy.routes.jobs.late_deletes import LateDeletes
from proxy.routes.jobs.list import ListsJobs
from proxy.routes.jobs.patience import Patience
from proxy.routes.jobs.read import ReadsJob

MirrorOf = Callable[[str], Mirror]


class JobRoles:
    """Binds to routes with `job:`."""

    def __init__(self, mirror_of: MirrorOf, shortages: Shortages) -> None:
        self._shortages = shortages
        self._mirror_of = mirror_of
        self._presence: dict[str, AppPresence] = {}  # by upstream

    def bind(self, binding: Binding) -> Hooks | None:
        """Exactly one of the four roles, as the config says."""
        if binding.route is None or binding.route.job is None:
            return None
        role = binding.route.job
        mirror = self._mirror_of(role.mirror)
        secret = mirror.settings.api_key
        api_key = secret.get_secret_value() if secret is not None else None
        check = ApiKeyCheck(api_key)
        if role.creates:
            creates = CreatesJob(mirror)
            return Hooks(
                request=creates.refuse if role.require_redis else None, fallback_source=creates
            )
        if role.deletes is not None:
            assert binding.upstream is not None
            late = LateDeletes(
                binding.upstream.targets[0],
                client_tls(binding.upstream),
                binding.route.path,
                role.deletes,
                api_key,
                self._shortages,
            )
            return Hooks(
                fallback_source=DeletesJob(mirror, check, role.deletes),
                adopted=partial(mirror.pass_deletions_to, late),
            )
        fallback_source = (
            ReadsJob(mirror, check, role.reads)
            if role.reads is not None
            else ListsJobs(mirror, check)
        )
        presence = self._presence.setdefault(binding.route.upstream, AppPresence())
        patience = Patience(mirror, fallback_source, role, presence)
        return Hooks(started=patience.begin, fallback_source=fallback_source, finished=patience.end)
