# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.plan import idle_until, plan
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import Survey, phases, survey
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Intent, Member, Node, Plan, Reason, Step

NOW = 1_000_000.0
POLICY = Policy(max_nodes=6)


def node(name: str, **values: object) -> Node:
    last = sum(name.encode())
    return dataclasses.replace(Node(name, "web", f"10.0.0.{last}", "a", "running", NOW - 5000, "r1"), **values)


def member(name: str, state: str = "up", **values: object) -> Member:
    last = sum(name.encode())
    return dataclasses.replace(Member(name, f"10.0.0.{last}", state, 4, since=1000.0), **values)


def planned(
    desired: int,
    nodes: list[Node],
    members: list[Member] | None,
    policy: Policy = POLICY,
    reasons: tuple[Reason, ...] = (),
    **more: object,
) -> Plan:
    seen = survey(policy, nodes, members, NOW, **{k: more[k] for k in ("healthy", "intents", "leaving", "settle") if k in more},
                  ghosts=more.get("ghosts", frozenset()))
    direction = "out" if desired > seen.size else "in" if desired < seen.size else "none"
    decision = Decision(desired, direction, seen.size, desired, True, reasons, frozen=bool(more.get("frozen")))
    return plan(policy, decision, seen, NOW, token="t1", zones=more.get("zones", ()),
                ghosts=more.get("ghosts", frozenset()))


def steps(result: Plan) -> list[tuple[str, str]]:
    return [(step.action, step.node or str(step.count)) for step in result.steps]


def serving(count: int, **values: object) -> tuple[list[Node], list[Member]]:
    names = [f"n{index}" for index in range(count)]
    return [node(name, **values) for name in names], [member(name) for name in names]


@pytest.mark.parametrize(
    ("observed", "phase"),
    [
        ((node("x", state="pending", launched=NOW - 5), None), "launching"),
        ((node("x", launched=NOW - 5), None), "building"),
        ((node("x", launched=NOW - 901), None), "stranded"),
        ((node("x", launched=NOW - 899), None), "building"),
        ((node("x", state="failed", launched=NOW - 5), None), "stranded"),
        ((node("x"), member("x")), "in_service"),
        ((node("x"), member("x", "starting")), "sick"),
        ((node("x"), member("x", "starting", since=5.0)), "joining"),
        ((node("x"), member("x", "down", since=61.0)), "sick"),
        ((node("x"), member("x", "down", since=60.0)), "failing"),
        ((node("x", state="failed"), member("x", "down", since=1.0)), "sick"),
        ((node("x"), member("x", "draining")), "draining"),
        ((node("x"), member("x", "drained")), "drained"),
        ((node("x", state="stopping"), member("x")), "stopping"),
    ],
)
def test_phases(observed: tuple[Node, Member | None], phase: str) -> None:
    members = [observed[1]] if observed[1] else []
    assert phases(POLICY, [observed[0]], members, NOW) == {"x": phase}


def test_a_healthy_node_without_a_member_is_ready_however_old() -> None:
    assert phases(POLICY, [node("x")], [], NOW, {"x": True}) == {"x": "ready"}


def test_other_tiers_are_none_of_its_business() -> None:
    assert survey(POLICY, [node("x", role="database")], [], NOW).views == ()


def test_nothing_to_do() -> None:
    assert not planned(3, *serving(3))


def test_launches_spread_over_the_zones() -> None:
    nodes, members = serving(2)
    result = planned(5, nodes, members, zones=("a", "b", "c"))
    assert steps(result) == [("launch", "3")]
    assert result.steps[0].zones == ("b", "c", "b")
    assert result.steps[0].to_data()["tags"] == {"launch": "t1"}


def test_launches_stop_at_the_maximum_in_existence() -> None:
    nodes, members = serving(4)
    nodes += [node("h", tags={"held": "yes"}, state="failed")]
    assert steps(planned(6, nodes, members)) == [("launch", "1")]


