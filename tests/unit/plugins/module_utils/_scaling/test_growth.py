# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""How the load swings and grows, and what the trend makes of it."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen, Moment
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import (
    LEAST_SWING,
    LOOKBACK,
    STEP,
    USUAL_SWING,
    Minutes,
    growth,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.recommend import Situation, trend
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import History, Minute, Outlook, Sample

NOW = 1_800_000_000.0


def minutes(loads: list[float]) -> tuple[Minute, ...]:
    return tuple((NOW + 60 * place, load, 4) for place, load in enumerate(loads))


def whole_minutes(loads: list[float]) -> list[Sample]:
    return [sample(begin + 60, load, 60.0) for begin, load, _readings in minutes(loads)]


def swing(loads: list[float]) -> float:
    """What is known of these minutes once they are long enough over; the minute after them tells that they are."""
    return Minutes(whole_minutes([*loads, 0.0])).swing(NOW + 60 * len(loads) + 2 * STEP)


def noise(load: float, deviation: float, count: int = 120, seed: int = 1) -> list[float]:
    chance = random.Random(seed)
    return [load + chance.gauss(0, deviation) for _minute in range(count)]


def sample(taken: float, load: float, seconds: float = 15.0, trusted: bool = True) -> Sample:
    return Sample(taken, seconds, load, int(load), 0, 32, 4, 100, trusted)


def test_a_minute_is_the_mean_of_its_trusted_samples() -> None:
    seen = Minutes([sample(NOW + second, load) for second, load in ((15, 4.0), (30, 6.0), (45, 8.0), (75, 9.0))])
    seen.add(sample(NOW + 60, 99.0, trusted=False))
    assert seen.lately(NOW + 960) == ((NOW, 6.0, 3), (NOW + 60, 9.0, 1))
    assert seen.lately(NOW + 961) == ((NOW + 60, 9.0, 1),)


def test_an_old_minute_is_forgotten_but_not_its_change() -> None:
    # Half an hour without a reading in the middle.
    samples = [sample(NOW + 60 * place + (1800 if place >= 50 else 0), load, 60.0) for place, load in enumerate(noise(50.0, 2.0, 80))]
    asked, whole = Minutes(), Minutes(samples)
    for one in samples:
        asked.lately(one.taken)
        asked.swing(one.taken)
        asked.add(one)
    now = samples[-1].taken
    assert (asked.lately(now), asked.swing(now)) == (whole.lately(now), whole.swing(now))
    assert len(whole.lately(now)) == 16
    # Two hours later nothing is known any more.
    assert whole.swing(now + LOOKBACK) == USUAL_SWING


def test_a_sample_belongs_to_the_minute_of_its_middle() -> None:
    assert Minutes([sample(NOW + 65, 1.0, seconds=60.0)]).lately(NOW) == ((NOW, 1.0, 1),)


@pytest.mark.parametrize("load", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_the_swing_is_learnt_in_square_roots_of_the_load(load: float, deviation: float) -> None:
    assert swing(noise(load, deviation * math.sqrt(load))) == pytest.approx(deviation, rel=0.35)


def test_neither_a_step_nor_a_steady_growth_is_swing() -> None:
    calm = noise(50.0, 2.0)
    usual = swing(calm)
    assert swing(calm[:60] + [load + 300.0 for load in calm[60:]]) < 1.2 * usual
    assert swing([load + place for place, load in enumerate(calm)]) < 1.2 * usual
    assert swing([3.0 * place for place in range(60)]) < 0.3


def test_a_few_minutes_tell_no_swing_and_the_calmest_has_some() -> None:
    assert swing(noise(50.0, 8.0)[:8]) == USUAL_SWING
    assert swing(noise(50.0, 8.0)[:9]) > 2 * USUAL_SWING
    assert swing([50.0] * 60) == LEAST_SWING


def test_the_swing_is_the_same_for_all_checks_within_five_minutes_and_forgets() -> None:
    loads = noise(50.0, 2.0) + noise(50.0, 20.0, 60)
    seen = Minutes()
    told: dict[float, set[float]] = {}
    for one in whole_minutes(loads):
        seen.add(one)
        told.setdefault(one.taken // STEP, set()).add(seen.swing(one.taken))
    assert {len(values) for values in told.values()} == {1}
    # Nothing of the last five minutes is in it, and nothing that is older than the samples of two hours: a ledger reads no more.
    end = NOW + 60 * len(loads)
    recent = Minutes([one for one in whole_minutes(loads) if one.taken >= end - LOOKBACK])
    assert recent.swing(end) == seen.swing(end) == Minutes(whole_minutes(loads[:-4])).swing(end)


def test_a_reading_flutters_within_its_minute() -> None:
    chance = random.Random(5)
    samples = [
        sample(NOW + 60 * place + 15 * (reading + 1), level + chance.gauss(0, 3.0))
        for place, level in enumerate(noise(100.0, 1.0)) for reading in range(4)
    ]
    end = samples[-1].taken
    assert Minutes(samples).flutter(end) == pytest.approx(0.3, rel=0.15)
    # The minutes themselves swing by what is left of it, and their own.
    assert Minutes(samples).swing(end) == pytest.approx(math.hypot(0.3 / 2, 0.1), rel=0.35)
    assert Minutes(whole_minutes(noise(100.0, 3.0))).flutter(NOW + 7200) == 0.0


def test_a_reading_again_is_the_same_reading() -> None:
    told, counted = Minutes(), Minutes()
    for one in whole_minutes(noise(50.0, 2.0)):
        told.add(one)
        told.again(3)
        for _reading in range(4):
            counted.add(one)
    assert told.last == pytest.approx(counted.last)
    assert (told.swing(NOW + 7200), told.flutter(NOW + 7200)) == pytest.approx((counted.swing(NOW + 7200), 0.0))


def test_a_line_is_as_long_as_it_is_straight() -> None:
    ramp = growth(minutes([20.0] * 10 + [20.0 + 5 * minute for minute in range(1, 7)]), 1.0)
    assert ramp is not None
    assert (ramp.slope * 60, ramp.level, ramp.seconds) == (pytest.approx(5.0, abs=0.5), pytest.approx(50.0, abs=1.0), pytest.approx(360, abs=60))


def test_a_line_is_a_quarter_of_an_hour_at_most() -> None:
    long = growth(minutes([5.0 * minute for minute in range(40)]), 1.0)
    assert long is not None and long.seconds == 840.0


def test_the_first_minute_of_a_leap_grows_and_what_stays_does_not() -> None:
    leapt = growth(minutes([20.0] * 10 + [80.0]), 1.5)
    assert leapt is not None and (leapt.slope * 60, leapt.level, leapt.seconds) == (60.0, 80.0, 60.0)
    for later in range(1, 15):
        assert growth(minutes([20.0] * 10 + [80.0] * (1 + later)), 1.5) is None


def test_a_minute_that_is_not_over_counts_less() -> None:
    leap = minutes([20.0] * 10 + [28.0])
    whole = growth(leap, 1.0)
    assert whole is not None and whole.level > 26.0
    assert growth(leap, 1.0, 0.2) is None
    # What leaps far enough is no chance of one reading.
    far = growth(minutes([20.0] * 10 + [80.0]), 1.0, 0.2)
    assert far is not None and far.slope * 60 == 60.0


@pytest.mark.parametrize("count", [3, 5, 15])
def test_a_rise_must_stand_out_by_four_standard_errors(count: int) -> None:
    line = [(NOW + 60 * place, 10.0 + place, 4) for place in range(count)]
    # The standard error of the slope of so many minutes, for a minute that deviates by one.
    error = 1 / math.sqrt(sum((60 * (place - (count - 1) / 2)) ** 2 for place in range(count)))
    slope = 1 / 60
    assert growth(line, slope / error / 4.04) is not None
    assert growth(line, slope / error / 3.96) is None


def test_noise_and_a_fall_are_no_growth() -> None:
    surely = 0
    for seed in range(20):
        loads = noise(100.0, 4.0, seed=seed)
        surely += sum(growth(minutes(loads[:end]), 4.0) is not None for end in range(16, 120))
    assert surely < 0.01 * 20 * 104
    assert growth(minutes([100.0 - 5 * minute for minute in range(15)]), 1.0) is None
    assert growth((), 1.0) is None and growth(minutes([1.0, 50.0]), 0.0) is None and growth(minutes([50.0]), 1.0) is None


@given(st.lists(st.floats(0, 1e5), min_size=2, max_size=40), st.floats(0.01, 1e4))
def test_growth_is_finite_and_rises(loads: list[float], deviation: float) -> None:
    found = growth(minutes(loads), deviation)
    if found is not None:
        assert 0 < found.slope < math.inf and math.isfinite(found.level) and 60 <= found.seconds < 900


def test_a_reading_of_a_minute_that_flutters_is_no_growth_yet() -> None:
    chance = random.Random(3)
    samples = [sample(NOW - 15 * back, 20.0 + chance.gauss(0, 2.0)) for back in range(480, 0, -1)]
    begun = sample(NOW + 15, 28.0)
    kept = Minutes(samples)
    known = History(samples=(samples[-1],), minutes=kept.lately(NOW), swing=kept.swing(NOW), flutter=kept.flutter(NOW))
    situation = Situation(Policy(), begun, known, 4, NOW, None, 180.0)
    assert situation.present_weight == pytest.approx(0.25, abs=0.1)
    said = [trend(Situation(Policy(), begun, known._replace(flutter=flutter), 4, NOW, None, 180.0)) for flutter in (known.flutter, 0.0)]
    assert ["grows" in wish.text for wish in said if wish is not None] == [False, True]
    # A minute that is over counts in full, and so does one that was read at once.
    assert Situation(Policy(), sample(NOW + 60, 28.0, 60.0), known, 4, NOW, None, 180.0).present_weight == 1.0


# -- the trend ---------------------------------------------------------------------------------------------------------


def growing(loads: list[float], size: int = 4, apart: float = 60.0, launch: float = 180.0, trusted: bool = True,
            policy: Policy = Policy()) -> Situation:
    samples = [sample(NOW - apart * (len(loads) - 1 - place), load, apart) for place, load in enumerate(loads)]
    last = sample(NOW, loads[-1], apart, trusted)
    kept = Minutes(samples[:-1])
    history = History(samples=tuple(samples[-10:-1]), minutes=kept.lately(NOW), swing=kept.swing(NOW))
    return Situation(policy, last, history, size, NOW, None, launch)


# 1.5 more each minute, up to 24 of 32 workers, which is within the dead band.
STEADY = [10.5] * 20 + [10.5 + 1.5 * minute for minute in range(10)]
# Minutes with a standard deviation of 1.8, of late 23 in the mean.
RESTLESS = noise(23.0, 1.8) + [23.0] * 6


def test_a_steady_growth_goes_on_while_a_node_is_launched() -> None:
    wish = trend(growing(STEADY))
    # Rather 24 + 1.5 a minute for the (180 + 75) s of a launch than the 20 of the last minutes' mean.
    assert wish is not None and wish.desired == math.ceil((24 + 1.5 * 255 / 60) / 6.8) == 5 and not wish.advice
    assert "grows by 1." in wish.text
    told = trend(growing(STEADY, policy=Policy(trend="recommend")))
    assert told is not None and (told.desired, told.advice) == (5, True)
    assert "only told" in told.text
    assert trend(growing(STEADY, policy=Policy(trend="off"))) is None


def test_a_growth_is_expected_to_go_on_for_as_long_as_it_has_lasted() -> None:
    young, old = [trend(growing([20.0] * 20 + [20.0 + 4 * minute for minute in range(1, lasted + 1)], launch=900.0)) for lasted in (2, 8)]
    assert young is not None and old is not None
    # 28 + 8, and 52 + 32.
    assert young.desired == math.ceil((36 + 2) / 6.8) == 6 and old.desired == math.ceil((52 + 32 + 2) / 6.8) == 13


# Up to 52, and 84 within as long again: 13 nodes.
RISING = growing([20.0] * 20 + [20.0 + 4 * minute for minute in range(1, 9)], launch=900.0)


def test_a_growth_of_every_week_ends_where_it_did_then() -> None:
    def desired(usual: float, days: float = 20.0, **policy: str) -> int:
        known = Outlook(((NOW - 100, 30.0), (NOW + 200, usual)), 300.0, 3, days, 1.0)
        wish = trend(dataclasses.replace(RISING, outlook=known, policy=Policy(**policy)))
        assert wish is not None
        return wish.desired

    assert desired(60.0) == math.ceil((60 + 2) / 6.8) == 10 and desired(100.0) == 13
    # 52 are there already: this is no usual week. Nor does a shape count that is only told.
    assert desired(50.0) == desired(60.0, days=13.0) == desired(60.0, forecast="recommend") == 13


def test_a_return_ends_where_it_was_expected_to() -> None:
    # Of 50 all were kept away; now they come back, and as many again.
    back = growing([50.0] * 8 + [1.0] * 5 + [20.0 + 24 * minute for minute in range(6)], launch=900.0)

    def desired(hour: float, usual: float, **policy: str) -> int:
        known = Outlook(((NOW - 100, usual), (NOW + 200, usual)), 300.0, 3, 20.0, 1.0, hour)
        wish = trend(dataclasses.replace(back, outlook=known, policy=Policy(**policy)))
        assert wish is not None
        return wish.desired

    assert desired(50.0, 50.0) == math.ceil((150 + 2.3 * back.history.swing * math.sqrt(150)) / 6.8)
    # More come back than that; a shape that is only told; nobody was kept away; nobody knows the last hour.
    on = desired(50.0, 50.0, forecast="recommend")
    assert on > desired(50.0, 50.0) and desired(50.0, 40.0) == desired(4.0, 50.0) == desired(0.0, 50.0) == on


@pytest.mark.parametrize(("nodes", "desired"), [(11, 10), (9, 13)])
def test_a_growth_that_an_event_explains_ends_where_that_does(nodes: int, desired: int) -> None:
    exam = Moment("acme", "calendar", "Exam", NOW, NOW - 60, NOW + 3600, nodes=nodes)
    wish = trend(dataclasses.replace(RISING, events=Foreseen((exam,), NOW)))
    assert wish is not None and wish.desired == desired
    # What events are only told changes nothing.
    told = trend(dataclasses.replace(RISING, events=Foreseen((exam,), NOW), policy=Policy(events="recommend")))
    assert told is not None and told.desired == 13


def test_a_minute_counts_once_however_often_it_was_read() -> None:
    loads = [20.0, 20.1, 19.9, 20.0, 20.1, 20.0, 19.9, 20.0, 20.1, 19.8, 20.0, 20.3]
    often = growing([load for load in loads for _reading in range(4)], apart=15.0)
    once = growing(loads)
    for seen in (often, once):
        wish = trend(seen)
        assert wish is not None and "on average" in wish.text, wish.text


def test_a_reading_that_is_trusted_only_the_second_time_counts() -> None:
    # CloudWatch's minute, read again: the first time nobody could compare it.
    again = growing([20.0])
    first = sample(NOW, 20.0, 60.0, trusted=False)
    wish = trend(Situation(Policy(), again.sample, History(samples=(first,)), 4, NOW, None, 180.0))
    assert wish is not None and (wish.desired, "20.0 on average" in wish.text) == (3, True)


def test_the_same_reading_counts_once() -> None:
    seen = growing([20.0] * 12)
    again = Situation(Policy(), seen.history.samples[-1], seen.history, 4, NOW, None, 180.0)
    assert again.minutes == list(seen.history.minutes)
    assert len(seen.minutes) == len(seen.history.minutes) + 1


def test_the_swing_needs_room_and_a_node_comes_only_where_it_surely_does() -> None:
    calm = trend(growing([26.0] * 15))
    assert calm is not None and calm.desired == 4
    # Four nodes take 27.2: 1.9 deviations more than 23, not 2.3. Another 1 and they do not take 1.9 either.
    for loads, size, desired in ((RESTLESS, 4, 4), (RESTLESS, 5, 5), (RESTLESS, 7, 5), ([load + 1 for load in RESTLESS], 4, 5)):
        wish = trend(growing(loads, size=size))
        assert wish is not None and "on average" in wish.text and wish.desired == desired, (size, wish.text)
    only_growth = trend(growing([load + 1 for load in RESTLESS], policy=Policy(trend="growth")))
    assert only_growth is not None and only_growth.desired == 4 and "only keeps" in only_growth.text


def test_a_fall_lets_go_after_the_window() -> None:
    fall = trend(growing([160.0] * 10 + [10.0, 10.0, 10.0], size=29))
    assert fall is not None and 10 <= fall.desired <= 24
    over = trend(growing([160.0] * 10 + [10.0] * 5, size=29))
    assert over is not None and over.desired == 2
    # Who lets a fleet shrink after a minute is not held back by the five before.
    quick = trend(growing([160.0] * 12 + [10.0] * 2, size=29, policy=Policy(scale_in_window=60)))
    assert quick is not None and quick.desired == 2


def test_a_leap_is_answered_at_its_first_sample_and_bounded() -> None:
    wish = trend(growing([10.0, 10.5, 9.5, 10.0, 10.2, 9.8, 10.0, 10.1, 9.9, 10.3] * 2 + [60.0]))
    # The leap once more.
    assert wish is not None and math.ceil((60 + 50) / 6.8) <= wish.desired <= math.ceil((60 + 50 + 5) / 6.8)


def test_without_launch_times_or_trust_there_is_no_trend() -> None:
    assert trend(growing(STEADY, launch=0.0)) is None
    assert trend(growing(STEADY, trusted=False)) is None
    assert trend(growing(STEADY, size=0)) is None
