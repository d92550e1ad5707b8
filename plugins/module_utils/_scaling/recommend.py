# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Recommenders: each looks at one side of the world and says how many nodes it wants and why.

A recommender is a function from :class:`Situation` to a :class:`Wish`, or to None where it has nothing to say. The
highest wish wins. A ``floor`` does not come from the load, so neither untrusted metrics nor a saturated database speak
against it.
"""

from __future__ import annotations

import datetime
import math
import zoneinfo
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import HABITS, Foreseen, Moment
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import (
    ENOUGH_DAYS,
    MARGIN,
    median,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    History,
    Outlook,
    Sample,
    ScheduleEntry,
    counted,
)


@dataclass(frozen=True)
class Wish:
    """What one recommender wants. ``advice`` is only told: it changes nothing."""

    source: str
    desired: int
    text: str
    floor: bool = False
    advice: bool = False


@dataclass(frozen=True)
class Situation:
    """What a recommender may look at.

    ``size`` is the number of nodes in service or on the way, ``outlook`` the weekly shape's next minutes where it is
    known, ``launch_seconds`` what launches took lately (0 where nobody asked), ``events`` what is known ahead.
    """

    policy: Policy
    sample: Sample
    history: History
    size: int
    now: float
    outlook: Outlook | None = None
    launch_seconds: float = 0.0
    events: Foreseen | None = None

    @property
    def workers(self) -> float:
        """Workers of a node: what its members report, or what the policy says."""
        sample = self.sample
        return sample.capacity / sample.up if sample.up and sample.capacity else float(self.policy.workers)


# Share of the workers that may be busy at any minute: beyond it waiting grows steeply, whatever the target is.
LIMIT = 0.85
# A trend and a swing: from at least so many minutes (chance makes a line of fewer often enough, and a step is half of them), how many standard
# errors growth must stand out by, and how many times the present load it may foresee; more than that is for the next check to see. Without
# growth the mean of the last minutes counts. A surge needs fewer minutes before it.
TREND_FEWEST = 8
SURGE_FEWEST = 4
LEVEL_SECONDS = 300.0
TREND_SURE = 5.0
TREND_MOST = 1.5
MINUTE = 60.0
# What a run of scale.yml takes at most that waits for new nodes, with the time until the next check.
RUN_SECONDS = 75.0
TOLD = " (only told, as the policy says)"
# Seconds beyond the launch time for which events count: a check waits for the run of the one before it, and the next one comes
# a minute later at most.
EVENTS_AHEAD = RUN_SECONDS + MARGIN
# Events that were read longer ago may have been moved since: that is told. They count all the same.
EVENTS_STALE = 3600.0
EVENTS_NAMED = 3
# A surge: so much more than a minute ago.
SURGE_SHARE = 0.2

Recommender = Callable[[Situation], Optional[Wish]]  # noqa: UP045 evaluated, also by Python 3.9


def tracking(situation: Situation) -> Wish | None:
    """Keep the workers as busy as the target says."""
    policy, sample, size = situation.policy, situation.sample, situation.size
    if not sample.trusted and not sample.lower_bound:
        return None
    workers = situation.workers
    wanted = max(1, math.ceil(sample.load / (workers * policy.target) - 1e-9))
    busy = sample.load / (workers * size) if size else math.inf
    share = f"{sample.load:.1f} of {workers * size:.0f} workers busy"
    if size and policy.scale_in_below <= busy <= policy.scale_out_above:
        return Wish("tracking", size, f"{share} ({busy:.0%}), within the dead band around {policy.target:.0%}")
    if size and busy > policy.scale_out_above:
        wanted = max(wanted, size)
    if size and busy < policy.scale_in_below:
        wanted = min(wanted, size)
    if not sample.trusted:
        # Part of the traffic is missing from the reading: it can prove a need, never the absence of one.
        wanted = max(wanted, size)
        return Wish("tracking", wanted, f"at least {share}; the reading is incomplete, so it can only add nodes")
    shown = f"{busy:.0%}" if size else "no node"
    return Wish("tracking", wanted, f"{share} ({shown}), target {policy.target:.0%}: {counted(wanted)}")


def schedule(situation: Situation) -> Wish | None:
    """The highest floor that the schedule sets now."""
    best: ScheduleEntry | None = None
    for entry in situation.policy.schedule:
        if active(entry, situation.now) and (best is None or entry.nodes > best.nodes):
            best = entry
    if best is None:
        return None
    until = f"{best.end // 60:02d}:{best.end % 60:02d}"
    text = f"schedule '{best.name}' keeps at least {counted(best.nodes)} until {until} {best.timezone}"
    return Wish("schedule", best.nodes, text, floor=True)


def trend(situation: Situation) -> Wish | None:
    """Where the load will be when a node launched now serves, with its usual swing: that must find room. Only adds or keeps nodes.

    A straight line through the minutes of the last quarter of an hour goes on where it rises clearly; the swing is twice the deviation
    that one minute has from the next. Its room are the workers up to :data:`LIMIT`. Growth may add nodes; swing looks like growth often
    enough, so unless the policy says otherwise it only keeps them.
    """
    policy, sample, size = situation.policy, situation.sample, situation.size
    if policy.trend == "off" or situation.launch_seconds <= 0 or not sample.trusted or not size:
        return None
    samples = [one for one in situation.history.samples if one.trusted]
    if not samples or samples[-1].taken < sample.taken:
        samples.append(sample)
    minutes = _minutes(samples)
    slope, level, sure = _line(minutes)
    if not sure:
        lately = [load for when, load in minutes if -when < max(MINUTE, min(LEVEL_SECONDS, policy.scale_in_window))]
        level = sum(lately) / len(lately)
    swing = _swing([load for _when, load in minutes])
    rise = _surge([load for when, load in minutes if when < 0], sample.load)
    if rise > 0:
        # Too new for a line: who comes within two minutes of an exam's start came half by now.
        slope, level, swing, sure = rise / MINUTE, sample.load, 0.0, True
    # What is launched now has to do until what the next check launches serves, and that check waits for this one's run.
    lead = situation.launch_seconds + RUN_SECONDS
    ahead = min(level + slope * lead, TREND_MOST * sample.load) if sure else level
    room = situation.workers * LIMIT
    wanted = math.ceil((ahead + 2 * swing) / room - 1e-9)
    grows = f"grows by {slope * 60:.1f} a minute: {ahead:.1f}" if sure else f"{ahead:.1f} on average"
    text = (
        f"{grows} within {lead:.0f} s, give or take {2 * swing:.1f}, "
        f"within {LIMIT:.0%} of the workers: {counted(wanted)}"
    )
    if policy.trend == "recommend":
        return Wish("trend", wanted, text + TOLD, advice=True)
    # A leap says how far to go, not whether: those that serve must be beyond the dead band.
    adds = sure and (rise <= 0 or sample.load > policy.scale_out_above * sample.capacity)
    if policy.trend == "growth" and not adds and wanted > size:
        wanted, text = size, f"{text} (no growth, so it only keeps those that are there)"
    return Wish("trend", wanted, text)


def _minutes(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """(seconds before the last one, mean load) of each minute of the clock: samples within one are too much alike to count each."""
    found: list[tuple[float, float]] = []
    present, total, count = 0.0, 0.0, 0
    for one in samples:
        minute = (one.taken - one.seconds / 2) // MINUTE
        if minute != present and count:
            found.append((present, total / count))
            total, count = 0.0, 0
        present, total, count = minute, total + one.load, count + 1
    found.append((present, total / count))
    return [((minute - present) * MINUTE, load) for minute, load in found]


def _surge(before: Sequence[float], load: float) -> float:
    """By how much the load rose since the minute before, where that stands out of the quarter of an hour before; else 0."""
    if len(before) < SURGE_FEWEST:
        return 0.0
    # Cheap first: most minutes are none.
    rise = load - before[-1]
    if rise <= SURGE_SHARE * before[-1]:
        return 0.0
    mean = sum(before) / len(before)
    swing = math.sqrt(sum([(one - mean) ** 2 for one in before]) / len(before))
    return rise if rise > TREND_SURE * swing else 0.0


def _line(seen: Sequence[tuple[float, float]]) -> tuple[float, float, bool]:
    """Least squares: (slope a second, level at time 0, whether it surely rises)."""
    count = len(seen)
    mean = sum([load for _when, load in seen]) / count
    if count < TREND_FEWEST:
        return 0.0, mean, False
    middle = sum([when for when, _load in seen]) / count
    spread = sum([(when - middle) ** 2 for when, _load in seen])
    slope = sum([(when - middle) * (load - mean) for when, load in seen]) / spread if spread > 0 else 0.0
    if slope <= 0:
        return slope, mean, False
    rest = max(0.0, sum([(load - mean) ** 2 for _when, load in seen]) - slope * slope * spread)
    if slope * slope * spread * (count - 2) <= TREND_SURE ** 2 * rest:
        return slope, mean, False
    return slope, mean - slope * middle, True


def _swing(loads: Sequence[float]) -> float:
    """Standard deviation of a minute's load, from the differences between minutes: medians, so that a step is no swing."""
    changes = [after - before for before, after in zip(loads, loads[1:])]
    if len(changes) < TREND_FEWEST:
        return 0.0
    usual = median(changes)
    # 1.48 makes a median deviation a standard deviation; a difference has twice the variance of its sides.
    return 1.48 / math.sqrt(2) * median([abs(change - usual) for change in changes])


