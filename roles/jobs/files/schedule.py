# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which tenant's cron starts when. Pure: no clock, no process, no file.

Each tenant is due once an interval, at its own second. Whoever is due the longest comes first, so nobody waits for ever. A run
that lasts gives its worker back and goes on beside the others: a neighbour's ten-minute task costs a worker for `long_after`
seconds alone. Since there is room for `long_runs` of them only, tenants that had a long run lately never take the last worker.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

DONE, RESTING, FAILED = "done", "resting", "failed"


@dataclass(frozen=True)
class Limits:
    """How many and how often; times in seconds.

    interval       between two runs of a tenant
    workers        runs at a time
    long_after     a run that lasts longer is long: it leaves its worker
    long_runs      long runs beside the workers; more of them keep their workers
    tenant_runs    runs of one tenant at a time; another starts only when all of its are long
    slow_for       so long after a long run its tenant counts as slow
    backoff_max    the longest wait of a tenant whose runs fail
    """

    interval: float = 60
    workers: int = 2
    long_after: float = 20
    long_runs: int = 8
    tenant_runs: int = 3
    slow_for: float = 900
    backoff_max: float = 600


@dataclass(frozen=True)
class Run:
    """A run under way; ``due`` is when it should have started."""

    number: int
    tenant: str
    due: float
    started: float


@dataclass
class Tenant:
    """What is remembered of a tenant."""

    due: float
    failures: int = 0
    slow_until: float = float("-inf")
    runs: dict[int, Run] = field(default_factory=dict)


class Schedule:
    """The tenants and their runs under way."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.tenants: dict[str, Tenant] = {}
        self.runs: dict[int, Run] = {}
        self._last = 0

    def serve(self, names: Iterable[str], now: float) -> None:
        """These are the active tenants. New ones are due at once; runs of those that left go on."""
        wanted = set(names)
        for name in set(self.tenants) - wanted:
            del self.tenants[name]
        for name in wanted - set(self.tenants):
            mine = {number: run for number, run in self.runs.items() if run.tenant == name}
            self.tenants[name] = Tenant(due=now, runs=mine)

    def start(self, now: float) -> list[Run]:
        """Return the runs to start now, in their order, and count them as running."""
        limits = self.limits
        beside = min(sum(1 for run in self.runs.values() if self.is_long(run, now)), limits.long_runs)
        busy = len(self.runs) - beside
        # Workers that slow tenants hold. The last one is not for them.
        held = sum(1 for run in self.runs.values() if self.is_long(run, now) or self._is_slow(run.tenant, now)) - beside
        started = []
        for name in sorted((name for name, tenant in self.tenants.items() if tenant.due <= now),
                           key=lambda name: (self.tenants[name].due, name)):
            if busy >= limits.workers:
                break
            tenant, slow = self.tenants[name], self._is_slow(name, now)
            if len(tenant.runs) >= limits.tenant_runs or not all(self.is_long(run, now) for run in tenant.runs.values()):
                continue
            # Nor is there one for them if all that runs, and they, might leave no worker to the others.
            if slow and (held >= max(1, limits.workers - 1) or len(self.runs) >= max(1, limits.long_runs + limits.workers - 1)):
                continue
            self._last += 1
            run = Run(self._last, name, tenant.due, now)
            self.runs[run.number] = tenant.runs[run.number] = run
            tenant.due = self._slot(name, now)
            busy += 1
            held += slow
            started.append(run)
        return started

    def end(self, number: int, outcome: str, now: float) -> Run:
        """A run has ended: with `DONE`, `RESTING` where the tenant does not want its cron to run, or `FAILED`."""
        run = self.runs.pop(number)
        tenant = self.tenants.get(run.tenant)
        if tenant is None:
            return run
        tenant.runs.pop(number, None)
        if self.is_long(run, now):
            tenant.slow_until = now + self.limits.slow_for
        tenant.failures = tenant.failures + 1 if outcome == FAILED else 0
        if tenant.failures:
            # 1, 2, 4 … intervals after this one, so a single failure costs no more than one turn.
            wait = min(self.limits.interval * 2 ** min(tenant.failures - 1, 30), self.limits.backoff_max)
            tenant.due = max(tenant.due, self._slot(run.tenant, now + wait - self.limits.interval))
        return run

    def wait(self, now: float) -> float:
        """Seconds after which `start` may have something to say, if nothing ends before."""
        times = [tenant.due for tenant in self.tenants.values() if tenant.due > now]
        times += [run.started + self.limits.long_after for run in self.runs.values() if not self.is_long(run, now)]
        return max(0.0, min(times, default=now + self.limits.interval) - now)

    def is_long(self, run: Run, now: float) -> bool:
        """Whether a run has lasted so long that it left its worker."""
        return now - run.started >= self.limits.long_after

    def lateness(self, now: float) -> float:
        """Seconds for which the tenant that waits longest has been due."""
        return max((now - tenant.due for tenant in self.tenants.values()), default=0.0) if self.tenants else 0.0

    def _is_slow(self, name: str, now: float) -> bool:
        tenant = self.tenants.get(name)
        return tenant is not None and (now < tenant.slow_until or any(self.is_long(run, now) for run in tenant.runs.values()))

    def _slot(self, name: str, after: float) -> float:
        """The tenant's first own second after a time: they don't all start at once."""
        interval = self.limits.interval
        offset = zlib.crc32(name.encode()) % 1000 / 1000 * interval
        # A hundredth more, for a slot that is now, give or take what floating point loses, is not the next.
        return (after + 0.01 - offset) // interval * interval + interval + offset
