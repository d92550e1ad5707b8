# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A simulated cloud and balancer, and a controller that can die at every call to them.

The check that runs here is the real one; only the drivers, the clock and the playbook are simulated. Every change is
watched: a broken invariant raises :class:`Violation` at the call that breaks it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError, Counters
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import Outcome, RunResult, Sources, run
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Superseded
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.plan import NOTICE_DRAIN
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member, Node, Step

MODES = ("before", "after", "lost", "error")
BUILD_SECONDS = 40.0
SETTLE = 120.0  # an outdated answer of this cloud is at most a minute old


class Violation(AssertionError):
    """An invariant was broken."""


class Crash(BaseException):
    """The controller dies here."""


class Failed(Exception):
    """A step's call failed, or its answer was lost."""


class World:
    """One fleet with its cloud, balancer and traffic."""

    def __init__(self, policy: Policy, ledger: Any, size: int = 2, load: float = 5.0) -> None:
        self.policy = policy
        self.ledger = ledger
        self.now = 1_000_000.0
        self.load = load
        self.nodes: dict[str, Node] = {}
        self.members: dict[str, Member] = {}
        self.hung: set[str] = set()  # nodes that run but do not answer
        self.notices: dict[str, float] = {}  # when the cloud takes a node away, as it announced
        self.requests = 0
        self.started = 1.0
        self.cloud_down = False
        self.balancer_down = False
        self.fault = ""
        self.stale_nodes: tuple[float, list[Node]] | None = None
        self.read_stale = False
        self.told: dict[str, str] = {}
        self.told_notices: dict[str, float] = {}
        self.calls = 0
        self.trap: tuple[int, str] | None = None
        self.points: Counter[tuple[str, str]] = Counter()
        self.launched = 0
        self.tokens = 0
        self.meanwhile: Callable[[], None] | None = None
        for index in range(size):
            name = f"first-{index}"
            self.nodes[name] = Node(name, "web", f"10.0.0.{index}", "ab"[index % 2], "running", self.now - 10_000)
            self.members[name] = Member(name, f"10.0.0.{index}", "up", 4, since=5000.0)
        self.sources = Sources(
            nodes=self._nodes, read=self._read, probe=self._probe, image=lambda release: ("image", release),
            clock=lambda: self.now, new_token=self._token, zones=("a", "b"), settle=SETTLE,
        )
        self._share()

    # -- what tests do to it ---------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let time go by: nodes finish building, health changes, requests come and go."""
        self.now += seconds
        for name in [name for name, when in self.notices.items() if when <= self.now]:
            del self.notices[name]
            self.nodes.pop(name, None)
        for name, node in list(self.nodes.items()):
            if node.state == "pending" and self.now - node.launched >= BUILD_SECONDS / 2:
                self.nodes[name] = dataclasses.replace(node, state="running")
        for name, member in list(self.members.items()):
            node = self.nodes.get(name)
            healthy = node is not None and node.state == "running" and name not in self.hung
            state = member.state
            if state in ("up", "starting", "down"):
                state = "up" if healthy else "down"
            elif state == "draining" and (seconds >= 10 or not healthy):
                state = "drained"
            since = member.since + seconds if state == member.state else seconds
            self.members[name] = dataclasses.replace(member, state=state, since=since)
        up = sum(member.state == "up" for member in self.members.values())
        if up:
            self.requests += int(self.load * seconds * 5)
        self._share()

    def kill(self, name: str) -> None:
        """The node dies."""
        self.nodes[name] = dataclasses.replace(self.nodes[name], state="failed")

    def forget_members(self) -> None:
        """The balancer loses its members and counters."""
        self.members.clear()
        self.requests = 0
        self.started += 1

    def _share(self) -> None:
        up = [name for name, member in self.members.items() if member.state == "up"]
        each, rest = divmod(int(self.load), len(up)) if up else (0, 0)
        for index, name in enumerate(up):
            count = each + (index < rest)
            member = self.members[name]
            self.members[name] = dataclasses.replace(
                member, in_service=min(count, member.capacity), waiting=max(0, count - member.capacity)
            )
        for name, member in self.members.items():
            if member.state in ("drained", "down", "starting") and member.in_service + member.waiting:
                self.members[name] = dataclasses.replace(member, in_service=0, waiting=0)

    # -- what the controller calls ---------------------------------------------------------------------------------

    def call(self, kind: str, work: Callable[[], Any], error: type[Exception] = Failed) -> Any:
        """An external call; the trap says at which call what goes wrong."""
        index, self.calls = self.calls, self.calls + 1
        mode = self.trap[1] if self.trap is not None and self.trap[0] == index else ""
        if mode:
            self.points[kind, mode] += 1
        if mode == "before":
            raise Crash(kind)
        if mode == "error":
            raise error(f"{kind} failed")
        result = work()
        if mode == "after":
            raise Crash(kind)
        if mode == "lost":
            raise error(f"the answer to {kind} was lost")
        return result

    def _token(self) -> str:
        self.tokens += 1
        return f"t{self.tokens}"

    def _nodes(self) -> Sequence[Node]:
        def work() -> list[Node]:
            if self.cloud_down:
                raise CloudError("no answer")
            current = [
                dataclasses.replace(self.nodes[name], notice=self.notices.get(name, 0.0)) for name in sorted(self.nodes)
            ]
            if self.read_stale and self.stale_nodes is not None and self.now - self.stale_nodes[0] <= 60:
                return self.stale_nodes[1]
            self.stale_nodes = (self.now, current)
            return current

        result: list[Node] = self.call("cloud.nodes", work, CloudError)
        self.told = {node.name: node.state for node in result}
        self.told_notices = {node.name: node.notice for node in result if node.notice}
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()  # another controller does a whole check between this one's look and its plan
        return result

    def _read(self, _nodes: Sequence[Node]) -> Counters:
        def work() -> Counters:
            if self.balancer_down:
                raise BalancerError("no answer")
            members = [self.members[name] for name in sorted(self.members)]
            in_service = sum(member.in_service for member in members)
            waiting = sum(member.waiting for member in members)
            reading = Counters(self.now, self.requests, in_service, waiting, 0.2, self.started, members)
            if self.fault:
                reading = FAULTS[self.fault](reading)
            return reading

        reading: Counters = self.call("balancer.read", work, BalancerError)
        return reading

    def _probe(self, nodes: Sequence[Node]) -> dict[str, bool]:
        return {node.name: self._healthy(node.name) for node in nodes}

    def _healthy(self, name: str) -> bool:
        node = self.nodes.get(name)
        built = node is not None and node.state == "running" and self.now - node.launched >= BUILD_SECONDS
        return built and name not in self.hung

    def serving(self) -> int:
        """Members that really serve."""
        return sum(member.state == "up" and self._healthy(name) for name, member in self.members.items())

    # -- the playbook ----------------------------------------------------------------------------------------------

    def act(self, outcome: Outcome) -> RunResult:
        """Carry out a plan the way playbooks/scale.yml does."""
        self._watch_plan(outcome)
        problems = []
        activities = []
        for step in outcome.plan.steps:
            try:
                refused = getattr(self, f"_do_{step.action}")(step)
            except Failed as exc:
                problems.append(str(exc))
            else:
                status = "failed" if refused else "running" if step.action == "drain" else "done"
                activities.append({"action": step.action, "node": step.node or step.token, "status": status})
        return RunResult("failed" if problems else "done", "; ".join(problems), activities)

    def _do_launch(self, step: Step) -> None:
        def work() -> None:
            for index in range(step.count):
                name = f"web-{step.token}-{index}"
                if name not in self.nodes:
                    zone = step.zones[index] if step.zones else "a"
                    self.launched += 1
                    self.nodes[name] = Node(
                        name, "web", f"10.1.{self.launched // 250}.{self.launched % 250}", zone, "pending", self.now,
                        image=step.image, tags={"launch": step.token},
                    )
            if len(self.nodes) > self.policy.max_nodes:
                raise Violation(f"{len(self.nodes)} nodes exist, at most {self.policy.max_nodes} may")

        self.call("cloud.launch", work)

    def _do_join(self, step: Step) -> bool:
        if not self._healthy(step.node):
            return True  # the gate refuses it; the next check tries again

        def work() -> None:
            node = self.nodes[step.node]
            self.members[step.node] = Member(step.node, node.address, "up", 4, since=0.0)

        self.call("balancer.join", work)
        return False

    def _do_drain(self, step: Step) -> None:
        def tag() -> None:
            node = self.nodes.get(step.node)
            if node is not None and "retiring" not in node.tags:
                self.nodes[step.node] = dataclasses.replace(node, tags={**node.tags, "retiring": str(self.now)})

        def drain() -> None:
            member = self.members.get(step.node)
            if member is None or member.state in ("draining", "drained"):
                return
            self._watch_loss(step.node, "drain")
            state = "draining" if member.in_service + member.waiting else "drained"
            self.members[step.node] = dataclasses.replace(member, state=state, since=0.0)

        self.call("cloud.tag", tag)
        self.call("balancer.drain", drain)

    def _do_retire(self, step: Step) -> None:
        def terminate() -> None:
            member = self.members.get(step.node)
            node = self.nodes.get(step.node)
            if node is None:
                return
            # An outdated answer of the cloud may lack a tag that is not a minute old.
            if "held" in node.tags and self.now - float(node.tags["held"]) > 60:
                raise Violation(f"{step.node} is held and was terminated")
            if member is not None:
                self._watch_loss(step.node, "terminate")
                busy = member.in_service + member.waiting and self._healthy(step.node)
                if busy and self.now < (step.deadline or 0):
                    raise Violation(f"{step.node} was terminated with {busy} requests before its deadline")
                if member.state != "down":
                    self.members[step.node] = dataclasses.replace(member, state="down", since=0.0, in_service=0)
            del self.nodes[step.node]

        self.call("cloud.terminate", terminate)
        self.call("balancer.remove", lambda: self.members.pop(step.node, None))

    def _do_forget(self, step: Step) -> None:
        def work() -> None:
            if step.node in self.members:
                self._watch_loss(step.node, "forget")
                del self.members[step.node]

        self.call("balancer.remove", work)

    def _watch_loss(self, name: str, action: str) -> None:
        # By what this controller was told: an outdated answer may hold a notice that was taken back.
        if 0 < self.told_notices.get(name, 0.0) - self.now <= NOTICE_DRAIN or name in self.notices and self.notices[name] - self.now <= NOTICE_DRAIN:
            return  # it ends anyway, and so it ends in peace
        # As the balancer knows it at this moment: what broke since its last health check nobody can know.
        serving = {
            other for other, member in self.members.items()
            if member.state == "up" and other in self.nodes and self.told.get(other) == "running"
        }
        before = len(serving)
        if name in serving and before - 1 < self.policy.min_nodes:
            raise Violation(f"{action} of {name} leaves {before - 1} in service, fewer than {self.policy.min_nodes}")

    def _watch_plan(self, outcome: Outcome) -> None:
        begun = [step for step in outcome.plan.steps if step.action == "drain" and not step.since]
        serving = [
            step for step in begun if outcome.phases.get(step.node) == "in_service" and step.node not in self.notices
        ]
        if not outcome.sample.trusted and serving and outcome.decision.size <= self.policy.max_nodes:
            raise Violation(f"{serving[0].node} goes although the metrics are not trusted: {outcome.sample.faults}")
        if outcome.decision.frozen and outcome.plan:
            raise Violation("a paused fleet was changed")

    def check(self) -> Outcome | None:
        """A whole check; None when the controller died in it or was superseded."""
        try:
            return run(self.policy, self.ledger, self.sources, self.act)
        except (Crash, Superseded):
            return None

    def settle(self, checks: int = 120) -> None:
        """Without further trouble the fleet must come to rest where the decision wants it."""
        self.trap, self.meanwhile, self.read_stale, self.fault = None, None, False, ""
        self.cloud_down = self.balancer_down = False
        quiet = 0
        for _index in range(checks):
            self.pass_time(60)
            outcome = self.check()
            # A held node takes up room that its replacement may need; no plan can help there.
            full = len(self.nodes) >= self.policy.max_nodes and any("held" in n.tags for n in self.nodes.values())
            done = outcome is not None and not outcome.plan and (
                full or outcome.decision.desired == outcome.decision.size
            )
            quiet = quiet + 1 if done else 0
            if quiet >= 5:
                break
        else:
            raise Violation(f"not at rest after {checks} checks: {outcome}")
        assert outcome is not None
        kept = sum("held" in node.tags or name in self.notices for name, node in self.nodes.items())
        wanted = outcome.decision.desired
        if not wanted <= len(self.nodes) + full <= wanted + kept + full:
            raise Violation(f"{len(self.nodes)} nodes at rest, {wanted} wanted: {outcome.phases}")
        if set(self.members) - set(self.nodes):
            raise Violation("members without nodes at rest")
        if self.serving() + kept * full < min(wanted, self.policy.min_nodes):
            raise Violation(f"{self.serving()} serve at rest, {wanted} wanted")


def _with(**values: Any) -> Callable[[Counters], Counters]:
    return lambda reading: dataclasses.replace(reading, **values)


# What can be wrong with a reading that did arrive.
FAULTS: dict[str, Callable[[Counters], Counters]] = {
    "stale": lambda r: dataclasses.replace(r, taken=r.taken - 10_000),
    "future": lambda r: dataclasses.replace(r, taken=r.taken + 10_000),
    "nan": _with(mean_seconds=float("nan")),
    "negative": _with(in_service=-1),
    "zero": _with(in_service=0, waiting=0),
    "frozen": lambda r: dataclasses.replace(r, taken=1_000_000.0, requests=0),
    "reset": lambda r: dataclasses.replace(r, started=r.started + r.taken, requests=0),
    "partial": lambda r: dataclasses.replace(r, members=list(r.members)[:-1]),
    "jump": lambda r: dataclasses.replace(r, waiting=100_000),
}