def forecast(situation: Situation) -> Wish | None:
    """What the weekly shape wants at the time at which a node that is launched now would serve. Only adds nodes."""
    policy, seen, size = situation.policy, situation.outlook, situation.size
    if seen is None or policy.forecast == "off":
        return None
    until = situation.now + situation.launch_seconds + MARGIN
    # A mean of five minutes hides when within them the load rose: at their end it is as near to the next one's.
    loads = [load for begin, load in seen.points if begin < until + seen.seconds / 2 and begin + seen.seconds > situation.now]
    if not loads:
        return None
    load = max(loads)
    workers = situation.workers
    wanted = max(1, math.ceil(load / (workers * policy.target) - 1e-9))
    if size < wanted and load <= policy.scale_out_above * workers * size:
        wanted = size
    advice = policy.forecast == "recommend" or policy.forecast == "auto" and seen.days < ENOUGH_DAYS
    text = (
        f"{load:.1f} workers busy within {until - situation.now:.0f} s, by {counted(seen.weeks, 'week')} "
        f"and a last hour at {seen.factor:.0%} of the usual: {counted(wanted)}"
    )
    if advice:
        text += TOLD if policy.forecast == "recommend" else f" (only told, until it knows {ENOUGH_DAYS} days)"
    return Wish("forecast", wanted, text, advice=advice)