def test_a_launch_whose_answer_was_lost_is_asked_for_again_by_its_own_token() -> None:
    nodes, members = serving(2)
    intent = Intent("t0", 2, NOW - 20)
    result = planned(4, nodes, members, intents=[intent])
    assert [(step.action, step.token, step.count) for step in result.steps] == [("launch", "t0", 2)]
    seen = node("x", launched=NOW - 10, tags={"launch": "t0"})
    result = planned(4, [*nodes, seen], members, intents=[intent])
    assert [step.token for step in result.steps if step.action == "launch"] == ["t0"]
    assert steps(result)[1] == ("join", "x")


def test_a_launch_that_was_asked_for_again_may_have_nodes_that_do_not_show_yet() -> None:
    intent = Intent("t0", 1, NOW - 1000, seen=1, asked=NOW - 5)
    assert not planned(3, *serving(2), intents=[intent], settle=60)
    settled = dataclasses.replace(intent, asked=NOW - 100)
    assert [step.token for step in planned(3, *serving(2), intents=[settled], settle=60).steps] == ["t1"]


def test_a_launch_nobody_wants_any_more_is_not_repeated() -> None:
    assert not planned(2, *serving(2), intents=[Intent("t0", 1, NOW - 20)])


def test_nodes_that_were_there_and_went_are_not_launched_again() -> None:
    nodes, members = serving(2)
    assert steps(planned(3, nodes, members, intents=[Intent("t0", 1, NOW - 200, seen=1)])) == [("launch", "1")]
    assert planned(3, nodes, members, intents=[Intent("t0", 1, NOW - 200, seen=1)]).steps[0].token == "t1"
    # Shortly after the launch a list without them may be outdated, if the cloud is known for that.
    recent = Intent("t0", 1, NOW - 20, seen=1)
    assert not planned(3, nodes, members, intents=[recent], settle=60)
    assert planned(3, nodes, members, intents=[recent]).steps[0].token == "t1"
    # Not so where a plan has terminated it.
    gone = dataclasses.replace(recent, gone=1)
    assert planned(3, nodes, members, intents=[gone], settle=60).steps[0].token == "t1"


def test_a_node_that_goes_takes_the_token_of_its_launch_along() -> None:
    nodes, members = serving(2)
    nodes += [node("x", tags={"launch": "t0"}, state="failed")]
    assert [(s.action, s.node, s.token) for s in planned(2, nodes, members).steps] == [("retire", "x", "t0")]


def test_running_nodes_join_and_pending_ones_are_awaited() -> None:
    nodes, members = serving(2)
    nodes += [node("x", launched=NOW - 5), node("y", launched=NOW - 5, state="pending")]
    assert steps(planned(4, nodes, members)) == [("join", "x")]


def test_a_run_does_not_wait_for_nodes_that_take_long() -> None:
    nodes, members = serving(3)
    seen = survey(POLICY, nodes, members, NOW)
    decision = Decision(5, "out", 3, 5, True, ())

    def launch(**more: Any) -> Step:
        return plan(POLICY, decision, seen, NOW, token="t", **more).steps[0]

    assert launch(image="i", launch_seconds=180.0).later
    assert launch(image="i", launch_seconds=180.0).to_data()["later"] is True
    # A quick one joins at once; one without an image needs the recipe first; and nobody knows before the first.
    for more in ({"image": "i", "launch_seconds": 12.0}, {"launch_seconds": 180.0}, {"image": "i"}):
        assert not launch(**more).later
    for age, image, healthy, joins in ((100.0, "i", False, False), (165.0, "i", False, True), (100.0, "i", True, True), (100.0, "", False, True)):
        young = node("x", launched=NOW - age, image=image)
        observed = survey(POLICY, [*nodes, young], members, NOW, healthy={"x": True} if healthy else {})
        found = plan(POLICY, Decision(4, "none", 4, 4, True, ()), observed, NOW, token="t", launch_seconds=180.0)
        assert (steps(found) == [("join", "x")]) is joins, (age, image, healthy)
        few = survey(POLICY, [*nodes[:1], young], members[:1], NOW)
        assert ("join", "x") in steps(plan(POLICY, Decision(2, "none", 2, 2, True, ()), few, NOW, token="t", launch_seconds=180.0))
        assert joins or found.notes == ("x is expected in 80 s, and joins as soon as it is healthy",)


