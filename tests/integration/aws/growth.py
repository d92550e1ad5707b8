# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A fleet on the test server that grows by real checks, whose controller can die at any API call."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import Counters
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import (
    Outcome,
    RunResult,
    Sources,
    observed_nodes,
    run,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.aws import AwsDriver
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError, LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member, Node

from .fleets import fleet
from .server import AwsServer, Fault

WORKERS = 4
# How a call is interrupted: the controller dies before it is sent, or after it was answered; its answer is lost, and
# the client asks again; the answer is lost, and so are those of the client's attempts after it.
MODES = ("before", "after", "lost", "silent")


class Crash(BaseException):
    """The controller dies here."""


class Growth:
    """A fleet of ``size`` nodes that shall become ``goal``. ``cut`` (number of a call, how) interrupts it once."""

    def __init__(self, server: AwsServer, folder: Path, cloud: dict[str, Any], size: int = 2, goal: int = 40):
        self.server = server
        self.policy = Policy.from_settings({
            "min_nodes": 2, "max_nodes": goal, "workers": WORKERS, "cooldown_out": 0, "dead_band": 0.01, "max_jump": 1000,
        })
        self.goal = goal
        self.load = goal * WORKERS * self.policy.target
        self.driver = AwsDriver(fleet(folder, cloud))
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.members: set[str] = set()
        self.requests = 0
        self.offset = 0.0
        self.checks = 0
        self.most = 0
        self.cut: tuple[int, str] | None = None
        self.sent = 0
        self.crashed = False
        self.operations: list[str] = []
        self.fault: Fault | None = None
        events = self.driver.aws.session.events
        events.register("before-send", self._before)
        events.register("response-received", self._after)
        self.driver.launch(LaunchSpec("web", size, "first"))
        self.members |= {node.name for node in self.driver.nodes()}
        server.calls.clear()
        self.sent = 0
        self.operations.clear()

    def _before(self, event_name: str, **_kwargs: Any) -> None:
        self.sent += 1
        self.operations.append(event_name.rpartition(".")[2])
        if self.cut is not None and self.sent == self.cut[0] and self.cut[1] == "before":
            self.crashed, self.cut = True, None
            raise Crash

    def _after(self, **_kwargs: Any) -> None:
        if self.cut is not None and self.sent == self.cut[0] and self.cut[1] == "after":
            self.crashed, self.cut = True, None
            raise Crash

    def interrupt(self, number: int, mode: str) -> None:
        """Interrupt the call of this number, counted from now."""
        if mode in ("lost", "silent"):
            self.fault = Fault("*", when="lost", times=1 if mode == "lost" else 6, skip=number - 1)
            self.server.faults.append(self.fault)
        else:
            self.cut = (self.sent + number, mode)

    @property
    def interrupted(self) -> bool:
        """Whether the call that was to be interrupted came."""
        return self.fault.hit > 0 if self.fault is not None else self.crashed

    def _clock(self) -> float:
        return time.time() + self.offset

    def _read(self, nodes: Sequence[Node]) -> Counters:
        self.requests += 1000
        members = [Member(n.name, n.address, "up", WORKERS, since=100.0) for n in nodes if n.name in self.members]
        served = min(int(self.load), WORKERS * len(members))
        return Counters(self._clock(), self.requests, served, int(self.load) - served, None, 1.0, members)

    def _act(self, outcome: Outcome) -> RunResult:
        problems = []
        for step in outcome.plan.steps:
            if step.action == "launch":
                spec = LaunchSpec(
                    "web", step.count, step.token, image=step.image, release=step.release, zones=step.zones,
                    tags={"launch": step.token},
                )
                try:
                    self.driver.launch(spec)
                except CloudError as exc:
                    problems.append(str(exc))
            elif step.action == "join":
                self.members.add(step.node)
            else:
                problems.append(f"a growing fleet has no business to {step.action} {step.node}")
        return RunResult("failed" if problems else "done", "; ".join(problems))

    def check(self) -> Outcome | None:
        """One check; None when the controller died in it."""
        self.checks += 1
        self.offset += 15
        sources = Sources(
            nodes=lambda: observed_nodes(self.driver), read=self._read,
            probe=lambda nodes: {node.name: True for node in nodes}, image=lambda release: ("", release),
            clock=self._clock, zones=tuple(self.driver.zones()), settle=self.driver.settle,
        )
        try:
            return run(self.policy, self.ledger, sources, self._act)
        except Crash:
            return None
        finally:
            self.most = max(self.most, len(self.server.instances()))

    def finish(self, checks: int = 25) -> None:
        """Check until there is nothing left to do.

        :raises AssertionError: when that does not come, or not all is as it should be.
        """
        for _number in range(checks):
            outcome = self.check()
            if outcome is not None and not outcome.plan and outcome.decision.size == self.goal and not outcome.errors:
                break
        else:
            raise AssertionError(f"not at rest after {checks} checks: {outcome}")
        # What follows is a look of the test's own.
        self.cut = None
        self.server.faults = []
        alive = {one.id for one in self.server.instances()}
        nodes = self.driver.nodes()
        assert self.most <= self.goal, f"{self.most} instances existed, {self.goal} were wanted"
        assert {node.id for node in nodes} == alive, "an instance is not known as a node"
        assert {node.name for node in nodes} == self.members, "a node is not in service"
        assert len(alive) == self.goal, f"{len(alive)} instances for {self.goal}"

    def by_zone(self) -> Counter[str]:
        """The instances of each zone."""
        return Counter(one.placement.zone for one in self.server.instances())

    def close(self) -> None:
        self.ledger.close()
