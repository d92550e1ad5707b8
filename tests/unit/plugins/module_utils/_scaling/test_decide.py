# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import datetime
import zoneinfo

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.decide import decide
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import Minutes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.recommend import active, changes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import survey
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, History, Member, Node, Outlook, Pause, Sample

NOW = 1_000_000.0


def plain(**settings: object) -> Policy:
    """Numbers that are easy to reckon with: two steps of caution, one node at a time."""
    return Policy(**{"max_nodes": 20, "target": 0.7, "scale_out_above": 0.77, "scale_in_below": 0.63, "max_step_out": 2, "max_step_in": 1, **settings})


QUIET = History(recommended=((NOW - 400, 1), (NOW - 100, 1)))


def decided(
    size: int, load: float, policy: Policy | None = None, history: History = QUIET, trusted: bool = True, **more: object
) -> Decision:
    policy = policy or plain()
    sick = int(more.pop("sick", 0))
    lower = bool(more.pop("lower_bound", False))
    nodes = [Node(f"n{i}", "web", f"10.0.0.{i}", "a", "running", 0.0) for i in range(size + sick)]
    members: list[Member] | None = [
        Member(node.name, node.address, "up" if i < size else "down", 4, since=5000.0) for i, node in enumerate(nodes)
    ]
    if more.pop("unknown", False):
        members = None
    faults = () if trusted else (("partial", "something is missing"),)
    taken = Sample(NOW, 60, load, 0, 0, 4 * size, size, 0, trusted, lower, faults)
    return decide(policy, taken, survey(policy, nodes, members, NOW), history, NOW, **more)


def codes(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]


@pytest.mark.parametrize(
    ("size", "load", "desired", "last"),
    [
        (4, 11.2, 4, "tracking"),  # exactly at the target
        (4, 12.3, 4, "tracking"),  # 0.769, within the dead band
        (4, 12.4, 5, "tracking"),  # 0.775, above it
        (4, 10.1, 4, "tracking"),  # 0.631, within
        (4, 8.3, 3, "tracking"),  # 0.519, below
        (4, 0.0, 3, "step_in"),  # one at a time
        (4, 100.0, 8, "step_out"),  # at most twice
        (2, 0.0, 2, "min_nodes"),
        (20, 500.0, 20, "max_nodes"),
        (0, 0.0, 2, "min_nodes"),
    ],
)
def test_tracking_and_caps(size: int, load: float, desired: int, last: str) -> None:
    decision = decided(size, load)
    assert decision.desired == desired
    assert codes(decision)[-1] == last
    assert decision.direction == ("out" if desired > size else "in" if desired < size else "none")
    assert decision.reasons[-1].desired == desired


def test_a_smaller_step_factor_still_allows_one_node() -> None:
    assert decided(2, 20, plain(max_step_out=1.1)).desired == 3


def test_larger_steps_out_are_a_matter_of_policy() -> None:
    wide = plain(max_nodes=30, max_step_out=10)
    assert decided(2, 56, plain(max_nodes=30)).desired == 4
    assert decided(2, 56, wide).desired == 20
    assert decided(2, 200, wide).desired == 20


def test_the_forecast_adds_nodes_in_time_and_never_takes_one_away() -> None:
    busy = Outlook(((NOW, 5.0), (NOW + 300, 20.0)), 300.0, 3, 20.0, 1.0)
    quiet = Outlook(((NOW, 0.0), (NOW + 300, 0.0)), 300.0, 3, 20.0, 1.0)
    grown = decided(2, 5, outlook=busy, launch_seconds=300.0)
    assert (grown.desired, grown.recommended) == (4, 8)  # eight wanted, twice the size at most
    assert "forecast" in codes(grown)
    assert decided(4, 11, outlook=quiet, launch_seconds=60.0).desired == 4
    told = decided(2, 5, plain(forecast="recommend"), outlook=busy, launch_seconds=300.0)
    assert (told.desired, told.recommended) == (2, 2)
    assert "forecast" in codes(told)
    # Advice alone is no recommendation, and it holds no node back.
    assert "no_recommendation" in codes(decided(2, 5, plain(forecast="recommend"), trusted=False, outlook=busy, launch_seconds=300.0))
    shrinking = decided(8, 5, plain(forecast="recommend"), outlook=busy, launch_seconds=300.0)
    assert shrinking.direction == "in"


