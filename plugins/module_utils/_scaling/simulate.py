# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A fleet that follows a load trace. Survey, decision, planner and forecast are those of production; the world is simulated.

Metrics come late. A run that launches or drains keeps other checks away while it lasts, as the trigger's lock does. The policy sees the
trace's load as the balancer would tell it: being served plus waiting, the mean since the last check.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import LINE_SECONDS, MINUTE
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.memory import Memory
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.plan import idle_until, plan
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.recommend import (
    EVENTS_AHEAD,
    RECOMMENDERS,
    Recommender,
    Situation,
    Wish,
    changes,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import IMAGE, SAME, USUAL, Model, World
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import Survey, survey
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    Decision,
    History,
    Outlook,
    Reason,
    Sample,
    Step,
)

# Reasons that a little time alone can end; those of the window and of its patience hold while anybody in them wanted so many.
BY_THE_CLOCK = frozenset(("window_short", "cooldown_out", "cooldown_in"))
GAP = (("missing", "the trace has a gap here"),)


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


class _Clock:
    """When the schedule or what is known ahead change what they ask for, between two times."""

    def __init__(self, policy: Policy, events: Foreseen | None, begin: float, end: float) -> None:
        moments = events.moments if events is not None else ()
        self._fixed = sorted(
            [when for entry in policy.schedule for when in changes(entry, begin, end)]
            + [when for one in moments for when in (one.begin, one.end)]
        )
        self._ahead = sorted([one.begin for one in moments])

    def until(self, now: float, lead: float) -> float:
        """The last moment at which they ask for what they do at ``now``; before that where it is such a change."""
        lead += EVENTS_AHEAD
        fixed, ahead = bisect.bisect_left(self._fixed, now - SAME), bisect.bisect_left(self._ahead, now + lead - SAME)
        return min([math.inf, *self._fixed[fixed:fixed + 1], *[when - lead for when in self._ahead[ahead:ahead + 1]]]) - SAME


def simulate(
    policy: Policy,
    trace: Trace,
    model: Model = USUAL,
    *,
    past: Past = Past(),
    events: Foreseen | None = None,
    recommenders: Sequence[Recommender] = RECOMMENDERS,
    watch: Callable[[float, Sample, Decision, Survey], None] | None = None,
    each: bool = True,
) -> Run:
    """Let a fleet follow the trace. ``past`` is what it knows from before, ``events`` what is known ahead; ``watch`` is called
    after each check, or, unless ``each``, once for those within a minute that surely have the same answer: of the reasons it then sees
    floors and advice."""
    memory, slots = Memory(policy.lookback), _Slots(policy, past.slots)
    size: int | None = None
    for row, taken in past.checks:
        was = Decision.from_data(row["decision"])
        memory.add(float(row["started"]), was.recommended, taken, str(row["acted"]))
        size = was.desired
    if size is None:
        first = next((load for load in trace.loads if load is not None), 0.0)
        size = min(policy.max_nodes, max(policy.min_nodes, math.ceil(first / (policy.workers * policy.target) - 1e-9)))
    world = World(policy, model, trace.begin, size, past.launches)
    decisions: list[Change] = []
    lead = launch_seconds(policy, world.launch_times)
    seen: Survey | None = None
    # The same load and the same nodes get the same answer, until something goes by the clock alone: most of the checks within a minute.
    quick, clock = watch is None or not each, _Clock(policy, events, trace.begin, trace.end)
    # What is known ahead is read anew for every check.
    events = events and replace(events, read=math.inf)
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
        ask = partial(
            decide, policy, taken, seen, history, now, outlook=ahead, launch_seconds=lead, events=events, recommenders=recommenders
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
            idle = min(trace.end, world.next_event, idle_until(policy, seen, measured) - SAME, clock.until(previous, lead))
            last = min(idle, _alike(policy, trace, model, memory, history, decision, taken, previous, ahead, lead))
            alike = []
            while now <= last:
                alike.append(now)
                now += model.interval
            if alike:
                memory.again(alike)
                slots.add(taken, model.interval * len(alike))
                checks, previous = checks + len(alike), alike[-1]
                if watch is not None:
                    watch(previous, _over(taken, previous - model.metric_lag, model.interval * len(alike)), decision, seen)
            for end, sample, wishes in _calm(model, trace, memory, slots, recommenders, events, taken, decision.size, lead, previous, idle):
                checks, previous = checks + round(MINUTE / model.interval), end
                if watch is not None:
                    watch(previous, _over(sample, previous, MINUTE), _unchanged(decision, wishes, sample), seen)
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


def _over(sample: Sample, taken: float, seconds: float) -> Sample:
    """The sample of several checks together that saw the same."""
    return sample._replace(taken=taken, seconds=seconds, requests=round(sample.requests * seconds / sample.seconds))


def _unchanged(decision: Decision, wishes: Sequence[Wish], sample: Sample) -> Decision:
    """The decision once more, where other wishes change nothing; of their reasons, which take time, only floors and advice."""
    said = tuple([Reason(wish.source, wish.text, wish.desired) for wish in wishes if wish.floor or wish.advice])
    return decision._replace(recommended=highest(wishes, sample, decision.size), reasons=said)


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
    # One that came late may change what was known of the swing.
    if memory.minutes.swing(now - SAME) != history.swing:
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
        # What a trend no longer looks at matters where metrics come late.
        history.minutes[0][0] + LINE_SECONDS + MINUTE if history.minutes else math.inf,
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
    model: Model, trace: Trace, memory: Memory, slots: _Slots, recommenders: Sequence[Recommender], events: Foreseen | None, taken: Sample,
    size: int, lead: float, now: float, last: float,
) -> Iterator[tuple[float, Sample, list[Wish]]]:
    """Let minutes pass in which the recommenders' wishes surely change nothing, so that caps and planner need not be asked: the end of
    each, what its checks saw, and what was wanted.

    After a check at ``now``, up to ``last``, before which nothing is to be done. Only where all checks of a minute see the same.
    """
    policy, each = slots.policy, round(MINUTE / model.interval)
    # The last time at which so many were wanted.
    held = max([when for when, count in memory.wishes if count >= size], default=-math.inf)
    if model.metric_lag or each * model.interval != MINUTE or trace.begin % MINUTE or now % MINUTE:
        return
    while now + MINUTE <= last:
        first, end = now + model.interval, now + MINUTE
        load = trace.mean(now, end)
        ahead, history = slots.outlook(first, lead), memory.history(first - SAME)
        if load is None or history.flutter:
            break
        sample = taken._replace(taken=first, seconds=model.interval, load=load)
        # Within a minute the forecast can only rise: nobody wants more than at its end, and who wanted less before does not count after it.
        wishes = wanted(Situation(policy, sample, history, size, end, ahead, lead, events), recommenders)
        count = highest(wishes, sample, size)
        # Fewer may be wanted where there are no more than the least, or the window holds what is there to the minute's end.
        if count > size or size > policy.min_nodes and held < end - policy.scale_in_window:
            break
        memory.add(first, count, sample, "")
        memory.again([now + model.interval * place for place in range(2, each + 1)])
        slots.add(sample, MINUTE)
        now = end
        if count == size:
            held = now
        yield now, sample, wishes


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