def events(situation: Situation) -> Wish | None:
    """The nodes for what quizzes, assignments and the calendar bring, early enough for a launch to be done."""
    policy, now, seen = situation.policy, situation.now, situation.events
    if seen is None or policy.events == "off":
        return None
    old = ""
    if now - seen.read > EVENTS_STALE:
        when = f"{(now - seen.read) / 3600:.1f} h ago" if seen.read > 0 else "never"
        old = f"read {when}: does the timer of 'moodle-fleet events' run?"
    lead = situation.launch_seconds + EVENTS_AHEAD
    near = seen.near(now, now + lead).moments
    nodes, load = 0, 0.0
    together: tuple[Moment, ...] = ()
    for point in sorted({max(now, one.begin) for one in near}):
        there = tuple(one for one in near if one.begin <= point < one.end)
        wanted, added = _for_moments(situation, there, point)
        if wanted > nodes:
            nodes, load, together = wanted, added, there
    if not nodes:
        return Wish("events", situation.size, f"what is known ahead was {old}", advice=True) if old else None
    named = sorted(together, key=lambda one: (-one.nodes, -one.load, one.begin))
    said = [_told(one, policy.timezone) for one in named[:EVENTS_NAMED]]
    if len(named) > EVENTS_NAMED:
        said.append(f"{len(named) - EVENTS_NAMED} more")
    begin = min(one.begin for one in together) - lead
    text = f"{'; '.join(said)} → {counted(nodes)} from {_clock(begin, policy.timezone)}"
    if load:
        text += f" ({load:.1f} workers busy by them)"
    advice = policy.events == "recommend"
    return Wish("events", nodes, text + (f" ({old})" if old else "") + (TOLD if advice else ""), floor=not advice, advice=advice)


