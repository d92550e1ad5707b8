# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Joining, draining and removing many members of one HAProxy side by side, each with its wait and its deadline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers import haproxy_stats as stats
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.gate import (
    Outcome,
    Steps,
    Wanted,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import (
    HAProxyMembers,
    StillBusy,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member

# Pause between two looks at the members, in seconds.
INTERVAL = 0.1


class HAProxySteps(Steps):
    """Carries out one state for a list of members, against one deadline."""

    def __init__(self, members: HAProxyMembers, *, timeout: float, **frame: Any):
        super().__init__(timeout, **frame)
        self.members = members

    # -- join --------------------------------------------------------------------------------------------------

    def join(
        self,
        wanted: Iterable[Wanted],
        *,
        release: str = "",
        tenants: str = "",
        balancers: int = 1,
        health_path: str = "/healthz",
        ramp_steps: int = 0,
        ramp_interval: float = 1.0,
    ) -> list[Outcome]:
        """Add members; each gets requests once the node and HAProxy's own check say that it is healthy.

        A member that is not healthy in time is reported and, where this call added it, taken out again. So is, at once,
        one that knows other tenants than those of the fingerprint ``tenants``: waiting would not change that.
        """
        outcomes = {one.name: Outcome(one.name) for one in wanted}
        targets = {one.name: one for one in wanted}
        before = {one.name: one.state for one in self.members.members()}
        capacities: dict[str, int] = {}
        verified: set[str] = set()
        pending: set[str] = set()
        refused: set[str] = set()
        for name, one in targets.items():
            # Capacity may not be known yet: nothing is sent there before it is.
            pending.add(name)
            taken_as_given = one.capacity is not None and not (one.release or release or tenants)
            if taken_as_given:
                capacities[name] = math.ceil(one.capacity / balancers)
            try:
                if before.get(name) != "up" or taken_as_given:
                    outcomes[name].changed |= self.members.join(
                        name, one.address, one.port, capacities.get(name) or self._present(name) or 1
                    )
            except BalancerError as exc:
                outcomes[name].error = str(exc)
                pending.discard(name)
        admitted: list[str] = []
        while pending:
            asked = [targets[name] for name in sorted(pending - set(capacities))]
            for name, workers in self.ask(asked, outcomes, health_path, release, tenants).items():
                capacities[name] = math.ceil(workers / balancers)
                outcomes[name].changed |= self.members.join(
                    name, targets[name].address, targets[name].port, capacities[name]
                )
                if name not in before:
                    verified.add(name)
            refused |= {name for name in pending if outcomes[name].stale}
            pending -= refused
            rows = self.members.rows()
            healthy = []
            for name in sorted(pending & set(capacities)):
                row = rows.get(name)
                if row is None:
                    # A reload in between drops what is not in the file yet.
                    self.members.join(name, targets[name].address, targets[name].port, capacities[name])
                elif stats.healthy(row, name in verified):
                    healthy.append(name)
                else:
                    outcomes[name].error = (
                        f"HAProxy's check says {row.get('check_status') or 'nothing yet'} "
                        f"{row.get('last_chk') or row.get('check_desc') or ''}".strip()
                    )
            fresh = [name for name in healthy if stats.state(rows[name]) != "up"]
            for name in self.members.admit(healthy, 1 / (ramp_steps + 1)) if healthy else ():
                outcomes[name].changed = True
            for name in healthy:
                outcomes[name].error = ""
                outcomes[name].seconds = self.elapsed
            pending.difference_update(healthy)
            admitted += fresh
            if pending and self.over:
                break
            if pending:
                self._sleep(INTERVAL)
        for step in range(2, ramp_steps + 2 if admitted else 0):
            self._sleep(ramp_interval)
            for name in admitted:
                self.members.ramp(name, step / (ramp_steps + 1))
        for name in sorted(pending):
            outcomes[name].ended_by_deadline = True
        for name in sorted(pending | refused):
            if before.get(name) in (None, "starting"):
                self._take_back(name)
        return self._finish(outcomes)

    def _present(self, name: str) -> int:
        row = self.members.rows().get(name)
        return stats.number(row, "slim") if row else 0

    def _take_back(self, name: str) -> None:
        try:
            self.members.remove(name)
        except BalancerError:
            # It never had a request; the next join or removal finds it.
            pass

    # -- leave -------------------------------------------------------------------------------------------------

    def drain(self, names: Sequence[str]) -> list[Outcome]:
        """Send no new requests to members and wait until those under way are done, or for the deadline."""
        outcomes = {name: Outcome(name) for name in names}
        present = self.members.rows()
        # A member that is gone has nothing under way: a repeated drain after a removal is no error.
        pending = {name for name in names if name in present}
        for name in self.members.drain_all(sorted(pending)):
            outcomes[name].changed = True
        while pending:
            seen = {one.name: one for one in self.members.members()}
            over = self.over
            for name in sorted(pending):
                one = seen.get(name)
                busy = one is not None and one.in_service + one.waiting > 0
                outcomes[name].seconds = self.elapsed
                if busy and over:
                    outcomes[name].ended_by_deadline = True
                if not busy or over:
                    pending.discard(name)
            if pending:
                self._sleep(INTERVAL)
        return self._finish(outcomes)

    def remove(self, names: Sequence[str], *, force: bool) -> list[Outcome]:
        """Forget members. At the deadline the requests still under way are ended when ``force`` is set."""
        outcomes = {name: Outcome(name) for name in names}
        pending = set(names)
        cut: set[str] = set()
        for name in self.members.unlist(sorted(pending)):
            outcomes[name].changed = True
        while pending:
            over = self.over
            for name in sorted(pending):
                try:
                    outcomes[name].changed |= self.members.remove(name)
                    outcomes[name].error = ""
                    pending.discard(name)
                except StillBusy as exc:
                    outcomes[name].changed = True
                    outcomes[name].error = str(exc)
                    if over and force and name not in cut:
                        outcomes[name].ended_by_deadline = True
                        self.members.cut(name)
                        cut.add(name)
                    elif over and self.elapsed > self.timeout + 5:
                        pending.discard(name)
                    elif over and not force:
                        outcomes[name].ended_by_deadline = True
                        pending.discard(name)
                outcomes[name].seconds = self.elapsed
            if pending:
                self._sleep(INTERVAL)
        return self._finish(outcomes)

    # -- helpers -----------------------------------------------------------------------------------------------

    def _finish(self, outcomes: Mapping[str, Outcome]) -> list[Outcome]:
        seen = {one.name: one for one in self.members.members()}
        for name, outcome in outcomes.items():
            one = seen.get(name)
            outcome.state = one.state if one else "absent"
            outcome.in_service = one.in_service if one else 0
            outcome.waiting = one.waiting if one else 0
        return [outcomes[name] for name in sorted(outcomes)]


def as_dict(one: Member) -> dict[str, Any]:
    """A member for a module's answer."""
    return {
        "name": one.name,
        "address": one.address,
        "state": one.state,
        "capacity": one.capacity,
        "in_service": one.in_service,
        "waiting": one.waiting,
        "since": one.since,
        "ramp": one.ramp,
    }
