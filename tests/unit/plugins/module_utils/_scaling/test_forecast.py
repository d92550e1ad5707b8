# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import datetime
import math
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
    trend,
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


def test_a_forecast_has_the_same_dead_band_as_the_load() -> None:
    inside = forecast(situation(Policy(), points=((NOW, 12.0), (NOW + 300, 12.0))))  # 75 % of 16 workers
    assert inside is not None and inside.desired == 2
    above = forecast(situation(Policy(), points=((NOW, 12.4), (NOW + 300, 12.4))))
    assert above is not None and above.desired == 3


def growing(loads: list[float], size: int = 4, apart: float = 60.0, launch: float = 180.0, trusted: bool = True,
            policy: Policy = Policy(trend="scale_out")) -> Situation:
    samples = tuple(
        Sample(NOW - apart * (len(loads) - 1 - i), apart, load, 0, 0, 8 * size, size, 1, True) for i, load in enumerate(loads)
    )
    last = samples[-1] if trusted else Sample(NOW, apart, loads[-1], 0, 0, 8 * size, size, 1, False)
    return Situation(policy, last, History(samples=samples[:-1]), size, NOW, None, launch)


# 1.5 more each minute, up to 24 of 32 workers, which is within the dead band.
STEADY = [10.5 + 1.5 * minute for minute in range(10)]


def test_a_steady_growth_goes_on_while_a_node_is_launched() -> None:
    wish = trend(growing(STEADY))
    # 24 + 1.5 a minute for (180 + 75) s = 30.4, in 85 % of 8 workers each.
    assert wish is not None and wish.desired == math.ceil((24 + 1.5 * 255 / 60) / 6.8)
    assert wish.desired == 5 and not wish.advice
    told = trend(growing(STEADY, policy=Policy(trend="recommend")))
    assert told is not None and (told.desired, told.advice) == (5, True)
    assert "only told" in told.text
    assert trend(growing(STEADY, policy=Policy(trend="off"))) is None


def test_a_minute_counts_once_however_often_it_was_read() -> None:
    # Ten minutes of noise, each read four times: forty points would look like a line.
    minutes = [20.0, 20.1, 19.9, 20.0, 20.1, 20.0, 19.9, 20.0, 22.0, 22.0]
    often = growing([load for load in minutes for _reading in range(4)], apart=15.0, policy=Policy())
    once = growing(minutes, policy=Policy())
    for seen in (often, once):
        wish = trend(seen)
        assert wish is not None and "on average" in wish.text, wish.text


def test_a_reading_that_is_trusted_only_the_second_time_counts() -> None:
    # CloudWatch's minute, read again: the first time nobody could compare it.
    again = growing([20.0])
    first = Sample(NOW, 60, 20.0, 0, 0, 32, 4, 1, False)
    wish = trend(Situation(Policy(), again.sample, History(samples=(first,)), 4, NOW, None, 180.0))
    assert wish is not None and (wish.desired, "20.0 on average" in wish.text) == (3, True)


def test_a_few_minutes_are_no_line() -> None:
    short = trend(growing(STEADY[:7], policy=Policy()))
    assert short is not None and "on average" in short.text
    long = trend(growing(STEADY[:8], policy=Policy()))
    assert long is not None and "grows by 1.5 a minute" in long.text


@pytest.mark.parametrize(
    ("loads", "size", "desired"),
    [
        (STEADY, 4, 5),  # it surely grows, so it adds, within the dead band as well
        ([26.0, 30.0, 22.0, 25.0, 31.0, 23.0, 27.0, 21.0, 29.0, 26.0, 24.0, 28.0], 4, 4),  # swing would like 6, but adds none
        ([26.0, 30.0, 22.0, 25.0, 31.0, 23.0, 27.0, 21.0, 29.0, 26.0, 24.0, 28.0], 7, 6),  # and keeps those that it needs
        ([10.0, 10.5, 9.5, 10.0, 10.2, 9.8, 10.0, 24.0], 4, 4),  # a leap within the dead band
        ([10.0, 10.5, 9.5, 10.0, 10.2, 9.8, 10.0, 26.0], 4, 6),  # and beyond it
    ],
)
def test_by_default_growth_adds_nodes_and_swing_keeps_them(loads: list[float], size: int, desired: int) -> None:
    wish = trend(growing(loads, size=size, policy=Policy()))
    assert wish is not None and (wish.desired, wish.advice) == (desired, False), wish.text
    assert ("only keeps" in wish.text) == (wish.desired == size)


def test_noise_and_a_fall_are_no_growth() -> None:
    flat = trend(growing([20, 22, 19, 23, 20, 21, 19, 22, 20, 21]))
    assert flat is not None and flat.desired <= 4
    fall = trend(growing([160.0] * 10 + [10.0, 10.0, 10.0], size=29))
    assert fall is not None and fall.desired <= 24
    over = trend(growing([160.0] * 10 + [10.0] * 5, size=29))
    assert over is not None and over.desired == 2
    # Who lets a fleet shrink after a minute is not held back by the five before.
    quick = trend(growing([160.0] * 12 + [10.0] * 2, size=29, policy=Policy(scale_in_window=60)))
    assert quick is not None and quick.desired == 2


def test_the_usual_swing_needs_room() -> None:
    calm = trend(growing([26.0] * 15))
    swinging = trend(growing([26.0, 30.0, 22.0, 25.0, 31.0, 23.0, 27.0, 21.0, 29.0, 26.0, 24.0, 28.0]))
    assert calm is not None and swinging is not None
    assert (calm.desired, swinging.desired) == (4, 6), swinging.text


def test_a_surge_is_answered_at_its_first_sample_and_bounded() -> None:
    loads = [10.0, 10.5, 9.5, 10.0, 10.2, 9.8, 10.0, 60.0]
    wish = trend(growing(loads))
    assert wish is not None and wish.desired == math.ceil(1.5 * 60 / 6.8)


def test_without_launch_times_or_trust_there_is_no_trend() -> None:
    assert trend(growing(STEADY, launch=0.0)) is None
    assert trend(growing(STEADY, trusted=False)) is None
    assert trend(growing([18.0, 19.5, 21.0], size=0)) is None


@pytest.mark.parametrize("lead", [0.0, 40.0, 241.0, 300.0, 899.0])
def test_the_slots_reach_as_far_as_the_last_check_of_a_slot_looks(lead: float) -> None:
    slots = weeks_of(NOW, 4)
    last_moment = slot_of(NOW) + SLOT - 1 + lead + 60 + SLOT / 2
    assert ahead(NOW, slots, lead).points[-1][0] <= last_moment < ahead(NOW, slots, lead).points[-1][0] + SLOT
