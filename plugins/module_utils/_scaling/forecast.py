# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The load that the weekly shape expects within the next minutes. Pure: the slots come from the ledger, the clock is passed in.

The ledger keeps the mean load of every five minutes. For the minutes ahead, each of the last weeks gives its load at the
same local time, scaled by how the last hour compares with the same hour of that week. So a term that grows, a holiday
or a quiet week on either side only changes the scale. Of the weeks' answers the lower median counts: what happened
in one week alone (an outage, a flash crowd, a holiday) never decides when two others, or one other, say less.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Outlook

SLOT = 300
DAY = 86400
WEEKS = 5
# With fewer days nobody can tell a week's shape from an accident: two weeks that agree are the least.
ENOUGH_DAYS = 14
# Seconds beyond the launch time that the forecast looks ahead: the next check comes a minute later at most.
MARGIN = 60.0
# The last hour, in slots before the present one; fewer than a quarter of them say nothing.
COMPARED = 12
FEWEST = 3
# Today may be this many times as busy as that week was.
LEAST, MOST = 0.2, 3.0
# Requests added to both sides of a comparison: at night the ratio of two numbers near zero means nothing.
SMOOTHING = 2.0
# Launches whose times count, and which of them: most launches are faster than what is planned with.
LAUNCHES = 20
SLOW_LAUNCH = 0.8


def slot_of(moment: float) -> int:
    """Begin of the slot that holds this moment."""
    return int(moment // SLOT) * SLOT


def launch_seconds(policy: Policy, measured: Sequence[float]) -> float:
    """What a launch takes, from the times of the latest: the slower ones, or an assumption before the first."""
    if not measured:
        return min(policy.launch_timeout / 3, 300.0)
    ordered = sorted(measured[:LAUNCHES])
    return min(policy.launch_timeout, ordered[min(len(ordered) - 1, int(SLOW_LAUNCH * len(ordered)))])


@lru_cache(maxsize=64)
def shifts(hour: int, timezone: str) -> tuple[int, ...]:
    """Seconds back to the same local time of each earlier week, newest first."""
    if timezone == "UTC":
        return tuple(week * 7 * DAY for week in range(1, WEEKS + 1))
    zone = zoneinfo.ZoneInfo(timezone)

    def offset(moment: float) -> float:
        found = datetime.datetime.fromtimestamp(moment, zone).utcoffset()
        return found.total_seconds() if found is not None else 0.0

    here = offset(hour * 3600)
    return tuple(
        int(week * 7 * DAY + offset(hour * 3600 - week * 7 * DAY) - here) for week in range(1, WEEKS + 1)
    )


def wanted_slots(now: float, lead: float, timezone: str) -> list[tuple[int, int]]:
    """The ranges (first slot, last slot) of the ledger that an outlook looks at."""
    present = slot_of(now)
    first, last = present - COMPARED * SLOT, _last(present, lead)
    return [(first, present)] + [(first - back, last - back) for back in shifts(present // 3600, timezone)]


def outlook(
    slots: Mapping[int, float], now: float, lead: float, timezone: str, since: float | None
) -> Outlook | None:
    """What the load will be in the slots from now to ``lead`` seconds ahead, or None where nobody knows.

    ``slots`` are mean loads by the begin of their slot, complete for the ranges of :func:`wanted_slots`; ``since`` is the
    oldest slot of all. Within one slot the answer is the same for the same ``lead``.
    """
    if since is None:
        return None
    present = slot_of(now)
    ahead = range(present, _last(present, lead) + SLOT, SLOT)
    past = [(begin, slots[begin]) for begin in range(present - COMPARED * SLOT, present, SLOT) if begin in slots]
    said: dict[int, list[float]] = {begin: [] for begin in ahead}
    factors = []
    for back in shifts(present // 3600, timezone):
        if present - back < since - SLOT:
            break
        factor = _factor(slots, past, back)
        found = [(begin, slots[begin - back]) for begin in ahead if begin - back in slots]
        for begin, load in found:
            said[begin].append(load * factor)
        if found:
            factors.append(factor)
    # Where only one week knows, it alone does not decide.
    points = tuple((float(begin), round(_lower_median(loads), 2)) for begin, loads in said.items() if len(loads) > 1)
    if not points:
        return None
    weeks = min(len(loads) for loads in said.values() if len(loads) > 1)
    hour = median([load for _begin, load in past]) if len(past) >= FEWEST else 0.0
    return Outlook(points, float(SLOT), weeks, round((present - since) / DAY, 2), round(_lower_median(factors), 3), round(hour, 2))


def reach(lead: float) -> float:
    """How many seconds ahead slots count. A mean of five minutes hides when within them the load rose: at their end it is as near to
    the next one's."""
    return lead + MARGIN + SLOT / 2


def nearby(ahead: Outlook, now: float, lead: float) -> list[float]:
    """The loads of the slots that count for a launch of ``lead`` seconds that begins now."""
    until = now + reach(lead)
    return [load for begin, load in ahead.points if begin < until and begin + ahead.seconds >= now]


def _last(present: int, lead: float) -> int:
    """The last slot that matters to any check within the present one."""
    return slot_of(present + SLOT + reach(lead))


def _factor(slots: Mapping[int, float], past: Sequence[tuple[int, float]], back: int) -> float:
    """How busy the last hour was, in terms of that week's. The hour and its last quarter must agree on a growth."""
    ratios = [
        (load + SMOOTHING) / (usual + SMOOTHING) for begin, load in past if (usual := slots.get(begin - back)) is not None
    ]
    if len(ratios) < FEWEST:
        return 1.0
    # Medians: twenty minutes of an exam say nothing of what comes after it. A fall below the usual is believed by the hour alone: whom an
    # outage sent away comes back.
    hour, last = median(ratios), median(ratios[-FEWEST:])
    ratio = min(hour, max(last, min(hour, 1.0)))
    return min(MOST, max(LEAST, ratio))


def median(values: Sequence[float]) -> float:
    """The median. Not from ``statistics``: importing that takes longer than the rest of a decision."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _lower_median(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]
