# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import dataclasses
import datetime
import zoneinfo

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import (
    SLOT,
    launch_seconds,
    outlook,
    slot_of,
    wanted_slots,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.recommend import (
    Situation,
    forecast,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import History, Outlook, Sample

WEEK = 7 * 86400
ZONE = "Europe/Bratislava"


def local(text: str, zone: str = ZONE) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone)).timestamp()


def shape(moment: float, zone: str = ZONE) -> float:
    """Quiet, and a jump to 100 at 09:00 local time on weekdays."""
    when = datetime.datetime.fromtimestamp(moment, zoneinfo.ZoneInfo(zone))
    return 100.0 if when.weekday() < 5 and 9 <= when.hour < 12 else 10.0


def weeks_of(now: float, count: int, scale: dict[int, float] | None = None) -> dict[int, float]:
    """Slots of so many weeks before now; ``scale`` changes whole weeks, counted backwards, 0 is the present one."""
    first = slot_of(now) - count * WEEK
    return {
        begin: shape(begin) * (scale or {}).get(int((now - begin) // WEEK), 1.0)
        for begin in range(first, slot_of(now), SLOT)
    }


def ahead(now: float, slots: dict[int, float], lead: float = 300.0) -> Outlook:
    found = outlook(slots, now, lead, ZONE, min(slots))
    assert found is not None
    return found


def highest(found: Outlook) -> float:
    return max(load for _begin, load in found.points)


NOW = local("2026-11-24 08:55:30")  # a Tuesday


def test_the_jump_of_earlier_weeks_is_seen_one_launch_ahead_and_not_before() -> None:
    slots = weeks_of(NOW, 4)
    assert highest(ahead(NOW, slots)) == 100.0
    assert highest(ahead(NOW - 1200, slots)) == 10.0
    assert ahead(NOW, slots).weeks == 4
    assert ahead(NOW, slots).factor == 1.0


@pytest.mark.parametrize("moment", ["2026-10-26 08:55:30", "2026-03-30 08:55:30", "2026-04-06 08:55:30"])
def test_local_time_counts_across_a_change_of_the_clock(moment: str) -> None:
    now = local(moment)
    slots = weeks_of(now, 4)
    assert highest(ahead(now, slots)) == 100.0
    assert highest(ahead(now - 3600, slots)) == 10.0


def test_the_last_hour_scales_the_shape_and_is_bounded() -> None:
    busy = weeks_of(NOW, 4, {0: 1.5})
    assert highest(ahead(NOW, busy)) == pytest.approx(100 * 17 / 12, abs=0.01)
    quiet = weeks_of(NOW, 4, {0: 0.0})
    assert highest(ahead(NOW, quiet)) == pytest.approx(20.0)
    flooded = weeks_of(NOW, 4, {0: 50.0})
    assert highest(ahead(NOW, flooded)) == pytest.approx(300.0)


def test_a_short_exam_in_the_last_hour_does_not_scale_what_comes() -> None:
    slots = weeks_of(NOW, 4)
    for begin in range(slot_of(NOW) - 4 * SLOT, slot_of(NOW) - 2 * SLOT, SLOT):
        slots[begin] *= 8
    assert highest(ahead(NOW, slots)) == 100.0


def test_a_fall_within_the_hour_comes_back_and_one_of_an_hour_does_not() -> None:
    for slots_gone, expected in ((4, 100.0), (12, 20.0)):
        slots = weeks_of(NOW, 4)
        for begin in range(slot_of(NOW) - slots_gone * SLOT, slot_of(NOW), SLOT):
            slots[begin] = 0.0
        assert highest(ahead(NOW, slots)) == pytest.approx(expected)


def test_a_holiday_on_either_side_only_changes_the_scale() -> None:
    assert highest(ahead(NOW, weeks_of(NOW, 4, {1: 0.1}))) == 100.0
    # Today is the holiday: everything is a tenth, and so is what is expected.
    assert highest(ahead(NOW, weeks_of(NOW, 4, {0: 0.1}))) < 30.0


def test_what_happened_in_one_week_alone_does_not_decide() -> None:
    slots = weeks_of(NOW, 3)
    for begin in range(slot_of(NOW) - WEEK, slot_of(NOW) - WEEK + 1800, SLOT):
        slots[begin] = 5000.0
    assert highest(ahead(NOW, slots)) == 100.0
    two = {begin: load for begin, load in slots.items() if begin >= slot_of(NOW) - 2 * WEEK}
    assert highest(ahead(NOW, two)) == 100.0


def test_gaps_are_no_zeros_and_one_week_alone_says_nothing() -> None:
    slots = weeks_of(NOW, 3)
    gap = {begin: load for begin, load in slots.items() if not slot_of(NOW) - WEEK - 7200 <= begin <= slot_of(NOW) - WEEK + 7200}
    assert highest(ahead(NOW, gap)) == 100.0
    one = {begin: load for begin, load in slots.items() if begin >= slot_of(NOW) - WEEK - 7200}
    assert outlook(one, NOW, 300.0, ZONE, min(one)) is None
    assert outlook({}, NOW, 300.0, ZONE, None) is None
    # The last hour is missing: the shape stands as it is.
    blind = {begin: load for begin, load in slots.items() if begin < slot_of(NOW) - 4000}
    assert highest(ahead(NOW, blind)) == 100.0


def test_the_answer_is_the_same_within_a_slot_and_needs_only_the_wanted_slots() -> None:
    slots = weeks_of(NOW, 5)
    wanted = wanted_slots(NOW, 300.0, ZONE)
    few = {begin: load for begin, load in slots.items() if any(first <= begin <= last for first, last in wanted)}
    answers = {outlook(few, slot_of(NOW) + second, 300.0, ZONE, min(slots)) for second in (0, 1, 150, 299)}
    assert answers == {outlook(slots, NOW, 300.0, ZONE, min(slots))}
    assert len(few) < 150


def test_launches_are_planned_with_the_slower_ones() -> None:
    policy = Policy()
    assert launch_seconds(policy, ()) == 300.0
    assert launch_seconds(Policy(launch_timeout=120), ()) == 40.0
    assert launch_seconds(policy, [60.0] * 8 + [200.0, 200.0]) == 200.0
    assert launch_seconds(policy, [60.0] * 9 + [200.0]) == 60.0
    # Only the latest count, and none may exceed what a launch may take.
    assert launch_seconds(policy, [30.0] * 20 + [800.0] * 80) == 30.0
    assert launch_seconds(policy, [5000.0]) == 900.0


def situation(policy: Policy, days: float = 20, size: int = 2, load: float = 10.0, points: tuple[tuple[float, float], ...] | None = None) -> Situation:
    sample = Sample(NOW, 15, load, int(load), 0, 8 * size, size, 100, True)
    seen = Outlook(points or ((NOW - 30, 10.0), (NOW + 270, 60.0)), 300.0, 3, days, 1.0)
    return Situation(policy, sample, History(), size, NOW, seen, 240.0)


def test_a_forecast_is_only_told_until_it_knows_two_weeks() -> None:
    wish = forecast(situation(Policy()))
    assert wish is not None and (wish.desired, wish.advice, wish.floor) == (11, False, False)
    early = forecast(situation(Policy(), days=13.9))
    assert early is not None and (early.desired, early.advice) == (11, True)
    assert "only told" in early.text
    at_once = forecast(situation(Policy(forecast="scale_out"), days=1))
    assert at_once is not None and not at_once.advice
    told = forecast(situation(Policy(forecast="recommend")))
    assert told is not None and told.advice
    assert forecast(situation(Policy(forecast="off"))) is None


def test_a_forecast_looks_half_a_slot_further_than_a_launch_takes() -> None:
    # 240 s until a launch is done, 60 s until the next check, 150 s by which a mean of five minutes hides when the load rose.
    for begin, desired in ((NOW + 451, 2), (NOW + 449, 11)):
        wish = forecast(situation(Policy(), points=((NOW - 30, 10.0), (begin, 60.0))))
        assert wish is not None and wish.desired == desired


def test_a_forecast_leaves_room_for_the_swing() -> None:
    calm = situation(Policy(), points=((NOW, 12.2), (NOW + 300, 12.2)))
    wish = forecast(dataclasses.replace(calm, history=History(swing=0.5)))
    # 12.2 and 2.3 times 0.5 times its square root: more than the 13.6 that two nodes take.
    assert wish is not None and wish.desired == 3 and "give or take" in wish.text


def test_a_forecast_has_the_same_dead_band_as_the_load() -> None:
    inside = forecast(situation(Policy(), points=((NOW, 12.2), (NOW + 300, 12.2))))  # 76 % of 16 workers
    assert inside is not None and inside.desired == 2
    above = forecast(situation(Policy(), points=((NOW, 12.4), (NOW + 300, 12.4))))
    assert above is not None and above.desired == 3


def cut(minutes: tuple[float, ...], hour: float = 60.0, trusted: bool = True, swing: float = 0.3, points: tuple[float, ...] = (60.0, 80.0)) -> Situation:
    """A line that is cut at about now, where so much was usual: the loads of the last minutes, and of the hour before."""
    here = NOW // 60 * 60
    seen = Outlook(tuple((NOW - 30 + 300 * place, load) for place, load in enumerate(points)), 300.0, 3, 20.0, 1.0, hour)
    sample = Sample(NOW, 15, minutes[-1], int(minutes[-1]), 0, 96, 12, 100, trusted)
    past = tuple((here - 60 * back, load, 4) for back, load in enumerate(reversed(minutes)))[::-1]
    return Situation(Policy(), sample, History(minutes=past, samples=(sample,), swing=swing), 12, NOW, seen, 240.0)


def test_whom_an_outage_keeps_away_is_expected_back_three_times_as_many() -> None:
    for minutes in ((60.0, 2.0, 1.0, 1.0), (60.0, 11.9, 11.9, 11.9)):
        wish = forecast(cut(minutes))
        # 3 times 80 by 8 workers at 70 %
        assert wish is not None and wish.desired == 43 and "comes back as 3 times as many" in wish.text


@pytest.mark.parametrize(
    "situation",
    [
        cut((60.0, 60.0, 2.0, 1.0)),  # too soon to say
        cut((60.0, 12.1, 1.0, 1.0)),  # not so far below
        cut((60.0, 2.0, 1.0, 1.0), hour=4.0),  # the hour before was as quiet: lessons that did not take place
        cut((60.0, 2.0, 1.0, 1.0), hour=0.0),  # nobody knows the hour before
        cut((60.0, 2.0, 1.0, 1.0), points=(60.0, 80.0, 9.0)),  # the end of the day is near
        cut((60.0, 2.0, 1.0, 1.0), trusted=False),
        cut((60.0, 2.0, 1.0, 1.0), swing=2.0),  # as it often swings by itself
    ],
)
def test_what_else_is_quiet_is_not_expected_back_as_more(situation: Situation) -> None:
    wish = forecast(situation)
    assert wish is not None and wish.desired < 25 and "comes back" not in wish.text


def test_an_outage_is_no_news_after_half_an_hour() -> None:
    for slots_gone, hour in ((5, 10.0), (8, 0.0)):
        slots = weeks_of(NOW, 4)
        for begin in range(slot_of(NOW) - slots_gone * SLOT, slot_of(NOW), SLOT):
            slots[begin] = 0.0
        assert ahead(NOW, slots).hour == hour
    # Two slots of it are too few.
    assert ahead(NOW, {begin: load for begin, load in weeks_of(NOW, 4).items() if begin < slot_of(NOW) - 10 * SLOT}).hour == 0.0


@pytest.mark.parametrize("lead", [0.0, 40.0, 241.0, 300.0, 899.0])
def test_the_slots_reach_as_far_as_the_last_check_of_a_slot_looks(lead: float) -> None:
    slots = weeks_of(NOW, 4)
    last_moment = slot_of(NOW) + SLOT - 1 + lead + 60 + SLOT / 2
    assert ahead(NOW, slots, lead).points[-1][0] <= last_moment < ahead(NOW, slots, lead).points[-1][0] + SLOT
