# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The world that a simulated fleet lives in: a cloud and a balancer in which nodes come, drain, die and go.

A node serves ``launch_seconds`` after the check that launched it, or never; a drain takes ``drain_seconds``; nodes die.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import TAG_LAUNCH, TAG_RETIRING
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member, Node, Step

IMAGE = "image"
# Times that differ by less are the same moment.
SAME = 1e-6


@dataclass(frozen=True)
class Model:
    """The simulated world; times in seconds.

    ``interval`` is the time between checks, ``metric_lag`` the age of what they see. ``launch_failures`` is the share of
    launches that never serve, ``node_life`` the mean hours until a node dies (0: never). ``join_wait`` and
    ``drain_wait`` are how long a run of scale.yml waits for nodes that come and go, ``run_seconds`` what it takes besides.
    """

    launch_seconds: float = 180.0
    drain_seconds: float = 30.0
    interval: float = 15.0
    metric_lag: float = 0.0
    launch_failures: float = 0.0
    node_life: float = 0.0
    join_wait: float = 60.0
    drain_wait: float = 15.0
    run_seconds: float = 10.0
    service_seconds: float = 0.25
    seed: int = 1


USUAL = Model()


class World:
    """Nodes, members and what happens to them by itself."""

    def __init__(self, policy: Policy, model: Model, begin: float, size: int, launches: Sequence[float]) -> None:
        self.policy, self.model, self.begin = policy, model, begin
        self.chance = random.Random(model.seed)
        self.nodes: dict[str, Node] = {}
        self.members: dict[str, Member] = {}
        self.since: dict[str, float] = {}
        self.events: list[tuple[float, int, str, str]] = []
        self.number = self.launched = self.failed = 0
        self.seconds = 0.0
        self.serving = 0
        self.supply: list[tuple[float, int]] = []
        self.changed = True
        self.launch_times: list[float] = []
        self.launched_at: dict[str, float] = {}
        for _index in range(size):
            name = self._new(begin - 86400.0, "")
            self.launched_at[name] = begin
            self._up(name, begin)
        self.launch_times = list(launches)
        self.supply = [(begin, self.serving)]

    def _new(self, now: float, token: str) -> str:
        self.number += 1
        name = f"web-{self.number}"
        zone = "ab"[self.number % 2]
        self.nodes[name] = Node(name, "web", name, zone, "running", now, image=IMAGE, tags={TAG_LAUNCH: token})
        self.launched_at[name] = now
        self.changed = True
        return name

    def _at(self, moment: float, what: str, name: str) -> None:
        self.number += 1
        heapq.heappush(self.events, (moment, self.number, what, name))

    def _count(self, now: float, change: int) -> None:
        self.serving += change
        self.supply.append((now, self.serving))

    def _up(self, name: str, now: float) -> None:
        self.members[name] = Member(name, name, "up", self.policy.workers)
        self.since[name] = now
        self.launch_times.insert(0, now - self.launched_at[name])
        del self.launch_times[50:]
        self._count(now, 1)
        if self.model.node_life > 0:
            self._at(now + self.chance.expovariate(1 / (3600 * self.model.node_life)), "die", name)

    def pass_time(self, now: float) -> None:
        """Everything that happens by itself up to now."""
        while self.events and self.events[0][0] <= now:
            moment, _number, what, name = heapq.heappop(self.events)
            if name in self.nodes:
                self.changed = True
                getattr(self, "_" + what)(name, moment)

    def _die(self, name: str, now: float) -> None:
        self.nodes[name] = replace(self.nodes[name], state="failed")
        if name in self.members:
            if self.members[name].state == "up":
                self._count(now, -1)
            self._state(name, "down", now)

    def _drained(self, name: str, now: float) -> None:
        if self.members[name].state == "draining":
            self._state(name, "drained", now)

    def _gone(self, name: str, now: float) -> None:
        member = self.members.pop(name, None)
        if member is not None and member.state == "up":
            self._count(now, -1)
        del self.nodes[name]
        self.seconds += now - max(self.begin, self.launched_at.pop(name))

    def _state(self, name: str, state: str, now: float) -> None:
        self.members[name] = replace(self.members[name], state=state, in_service=int(state == "draining"))
        self.since[name] = now

    def take(self, step: Step, now: float) -> float:
        """Carry out one step; returns how long the run waits for it."""
        model = self.model
        if step.action == "launch":
            for _index in range(step.count):
                name = self._new(now, step.token)
                self.launched += 1
                if model.launch_failures and self.chance.random() < model.launch_failures:
                    self.failed += 1
                else:
                    self._at(now + model.launch_seconds, "up", name)
            return 0.0 if step.later else min(model.launch_seconds, model.join_wait)
        if step.action == "join":
            ready = self.launched_at[step.node] + model.launch_seconds
            return min(max(0.0, ready - now), model.join_wait) if ready > now else model.join_wait
        node = self.nodes.get(step.node)
        if node is None:
            return 0.0
        if TAG_RETIRING not in node.tags:
            self.nodes[step.node] = replace(node, tags={**node.tags, TAG_RETIRING: str(now)})
            self.changed = True
        member = self.members.get(step.node)
        if step.action == "retire" or member is None:
            self._at(now + model.run_seconds, "gone", step.node)
            return 0.0
        if member.state == "up":
            self._count(now, -1)
            self._state(step.node, "draining", now)
            self._at(now + model.drain_seconds, "drained", step.node)
            if model.drain_seconds <= model.drain_wait:
                self._at(now + model.drain_seconds + model.run_seconds, "gone", step.node)
        left = self.since[step.node] + model.drain_seconds - now
        return min(max(0.0, left), model.drain_wait)

    @property
    def next_event(self) -> float:
        """The last moment before something happens by itself."""
        return self.events[0][0] - SAME if self.events else math.inf

    def see(self, now: float) -> tuple[list[Node], list[Member]]:
        """What cloud and balancer would tell."""
        # Of one that is up nobody asks since when.
        members = [
            member if member.state == "up" else replace(member, since=now - self.since[name]) for name, member in self.members.items()
        ]
        return list(self.nodes.values()), members