@pytest.mark.parametrize(("values", "state", "serve", "until"), [
    ({}, "up", 2, math.inf),
    ({"launched": NOW - 100}, "", 2, NOW - 100 + 160),
    ({"launched": NOW - 165}, "", 2, NOW - 5),
    # Too few serve, a bare server, one that still starts, is kept, has to go, or drains.
    ({"launched": NOW - 100}, "", 1, 0.0),
    ({"launched": NOW - 100, "image": ""}, "", 2, 0.0),
    ({"launched": NOW - 100, "state": "pending"}, "", 2, 0.0),
    ({"launched": NOW - 100, "tags": {"held": "yes"}}, "", 2, 0.0),
    ({"launched": NOW - 100, "tags": {"retiring": "1"}}, "", 2, 0.0),
    ({"launched": NOW - 100, "notice": NOW + 500}, "", 2, 0.0),
    ({}, "draining", 2, 0.0),
    ({}, "down", 2, 0.0),
])
def test_before_a_node_is_waited_for_nothing_is_to_be_done(values: dict[str, Any], state: str, serve: int, until: float) -> None:
    nodes, members = serving(serve)
    nodes.append(node("x", **{"image": "i", **values}))
    members += [member("x", state)] if state else []
    assert idle_until(POLICY, survey(POLICY, nodes, members, NOW), 180.0) == until
    for moment in (NOW, min(until, NOW + 800) - 1):
        if NOW <= moment < until:
            seen = survey(POLICY, nodes, members, moment)
            assert not plan(POLICY, Decision(seen.size, "none", seen.size, seen.size, True), seen, moment, token="t", launch_seconds=180.0)


def test_what_is_not_known_leaves_no_time() -> None:
    nodes, members = serving(3)
    assert idle_until(POLICY, survey(POLICY, nodes, None, NOW), 180.0) == 0.0
    assert idle_until(POLICY, survey(POLICY, nodes, members, NOW, intents=[Intent("t", 1, NOW)]), 180.0) == 0.0
    # A launch that never serves is waited for no longer than that.
    slow = [*nodes, node("x", launched=NOW - 100, image="i")]
    assert idle_until(POLICY, survey(POLICY, slow, members, NOW), 2000.0) == NOW - 100 + POLICY.launch_timeout


def test_a_run_does_not_wait_for_a_part_of_what_is_wanted() -> None:
    capped = (Reason("step_out", "one step doubles at most", 4),)
    for serve, image, most, later in ((2, "i", 6, True), (2, "", 6, False), (1, "i", 6, False), (2, "i", 4, False)):
        policy, (nodes, members) = Policy(max_nodes=most), serving(2)
        seen = survey(policy, nodes, members[:serve], NOW)
        found = plan(policy, Decision(4, "out", 2, 6, True, capped), seen, NOW, token="t", image=image, launch_seconds=12.0).steps[0]
        assert (found.action, found.later) == ("launch", later), (serve, image, most)


def test_one_node_drains_at_a_time() -> None:
    nodes, members = serving(5)
    assert steps(planned(4, nodes, members)) == [("drain", "n0")]
    nodes[0] = node("n0", tags={"retiring": str(NOW - 30)})
    members[0] = member("n0", "draining", since=30.0, in_service=1)
    assert steps(planned(3, nodes, members)) == [("drain", "n0")]
    two = Policy(max_nodes=6, max_draining=2)
    assert steps(planned(3, nodes, members, two)) == [("drain", "n0"), ("drain", "n1")]


def test_a_drained_node_is_retired_and_a_late_one_too() -> None:
    nodes, members = serving(3)
    nodes[0] = node("n0", tags={"retiring": str(NOW - 30)})
    members[0] = member("n0", "drained", since=10.0)
    result = planned(2, nodes, members)
    assert steps(result) == [("retire", "n0")]
    assert not result.steps[0].forced
    members[0] = member("n0", "draining", since=901.0, in_service=1)
    assert steps(planned(2, nodes, members)) == [("drain", "n0")]
    nodes[0] = node("n0", tags={"retiring": str(NOW - 901)})
    members[0] = member("n0", "draining", since=901.0, in_service=1)
    result = planned(2, nodes, members)
    assert steps(result) == [("retire", "n0")]
    assert result.steps[0].forced
    # Its time begins when it really drains.
    members[0] = member("n0", "draining", since=5.0, in_service=1)
    assert steps(planned(2, nodes, members)) == [("drain", "n0")]


