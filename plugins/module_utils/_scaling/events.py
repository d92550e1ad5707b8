# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is known ahead: quizzes and assignments that open and close, and entries of the operator's calendar.

An event has moments at which many people come at once. How many of the enrolled come, and how many requests each makes in the
busiest minute, is learnt from past events; what was learnt makes the load that a coming moment adds. Pure: the rows come from
the tenants' databases and the samples from the ledger, the clock is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import SLOT, median, shifts
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Sample

# A quiz that is open no longer is an exam: all come when it opens. Others come whenever they like.
EXAM_SECONDS = 4 * 3600.0
# Seconds that a request takes a worker, until the ledger knows.
SERVICE_SECONDS = 0.25
# How much is believed before anything is learnt: as if so many events had been like the assumption.
PRIOR_EVENTS = 2
# Of what past events needed, the amount that three in four did not exceed.
QUANTILE = 0.75
# Fewer people than this say nothing of the next.
FEWEST_PEOPLE = 20
# Seconds before a moment that show how busy it was without it.
CALM_SECONDS = 900.0
# A share of the workers from which requests wait, so that what was served is less than what was asked for.
FULL = 0.85


@dataclass(frozen=True)
class Habit:
    """What people do at a kind of moment: the share of the enrolled who come, and the requests of each in the busiest minute.

    The moment lasts from ``before`` seconds before it to ``after`` seconds after it. ``events`` is how many it was learnt from.
    """

    share: float
    requests: float
    before: float
    after: float
    word: str
    events: int = 0


# What is assumed until it is learnt; docs/events.md says why.
HABITS: dict[str, Habit] = {
    "exam_start": Habit(0.8, 4.0, 0.0, 900.0, "opens"),
    "exam_end": Habit(0.8, 2.0, 300.0, 300.0, "closes"),
    "quiz_start": Habit(0.1, 4.0, 0.0, 900.0, "opens"),
    "quiz_end": Habit(0.1, 2.0, 1800.0, 300.0, "closes"),
    "assignment_start": Habit(0.05, 3.0, 0.0, 900.0, "opens"),
    "assignment_end": Habit(0.1, 3.0, 1800.0, 300.0, "is due"),
    "calendar": Habit(1.0, 4.0, 0.0, 900.0, "begins"),
}


@dataclass(frozen=True)
class Event:
    """A quiz or an assignment of a tenant.

    ``opens`` and ``closes`` are Unix times, 0 for never; ``enrolled`` are those with an active enrolment; ``came`` and ``handed``
    how many of them really came at the opening and the closing, None where that is still to come.
    """

    tenant: str
    kind: str
    name: str
    opens: float
    closes: float
    enrolled: int
    came: int | None = None
    handed: int | None = None

    def moments(self) -> list[tuple[str, float, int | None]]:
        """Kind, time and real number of people of each moment at which many come."""
        kind = self.kind
        if kind == "quiz" and self.opens and self.closes and self.closes - self.opens <= EXAM_SECONDS:
            kind = "exam"
        return [
            (f"{kind}_{side}", at, came)
            for side, at, came in (("start", self.opens, self.came), ("end", self.closes, self.handed)) if at
        ]


@dataclass(frozen=True)
class Moment:
    """When people come at once, and what the fleet needs for them.

    ``load`` is how many workers they keep busy in the busiest minute, ``base`` how many are busy at that time anyway. An entry of
    the calendar may ask for ``nodes`` instead. ``at`` is the time to be told, ``begin`` to ``end`` when the load lasts.
    """

    tenant: str
    kind: str
    name: str
    at: float
    begin: float
    end: float
    people: int = 0
    load: float = 0.0
    base: float = 0.0
    nodes: int = 0

    @property
    def ends(self) -> bool:
        """Whether its people have been there before, and finish now."""
        return self.kind.endswith("_end")


@dataclass(frozen=True)
class Foreseen:
    """All moments ahead, and when they were read."""

    moments: tuple[Moment, ...] = ()
    read: float = 0.0

    def near(self, now: float, until: float) -> Foreseen:
        """Only those that matter between two times."""
        return Foreseen(tuple(one for one in self.moments if one.begin < until and one.end > now), self.read)

    def to_data(self) -> dict[str, Any]:
        """As plain data."""
        return {"read": self.read, "moments": [asdict(one) for one in self.moments]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], until: float = math.inf) -> Foreseen:
        """Back from :meth:`to_data`, without what begins at ``until`` or later.

        :raises ValueError, TypeError, KeyError: when the data are none.
        """
        moments = []
        for one in data["moments"]:
            if one["begin"] >= until:
                continue
            moment = Moment(**{**one, **{key: float(one.get(key, 0)) for key in ("at", "begin", "end", "load", "base")}})
            if not all(math.isfinite(value) for value in (moment.begin, moment.end, moment.load, moment.base)):
                raise ValueError(f"{moment.name!r} has numbers that are none")
            moments.append(moment)
        return cls(tuple(moments), float(data["read"]))


@dataclass(frozen=True)
class Learnt:
    """What past events taught: habits by kind, and the seconds that a request takes a worker."""

    habits: Mapping[str, Habit] = field(default_factory=lambda: dict(HABITS))
    seconds: float = SERVICE_SECONDS

    def load(self, kind: str, people: float) -> float:
        """Workers that so many people keep busy in the busiest minute."""
        return people * self.habits[kind].requests / 60.0 * self.seconds


