# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the dispatcher counts, written as JSON (status.json) and for Prometheus' text files (jobs.prom)."""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from schedule import FAILED, Run

# Lateness is told for the runs of this long.
WINDOW = 900


class Figures:
    """Counts since the dispatcher started, and the last state of each tenant."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.tenants: dict[str, dict] = {}
        self.backlog: dict[str, dict] = {}
        self.runs = self.failed = self.failed_tasks = 0
        self.cpu = 0.0
        self._late: collections.deque[tuple[float, float]] = collections.deque()

    def keep(self, names: Iterable[str]) -> None:
        """These are the tenants; forget others."""
        wanted = set(names)
        self.tenants = {name: self.tenants.get(name, {}) for name in sorted(wanted)}
        self.backlog = {name: value for name, value in self.backlog.items() if name in wanted}

    def started(self, run: Run) -> None:
        """A run starts."""
        late = max(0.0, run.started - run.due)
        self._late.append((run.started, late))
        self.tenants.setdefault(run.tenant, {}).update(started=run.started, late=round(late, 3))

    def ended(self, run: Run, outcome: str, now: float, cpu: float, failed_tasks: int, resting: str) -> None:
        """A run has ended; ``cpu`` in seconds."""
        self.runs += 1
        self.failed += outcome == FAILED
        self.failed_tasks += failed_tasks
        self.cpu += cpu
        tenant = self.tenants.get(run.tenant)
        if tenant is not None:
            tenant.update(ended=now, seconds=round(now - run.started, 3), cpu=cpu, outcome=outcome, resting=resting)
            tenant["failed_tasks"] = tenant.get("failed_tasks", 0) + failed_tasks
            if outcome != FAILED:
                tenant["complete"] = max(run.started, tenant.get("complete", 0))

    def complete_since(self) -> dict[str, int]:
        """When each tenant's last complete run started. A minute less: what is due in the very second it starts is left to the next."""
        return {name: int(tenant["complete"]) - 60 for name, tenant in self.tenants.items() if "complete" in tenant}

    def lateness(self, now: float) -> dict[str, float]:
        """Of the runs of the last quarter of an hour, in seconds."""
        while self._late and self._late[0][0] < now - WINDOW:
            self._late.popleft()
        ordered = sorted(late for _started, late in self._late)
        return {
            name: round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3) if ordered else 0.0
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        }

    def write(self, folder: Path, state: Mapping[str, object], now: float) -> None:
        """Write both files, each as a whole."""
        data = {
            "node": self.node, "time": round(now, 1), **state, "lateness": self.lateness(now),
            "totals": {"runs": self.runs, "failed": self.failed, "failed_tasks": self.failed_tasks, "cpu": round(self.cpu, 3)},
            "tenants": {name: tenant | {"backlog": self.backlog.get(name, {})} for name, tenant in self.tenants.items()},
        }
        for name, text in (("status.json", json.dumps(data)), ("jobs.prom", prometheus(data))):
            new = folder / f".{name}.new"
            new.write_text(text, encoding="utf-8")
            os.replace(new, folder / name)


def prometheus(data: Mapping) -> str:
    """The same figures as Prometheus reads them."""
    lines = []

    def metric(name: str, kind: str, text: str, values: Iterable[tuple[str, float]]) -> None:
        lines.extend((f"# HELP moodle_jobs_{name} {text}", f"# TYPE moodle_jobs_{name} {kind}"))
        lines.extend(f"moodle_jobs_{name}{labels} {value:.15g}" for labels, value in values)

    totals, tenants = data["totals"], data["tenants"]
    running = collections.Counter(run["tenant"] for run in data["running"])

    def each(value: object) -> list[tuple[str, float]]:
        return [(f'{{tenant="{name}"}}', value(name, tenant)) for name, tenant in tenants.items()]

    metric("active", "gauge", "Whether this node dispatches.", [("", data["role"] == "active")])
    metric("late_seconds", "gauge", "For how long the tenant that waits longest has been due.", [("", data["late"])])
    metric("lateness_seconds", "gauge", "How late runs of the last quarter of an hour started.",
           [(f'{{quantile="{name}"}}', value) for name, value in zip(("0.5", "0.99", "1"), data["lateness"].values())])
    metric("runs_total", "counter", "Runs that ended.", [("", totals["runs"])])
    metric("runs_failed_total", "counter", "Runs that failed.", [("", totals["failed"])])
    metric("tasks_failed_total", "counter", "Moodle's tasks that failed.", [("", totals["failed_tasks"])])
    metric("cpu_seconds_total", "counter", "CPU seconds of the runs.", [("", totals["cpu"])])
    metric("long_runs", "gauge", "Runs that left their worker.", [("", sum(run["long"] for run in data["running"]))])
    metric("tenant_running", "gauge", "Runs under way.", each(lambda name, tenant: running[name]))
    metric("tenant_last_run_time", "gauge", "When the last run that did not fail started.",
           each(lambda name, tenant: tenant.get("complete", 0)))
    metric("tenant_late_seconds", "gauge", "How late the last run started.", each(lambda name, tenant: tenant.get("late", 0)))
    metric("tenant_failures", "gauge", "Failed runs in a row.", each(lambda name, tenant: data["failures"].get(name, 0)))
    metric("tenant_resting", "gauge", "Whether the site does not want its cron to run.",
           each(lambda name, tenant: bool(tenant.get("resting"))))
    for kind, text in (("scheduled", "Scheduled tasks that are due."), ("adhoc", "Ad-hoc tasks that are due."),
                       ("failing", "Tasks that Moodle delays because they failed.")):
        metric(f"tenant_{kind}_tasks", "gauge", text, each(lambda name, tenant, kind=kind: tenant["backlog"].get(kind, 0)))
    metric("tenant_oldest_task_seconds", "gauge", "For how long the oldest of them has been due.",
           each(lambda name, tenant: tenant["backlog"].get("oldest", 0)))
    return "\n".join(lines) + "\n"
