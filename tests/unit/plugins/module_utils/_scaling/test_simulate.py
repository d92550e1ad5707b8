# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import dataclasses
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import Outcome, RunResult, run
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import elasticity
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import simulate as module
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen, Moment
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import SLOT
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.replay import replay
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import Past, simulate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import Model
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import Survey
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Sample, ScheduleEntry
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.world import FAULTS, World

BEGIN = 345600.0  # a Monday, 00:00 UTC
DEFAULT = Policy(max_nodes=40, workers=8)
POLICY = Policy(max_nodes=40, workers=8, max_step_out=10, max_step_in="auto", max_draining="auto", trend="scale_out")
STEADY = dataclasses.replace(POLICY, forecast="off")


def day(minute: int) -> float:
    hour = minute % 1440 / 60
    return 8 + 60 * math.exp(-0.5 * ((hour - 12) / 3) ** 2)


def serving(run_: module.Run, moment: float) -> int:
    return [count for when, count in run_.supply if when <= moment][-1]


def lack(policy: Policy, loads: list[float], run_: module.Run) -> float:
    return elasticity.elasticity(elasticity.needed(loads, policy.workers, policy.min_nodes), BEGIN, run_.supply).under_provisioned_seconds


def test_a_fleet_follows_the_day_and_costs_what_it_ran() -> None:
    loads = [day(minute) for minute in range(1440)]
    result = simulate(POLICY, Trace(BEGIN, loads), Model(launch_seconds=60))
    assert serving(result, BEGIN + 3 * 3600) == 2
    assert 11 <= serving(result, BEGIN + 12 * 3600) <= 13
    assert lack(POLICY, loads, result) == 0
    supply = [*result.supply, (BEGIN + 86400, 0)]
    served = sum(count * (after - when) for (when, count), (after, _next) in zip(supply, supply[1:])) / 3600
    # Paid for beyond service: launches of a minute, and drains with their run, at most as long as another check later.
    assert served < result.node_hours < served + result.launched * (60 + 60) / 3600
    best = elasticity.oracle(elasticity.needed(loads, 8, 2), 60)
    assert best < result.node_hours < 1.25 * best


@pytest.mark.parametrize(("busy", "swing"), [(0.7, 0.1), (0.6, 0.2)])
def test_a_steady_fleet_does_not_flap_in_noise(busy: float, swing: float) -> None:
    chance = random.Random(1)
    # Two nodes of eight workers; never busier than the limit, so no third one is needed.
    loads = [16 * busy * chance.uniform(1 - swing, 1 + swing) for _minute in range(1440)]
    # A chance of these minutes may still look like more to come: twice a day at most.
    assert simulate(DEFAULT, Trace(BEGIN, loads)).launched <= 2
    assert simulate(dataclasses.replace(DEFAULT, trend="growth"), Trace(BEGIN, loads)).launched == 0


def test_a_trend_that_is_only_told_changes_no_step() -> None:
    chance = random.Random(2)
    trace = Trace(BEGIN, [day(minute) * chance.uniform(0.8, 1.2) for minute in range(1440)])
    told, off = [simulate(dataclasses.replace(DEFAULT, trend=how), trace) for how in ("recommend", "off")]
    assert (told.supply, told.node_hours) == (off.supply, off.node_hours)
    assert told.launched > 3


@pytest.mark.parametrize(("cautious", "most"), [({}, 3), ({"max_step_in": 1, "max_draining": 1}, 1)])
def test_a_fleet_shrinks_by_a_quarter_or_by_one_node_at_a_time(cautious: dict[str, int], most: int) -> None:
    seen: list[tuple[int, int]] = []

    def watch(_now: float, _sample: Sample, decision: Decision, survey_: Survey) -> None:
        seen.append((decision.size - decision.desired, len(survey_.of("draining", "drained"))))

    simulate(dataclasses.replace(DEFAULT, **cautious), Trace(BEGIN, [80.0] * 30 + [8.0] * 120), Model(drain_seconds=400), watch=watch)
    assert max(down for down, _leaving in seen) == most
    assert max(leaving for _down, leaving in seen) == most


def test_launch_time_and_lag_cost_exactly_what_they_are() -> None:
    loads = [20.0] * 60 + [60.0] * 60
    for launch, lag in ((60, 0), (300, 0), (300, 30)):
        result = simulate(STEADY, Trace(BEGIN, loads), Model(launch_seconds=launch, metric_lag=lag))
        # Seen by the check a quarter of a minute later, and then it takes a launch.
        assert lack(STEADY, loads, result) == 15 + lag + launch