def test_a_marked_node_still_serves_while_too_few_others_do() -> None:
    nodes, members = serving(2)
    nodes[0] = node("n0", tags={"retiring": str(NOW - 9999)})
    assert steps(planned(2, nodes, members)) == [("launch", "1")]


def test_a_drain_that_another_plan_announced_is_gone_on_with() -> None:
    nodes, members = serving(4)
    assert steps(planned(3, nodes, members, leaving={"n2": NOW - 5})) == [("drain", "n2")]


def test_the_minimum_is_never_violated() -> None:
    nodes, members = serving(3)
    members[2] = member("n2", "down", since=5.0)
    assert not planned(2, nodes, members)
    assert not planned(1, *serving(2))


def test_the_desired_number_serves_before_another_goes() -> None:
    nodes, members = serving(5)
    members[4] = member("n4", "down", since=5.0)
    assert not planned(4, nodes, members)


def victim(nodes: list[Node], members: list[Member]) -> list[tuple[str, str]]:
    return steps(planned(len(nodes) - 1, nodes, members))


def test_victims() -> None:
    nodes, members = serving(4)
    building = node("z", launched=NOW - 10)
    assert victim([*nodes, building], members) == [("retire", "z")]
    ready = planned(4, [*nodes, building], members, healthy={"z": True})
    assert steps(ready) == [("join", "z")]
    older = [*nodes[:3], node("n3", release="r0", launched=NOW - 9000)]
    assert victim(older, members) == [("drain", "n3")]
    # The release's age counts, not the node's.
    held = node("n2", release="r0", launched=NOW - 9000, tags={"protected": "yes"})
    assert victim([*nodes[:2], held, node("n3", release="r0", launched=NOW - 10)], members) == [("drain", "n3")]
    newer = [*nodes[:3], node("n3", release="r0", launched=NOW - 10)]
    assert victim(newer, members) == [("drain", "n0")]
    zones = [node("n0", zone="b"), *nodes[1:]]
    assert victim(zones, members) == [("drain", "n1")]
    busy = [dataclasses.replace(m, in_service=4 - i) for i, m in enumerate(members)]
    assert victim(nodes, busy) == [("drain", "n3")]
    long_lived = [*nodes[:2], node("n2", launched=NOW - 6000), nodes[3]]
    long_lived = [dataclasses.replace(n, release="") for n in long_lived]
    assert victim(long_lived, members) == [("drain", "n2")]


@pytest.mark.parametrize("tag", ["protected", "held"])
def test_protected_and_held_nodes_stay(tag: str) -> None:
    nodes, members = serving(4)
    nodes[0] = node("n0", tags={tag: "yes"})
    assert victim(nodes, members) == [("drain", "n1")]
    nodes[0] = node("n0", tags={tag: "no"})
    assert victim(nodes, members) == [("drain", "n0")]


def test_a_sick_node_goes_once_its_replacement_serves() -> None:
    nodes, members = serving(3)
    members[2] = member("n2", "down")
    assert steps(planned(3, nodes, members)) == [("launch", "1")]
    more, more_members = serving(4)
    more_members[2] = member("n2", "down")
    assert steps(planned(3, more, more_members)) == [("retire", "n2")]
    more_members[2] = member("n2", "down", in_service=2)
    assert steps(planned(3, more, more_members)) == [("drain", "n2")]


def test_without_room_one_idle_sick_node_goes_first() -> None:
    nodes, members = serving(6)
    members[4], members[5] = member("n4", "down"), member("n5", "down", in_service=1)
    assert steps(planned(6, nodes, members)) == [("retire", "n4")]


def test_a_held_sick_node_is_replaced_but_kept() -> None:
    nodes, members = serving(4)
    nodes[3], members[3] = node("n3", tags={"held": "disk"}), member("n3", "down")
    result = planned(3, nodes, members)
    assert not result
    assert "held" in result.notes[0]