def surging(size: int, load: float) -> History:
    """A quarter of an hour of calm, then such a load: every trend's moment."""
    calm = [Sample(NOW - 60 * back, 60, load / 6, 0, 0, 4 * size, size, 0, True) for back in range(15, 0, -1)]
    kept = Minutes(calm)
    return History(QUIET.recommended, tuple(calm), minutes=kept.lately(NOW), swing=kept.swing(NOW))


def test_a_trend_counts_as_the_policy_lets_it() -> None:
    history = surging(4, 12.0)  # 75 %, within the dead band
    counts = decided(4, 12.0, history=history, launch_seconds=180.0)
    assert (counts.desired, counts.recommended, counts.direction) == (7, 7, "out")
    told = decided(4, 12.0, plain(trend="recommend"), history=history, launch_seconds=180.0)
    assert (told.desired, told.recommended) == (4, 4)
    assert next(reason for reason in told.reasons if reason.code == "trend").desired == 7
    off = decided(4, 12.0, plain(trend="off"), history=history, launch_seconds=180.0)
    assert "trend" not in codes(off)
    # What is only told keeps no node that nothing else wants.
    assert decided(8, 12.0, plain(trend="recommend"), history=surging(8, 12.0), launch_seconds=180.0).direction == "in"


def lately(before: float) -> History:
    """Nobody wanted the third node for the window, though somebody did before; the minute before had such a load."""
    return History(((NOW - 1000, 2), (NOW - 600, 4), (NOW - 400, 2), (NOW - 100, 2)), minutes=((NOW // 60 * 60 - 60, before, 4),))


def test_a_node_goes_when_the_need_falls() -> None:
    # A node takes 3.4: two for 6.5 and for 6, three for 7.
    assert (decided(4, 6.5, history=lately(7.0)).desired, decided(4, 6.5, history=lately(6.0)).desired) == (3, 4)
    waiting = decided(4, 6.5, history=lately(6.0))
    assert codes(waiting)[-1] == "timing" and "900 s" in waiting.reasons[-1].text
    # Below the minimum nobody needs less, so nothing falls.
    assert decided(4, 6.5, history=lately(9.9)).desired == 3
    assert decided(4, 6.5, plain(min_nodes=3), history=lately(9.9)).desired == 4
    # Whoever nobody wanted for three windows goes all the same.
    quiet = History(((NOW - 1000, 4), (NOW - 900, 2), (NOW - 100, 2)), minutes=lately(6.0).minutes)
    assert decided(4, 6.5, history=quiet).desired == 3
    # More than a quarter too many is no matter of a moment, and without a minute before there is none to compare.
    assert decided(8, 6.5, history=lately(6.0)).desired == 7
    assert decided(4, 6.5, history=History(lately(6.0).recommended)).desired == 3


def test_larger_steps_in_are_a_matter_of_policy() -> None:
    assert decided(6, 0, plain(max_nodes=9, max_step_in=3)).desired == 3
    assert decided(12, 0, plain()).desired == 11
    assert decided(12, 0, plain(max_step_in="auto")).desired == 9


@pytest.mark.parametrize(
    ("recommended", "desired", "code"),
    [
        ((), 4, "window_short"),
        (((NOW - 299, 1),), 4, "window_short"),
        (((NOW - 300, 1),), 3, "step_in"),
        (((NOW - 400, 9), (NOW - 200, 1)), 3, "step_in"),
        (((NOW - 400, 1), (NOW - 200, 4)), 4, "window"),
        (((NOW - 400, 1), (NOW - 200, 9)), 4, "window"),
    ],
)
def test_the_scale_in_window_keeps_what_was_wanted(recommended: tuple, desired: int, code: str) -> None:
    decision = decided(4, 0, history=History(recommended=recommended))
    assert decision.desired == desired
    assert code in codes(decision)


@pytest.mark.parametrize(
    ("load", "last_out", "last_in", "desired"),
    [
        (100, NOW - 14, 0.0, 4),
        (100, NOW - 15, 0.0, 8),
        (100, 0.0, NOW - 1, 8),  # taking a node away does not hold back growth
        (0, NOW - 299, 0.0, 4),
        (0, 0.0, NOW - 59, 4),
        (0, 0.0, NOW - 60, 3),  # it was one node, and everything else was looked at again
        (0, NOW - 299, NOW - 200, 4),
        (0, NOW - 300, NOW - 300, 3),
        (0, NOW + 50, 0.0, 4),  # a clock that was set back
    ],
)
def test_cooldowns(load: float, last_out: float, last_in: float, desired: int) -> None:
    decision = decided(4, load, history=History(QUIET.recommended, (), last_out, last_in))
    assert decision.desired == desired


def test_untrusted_metrics_never_shrink_and_bounds_still_hold() -> None:
    assert decided(4, 0, trusted=False).desired == 4
    assert decided(1, 0, trusted=False).desired == 2
    assert decided(9, 0, plain(max_nodes=6), trusted=False).desired == 6
    assert decided(4, 100, trusted=False).desired == 4
    assert decided(4, 100, trusted=False, lower_bound=True).desired == 8
    assert decided(4, 0, trusted=False, lower_bound=True).desired == 4
    assert decided(4, 0, trusted=False, lower_bound=True).reasons[0].desired == 4
    assert decided(4, 0, trusted=False).hold_in


def test_unknown_members_never_shrink() -> None:
    decision = decided(4, 0, unknown=True)
    assert (decision.desired, decision.hold_in, codes(decision)[-1]) == (4, True, "untrusted")


def test_a_loss_that_was_announced_leaves_the_dead_band_where_it_was() -> None:
    nodes = [Node(f"n{i}", "web", f"10.0.0.{i}", "a", "running", 0.0, notice=NOW + 600 if i == 0 else 0.0) for i in range(3)]
    members = [Member(node.name, node.address, "up", 4, since=5000.0) for node in nodes]
    taken = Sample(NOW, 60, 9.0, 0, 0, 12, 3, 0, True)  # 75 % of what still serves
    seen = survey(plain(), nodes, members, NOW)
    decision = decide(plain(), taken, seen, History(recommended=((NOW - 400, 3), (NOW - 15, 3))), NOW)
    assert (seen.size, decision.size, decision.desired) == (2, 3, 3)


def test_pauses() -> None:
    everything = [Pause("all", "work", NOW - 5)]
    assert decided(4, 100, pauses=everything).frozen
    assert decided(4, 100, pauses=everything).desired == 4
    assert not decided(4, 100, pauses=[Pause("all", "work", NOW - 5, NOW)]).frozen
    only_in = [Pause("in", "exams", NOW - 5, NOW + 5)]
    assert decided(4, 0, pauses=only_in).desired == 4
    assert decided(4, 100, pauses=only_in).desired == 8
    assert "exams" in decided(4, 0, pauses=only_in).reasons[-1].text


def test_many_sick_nodes_stop_scaling_in() -> None:
    assert decided(4, 0, sick=4).desired == 4
    assert "many_sick" in codes(decided(4, 0, sick=4))
    assert decided(4, 0, sick=3).desired == 3  # 43 %, and only three
    assert decided(6, 0, sick=4).desired == 5  # four, but 40 %
    assert decided(3, 0, sick=3).desired == 2  # half of them, but only three
    assert decided(4, 100, sick=4).desired == 8  # growing is still allowed


def test_saturated_services_stop_growth_but_not_the_schedule() -> None:
    saturated = {"database": "250 of 250 connections"}
    decision = decided(4, 100, saturated=saturated)
    assert (decision.desired, codes(decision)[-1]) == (4, "saturated")
    assert "250 of 250" in decision.reasons[-1].text
    policy = Policy.from_settings({"max_nodes": 20, "schedule": [{"nodes": 6, "from": "00:00", "until": "23:59"}]})
    assert decided(4, 100, policy, saturated=saturated).desired == 6
    assert decided(4, 0, saturated=saturated).desired == 3


def test_a_person_stands_above_the_recommenders_but_not_above_the_bounds() -> None:
    assert decided(4, 100, manual=5).desired == 5
    assert decided(4, 100, manual=99).desired == 20
    assert decided(4, 100, manual=0).desired == 2
    assert decided(4, 0, trusted=False, manual=3).desired == 3
    assert decided(4, 0, manual=3, pauses=[Pause("all", "", NOW)]).desired == 4


def test_reasons_keep_every_wish_and_their_order() -> None:
    policy = Policy.from_settings({"max_nodes": 5, "max_step_out": 1.25, "schedule": [{"nodes": 5, "from": "00:00", "until": "23:59"}]})
    assert codes(decided(4, 100, policy)) == ["tracking", "schedule", "step_out"]
    # A floor was known before: it is not reached in steps, for it has to be there in time.
    assert codes(decided(2, 0, policy)) == ["tracking", "schedule"]
    assert codes(decided(2, 100, policy)) == ["tracking", "schedule", "step_out"]


def test_a_decision_survives_the_trip_through_data() -> None:
    decision = decided(4, 100)
    assert Decision.from_data(decision.to_data()) == decision


def at(text: str, zone: str = "Europe/Bratislava") -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("entry", "moment", "expected"),
    [
        ({"from": "07:30", "until": "12:00", "days": ["mon"]}, "2026-11-23 07:30", True),
        ({"from": "07:30", "until": "12:00", "days": ["mon"]}, "2026-11-23 07:29", False),
        ({"from": "07:30", "until": "12:00", "days": ["mon"]}, "2026-11-23 12:00", False),
        ({"from": "07:30", "until": "12:00", "days": ["mon"]}, "2026-11-24 08:00", False),
        ({"from": "22:00", "until": "02:00", "days": ["mon"]}, "2026-11-24 01:00", True),
        ({"from": "22:00", "until": "02:00", "days": ["mon"]}, "2026-11-23 01:00", False),
        ({"from": "2026-12-01 07:30", "until": "2026-12-03 12:00"}, "2026-12-02 03:00", True),
        ({"from": "2026-12-01 07:30", "until": "2026-12-03 12:00"}, "2026-12-03 12:00", False),
        ({"from": "2026-12-01 22:00", "until": "01:00"}, "2026-12-02 00:30", True),
        # Summer: 07:30 in Bratislava is 05:30 UTC, in winter 06:30.
        ({"from": "07:30", "until": "08:00"}, "2026-07-01 07:45", True),
        # The night in which 02:00 to 03:00 does not exist.
        ({"from": "01:30", "until": "03:30"}, "2026-03-29 03:15", True),
        ({"from": "01:30", "until": "02:30"}, "2026-03-29 03:45", False),
        # A day of 25 hours: what began the evening before still lasts.
        ({"from": "23:58", "until": "23:57", "days": ["sat"]}, "2026-10-25 23:55", True),
    ],
)
def test_the_schedule_follows_the_local_clock(entry: dict, moment: str, expected: bool) -> None:
    policy = Policy.from_settings({"timezone": "Europe/Bratislava", "schedule": [{"nodes": 3, **entry}]})
    assert active(policy.schedule[0], at(moment)) is expected


@pytest.mark.parametrize("since", ["2026-03-27 12:00", "2026-10-23 23:10", "2026-11-30 00:00"])
@pytest.mark.parametrize("entry", [
    {"from": "07:30", "until": "12:00", "days": ["mon", "sun"]}, {"from": "22:00", "until": "02:30"}, {"from": "02:15", "until": "02:10"},
    {"from": "2026-12-01 22:00", "until": "01:00"}, {"from": "2026-12-01 07:30", "until": "2026-12-03 12:00"},
])
def test_a_schedule_changes_at_the_moments_that_are_told(entry: dict, since: str) -> None:
    one = Policy.from_settings({"timezone": "Europe/Bratislava", "schedule": [{"nodes": 3, **entry}]}).schedule[0]
    begin, end = at(since), at(since) + 5 * 86400
    told = {begin, *changes(one, begin, end)}
    # Between two of them it covers always or never; the change is seen at each quarter of an hour.
    for moment in range(int(begin) + 900, int(end), 900):
        assert active(one, moment) == active(one, moment - 900) or told & set(range(moment - 899, moment + 1)), moment
    assert any(active(one, moment) for moment in range(int(begin), int(end), 900)) == any(begin < when < end for when in told)


def test_the_highest_floor_wins() -> None:
    entries = [{"nodes": 3, "from": "00:00", "until": "23:59"}, {"nodes": 5, "from": "00:00", "until": "23:59"}]
    decision = decided(4, 0, Policy.from_settings({"max_nodes": 9, "schedule": entries}))
    assert decision.desired == 5
    assert "at least 5 nodes" in decision.reasons[1].text