def test_a_run_keeps_other_checks_away() -> None:
    times: list[float] = []
    loads = [20.0] * 10 + [60.0] * 4
    simulate(STEADY, Trace(BEGIN, loads), Model(launch_seconds=30), watch=lambda now, *_rest: times.append(now))
    apart = {later - sooner for sooner, later in zip(times, times[1:])}
    assert apart == {15.0, 45.0}
    assert times[[b - a for a, b in zip(times, times[1:])].index(45.0)] == BEGIN + 615


def test_failed_launches_are_replaced_and_dead_nodes_too() -> None:
    loads = [50.0] * 2880
    result = simulate(STEADY, Trace(BEGIN, loads), Model(launch_seconds=60, launch_failures=0.3, node_life=30.0, seed=4))
    assert result.failed >= 3
    assert result.launched > result.failed
    assert serving(result, BEGIN + 2880 * 60) >= 8
    assert lack(STEADY, loads, result) < 0.1 * 2880 * 60


def test_gaps_are_untrusted_and_shrink_nothing() -> None:
    seen: list[tuple[float, bool, str]] = []
    loads: list[float | None] = [60.0] * 60 + [None] * 60 + [60.0] * 10
    result = simulate(STEADY, Trace(BEGIN, loads), watch=lambda now, s, d, _v: seen.append((now, s.trusted, d.direction)))
    blind = [direction for now, trusted, direction in seen if not trusted]
    assert len(blind) == 240 and set(blind) == {"none"}
    assert {count for _when, count in result.supply} == {11}


def test_the_same_seed_gives_the_same_run() -> None:
    trace = Trace(BEGIN, [day(minute) for minute in range(1440)])
    model = Model(launch_failures=0.2, node_life=20.0, seed=3)
    assert simulate(POLICY, trace, model) == simulate(POLICY, trace, model)
    assert simulate(POLICY, trace, model).supply != simulate(POLICY, trace, dataclasses.replace(model, seed=4)).supply


def test_a_survey_that_is_used_again_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(2)
    trace = Trace(BEGIN, [day(minute) * chance.uniform(0.8, 1.2) for minute in range(1440)])
    fast = simulate(POLICY, trace, Model(node_life=40.0))
    monkeypatch.setattr(Survey, "at_rest", property(lambda _self: False))
    assert simulate(POLICY, trace, Model(node_life=40.0)) == fast


def both_ways(policy: Policy, trace: Trace, model: Model, past: Past, events: Foreseen | None = None) -> None:
    """Whoever watches each check sees it decided; it must be the same run, and who watches some must see the same."""
    seen: list[dict[str, list[Any]]] = [{"loads": [], "desired": [], "changes": []} for _way in range(2)]

    def watch(told: dict[str, list[Any]], now: float, sample: Sample, decision: Decision, survey_: Survey) -> None:
        told["loads"].append((now, sample.trusted, sample.load, sample.seconds))
        floors = [(reason.code, reason.desired) for reason in decision.reasons if reason.code in ("schedule", "events")]
        if told["desired"][-1:] != [(decision.desired, survey_.counts, floors)]:
            told["desired"].append((decision.desired, survey_.counts, floors))
        if decision.direction != "none":
            told["changes"].append((now, decision))

    some, whole = [
        simulate(policy, trace, model, past=past, events=events, watch=partial(watch, told), each=each)
        for told, each in zip(seen, (False, True))
    ]
    quick = simulate(policy, trace, model, past=past, events=events)
    assert quick.supply == whole.supply
    assert [(one.time, one.decision) for one in quick.decisions] == [(one.time, one.decision) for one in whole.decisions]
    assert (quick.checks, quick.node_hours, quick.outlooks) == (whole.checks, whole.node_hours, whole.outlooks)
    assert (quick.launched, quick.failed) == (whole.launched, whole.failed)
    assert some == quick
    areas = [math.fsum([load * seconds for _now, trusted, load, seconds in told["loads"] if trusted]) for told in seen]
    assert areas[0] == pytest.approx(areas[1]) and seen[0]["loads"][-1][0] == seen[1]["loads"][-1][0]
    assert (seen[0]["desired"], seen[0]["changes"]) == (seen[1]["desired"], seen[1]["changes"])