def _for_moments(situation: Situation, there: Sequence[Moment], point: float) -> tuple[int, float]:
    """Nodes that moments at the same time need, and the load they add."""
    nodes = max([one.nodes for one in there], default=0)
    added = sum([one.load for one in there])
    # Less than one worker is what the target leaves free anyhow.
    if added < 1.0:
        return nodes, 0.0
    base = max([one.base for one in there])
    if point > situation.now and situation.sample.trusted and not any(one.ends for one in there):
        # Whoever is to come is not in the present load; whoever is to finish is.
        base = max(base, situation.sample.load)
    return max(nodes, math.ceil((base + added) / (situation.workers * situation.policy.target) - 1e-9)), added


def _told(one: Moment, zone: str) -> str:
    """One moment in words."""
    crowd = "" if one.nodes else f", {one.people:,} {'expected' if one.kind == 'calendar' else 'enrolled'}"
    return f"{one.tenant}: '{one.name}' {HABITS[one.kind].word} {_clock(one.at, zone)}{crowd}"


def _clock(moment: float, zone: str) -> str:
    """A time of the day, in the policy's time zone."""
    place: datetime.tzinfo = datetime.timezone.utc if zone == "UTC" else zoneinfo.ZoneInfo(zone)
    return f"{datetime.datetime.fromtimestamp(moment, place):%H:%M}"


RECOMMENDERS: tuple[Recommender, ...] = (tracking, schedule, trend, forecast, events)


def active(entry: ScheduleEntry, now: float) -> bool:
    """Whether the entry covers this moment, by the wall clock of its own time zone.

    Begin and end are turned into moments before they are compared, so an hour that a change to summer time skips or
    repeats makes a window shorter or longer but never loses it.
    """
    zone: datetime.tzinfo = datetime.timezone.utc if entry.timezone == "UTC" else zoneinfo.ZoneInfo(entry.timezone)
    if entry.date is not None:
        last = entry.end_date or _end_day(datetime.date(*entry.date), entry)
        return _moment(entry.date, entry.begin, zone) <= now < _moment(last, entry.end, zone)
    today = datetime.datetime.fromtimestamp(now, zone).date()
    for day in (today - datetime.timedelta(days=1), today):
        if day.weekday() in entry.days:
            begin = _moment((day.year, day.month, day.day), entry.begin, zone)
            if begin <= now < _moment(_end_day(day, entry), entry.end, zone):
                return True
    return False


def _end_day(day: datetime.date, entry: ScheduleEntry) -> tuple[int, int, int]:
    end = day if entry.end > entry.begin else day + datetime.timedelta(days=1)
    return end.year, end.month, end.day


def _moment(day: tuple[int, int, int], minutes: int, zone: datetime.tzinfo) -> float:
    return datetime.datetime(*day, minutes // 60, minutes % 60, tzinfo=zone).timestamp()