def test_many_sick_nodes_are_left_unless_dead() -> None:
    nodes, members = serving(6)
    members[4], members[5] = member("n4", "down"), member("n5", "down")
    nodes[5] = node("n5", state="failed")
    many = (Reason("many_sick", "", 4),)
    result = planned(4, nodes, members, reasons=many)
    assert steps(result) == [("retire", "n5")]
    assert result.steps[0].forced
    nodes[5], members[3] = node("n5"), member("n3", "down")
    assert ("retire", "n3") not in steps(planned(4, nodes, members, Policy(max_nodes=9), reasons=many))
    # Without room for a replacement the fleet would stay as it is for ever: one that serves nobody goes.
    assert steps(planned(4, nodes, members, reasons=many)) == [("retire", "n3")]
    assert steps(planned(3, nodes, members, reasons=many)) == [("retire", "n3")]  # enough serve without them


def test_a_held_node_that_drains_blocks_no_other() -> None:
    nodes, members = serving(5)
    nodes[0], members[0] = node("n0", tags={"retiring": "1", "held": "disk"}), member("n0", "drained")
    assert steps(planned(3, nodes, members)) == [("drain", "n1")]


@pytest.mark.parametrize(
    ("more", "tags", "expected"),
    [
        ({"lacking": 1}, {}, [("join", "a")]),
        ({"lacking": 0}, {}, []),
        ({"lacking": 1, "state": "drained"}, {}, []),
        ({"lacking": 1}, {"retiring": "1"}, []),
    ],
    ids=["lacking", "complete", "drained by hand", "on its way out"],
)
def test_a_balancer_that_was_away_gets_the_members_it_lacks(more: dict, tags: dict, expected: list) -> None:
    nodes = [node("a", tags=tags), node("b"), node("c")]
    members = [member("a", **more), member("b"), member("c")]
    joins = [step for step in steps(planned(3, nodes, members)) if step[0] == "join"]
    assert joins == expected


def test_stranded_nodes_are_replaced_and_joined_only_in_need() -> None:
    nodes, members = serving(2)
    lost = node("s", launched=NOW - 5000)
    assert steps(planned(2, [*nodes, lost], members)) == [("retire", "s")]
    assert steps(planned(2, nodes, [])) == [("launch", "2"), ("join", "n0"), ("join", "n1")]


def test_ghosts() -> None:
    nodes, members = serving(2)
    assert steps(planned(2, nodes, [*members, member("g", "down")])) == [("forget", "g")]
    serves = planned(3, nodes, [*members, member("g")])
    assert not serves
    assert "cloud does not know it" in serves.notes[0]
    assert steps(planned(2, nodes, [*members, member("g")], ghosts=frozenset({"g"}))) == [("forget", "g")]
    reused = member("g", address=nodes[0].address)
    assert steps(planned(2, nodes, [*members, reused])) == [("forget", "g")]


def test_a_member_drained_by_hand_is_left_alone() -> None:
    nodes, members = serving(3)
    members[0] = member("n0", "drained")
    result = planned(2, nodes, members)
    assert not result
    assert "by hand" in result.notes[0]


def test_unknown_members_allow_launches_only() -> None:
    nodes, _members = serving(4)
    nodes[0] = node("n0", tags={"retiring": "1"})
    assert steps(planned(5, nodes, None)) == [("launch", "2")]
    assert not planned(1, nodes, None)


def test_a_pause_stops_everything() -> None:
    nodes, members = serving(1)
    assert not planned(2, nodes, [*members, member("g", "down")], frozen=True)


def test_order_of_steps() -> None:
    nodes, members = serving(4)
    nodes += [node("x", launched=NOW - 5), node("d", tags={"retiring": str(NOW - 5)})]
    members += [member("g", "down"), member("d", "drained")]
    members[3] = member("n3", "down")
    actions = [step.action for step in planned(5, nodes, members, Policy(max_nodes=9)).steps]
    assert actions == ["forget", "launch", "join", "retire"]


def test_a_plan_survives_the_trip_through_data() -> None:
    nodes, members = serving(3)
    result = planned(5, nodes, [*members, member("g", "down")], zones=("a", "b"))
    assert Plan.from_data(result.to_data()) == result
    assert Plan.from_data(result.to_data()["steps"]).steps == result.steps
    with pytest.raises(ValueError, match="explode"):
        Step.from_data({"action": "explode"})


