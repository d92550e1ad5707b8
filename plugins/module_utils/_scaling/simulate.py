# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A fleet that follows a load trace. Survey, decision, planner and forecast are those of production; the world is simulated.

The world: a node serves ``launch_seconds`` after the check that launched it, or never; a drain takes ``drain_seconds``; nodes die;
metrics come late. A run that launches or drains keeps other checks away while it lasts, as the trigger's lock does. The
policy sees the trace's load as the balancer would tell it: being served plus waiting, the mean since the last check.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.decide import decide
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import (
    MARGIN,
    SLOT,
    launch_seconds,
    outlook,
    slot_of,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import Minutes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.plan import plan
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.recommend import (
    RECOMMENDERS,
    Recommender,
    trend,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import (
    TAG_LAUNCH,
    TAG_RETIRING,
    Survey,
    survey,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    Decision,
    History,
    Member,
    Node,
    Outlook,
    Pause,
    Sample,
    Step,
)

# Loads that differ by less are the same mean, summed up otherwise.
SAME = 1e-9
# Reasons that a little time alone can end; those of the window and of its patience hold while anybody in them wanted so many.
BY_THE_CLOCK = frozenset(("window_short", "cooldown_out", "cooldown_in"))
IMAGE = "image"
GAP = (("missing", "the trace has a gap here"),)


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


@dataclass(frozen=True)
class Change:
    """A decision that changes the size, or the first one after a change of its kind of reasons."""

    time: float
    decision: Decision


@dataclass(frozen=True)
class Run:
    """What became of a trace: ``supply`` is (time, nodes in service from then on), ``decisions`` those that change the size."""

    supply: Sequence[tuple[float, int]]
    node_hours: float
    checks: int
    decisions: Sequence[Change]
    launched: int
    failed: int
    outlooks: Sequence[tuple[float, float]]


class _World:
    """Nodes, members and what happens to them by itself."""

    def __init__(self, policy: Policy, model: Model, begin: float, size: int) -> None:
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
        self.launch_times.clear()
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

    def see(self, now: float) -> tuple[list[Node], list[Member]]:
        """What cloud and balancer would tell."""
        members = [replace(member, since=now - self.since[name]) for name, member in self.members.items()]
        return list(self.nodes.values()), members


def simulate(
    policy: Policy,
    trace: Trace,
    model: Model = Model(),
    *,
    slots: Mapping[int, float] | None = None,
    events: Foreseen | None = None,
    recommenders: Sequence[Recommender] = RECOMMENDERS,
    watch: Callable[[float, Sample, Decision, Survey], None] | None = None,
) -> Run:
    """Let a fleet follow the trace. ``slots`` is what the forecast knows from before it, ``events`` what is known ahead; ``watch`` is called
    after each check."""
    first = next((load for load in trace.loads if load is not None), 0.0)
    size = min(policy.max_nodes, max(policy.min_nodes, math.ceil(first / (policy.workers * policy.target) - 1e-9)))
    world = _World(policy, model, trace.begin, size)
    known: dict[int, float] = dict(slots or {})
    since: float | None = min(known) if known else None
    weights: dict[int, float] = {}
    lookback = policy.lookback
    wishes: deque[tuple[float, int]] = deque()
    minutes = Minutes()
    before: Sample | None = None
    last_out = last_in = 0.0
    decisions: list[Change] = []
    outlooks: list[tuple[float, float]] = []
    lead, measured = launch_seconds(policy, ()), -1
    seen: Survey | None = None
    surveyed: Survey | None = None
    ahead: Outlook | None = None
    looked: Outlook | None = None
    key: tuple[int, float] | None = None
    checks, previous = 0, trace.begin
    now = trace.begin + model.interval
    workers, interval, lag = policy.workers, model.interval, model.metric_lag
    # What is only told changes no count, and takes half of the time.
    silent = [one for one in recommenders if watch is not None or one is not trend or policy.trend in ("growth", "scale_out")]
    # Where nothing goes by the clock alone, the same load and the same nodes get the same answer: most of the checks within a minute.
    fixed = watch is None and not policy.schedule and events is None
    decision: Decision | None = None
    # What the last answer rests on.
    settled = False
    held: list[float] = []
    reached: tuple[float, ...] = ()
    steps: Sequence[Step] = ()
    while now <= trace.end:
        world.pass_time(now)
        taken = _sample(trace, previous, now, lag, world.serving, workers, model.service_seconds)
        if seen is None or world.changed or not seen.at_rest:
            nodes, members = world.see(now)
            seen = survey(policy, nodes, members, now)
            world.changed = False
        if world.launched != measured:
            measured = world.launched
            lead = launch_seconds(policy, world.launch_times)
        elif world.launch_times and len(world.launch_times) <= 20:
            lead = launch_seconds(policy, world.launch_times)
        if policy.forecast != "off" and key != (slot_of(now), lead):
            key = slot_of(now), lead
            ahead = outlook(known, now, lead, policy.timezone, since)
            if ahead is not None:
                outlooks.append((now, max(load for _begin, load in ahead.points)))
        while len(wishes) > 1 and wishes[1][0] <= now - lookback:
            wishes.popleft()
        if not (
            decision is not None and settled and seen is surveyed and ahead is looked
            and taken.trusted and before is not None and abs(taken.load - before.load) < SAME
            and reached == _reach(now, lead, taken)
            and all(_highest(wishes, now - seconds) >= seen.size for seconds in held)
        ):
            history = History(
                tuple(wishes), () if before is None else (before,), last_out, last_in,
                minutes=minutes.lately(now), swing=minutes.swing(now),
            )
            fresh = events and replace(events, read=now)
            ask = partial(decide, policy, taken, seen, history, now, outlook=ahead, launch_seconds=lead, events=fresh)
            decision = ask(recommenders=silent)
            if decision.direction != "none" and len(silent) < len(recommenders):
                # Now somebody reads the reasons.
                decision = ask(recommenders=recommenders)
            steps = plan(
                policy, decision, seen, now, token=f"t{checks}", image=IMAGE, zones=("a", "b"),
                launch_seconds=lead if world.launch_times else 0.0,
            ).steps
            surveyed, looked = seen, ahead
            reached = _reach(now, lead, taken)
            codes = {reason.code for reason in decision.reasons}
            held = [seconds for code, seconds in (("window", policy.scale_in_window), ("timing", policy.patience)) if code in codes]
            settled = (
                fixed and decision.direction == "none" and not steps and seen.at_rest and BY_THE_CLOCK.isdisjoint(codes)
                and all(_highest(wishes, now - seconds) >= seen.size for seconds in held)
            )
        wishes.append((now, decision.recommended))
        minutes.add(taken)
        before = taken
        if taken.trusted:
            slot = slot_of(taken.taken)
            weight = weights.get(slot, 0.0)
            known[slot] = (known.get(slot, 0.0) * weight + taken.load * taken.seconds) / (weight + taken.seconds)
            weights[slot] = weight + taken.seconds
            if since is None:
                since = slot
        if watch is not None:
            watch(now, taken, decision, seen)
        checks += 1
        previous = now
        if decision.direction != "none":
            decisions.append(Change(now, decision))
        wait = 0.0
        if steps:
            actions = {step.action for step in steps}
            if "launch" in actions:
                last_out = now
            elif any(step.action == "drain" and not step.since for step in steps):
                last_in = now
            wait = max(world.take(step, now) for step in steps) + model.run_seconds
        now += interval * max(1, math.ceil(wait / interval - 1e-9))
    world.pass_time(trace.end)
    left = sum(trace.end - max(trace.begin, launched) for launched in world.launched_at.values())
    return Run(
        world.supply, (world.seconds + left) / 3600, checks, decisions, world.launched, world.failed, outlooks
    )


def _reach(now: float, lead: float, taken: Sample) -> tuple[float, ...]:
    """The slots that a forecast looks at, and the minute of the clock to which a trend counts the sample."""
    return slot_of(now), slot_of(now + lead + MARGIN + SLOT / 2), (taken.taken - taken.seconds / 2) // 60


def _highest(wishes: Iterable[tuple[float, int]], since: float) -> int:
    """The highest wish of a window."""
    return max([count for when, count in wishes if when >= since], default=0)


def _sample(
    trace: Trace, previous: float, now: float, lag: float, up: int, workers: int, service_seconds: float
) -> Sample:
    if not trace.known(now - lag):
        return Sample(now, 0.0, 0.0, 0, 0, 0, 0, 0, False, False, GAP)
    load = trace.mean(previous - lag, now - lag)
    capacity = up * workers
    whole = int(load)
    return Sample(
        now - lag, now - previous, load, min(whole, capacity), max(0, whole - capacity), capacity, up,
        int(load * (now - previous) / service_seconds), True,
    )


@dataclass(frozen=True)
class Replay:
    """How many recorded decisions came out the same when made again; ``differences`` are (check, recorded, now)."""

    checks: int
    identical: int
    skipped: int
    differences: Sequence[tuple[int, Decision, Decision]]


def replay(
    policy: Policy, recorded: Iterable[tuple[Mapping[str, Any], Sample]], pauses: Sequence[tuple[Pause, float]] = ()
) -> Replay:
    """Make the decisions of a ledger again from what it recorded, by today's code and this policy.

    ``recorded`` are checks with their samples, oldest first; ``pauses`` with the time at which each was ended by hand.
    Checks without a decision of their own (the cloud did not answer) are skipped.
    """
    wishes: deque[tuple[float, int]] = deque()
    samples: deque[Sample] = deque()
    minutes = Minutes()
    last_out = last_in = 0.0
    checks = identical = skipped = 0
    differences: list[tuple[int, Decision, Decision]] = []
    for row, taken in recorded:
        was = Decision.from_data(row["decision"])
        inputs = row.get("inputs")
        if inputs is None:
            skipped += 1
        else:
            now = float(inputs["now"])
            while len(wishes) > 1 and wishes[1][0] <= now - policy.lookback:
                wishes.popleft()
            history = History(
                tuple(wishes), tuple(one for one in samples if now - policy.lookback <= one.taken <= now),
                last_out, last_in, minutes=minutes.lately(now), swing=minutes.swing(now),
            )
            force = tuple(
                pause for pause, ended in pauses
                if pause.since <= now and (not ended or ended > now) and (not pause.until or pause.until > now)
            )
            ahead, known = inputs.get("outlook"), inputs.get("events")
            again = decide(
                policy, taken, _Recorded(inputs), history, now,
                pauses=force, saturated=inputs.get("saturated"), manual=inputs.get("manual"),
                outlook=Outlook.from_data(ahead) if ahead else None, launch_seconds=float(inputs["launch"]),
                events=Foreseen.from_data(known) if known else None,
            )
            checks += 1
            if again == was:
                identical += 1
            else:
                differences.append((int(row["id"]), was, again))
        wishes.append((float(row["started"]), was.recommended))
        samples.append(taken)
        minutes.add(taken)
        while samples and samples[0].taken < float(row["started"]) - policy.lookback - 3600:
            samples.popleft()
        if row["acted"] == "out":
            last_out = float(row["started"])
        elif row["acted"] == "in":
            last_in = float(row["started"])
    return Replay(checks, identical, skipped, differences)


class _Recorded(Survey):
    """A survey of which only the numbers were kept that a decision looks at."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        super().__init__((), (), bool(inputs["known"]))
        self.__dict__.update({name: int(inputs.get(name, 0)) for name in ("size", "sick", "announced")})
