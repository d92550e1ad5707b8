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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.decide import decide, highest, wanted
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import (
    SLOT,
    launch_seconds,
    nearby,
    outlook,
    reach,
    slot_of,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import MINUTE
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.memory import Memory
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.plan import idle_until, plan
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.recommend import (
    RECOMMENDERS,
    Recommender,
    Situation,
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
    Sample,
    Step,
)

# Loads that differ by less are the same mean, summed up otherwise; times that differ by less are the same moment.
SAME = 1e-6
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


@dataclass(frozen=True)
class Past:
    """What a ledger knows of the time before a trace.

    ``checks`` with their samples, oldest first, ``slots`` for the forecast, and what ``launches`` took, in seconds, newest first.
    """

    checks: Iterable[tuple[Mapping[str, Any], Sample]] = ()
    slots: Mapping[int, float] = field(default_factory=dict)
    launches: Sequence[float] = ()


class _Slots:
    """What the forecast knows, the mean load of every slot, from before the trace and from the trace so far; and what it says of it."""

    def __init__(self, policy: Policy, means: Mapping[int, float]) -> None:
        self.policy = policy
        self.means = dict(means)
        self.since: float | None = min(self.means) if self.means else None
        self.said: list[tuple[float, float]] = []
        self._seconds: dict[int, float] = {}
        self._key: tuple[int, float] | None = None
        self._outlook: Outlook | None = None

    def add(self, sample: Sample, seconds: float) -> None:
        """Count what a sample says of so many seconds of its slot."""
        if not sample.trusted:
            return
        slot = slot_of(sample.taken - SAME)
        before = self._seconds.get(slot, 0.0)
        self.means[slot] = (self.means.get(slot, 0.0) * before + sample.load * seconds) / (before + seconds)
        self._seconds[slot] = before + seconds
        if self.since is None:
            self.since = slot

    def outlook(self, now: float, lead: float) -> Outlook | None:
        """What the forecast says at ``now``, once in each slot."""
        # The end of a slot belongs to it, as the minute that ends then does.
        within = now - SAME
        if self.policy.forecast != "off" and self._key != (slot_of(within), lead):
            self._key = slot_of(within), lead
            self._outlook = outlook(self.means, within, lead, self.policy.timezone, self.since)
            if self._outlook is not None:
                self.said.append((now, max(load for _begin, load in self._outlook.points)))
        return self._outlook


def simulate(
    policy: Policy,
    trace: Trace,
    model: Model = Model(),
    *,
    past: Past = Past(),
    events: Foreseen | None = None,
    recommenders: Sequence[Recommender] = RECOMMENDERS,
    watch: Callable[[float, Sample, Decision, Survey], None] | None = None,
) -> Run:
    """Let a fleet follow the trace. ``past`` is what it knows from before, ``events`` what is known ahead; ``watch`` is called
    after each check."""
    memory, slots = Memory(policy.lookback), _Slots(policy, past.slots)
    size: int | None = None
    for row, taken in past.checks:
        was = Decision.from_data(row["decision"])
        memory.add(float(row["started"]), was.recommended, taken, str(row["acted"]))
        size = was.desired
    if size is None:
        first = next((load for load in trace.loads if load is not None), 0.0)
        size = min(policy.max_nodes, max(policy.min_nodes, math.ceil(first / (policy.workers * policy.target) - 1e-9)))
    world = _World(policy, model, trace.begin, size, past.launches)
    decisions: list[Change] = []
    lead = launch_seconds(policy, world.launch_times)
    seen: Survey | None = None
    # Where nothing goes by the clock alone, the same load and the same nodes get the same answer: most of the checks within a minute.
    quick = watch is None and not policy.schedule and events is None
    checks, previous = 0, trace.begin
    now = trace.begin + model.interval
    while now <= trace.end:
        world.pass_time(now)
        taken = _sample(trace, model, previous, now, world.serving, policy.workers)
        if seen is None or world.changed or not seen.at_rest:
            nodes, members = world.see(now)
            seen = survey(policy, nodes, members, now)
            lead = launch_seconds(policy, world.launch_times)
            world.changed = False
        ahead = slots.outlook(now, lead)
        history = memory.history(now - SAME)
        fresh = events and replace(events, read=now)
        ask = partial(
            decide, policy, taken, seen, history, now, outlook=ahead, launch_seconds=lead, events=fresh, recommenders=recommenders
        )
        decision = ask(told=watch is not None)
        if decision.direction != "none" and watch is None:
            # Now somebody reads the reasons.
            decision = ask()
        measured = lead if world.launch_times else 0.0
        steps = plan(
            policy, decision, seen, now, token=f"t{checks}", image=IMAGE, zones=("a", "b"), launch_seconds=measured
        ).steps
        memory.add(now, decision.recommended, taken, _acted(steps))
        slots.add(taken, taken.seconds)
        if watch is not None:
            watch(now, taken, decision, seen)
        if decision.direction != "none":
            decisions.append(Change(now, decision))
        wait = max([world.take(step, now) for step in steps]) + model.run_seconds if steps else 0.0
        checks, previous = checks + 1, now
        now += model.interval * max(1, math.ceil(wait / model.interval - 1e-9))
        if quick and not steps and decision.direction == "none" and taken.trusted:
            idle = min(trace.end, world.next_event, idle_until(policy, seen, measured) - SAME)
            last = min(idle, _alike(policy, trace, model, memory, history, decision, taken, previous, ahead, lead))
            alike = []
            while now <= last:
                alike.append(now)
                now += model.interval
            if alike:
                memory.again(alike)
                slots.add(taken, model.interval * len(alike))
                checks, previous = checks + len(alike), alike[-1]
            calm = _calm(model, trace, memory, slots, recommenders, taken, decision.size, lead, previous, idle)
            checks, previous = checks + calm, previous + calm * model.interval
            now = previous + model.interval
    world.pass_time(trace.end)
    left = sum(trace.end - max(trace.begin, launched) for launched in world.launched_at.values())
    return Run(
        world.supply, (world.seconds + left) / 3600, checks, decisions, world.launched, world.failed, slots.said
    )


def _acted(steps: Iterable[Step]) -> str:
    """Whether steps change the size: ``out``, ``in`` or nothing."""
    actions = {step.action for step in steps if step.action != "drain" or not step.since}
    return "out" if "launch" in actions else "in" if "drain" in actions else ""


def _alike(
    policy: Policy, trace: Trace, model: Model, memory: Memory, history: History, decision: Decision, taken: Sample, now: float,
    ahead: Outlook | None, lead: float,
) -> float:
    """The last moment at which a check gets the answer of the one at ``now``, if nothing happens; ``now`` where that is not sure."""
    _begin, mean, _readings = memory.minutes.last
    end = trace.minute_end(taken.taken)
    # A reading more changes nothing only where all of a minute are the same.
    if history.flutter or abs(mean - taken.load) >= SAME or taken.taken - taken.seconds < end - MINUTE - SAME:
        return now
    codes = {reason.code for reason in decision.reasons}
    if not BY_THE_CLOCK.isdisjoint(codes):
        return now
    lag = model.metric_lag
    # Within the minute of the trace, the minute of the clock to which a trend counts the sample, the slots of the sample and of the forecast.
    ends = [
        end + lag,
        ((taken.taken - taken.seconds / 2) // MINUTE + 1) * MINUTE + lag + model.interval / 2 - SAME,
        slot_of(taken.taken - SAME) + SLOT + lag,
        _foreseen(ahead, now, lead),
    ]
    for code, seconds in (("window", policy.scale_in_window), ("timing", policy.patience)):
        if code in codes:
            # As long as somebody in it wanted so many.
            ends.append(seconds + max([when for when, count in memory.wishes if count >= decision.size], default=-math.inf))
    return min(ends)


def _foreseen(ahead: Outlook | None, now: float, lead: float) -> float:
    """The last moment at which the forecast's word is that of ``now``."""
    end: float = slot_of(now - SAME) + SLOT
    if ahead is not None:
        most = max(nearby(ahead, now, lead), default=0.0)
        end = min([end, *[begin - reach(lead) - SAME for begin, load in ahead.points if begin >= now + reach(lead) and load > most]])
    return end


def _calm(
    model: Model, trace: Trace, memory: Memory, slots: _Slots, recommenders: Sequence[Recommender], taken: Sample, size: int, lead: float,
    now: float, last: float,
) -> int:
    """Let minutes pass in which the recommenders' wishes surely change nothing, so that caps and planner need not be asked; returns the
    number of their checks.

    After a check at ``now`` with nothing under way, up to ``last``. Only where all checks of a minute see the same.
    """
    policy, each, passed = slots.policy, round(MINUTE / model.interval), 0
    # The last time at which so many were wanted.
    held = max([when for when, count in memory.wishes if count >= size], default=-math.inf)
    if model.metric_lag or each * model.interval != MINUTE or trace.begin % MINUTE or now % MINUTE:
        return passed
    while now + MINUTE <= last:
        first, end = now + model.interval, now + MINUTE
        load = trace.mean(now, end)
        ahead, history = slots.outlook(first, lead), memory.history(first - SAME)
        if load is None or history.flutter:
            break
        sample = taken._replace(taken=first, seconds=model.interval, load=load)
        # Within a minute the forecast can only rise: nobody wants more than at its end, and who wanted less before does not count after it.
        count = highest(wanted(Situation(policy, sample, history, size, end, ahead, lead), recommenders), sample, size)
        # Fewer may be wanted where there are no more than the least, or the window holds what is there to the minute's end.
        if count > size or size > policy.min_nodes and held < end - policy.scale_in_window:
            break
        memory.add(first, count, sample, "")
        memory.again([now + model.interval * place for place in range(2, each + 1)])
        slots.add(sample, MINUTE)
        now, passed = end, passed + each
        if count == size:
            held = now
    return passed


def _sample(trace: Trace, model: Model, previous: float, now: float, up: int, workers: int) -> Sample:
    lag = model.metric_lag
    load = trace.mean(previous - lag, now - lag)
    if load is None:
        return Sample(now, 0.0, 0.0, 0, 0, 0, 0, 0, False, False, GAP)
    capacity = up * workers
    whole = int(load)
    return Sample(
        now - lag, now - previous, load, min(whole, capacity), max(0, whole - capacity), capacity, up,
        int(load * (now - previous) / model.service_seconds), True,
    )