def test_a_tag_without_a_readable_time_does_not_last_for_ever() -> None:
    nodes, members = serving(3)
    nodes[0] = node("n0", tags={"retiring": "yes"})
    members[0] = member("n0", "draining", since=901.0, in_service=1)
    assert steps(planned(2, nodes, members)) == [("retire", "n0")]


def test_survey_numbers() -> None:
    nodes, members = serving(3)
    seen: Survey = survey(POLICY, nodes, members[:2], NOW, intents=[Intent("t0", 2, NOW)], healthy={"n2": True})
    assert (seen.size, seen.existing, seen.serving, seen.coming, seen.sick) == (5, 5, 2, 2, 0)


@pytest.mark.parametrize("code", ["metrics_first", "metrics_gap", "metrics_reset", "metrics_partial"])
def test_a_node_missing_from_a_doubtful_reading_is_not_taken_for_one_without_a_member(code: str) -> None:
    nodes, members = serving(6)
    doubt = (Reason(code, "", 4),)
    assert steps(planned(6, nodes, members[:5])) == [("retire", "n5")]
    assert not planned(6, nodes, members[:5], reasons=doubt)
    nodes[5] = node("n5", tags={"retiring": str(NOW - 5)})
    assert steps(planned(5, nodes, members[:5])) == [("retire", "n5")]
    assert not planned(5, nodes, members[:5], reasons=doubt)
    nodes[5] = node("n5", launched=NOW - 5)
    assert steps(planned(5, nodes, members[:5])) == [("retire", "n5")]
    assert steps(planned(5, nodes, members[:5], reasons=doubt)) == [("join", "n5")]


def test_an_announced_loss_is_replaced_before_it_drains() -> None:
    nodes, members = serving(3, notice=0.0)
    nodes[0] = dataclasses.replace(nodes[0], notice=NOW + 120)
    result = planned(3, nodes, members)
    assert steps(result) == [("launch", "1")] and "in place of n0" in result.steps[0].reason
    assert any("n0" in note and "until its replacement does" in note for note in result.notes)
    result = planned(3, [*nodes, node("x")], [*members, member("x")])
    assert steps(result) == [("drain", "n0")]
    assert result.steps[0].deadline == NOW + 120


def test_an_announced_loss_drains_in_time_even_without_a_replacement() -> None:
    nodes, members = serving(3)
    nodes[0] = dataclasses.replace(nodes[0], notice=NOW + 70)
    assert steps(planned(3, nodes, members)) == [("launch", "1"), ("drain", "n0")]
    begun = dataclasses.replace(nodes[0], tags={"retiring": str(NOW - 10)})
    assert steps(planned(2, [begun, *nodes[1:]], members)) == [("drain", "n0")]
    drained = [member("n0", "drained"), *members[1:]]
    assert steps(planned(2, [begun, *nodes[1:]], drained)) == [("retire", "n0")]


def test_the_last_node_serves_to_the_end() -> None:
    only = node("n0", notice=NOW + 30)
    result = planned(2, [only], [member("n0")])
    assert steps(result) == [("launch", "2")]


def test_a_node_that_is_announced_does_not_join() -> None:
    nodes, members = serving(2)
    coming = node("x", launched=NOW - 5, notice=NOW + 120)
    assert steps(planned(2, [*nodes, coming], members)) == [("retire", "x")]
    assert steps(planned(2, [*nodes, coming], members, healthy={"x": True})) == []
    coming = dataclasses.replace(coming, notice=NOW + 70)
    assert steps(planned(2, [*nodes, coming], members, healthy={"x": True})) == [("retire", "x")]


def test_at_the_maximum_an_announced_loss_goes_when_its_time_comes() -> None:
    nodes, members = serving(6)
    nodes[5] = dataclasses.replace(nodes[5], notice=NOW + 1000)
    assert steps(planned(6, nodes, members)) == []
    nodes[5] = dataclasses.replace(nodes[5], notice=NOW + 60)
    assert steps(planned(6, nodes, members)) == [("drain", "n5")]


def test_at_the_maximum_one_that_is_not_needed_makes_room() -> None:
    nodes, members = serving(6)
    nodes[4:] = [dataclasses.replace(one, notice=NOW + 1000 * index) for index, one in enumerate(nodes[4:], 1)]
    assert steps(planned(5, nodes, members)) == [("drain", "n4")]
