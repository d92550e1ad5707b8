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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Optional

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import HABITS, Foreseen, Moment
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import (
    ENOUGH_DAYS,
    LEAST,
    MARGIN,
    MOST,
    nearby,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import (
    MINUTE,
    SURE,
    added,
    growth,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    History,
    Minute,
    Outlook,
    Sample,
    ScheduleEntry,
    counted,
)

# Share of the workers that may be busy at any minute: beyond it waiting grows steeply, whatever the target is.
LIMIT = 0.85
# Standard deviations of a minute that must find room below the limit: one minute in a hundred has more. Where nothing grows, a node comes
# only where one in 35 has; the gap keeps it from coming and going.
SWINGS = 2.3
SWINGS_FLAT = 1.9
# Where nothing grows, the mean of so many seconds is the level.
LEVEL_SECONDS = 300.0
LEVEL_MINUTES = math.ceil(LEVEL_SECONDS / MINUTE)
# Whoever is away for so many minutes, the present one among them, is kept away.
AWAY_MINUTES = 3
# What a run of scale.yml takes at most that waits for new nodes, with the time until the next check.
RUN_SECONDS = 75.0
TOLD = " (only told, as the policy says)"
# Seconds beyond the launch time for which events count: a check waits for the run of the one before it, and the next one comes
# a minute later at most.
EVENTS_AHEAD = RUN_SECONDS + MARGIN
# Events that were read longer ago may have been moved since: that is told. They count all the same.
EVENTS_STALE = 3600.0
EVENTS_NAMED = 3


class Wish(NamedTuple):
    """What one recommender wants. ``advice`` is only told: it changes nothing. ``say`` makes the text, where somebody reads it."""

    source: str
    desired: int
    say: Callable[[], str]
    floor: bool = False
    advice: bool = False

    @property
    def text(self) -> str:
        """Why so many."""
        return self.say()


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

    @cached_property
    def minutes(self) -> Sequence[Minute]:
        """The minutes of the history with this sample."""
        minutes = list(self.history.minutes)
        known = [one.taken for one in self.history.samples if one.trusted]
        if self.sample.trusted and (not known or known[-1] < self.sample.taken):
            added(minutes, self.sample)
        return minutes

    @property
    def present_weight(self) -> float:
        """What the last of the minutes counts beside the others: its readings so far may differ from the whole of it."""
        if not self.history.flutter:
            return 1.0
        readings = self.minutes[-1][2]
        missing = 1 / readings - 1 / max(readings, MINUTE / max(1.0, self.sample.seconds))
        swing, doubt = self.history.swing**2, self.history.flutter**2 * missing
        return swing / (swing + doubt) if doubt else 1.0

    def at_limit(self, load: float) -> int:
        """Nodes that are busy up to :data:`LIMIT` with such a load."""
        return math.ceil(load / (self.workers * LIMIT) - 1e-9)

    def spare(self, load: float, swings: float = SWINGS) -> float:
        """So many standard deviations of a load: what must find room beside it."""
        return swings * self.history.swing * math.sqrt(max(1.0, load))


Recommender = Callable[[Situation], Optional[Wish]]  # noqa: UP045 evaluated, also by Python 3.9


def tracking(situation: Situation) -> Wish | None:
    """Keep the workers as busy as the target says."""
    policy, sample, size = situation.policy, situation.sample, situation.size
    if not sample.trusted and not sample.lower_bound:
        return None
    workers = situation.workers
    wanted = max(1, math.ceil(sample.load / (workers * policy.target) - 1e-9))
    busy = sample.load / (workers * size) if size else math.inf

    def share() -> str:
        return f"{sample.load:.1f} of {workers * size:.0f} workers busy"

    if size and policy.scale_in_below <= busy <= policy.scale_out_above:
        return Wish("tracking", size, lambda: f"{share()} ({busy:.0%}), within the dead band around {policy.target:.0%}")
    if size and busy > policy.scale_out_above:
        wanted = max(wanted, size)
    if size and busy < policy.scale_in_below:
        wanted = min(wanted, size)
    if not sample.trusted:
        # Part of the traffic is missing from the reading: it can prove a need, never the absence of one.
        wanted = max(wanted, size)
        return Wish("tracking", wanted, lambda: f"at least {share()}; the reading is incomplete, so it can only add nodes")
    shown = f"{busy:.0%}" if size else "no node"
    return Wish("tracking", wanted, lambda: f"{share()} ({shown}), target {policy.target:.0%}: {counted(wanted)}")


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
    return Wish("schedule", best.nodes, lambda: text, floor=True)


def trend(situation: Situation) -> Wish | None:
    """Where the load will be when a node launched now serves, with its usual swing: that must find room. Only adds or keeps nodes.

    Its room are the workers up to :data:`LIMIT`. What the level and the swing are learnt from: see ``growth.py``.
    """
    policy, sample, size = situation.policy, situation.sample, situation.size
    if policy.trend == "off" or situation.launch_seconds <= 0 or not sample.trusted or not size:
        return None
    lead = situation.launch_seconds + RUN_SECONDS
    rise = growth(situation.minutes, situation.spare(sample.load, 1.0), situation.present_weight)
    if rise is not None:
        # Nobody knows how far a growth has come, and halfway is the middle of all guesses (J. R. Gott, Implications of the Copernican
        # principle for our future prospects, Nature 363, 1993).
        horizon = min(lead, rise.seconds)
        ahead = rise.level + rise.slope * horizon
        # A growth that was known before ends where it was to end; one that is above it already is another.
        known = _known(situation)
        ahead = min(ahead, known) if rise.level <= known else ahead
    else:
        begin = situation.minutes[-1][0] - max(MINUTE, min(LEVEL_SECONDS, policy.scale_in_window))
        lately = [load for when, load, _samples in situation.minutes[-LEVEL_MINUTES:] if when > begin]
        ahead = sum(lately) / len(lately)
    spare = situation.spare(ahead)
    wanted = situation.at_limit(ahead + spare)
    if rise is None and wanted > size:
        wanted = min(wanted, max(size, situation.at_limit(ahead + situation.spare(ahead, SWINGS_FLAT))))
    keeps = policy.trend == "growth" and rise is None and wanted > size

    def say() -> str:
        grows = f"{ahead:.1f} on average"
        if rise is not None:
            grows = f"grows by {rise.slope * 60:.1f} a minute: {ahead:.1f} within {horizon:.0f} s"
        text = f"{grows}, give or take {spare:.1f}, within {LIMIT:.0%} of the workers: {counted(wanted)}"
        return text + (TOLD if policy.trend == "recommend" else " (no growth, so it only keeps those that are there)" if keeps else "")

    return Wish("trend", size if keeps else wanted, say, advice=policy.trend == "recommend")


def _known(situation: Situation) -> float:
    """The load that is known before: what the weekly shape says, where it counts, and what schedule and events keep nodes for. Whoever
    was kept away within the last minutes comes back as the forecast expects it."""
    policy, seen = situation.policy, situation.outlook
    floors = [wish.desired for wish in (schedule(situation), events(situation)) if wish is not None and wish.floor]
    loads = [nodes * situation.workers * policy.target for nodes in floors]
    if seen is not None and seen.points and not _only_told(policy, seen):
        usual = [load for _begin, load in seen.points]
        back = min([load for _begin, load, _samples in situation.minutes]) < LEAST * min([seen.hour, *usual])
        loads.append(max(usual) * (MOST if back else 1.0))
    return max(loads, default=0.0)


def forecast(situation: Situation) -> Wish | None:
    """What the weekly shape wants at the time at which a node that is launched now would serve. Only adds nodes."""
    policy, seen, size = situation.policy, situation.outlook, situation.size
    if seen is None or policy.forecast == "off":
        return None
    loads = nearby(seen, situation.now, situation.launch_seconds)
    if not loads:
        return None
    load = max(loads)
    back = _kept_away(situation, seen)
    if back:
        load *= MOST
    workers = situation.workers
    wanted = max(1, math.ceil(load / (workers * policy.target) - 1e-9))
    if size < wanted and load <= policy.scale_out_above * workers * size:
        wanted = size
    spare = situation.spare(load)
    wanted = max(wanted, situation.at_limit(load + spare))
    advice = _only_told(policy, seen)

    def say() -> str:
        kept = f", if who is kept away now comes back as {MOST:.0f} times as many" if back else ""
        text = (
            f"{load:.1f} workers busy within {situation.launch_seconds + MARGIN:.0f} s, give or take {spare:.1f}, by {counted(seen.weeks, 'week')} "
            f"and a last hour at {seen.factor:.0%} of the usual{kept}: {counted(wanted)}"
        )
        if advice:
            text += TOLD if policy.forecast == "recommend" else f" (only told, until it knows {ENOUGH_DAYS} days)"
        return text

    return Wish("forecast", wanted, say, advice=advice)


def _only_told(policy: Policy, seen: Outlook) -> bool:
    """Whether the weekly shape may not change anything (yet)."""
    return policy.forecast in ("off", "recommend") or policy.forecast == "auto" and seen.days < ENOUGH_DAYS


def _kept_away(situation: Situation, seen: Outlook) -> bool:
    """Whether the last minutes are so far below the last hour and all that is usual now that something keeps people away: a network, or a
    service in front. After half an hour the last hour knows no better any more."""
    lately = [load for _begin, load, _samples in situation.minutes[-AWAY_MINUTES:]]
    if not situation.sample.trusted or len(lately) < AWAY_MINUTES:
        return False
    most, expected = max(lately), min([seen.hour, *[load for _begin, load in seen.points]])
    return most < LEAST * expected and expected - most > situation.spare(expected, SURE)


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
        return Wish("events", situation.size, lambda: f"what is known ahead was {old}", advice=True) if old else None
    advice = policy.events == "recommend"
    return Wish(
        "events", nodes, lambda: _of_moments(policy, together, lead, nodes, load) + (f" ({old})" if old else "") + (TOLD if advice else ""),
        floor=not advice, advice=advice,
    )


def _of_moments(policy: Policy, together: Sequence[Moment], lead: float, nodes: int, load: float) -> str:
    """The moments that count in words, and what they need."""
    named = sorted(together, key=lambda one: (-one.nodes, -one.load, one.begin))
    said = [_told(one, policy.timezone) for one in named[:EVENTS_NAMED]]
    if len(named) > EVENTS_NAMED:
        said.append(f"{len(named) - EVENTS_NAMED} more")
    begin = min(one.begin for one in together) - lead
    text = f"{'; '.join(said)} → {counted(nodes)} from {_clock(begin, policy.timezone)}"
    if load:
        text += f" ({load:.1f} workers busy by them)"
    return text


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
    return f"{datetime.datetime.fromtimestamp(moment, _zone(zone)):%H:%M}"


RECOMMENDERS: tuple[Recommender, ...] = (tracking, schedule, trend, forecast, events)


def active(entry: ScheduleEntry, now: float) -> bool:
    """Whether the entry covers this moment, by the wall clock of its own time zone."""
    return any(begin <= now < end for begin, end in _windows(entry, now, now))


def changes(entry: ScheduleEntry, since: float, until: float) -> list[float]:
    """The moments, in no order, at which the entry begins or ends to cover; all of those between two times."""
    return [moment for window in _windows(entry, since, until) for moment in window]


def _windows(entry: ScheduleEntry, since: float, until: float) -> Iterator[tuple[float, float]]:
    """When the entry covers between two times, and perhaps somewhat before and after.

    Begin and end are turned into moments before they are compared, so an hour that a change to summer time skips or
    repeats makes a window shorter or longer but never loses it.
    """
    zone = _zone(entry.timezone)
    if entry.date is not None:
        last = entry.end_date or _end_day(datetime.date(*entry.date), entry)
        yield _moment(entry.date, entry.begin, zone), _moment(last, entry.end, zone)
        return
    # What began the day before may last.
    first_day, last_day = [datetime.datetime.fromtimestamp(moment, zone).date() for moment in (since, until)]
    day = first_day - datetime.timedelta(days=1)
    while day <= last_day:
        if day.weekday() in entry.days:
            yield _moment((day.year, day.month, day.day), entry.begin, zone), _moment(_end_day(day, entry), entry.end, zone)
        day += datetime.timedelta(days=1)


def _zone(name: str) -> datetime.tzinfo:
    """The time zone of this name; UTC needs no database of them."""
    return datetime.timezone.utc if name == "UTC" else zoneinfo.ZoneInfo(name)


def _end_day(day: datetime.date, entry: ScheduleEntry) -> tuple[int, int, int]:
    end = day if entry.end > entry.begin else day + datetime.timedelta(days=1)
    return end.year, end.month, end.day


def _moment(day: tuple[int, int, int], minutes: int, zone: datetime.tzinfo) -> float:
    return datetime.datetime(*day, minutes // 60, minutes % 60, tzinfo=zone).timestamp()
