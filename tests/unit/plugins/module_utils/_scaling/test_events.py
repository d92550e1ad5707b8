# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What is known ahead: learnt from what was, and turned into floors in time."""

from __future__ import annotations

import dataclasses
import datetime
import json
import zoneinfo

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import elasticity, events
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.decide import decide
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import simulate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import Model
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import survey
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, History, Member, Node, Sample

NINE = datetime.datetime(2026, 12, 15, 9, 0, tzinfo=zoneinfo.ZoneInfo("Europe/Bratislava")).timestamp()
EXAM = events.Event("acme", "quiz", "Final exam", NINE, NINE + 5400, 1840)
POLICY = Policy(max_nodes=40, timezone="Europe/Bratislava")
LAUNCH = 300.0


def moments(*given: events.Event, base: float = 0.0, now: float = NINE - 86400) -> tuple[events.Moment, ...]:
    return tuple(events.coming(given or (EXAM,), events.Learnt(), now, {int(NINE // 3600): base}))


def decided(
    now: float, *ahead: events.Moment, size: int = 2, load: float = 0.5, policy: Policy = POLICY, trusted: bool = True,
    read: float | None = None, **more: object,
) -> Decision:
    nodes = [Node(f"n{i}", "web", f"10.0.0.{i}", "a", "running", 0.0) for i in range(size)]
    members = [Member(node.name, node.address, "up", 4, since=5000.0) for node in nodes]
    taken = Sample(now, 15, load, 0, 0, 4 * size, size, 0, trusted, False, () if trusted else (("partial", "something is missing"),))
    known = events.Foreseen(ahead, now if read is None else read)
    return decide(policy, taken, survey(policy, nodes, members, now), History(), now, events=known, launch_seconds=LAUNCH, **more)


def told(decision: Decision) -> str:
    return next((reason.text for reason in decision.reasons if reason.code == "events"), "")


def test_an_exam_raises_the_floor_one_launch_and_a_margin_before_it_opens() -> None:
    lead = LAUNCH + 135
    assert decided(NINE - lead - 1, *moments()).desired == 2
    decision = decided(NINE - lead + 1, *moments())
    # 80 % of 1,840 come and make 4 requests of 0.25 s each in the busiest minute: 24.5 workers of 4 × 0.7 a node.
    assert decision.desired == 9
    assert told(decision) == "acme: 'Final exam' opens 09:00, 1,840 enrolled → 9 nodes from 08:52 (24.5 workers busy by them)"
    assert decided(NINE + 899, *moments(), size=9).recommended == 9
    assert "opens" not in told(decided(NINE + 901, *moments(), size=9))


def test_a_floor_known_before_is_not_reached_in_steps() -> None:
    decision = decided(NINE - 400, *moments(), size=2, policy=dataclasses.replace(POLICY, max_step_out=1.5))
    assert (decision.desired, [reason.code for reason in decision.reasons]) == (9, ["tracking", "trend", "events"])


def test_neither_untrusted_metrics_nor_a_saturated_database_speak_against_it() -> None:
    assert decided(NINE - 400, *moments(), trusted=False).desired == 9
    assert decided(NINE - 400, *moments(), saturated={"database": "full"}).desired == 9
    assert decided(NINE - 400, *moments(), policy=dataclasses.replace(POLICY, max_nodes=5)).desired == 5


def test_what_runs_anyway_is_added_once() -> None:
    ahead = moments(base=28.0)
    assert decided(NINE - 400, *ahead).desired == 19  # 28 usual and 24.5 of the exam
    assert decided(NINE - 400, *ahead, load=30.0, size=15).desired == 20  # today is busier than usual
    # Once they are there, they are in the load.
    assert decided(NINE + 60, *ahead, load=50.0, size=19).recommended == 19
    # Who hands in has been there before: not counted on top of himself.
    end = decided(NINE + 5400 - 600, *ahead, load=40.0, size=15)
    assert "'Final exam' closes 10:30" in told(end) and end.recommended == 15


def test_exams_at_the_same_time_add_up_and_others_do_not() -> None:
    other = dataclasses.replace(EXAM, tenant="globex", name="Test 2")
    late = dataclasses.replace(EXAM, tenant="umbrella", opens=NINE + 3 * 3600, closes=NINE + 4 * 3600)
    decision = decided(NINE - 400, *moments(EXAM, other, late))
    assert decision.desired == 18
    assert "acme: 'Final exam'" in told(decision) and "globex: 'Test 2'" in told(decision) and "umbrella" not in told(decision)
    many = [dataclasses.replace(EXAM, tenant=f"t{number}", enrolled=10) for number in range(200)]
    assert "197 more → 10 nodes" in told(decided(NINE - 400, *moments(*many)))
    # Ten people are what the target leaves free anyhow.
    assert told(decided(NINE - 400, *moments(many[0]))) == ""
    # One is over before the other begins, though both lie within a launch from now.
    soon = dataclasses.replace(EXAM, tenant="globex", opens=NINE + 950, closes=NINE + 7200)
    assert decided(NINE + 600, *moments(EXAM, soon), size=9).recommended == 9


def test_a_quiz_of_weeks_is_no_exam() -> None:
    kinds = [kind for kind, _at, _came in events.Event("a", "quiz", "x", NINE, NINE + 30 * 86400, 100).moments()]
    assert kinds == ["quiz_start", "quiz_end"]
    assert [one.kind for one in moments(events.Event("a", "assignment", "x", 0, NINE, 100))] == ["assignment_end"]
    assert moments(events.Event("a", "quiz", "x", NINE, 0, 0)) == ()


def test_a_mode_of_its_own() -> None:
    told_only = decided(NINE - 400, *moments(), policy=dataclasses.replace(POLICY, events="recommend"))
    assert told_only.desired == 2 and "→ 9 nodes" in told(told_only) and "only told" in told(told_only)
    assert told(decided(NINE - 400, *moments(), policy=dataclasses.replace(POLICY, events="off"))) == ""


def test_old_news_count_and_are_told() -> None:
    decision = decided(NINE - 400, *moments(), read=NINE - 5 * 3600)
    assert decision.desired == 9 and "read 4.9 h ago" in told(decision)
    assert "read 4.9 h ago" in told(decided(NINE - 400, read=NINE - 5 * 3600))
    assert "read never" in told(decided(NINE - 400, read=0.0))
    assert told(decided(NINE - 400)) == ""


def test_an_operators_floor_holds_while_the_entry_lasts() -> None:
    entry = events.Moment("calendar", "calendar", "Open day", NINE, NINE, NINE + 7200, nodes=7)
    decision = decided(NINE - 400, entry)
    assert decision.desired == 7 and told(decision) == "calendar: 'Open day' begins 09:00 → 7 nodes from 08:52"
    assert decided(NINE + 7100, entry, size=7).recommended == 7
    # With an exam beside it the higher one counts.
    assert decided(NINE - 400, entry, *moments()).desired == 9


def test_foreseen_survives_the_trip_through_data() -> None:
    known = events.Foreseen(moments(), NINE)
    assert events.Foreseen.from_data(json.loads(json.dumps(known.to_data()))) == known
    broken = known.to_data()
    broken["moments"][0]["load"] = float("nan")
    with pytest.raises(ValueError, match="Final exam"):
        events.Foreseen.from_data(broken)


# -- learning ------------------------------------------------------------------------------------------------------------


def sample(taken: float, a_minute: float, load: float = 1.0, waiting: int = 0, trusted: bool = True) -> Sample:
    return Sample(taken, 15, load, int(load), waiting, 40, 10, round(a_minute / 4), trusted)


def around(begin: float, calm: float, peak: float, **more: object) -> list[Sample]:
    """A quarter of an hour before and after: the rate of requests rises for three minutes."""
    times = [begin + 15 * step for step in range(-60, 61)]
    return [sample(at, peak if begin < at <= begin + 180 else calm, **more) for at in times]


def test_the_rise_is_the_busiest_minute_above_the_quarter_before() -> None:
    assert events.rise(around(NINE, 400, 2400), NINE, NINE + 900) == (2000, False)
    assert events.rise(around(NINE, 400, 300), NINE, NINE + 900) == (0.0, False)
    assert events.rise(around(NINE, 400, 2400, waiting=3), NINE, NINE + 900) == (2000, True)
    assert events.rise(around(NINE, 400, 2400, trusted=False), NINE, NINE + 900) is None
    assert events.rise(around(NINE, 400, 2400)[:80], NINE, NINE + 900) is None
    assert events.rise([], NINE, NINE + 900) is None


def past(came: int, enrolled: int = 100, begin: float = NINE) -> tuple[str, float, float, int, int]:
    return "exam_start", begin, begin + 900, enrolled, came


def test_habits_go_from_the_assumption_to_what_was_seen() -> None:
    def learnt(number: int, each: float = 2.0) -> events.Habit:
        days = [NINE + 86400 * day for day in range(number)]
        rises = {(day, day + 900): (50 * each, False) for day in days}
        return events.learn([past(50, begin=day) for day in days], rises).habits["exam_start"]

    assert (learnt(0).share, learnt(0).requests, learnt(0).events) == (0.8, 4.0, 0)
    assert learnt(1).requests == 4.0
    assert (learnt(8).share, learnt(8).requests, learnt(8).events) == (0.5, 2.0, 8)
    assert learnt(8, each=9.0).requests == 9.0
    # An accident in one of them moves nothing.
    days = [NINE + 86400 * day for day in range(12)]
    rises = {(day, day + 900): (100.0 if day != days[4] else 1e9, False) for day in days}
    assert events.learn([past(50, begin=day) for day in days], rises).habits["exam_start"].requests == 2.0


def test_a_full_fleet_teaches_nobody_to_have_fewer_nodes() -> None:
    days = [NINE + 86400 * day for day in range(8)]
    rises = {(day, day + 900): (50.0, True) for day in days}
    assert events.learn([past(50, begin=day) for day in days], rises).habits["exam_start"].requests == 4.0


def test_exams_at_the_same_time_share_their_rise_and_small_ones_teach_nothing() -> None:
    both = [past(50), ("exam_start", NINE + 60, NINE + 960, 150, 150)]
    rises = {(NINE, NINE + 900): (1000.0, False), (NINE + 60, NINE + 960): (1000.0, False)}
    assert events.learn(both * 4, {}).habits["exam_start"].events == 0
    assert events.learn([past(3, 5)] * 9, rises).habits["exam_start"] == events.HABITS["exam_start"]
    assert events.learn(both, rises).habits["exam_start"].events == 2
    assert sorted([4.0, 4.0, 5.0, 5.0])[2] == events.learn(both, rises).habits["exam_start"].requests


def test_only_what_is_over_is_past() -> None:
    done = dataclasses.replace(EXAM, came=1500, handed=None)
    assert events.past_moments([done], NINE + 1000) == [("exam_start", NINE, NINE + 900, 1840, 1500)]
    assert events.past_moments([done], NINE + 800) == []


def test_service_time_by_littles_law_while_none_waits() -> None:
    calm = [Sample(NINE + 15 * i, 15, 6.0, 6, 0, 40, 10, 450, True) for i in range(10)]
    full = [Sample(NINE + 15 * i, 15, 60.0, 40, 20, 40, 10, 900, True) for i in range(10)]
    queued = [Sample(NINE + 15 * i, 15, 25.0, 20, 5, 40, 10, 450, True) for i in range(10)]
    assert events.service_seconds([*calm, *full, *queued]) == pytest.approx(0.2)
    assert events.service_seconds(calm[:1]) == events.SERVICE_SECONDS


def test_the_usual_load_is_that_of_the_same_local_hour() -> None:
    hour = int(NINE // 3600)
    ranges = events.usual_ranges(hour, "Europe/Bratislava")
    assert len(ranges) == 5 and ranges[0][0] == NINE - 7 * 86400
    # Seven weeks before, summer time would be over by then: the hour is the local one all the same.
    march = datetime.datetime(2026, 3, 30, 9, 0, tzinfo=zoneinfo.ZoneInfo("Europe/Bratislava")).timestamp()
    before = events.usual_ranges(int(march // 3600), "Europe/Bratislava")[0][0]
    assert datetime.datetime.fromtimestamp(before, zoneinfo.ZoneInfo("Europe/Bratislava")).hour == 9
    slots = {ranges[0][0]: 5.0, ranges[0][0] + 300: 8.0, ranges[1][0]: 50.0, ranges[2][0] + 600: 9.0}
    assert events.usual_load(ranges, slots) == 9.0
    assert events.usual_load(ranges, {}) == 0.0


# -- the whole way -------------------------------------------------------------------------------------------------------


def test_a_tenfold_exam_start_never_lacks_a_node_for_a_tenth_more_node_hours() -> None:
    begin, base = 345600.0, 16.0
    loads = [base * (10 if 540 <= minute < 630 else 1) for minute in range(1440)]
    policy, learnt = Policy(max_nodes=60, workers=8), events.Learnt()
    enrolled = round(base * 9 / learnt.load("exam_start", 0.8))
    quiz = events.Event("acme", "quiz", "Final exam", begin + 32400, begin + 37800, enrolled)
    known = events.Foreseen(tuple(events.coming([quiz], learnt, begin, {})), begin)
    demand = elasticity.needed(loads, 8, 2)
    lack, hours = [], []
    for ahead in (None, known):
        run = simulate(policy, Trace(begin, loads), Model(launch_seconds=300), events=ahead)
        lack.append(elasticity.elasticity(demand, begin, run.supply).under_provisioned_seconds)
        hours.append(run.node_hours)
    assert lack[0] > 300
    assert lack[1] == 0
    assert hours[1] < 1.1 * hours[0]
