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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    History,
    Sample,
    ScheduleEntry,
    counted,
)


@dataclass(frozen=True)
class Wish:
    """What one recommender wants."""

    source: str
    desired: int
    text: str
    floor: bool = False


@dataclass(frozen=True)
class Situation:
    """What a recommender may look at; ``size`` is the number of nodes in service or on the way."""

    policy: Policy
    sample: Sample
    history: History
    size: int
    now: float


Recommender = Callable[[Situation], Optional[Wish]]


def tracking(situation: Situation) -> Wish | None:
    """Keep the workers as busy as the target says."""
    policy, sample, size = situation.policy, situation.sample, situation.size
    if not sample.trusted and not sample.lower_bound:
        return None
    workers = sample.capacity / sample.up if sample.up and sample.capacity else float(policy.workers)
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


# Forecast and events join this tuple behind the same interface.
RECOMMENDERS: tuple[Recommender, ...] = (tracking, schedule)


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
