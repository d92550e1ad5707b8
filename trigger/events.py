# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``moodle-fleet events``: asks databases and calendar what is coming, learns from what was, and leaves it for the check to read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import kept, reader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import events
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.trigger import ical

DAY = 86400.0
PAST_DAYS = 60.0
AHEAD_DAYS = 14.0
SHOWN = 20
CALENDAR = "calendar"


def refresh(fleet: Fleet, policy: Policy, ledger: Ledger, now: float) -> dict[str, Any]:
    """Read everything and write it down; returns what was written.

    Who can't be read keeps what was known of him before: an exam does not vanish with a connection.

    :raises KeptError: when the file can't be written.
    """
    before = _kept.load(fleet, kept.EVENTS)
    failures: dict[str, str] = {}
    found: list[events.Event] = []
    tenants = 0
    if fleet.events.get("tenants"):
        try:
            given = reader.access(fleet.state_dir)
            tenants = len(given.tenants)
            found, failures = reader.read(given, now, past_days=PAST_DAYS, ahead_days=AHEAD_DAYS)
        except reader.ReadError as exc:
            failures["*"] = str(exc)
    entries: list[ical.Entry] = []
    silent: list[str] = []
    if fleet.events.get("calendar"):
        try:
            content = ical.text(fleet.events["calendar"], fleet.path.parent)
            entries, silent = ical.entries(content, now - PAST_DAYS * DAY, now + AHEAD_DAYS * DAY, policy.timezone)
        except ical.CalendarError as exc:
            failures[CALENDAR] = str(exc)
    learnt = learn(ledger, found, entries, now)
    base = usual(ledger, policy, now, found, entries)
    moments = events.coming(found, learnt, now, base) + from_calendar(entries, learnt, now, base)
    for one in _remembered(before):
        lost = CALENDAR in failures if one.tenant == CALENDAR else one.tenant in failures or "*" in failures
        if lost and one.end > now:
            moments.append(one)
    foreseen = events.Foreseen(tuple(sorted(moments, key=lambda one: (one.begin, one.tenant, one.name))), now)
    data = {
        **foreseen.to_data(), "tenants": tenants, "failures": failures, "silent": silent,
        "learnt": {kind: asdict(habit) for kind, habit in learnt.habits.items()}, "service_seconds": round(learnt.seconds, 4),
    }
    _kept.write(fleet, kept.EVENTS, data)
    return data


def learn(ledger: Ledger, found: Sequence[events.Event], entries: Sequence[ical.Entry], now: float) -> events.Learnt:
    """What the past moments of these events and entries teach, by the ledger's samples of their time."""
    habit = events.HABITS["calendar"]
    past = events.past_moments(found, now) + [
        ("calendar", one.begin, one.begin + habit.after, one.participants, one.participants)
        for one in entries if one.participants and one.begin + habit.after <= now
    ]
    rises = {}
    for begin, end in {(begin, end) for _kind, begin, end, _enrolled, came in past if came >= events.FEWEST_PEOPLE}:
        rises[begin, end] = events.rise(ledger.samples(begin - events.CALM_SECONDS, end), begin, end)
    return events.learn(past, rises, events.service_seconds(ledger.samples(now - DAY, now)))


def usual(
    ledger: Ledger, policy: Policy, now: float, found: Sequence[events.Event], entries: Sequence[ical.Entry]
) -> dict[int, float]:
    """The usual load of each hour in which something begins or ends."""
    times = [at for one in found for _kind, at, _came in one.moments()] + [one.begin for one in entries]
    loads = {}
    for hour in {int(at // 3600) for at in times if at > now - DAY}:
        ranges = events.usual_ranges(hour, policy.timezone)
        loads[hour] = round(events.usual_load(ranges, ledger.slots(ranges)[1]), 3)
    return loads


def from_calendar(
    entries: Sequence[ical.Entry], learnt: events.Learnt, now: float, base: Mapping[int, float] | None = None
) -> list[events.Moment]:
    """The moments of the calendar's entries: a floor for as long as an entry lasts, a crowd at its begin."""
    moments = []
    habit = learnt.habits["calendar"]
    for one in entries:
        usual_load = (base or {}).get(int(one.begin // 3600), 0.0)
        if one.nodes and one.end > now:
            moments.append(events.Moment(
                CALENDAR, "calendar", one.name, one.begin, one.begin, one.end, one.participants, nodes=one.nodes
            ))
        if one.participants and not one.nodes and one.begin + habit.after > now:
            moments.append(events.Moment(
                CALENDAR, "calendar", one.name, one.begin, one.begin, one.begin + habit.after, one.participants,
                round(learnt.load("calendar", one.participants), 3), usual_load,
            ))
    return moments


def for_simulation(path: Path, timezone: str, begin: float, end: float) -> events.Foreseen:
    """What a simulated fleet knows ahead: an iCalendar file, or a file that ``moodle-fleet events`` left.

    :raises CalendarError: when it is neither.
    """
    content = ical.text(str(path), Path())
    if content.lstrip().startswith("{"):
        try:
            return events.Foreseen.from_data(json.loads(content))
        except (KeyError, TypeError, ValueError) as exc:
            raise ical.CalendarError(f"{path}: is no file that moodle-fleet events left ({exc}): give its {kept.EVENTS}") from exc
    entries, _silent = ical.entries(content, begin - DAY, end + DAY, timezone)
    return events.Foreseen(tuple(from_calendar(entries, events.Learnt(), begin)), begin)


def _remembered(before: Mapping[str, Any]) -> tuple[events.Moment, ...]:
    try:
        return events.Foreseen.from_data(before).moments
    except (KeyError, TypeError, ValueError):
        return ()


def lines(data: Mapping[str, Any], now: float) -> list[str]:
    """What a person wants to know."""
    ahead = [one for one in data["moments"] if one["end"] > now]
    shown = sorted(ahead, key=lambda one: (-one["nodes"], -one["load"]))[:SHOWN]
    said = [f"Read {data['tenants']} tenants; {len(ahead)} moments ahead" + (f", the {len(shown)} largest:" if shown else ".")]
    for one in sorted(shown, key=lambda one: one["begin"]):
        when = time.strftime("%a %Y-%m-%d %H:%M", time.localtime(one["at"]))
        need = f"{one['nodes']} nodes" if one["nodes"] else f"{one['people']} people, {one['load']:.1f} workers busy by them"
        said.append(f"  {when}  {one['tenant']}: '{one['name']}' {events.HABITS[one['kind']].word}: {need}")
    for kind, habit in data["learnt"].items():
        if habit["events"]:
            said.append(
                f"Learnt from {habit['events']} of {kind}: {habit['share']:.0%} come, {habit['requests']:.2f} requests each in the busiest minute"
            )
    said.append(f"A request takes a worker {data['service_seconds']:.3f} s.")
    if data["silent"]:
        said.append(f"Entries that say neither participants nor nodes: {', '.join(data['silent'][:5])}")
    return said + [f"Not read: {'all tenants' if name == '*' else name}: {why}" for name, why in sorted(data["failures"].items())]
