# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Joining, draining and removing many targets of one group side by side, each with its wait and its deadline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb import AlbMembers
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.gate import (
    Outcome,
    Steps,
    Wanted,
)

# Pause between two looks, in seconds: each is a call that AWS counts.
INTERVAL = 2.0


class AlbSteps(Steps):
    """Carries out one state for a list of targets, against one deadline."""

    def __init__(self, members: AlbMembers, *, timeout: float, interval: float = INTERVAL, **frame: Any):
        super().__init__(timeout, **frame)
        self.members = members
        self.interval = interval

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
        """Register nodes once they say themselves that they are healthy and have what they must have.

        The balancer knows nothing but its own check, so no node is registered before it passed ours. One that the
        balancer does not find healthy in time is reported and, where this call added it, taken out again. ``balancers``
        and the ramp have no meaning here: there is one balancer, and the group has a slow start of its own.
        """
        targets = {one.name: one for one in wanted}
        outcomes = {name: Outcome(name) for name in targets}
        before = {name: state for name, (state, _why) in self.members.look().items()}
        pending, registered = set(targets), {}
        verified: dict[str, tuple[str, int, int]] = {}
        while pending:
            asked = [targets[name] for name in sorted(pending - set(verified))]
            for name, workers in self.ask(asked, outcomes, health_path, release, tenants).items():
                verified[name] = (targets[name].address, targets[name].port, workers)
            pending -= {name for name in pending if outcomes[name].stale}
            fresh = {name: verified[name] for name in verified if name in pending and name not in registered}
            if fresh:
                changed = self.members.register(fresh)
                registered |= fresh
                for name in changed:
                    outcomes[name].changed = True
            if registered:
                self._see(pending & set(registered), outcomes, pending)
            if pending and self.over:
                break
            if pending:
                self._pause()
        for name in sorted(pending):
            outcomes[name].ended_by_deadline = True
        back = [name for name in outcomes if outcomes[name].error and before.get(name) in (None, "starting") and name in registered]
        if back:
            self.members.deregister(back)
        return self._finish(outcomes)

    def _see(self, names: set[str], outcomes: Mapping[str, Outcome], pending: set[str]) -> None:
        """Who of them the balancer finds healthy."""
        seen = self.members.look()
        for name in names:
            state, reason = seen.get(name, ("absent", ""))
            outcomes[name].error = "" if state == "up" else f"the balancer says {reason or 'nothing yet'}"
            if state == "up":
                outcomes[name].seconds = self.elapsed
                pending.discard(name)

    def drain(self, names: Sequence[str]) -> list[Outcome]:
        """Send no new requests to members and wait until AWS is done with them, or for the deadline.

        How many requests are under way AWS does not tell: a member drains for the whole of the deregistration delay.
        """
        return self._leave(names)

    def remove(self, names: Sequence[str], *, force: bool) -> list[Outcome]:
        """Forget members. At the deadline AWS goes on draining those that still are; they come back no more."""
        return self._leave(names)

    def _leave(self, names: Sequence[str]) -> list[Outcome]:
        outcomes = {name: Outcome(name) for name in names}
        for name in self.members.deregister(list(names)):
            outcomes[name].changed = True
        pending = set(names)
        while pending:
            there = self.members.look()
            for name in sorted(pending):
                outcomes[name].seconds = self.elapsed
                if name not in there:
                    pending.discard(name)
                elif self.over:
                    outcomes[name].ended_by_deadline = True
                    pending.discard(name)
            if pending:
                self._pause()
        return self._finish(outcomes)

    def _pause(self) -> None:
        left = self.timeout - self.elapsed
        self._sleep(max(0.05, min(self.interval, left)))

    def _finish(self, outcomes: Mapping[str, Outcome]) -> list[Outcome]:
        seen = self.members.look()
        for name, outcome in outcomes.items():
            outcome.state = seen.get(name, ("absent", ""))[0]
        return [outcomes[name] for name in sorted(outcomes)]