def test_answers_that_are_used_again_change_nothing() -> None:
    chance = random.Random(7)
    loads = [day(minute + 300) * chance.uniform(0.9, 1.1) for minute in range(2880)]
    slots = {int(BEGIN) - back * 7 * 86400 + SLOT * i: day(5 * i) for back in (1, 2, 3) for i in range(288)}
    both_ways(DEFAULT, Trace(BEGIN, [*loads[:-200], *[None] * 10, *loads[-190:]]), Model(), Past(slots=slots))


MODELS = st.builds(
    Model, launch_seconds=st.sampled_from((0.0, 15.0, 21.0, 60.0, 180.0, 1000.0)), drain_seconds=st.sampled_from((0.0, 10.0, 30.0, 300.0)),
    # What makes a minute of the clock, of the trace and of the checks begin at different times.
    interval=st.sampled_from((10.0, 15.0, 20.0, 25.0, 60.0)), metric_lag=st.sampled_from((0.0, 0.0, 40.0, 300.0)),
    launch_failures=st.sampled_from((0.0, 0.0, 0.3, 1.0)), node_life=st.sampled_from((0.0, 0.0, 3.0)), run_seconds=st.sampled_from((0.0, 10.0)),
)
POLICIES = st.builds(
    Policy, min_nodes=st.integers(1, 3), max_nodes=st.sampled_from((4, 40)), workers=st.sampled_from((1, 8)),
    trend=st.sampled_from(("growth", "scale_out", "recommend", "off")), forecast=st.sampled_from(("auto", "recommend", "off")),
    scale_in_window=st.sampled_from((0.0, 120.0, 300.0)), max_step_in=st.sampled_from(("auto", 1)), launch_timeout=st.sampled_from((300.0, 900.0)),
)
SCHEDULES = st.sampled_from(((), (
    ScheduleEntry("lessons", 5, "UTC", 61, 103, days=(0, 3)), ScheduleEntry("night", 4, "Europe/Bratislava", 1430, 85, days=tuple(range(7))),
    ScheduleEntry("exam", 7, "UTC", 150, 200, date=(1970, 1, 5)),
)))
EXAMS = st.lists(st.builds(
    lambda begin, lasts, people, nodes, kind: Moment("acme", kind, "Exam", begin, begin, begin + lasts, people=people, load=people / 10, nodes=nodes),
    begin=st.integers(-10, 20_000).map(lambda second: BEGIN + second), lasts=st.sampled_from((60.0, 901.0, 3600.0)), people=st.integers(5, 400),
    nodes=st.sampled_from((0, 0, 6)), kind=st.sampled_from(("quiz_start", "quiz_end")),
), max_size=3)


@given(MODELS, POLICIES, SCHEDULES, EXAMS, st.sampled_from((0.0, 37.0)), st.booleans(), st.integers(0, 10**6))
# Minutes that come late tell more of the swing than was known at the check before, and a trend looks at fewer of them.
@example(Model(metric_lag=300.0), Policy(max_nodes=40, workers=1, min_nodes=1), (), [], 37.0, False, 217)
# The same worlds each time, so that a seeded fault is caught by what it breaks. A failure is told as it is: to look for a smaller one would
# take minutes.
@settings(max_examples=25, derandomize=True, phases=(Phase.explicit, Phase.generate))
def test_answers_that_are_used_again_change_nothing_in_any_world(
    model: Model, policy: Policy, schedule: tuple[ScheduleEntry, ...], exams: list[Moment], off: float, known: bool, seed: int
) -> None:
    chance = random.Random(seed)
    level, loads = chance.choice((1.0, 10.0, 60.0)), [0.0]
    for minute in range(300):
        if chance.random() < 0.01:
            level *= chance.choice((0.2, 4.0))
        load = level * (1.2 + math.sin(minute / 70))
        loads.append(loads[-1] if chance.random() < 0.2 else max(0.0, chance.gauss(load, 0.3 * math.sqrt(load))))
    slots = {int(BEGIN) - back * 7 * 86400 + SLOT * i: 2 * level * chance.random() for back in (1, 2, 3) for i in range(-12, 100) if known}
    trace = Trace(BEGIN + off, [None if chance.random() < 0.005 else load for load in loads])
    past = Past(slots=slots, launches=chance.choice(((), (20.0,), (180.0,) * 5)))
    both_ways(dataclasses.replace(policy, schedule=schedule), trace, model, past, Foreseen(tuple(exams), BEGIN) if exams else None)