def rise(samples: Sequence[Sample], begin: float, end: float) -> tuple[float, bool] | None:
    """Requests a minute in the busiest minute between two times, above what came before, and whether that is a lower bound only.

    None where the samples are too few to tell. While requests wait, more is asked for than is served.
    """
    minutes: dict[int, list[float]] = {}
    calm: list[float] = []
    full = False
    for one in samples:
        if not one.trusted or one.seconds <= 0 or one.seconds > 180:
            continue
        rate = 60.0 * one.requests / one.seconds
        if begin - CALM_SECONDS <= one.taken - one.seconds and one.taken <= begin:
            calm.append(rate)
        elif begin < one.taken <= end:
            minutes.setdefault(int(one.taken // 60), []).append(rate)
            full = full or one.waiting > 0 or one.load >= FULL * one.capacity
    if len(calm) < 3 or 60 * len(minutes) < (end - begin) / 2:
        return None
    busiest = max(sum(rates) / len(rates) for rates in minutes.values())
    return max(0.0, busiest - median(calm)), full


def service_seconds(samples: Iterable[Sample]) -> float:
    """Seconds that a request takes a worker, while none had to wait for one."""
    busy = requests = 0.0
    for one in samples:
        if one.trusted and one.requests > 0 and not one.waiting and one.load < FULL * one.capacity:
            busy += one.load * one.seconds
            requests += one.requests
    return busy / requests if requests >= 1000 and busy > 0 else SERVICE_SECONDS


def past_moments(events: Iterable[Event], now: float) -> list[tuple[str, float, float, int, int]]:
    """Kind, begin, end, enrolled and real number of people of the moments that are over."""
    found = []
    for event in events:
        for kind, at, came in event.moments():
            habit = HABITS[kind]
            if came is not None and at + habit.after <= now:
                found.append((kind, at - habit.before, at + habit.after, event.enrolled, came))
    return sorted(found, key=lambda one: one[1])


def learn(
    past: Sequence[tuple[str, float, float, int, int]],
    rises: Mapping[tuple[float, float], tuple[float, bool] | None],
    seconds: float = SERVICE_SECONDS,
) -> Learnt:
    """What past moments teach; ``rises`` are those of :func:`rise` by begin and end.

    Moments at the same time share one rise: it is divided by all of their people.
    """
    shares: dict[str, list[float]] = {kind: [] for kind in HABITS}
    requests: dict[str, list[float]] = {kind: [] for kind in HABITS}
    for kind, begin, end, enrolled, came in past:
        if enrolled >= FEWEST_PEOPLE:
            shares[kind].append(min(1.0, came / enrolled))
        seen = rises.get((begin, end))
        if came < FEWEST_PEOPLE or seen is None:
            continue
        together = sum(other[4] for other in past if other[1] < end and other[2] > begin)
        each, bound = seen[0] / together, seen[1]
        # What was turned away or made to wait would teach to have as few nodes the next time.
        requests[kind].append(max(each, HABITS[kind].requests) if bound else each)
    return Learnt({
        kind: Habit(
            _usual(habit.share, shares[kind]), round(_usual(habit.requests, requests[kind]), 3), habit.before, habit.after,
            habit.word, len(requests[kind]),
        )
        for kind, habit in HABITS.items()
    }, seconds)


def _usual(prior: float, seen: Sequence[float]) -> float:
    """The quantile of the assumption, repeated, and of what was seen: one wild event moves it little."""
    ordered = sorted([prior] * PRIOR_EVENTS + list(seen))
    return ordered[math.ceil(QUANTILE * len(ordered)) - 1]


def usual_ranges(hour: int, timezone: str) -> list[tuple[int, int]]:
    """The ledger's slots (first, last) that show how busy an hour of Unix time usually is: the same local hour of earlier weeks."""
    return [(hour * 3600 - back, hour * 3600 - back + 3600 - SLOT) for back in shifts(hour, timezone)]


def usual_load(ranges: Sequence[tuple[int, int]], slots: Mapping[int, float]) -> float:
    """The lower median of those weeks' busiest slots; 0 where no week knows."""
    weeks = [[load for begin, load in slots.items() if first <= begin <= last] for first, last in ranges]
    busiest = sorted(max(loads) for loads in weeks if loads)
    return busiest[(len(busiest) - 1) // 2] if busiest else 0.0


def coming(events: Iterable[Event], learnt: Learnt, now: float, base: Mapping[int, float]) -> list[Moment]:
    """The moments ahead of some events, each with its load. ``base`` is the usual load by the hour of Unix time."""
    found = []
    for event in events:
        for kind, at, _came in event.moments():
            habit = learnt.habits[kind]
            if at + habit.after > now and event.enrolled:
                found.append(Moment(
                    event.tenant, kind, event.name, at, at - habit.before, at + habit.after, event.enrolled,
                    round(learnt.load(kind, event.enrolled * habit.share), 3), base.get(int(at // 3600), 0.0),
                ))
    return sorted(found, key=lambda one: (one.begin, one.tenant, one.name))