def test_a_slot_that_comes_into_reach_within_a_minute_is_seen_then() -> None:
    week = [10.0] * (9 * 60) + [100.0] * 60 + [10.0] * 60
    slots = {int(BEGIN) - back * 7 * 86400 + SLOT * i: week[5 * i] for back in (1, 2, 3) for i in range(len(week) // 5)}
    quick, whole = [simulate(POLICY, Trace(BEGIN, week), past=Past(slots=slots), watch=watch) for watch in (None, lambda *_seen: None)]
    assert [(one.time, one.decision) for one in quick.decisions] == [(one.time, one.decision) for one in whole.decisions]
    out = next(one for one in whole.decisions if one.decision.direction == "out")
    assert out.time % 60 not in (0, 15) and out.time < BEGIN + 9 * 3600 - 180


def test_whom_an_outage_kept_away_finds_the_nodes_there() -> None:
    loads = [40.0] * 120 + [0.5] * 12 + [120.0] * 20 + [40.0] * 60
    slots = {int(BEGIN) - back * 7 * 86400 + SLOT * i: 40.0 for back in (1, 2, 3) for i in range(-12, 60)}
    policies = DEFAULT, dataclasses.replace(DEFAULT, forecast="off")
    runs = [simulate(policy, Trace(BEGIN, loads), Model(launch_seconds=300.0), past=Past(slots=slots)) for policy in policies]
    lacks = [lack(policy, loads, run_) for policy, run_ in zip(policies, runs)]
    assert lacks[0] == 0.0 and lacks[1] > 300.0


def test_few_checks_need_a_whole_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    decided = [0]
    original = module.decide

    def counting(*arguments: Any, **more: Any) -> Decision:
        decided[0] += 1
        return original(*arguments, **more)

    monkeypatch.setattr(module, "decide", counting)
    chance = random.Random(7)
    trace = Trace(BEGIN, [day(minute) * chance.uniform(0.9, 1.1) for minute in range(1440)])
    result = simulate(DEFAULT, trace)
    assert decided[0] < 0.06 * result.checks
    # Nor does it take more where things are known ahead and somebody draws the run.
    lessons = dataclasses.replace(DEFAULT, schedule=(ScheduleEntry("lessons", 5, "UTC", 480, 800, days=(0,)),))
    exam = Foreseen((Moment("acme", "calendar", "Exam", BEGIN + 72000, BEGIN + 72000, BEGIN + 75600, nodes=6),), BEGIN)
    decided[0], watched = 0, []
    result = simulate(lessons, trace, events=exam, watch=lambda *seen: watched.append(seen), each=False)
    assert decided[0] < 0.06 * result.checks and decided[0] < len(watched) < 0.33 * result.checks


def test_a_past_is_known_when_the_trace_begins() -> None:
    """A trace that is cut in two goes on as if it had not been."""
    chance = random.Random(4)
    loads = [load * chance.uniform(0.9, 1.1) for load in [*[30.0] * 200, *[30.0 + 3 * grown for grown in range(30)], *[120.0] * 60]]
    seen: list[tuple[float, Sample, Decision]] = []
    whole = simulate(DEFAULT, Trace(BEGIN, loads), watch=lambda now, sample, decision, _survey: seen.append((now, sample, decision)))
    minute = 198
    cut = BEGIN + 60 * minute
    assert not any(cut - 600 < one.time < cut + 60 for one in whole.decisions)
    launches = [180.0] * sum(one.decision.direction == "out" for one in whole.decisions if one.time < cut)
    checks = [
        ({"started": now, "acted": {"none": ""}.get(decision.direction, decision.direction), "decision": decision.to_data()}, sample)
        for now, sample, decision in seen if now <= cut
    ]
    slots: dict[int, list[float]] = {}
    for _row, sample in checks:
        slots.setdefault(int(sample.taken // SLOT) * SLOT, []).append(sample.load)
    past = Past(checks, {begin: sum(found) / len(found) for begin, found in slots.items()}, launches)
    later = simulate(DEFAULT, Trace(cut, loads[minute:]), past=past)
    wanted = [(one.time, one.decision.size, one.decision.desired) for one in whole.decisions if one.time > cut]
    assert [(one.time, one.decision.size, one.decision.desired) for one in later.decisions] == wanted and len(wanted) > 3
    # Without it, the swing has to be learnt first, and the launch time as well.
    alone = simulate(DEFAULT, Trace(cut, loads[minute:]))
    assert [(one.time, one.decision.desired) for one in alone.decisions] != [(when, desired) for when, _size, desired in wanted]


def test_the_forecast_is_there_before_an_exam_that_comes_every_week() -> None:
    week = [10.0] * (9 * 60) + [100.0] * 60 + [10.0] * (14 * 60)
    slots = {int(BEGIN) - back * 7 * 86400 + SLOT * i: week[5 * i] for back in (1, 2, 3) for i in range(288)}
    trace = Trace(BEGIN, week)
    model = Model(launch_seconds=300)
    late, ahead = simulate(POLICY, trace, model), simulate(POLICY, trace, model, past=Past(slots=slots))
    assert (lack(POLICY, week, late), lack(POLICY, week, ahead)) == (315.0, 0.0)
    assert ahead.node_hours < 1.1 * late.node_hours
    # Only told, it changes nothing; and it never takes a node away by itself.
    told = simulate(dataclasses.replace(POLICY, forecast="recommend"), trace, model, past=Past(slots=slots))
    assert told.supply == late.supply
    empty = dict.fromkeys(slots, 0.0)
    assert simulate(POLICY, trace, model, past=Past(slots=empty)).supply == late.supply


def test_a_year_needs_few_calls() -> None:
    """What the speed depends on, without a clock: a fleet at rest is surveyed once, not at every check."""
    calls = [0]
    original = module.survey

    def counting(*arguments: Any, **more: Any) -> Survey:
        calls[0] += 1
        return original(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "survey", counting)
        result = simulate(POLICY, Trace(BEGIN, [day(minute) for minute in range(4 * 1440)]), Model(interval=60))
    assert calls[0] < result.checks / 5


@pytest.mark.parametrize("number", range(12))
def test_a_recorded_run_replays_to_identical_decisions(number: int, tmp_path: Path) -> None:
    """The ledger of real checks, with faults, pauses, dead nodes and a person's wishes, gives every decision again."""
    chance = random.Random(number)
    policy = Policy(max_nodes=8, scale_in_window=120, cooldown_in=60, schedule=())
    ledger = Ledger(tmp_path / "ledger.sqlite")
    world = World(policy, ledger, size=3, load=8.0)
    decisions = []

    def act(outcome: Outcome) -> RunResult:
        return world.act(outcome)

    for _check in range(60):
        world.pass_time(chance.choice((15, 15, 15, 60)))
        world.load = max(0.0, world.load + chance.choice((0, 0, 1, 2, -2, 9, -9)))
        world.fault = chance.choice(tuple(FAULTS)) if chance.random() < 0.1 else ""
        world.cloud_down = chance.random() < 0.05
        world.balancer_down = chance.random() < 0.05
        if chance.random() < 0.05:
            ledger.pause(chance.choice(("all", "in")), "test", world.now, world.now + 200)
        if chance.random() < 0.05:
            ledger.resume(world.now)
        if chance.random() < 0.05 and world.nodes:
            world.kill(sorted(world.nodes)[0])
        if chance.random() < 0.1 and world.nodes:
            world.notices[sorted(world.nodes)[-1]] = world.now + chance.choice((60.0, 300.0, 4000.0))
        sources = world.sources
        if chance.random() < 0.1:
            sources = dataclasses.replace(sources, saturated=lambda: {"database": "all connections in use"})
        if chance.random() < 0.3:
            exam = Moment("acme", "exam_start", "Exam", world.now + 60, world.now + 60, world.now + 960, 300, chance.uniform(0, 30), 2.0)
            known = Foreseen((exam,), world.now - chance.choice((0.0, 9000.0)))
            sources = dataclasses.replace(sources, events=lambda _until, known=known: known)
        # Only to grow: a person may shrink in spite of doubtful metrics, which the world takes for a fault.
        manual = policy.max_nodes if chance.random() < 0.05 else None
        decisions.append(run(policy, ledger, sources, act, manual=manual).decision)
    again = replay(policy, ledger.recorded(batch=7), ledger.all_pauses())
    assert again.differences == []
    assert again.identical == again.checks
    assert again.checks + again.skipped == 60
    assert again.checks > 40
    assert len({decision.desired for decision in decisions}) > 1


def test_a_replay_under_another_policy_tells_the_difference(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    world = World(Policy(max_nodes=8), ledger, size=3, load=8.0)
    for load in (8.0, 8.0, 20.0, 20.0):
        world.load = load
        world.pass_time(15)
        world.check()
    again = replay(Policy(max_nodes=8, target=0.4), ledger.recorded(), ledger.all_pauses())
    assert again.differences
    assert any(now.recommended > was.recommended for _number, was, now in again.differences)
