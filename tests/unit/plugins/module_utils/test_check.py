# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import RunResult, check, explain, run, status
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import MEMORY, Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.world import World

POLICY = Policy(max_nodes=6, scale_in_window=60, cooldown_in=60)


@pytest.fixture(name="world")
def _world() -> World:
    world = World(POLICY, Ledger(MEMORY), size=2, load=5.0)
    world.pass_time(15)
    world.check()
    world.pass_time(15)
    return world


def test_a_quiet_check_acts_on_nothing(world: World) -> None:
    called: list[object] = []
    outcome = run(POLICY, world.ledger, world.sources, lambda o: called.append(o) or RunResult("done"))
    assert (outcome.status, called) == ("idle", [])
    assert outcome.to_data()["decision"]["desired"] == 2
    assert world.ledger.checks(1)[0]["status"] == "idle"


def test_everything_is_written_before_anything_is_done(world: World) -> None:
    world.load = 14.0
    world.pass_time(15)
    seen: list[object] = []

    def act(outcome):
        seen.append([intent.token for intent in world.ledger.intents(1e12)])
        seen.append(world.ledger.checks(1)[0]["status"])
        return RunResult("done", "fine", [{"action": "launch", "node": outcome.plan.steps[0].token, "seconds": 1.5}])

    outcome = run(POLICY, world.ledger, world.sources, act)
    assert seen == [[outcome.plan.steps[0].token], "planned"]
    assert outcome.status == "done"
    assert outcome.activities[0]["seconds"] == 1.5
    text = "\n".join(explain(world.ledger.checks(1)[0], world.ledger.activities(outcome.check)))
    assert "should grow from 2 to 5" in text
    assert "[done in 1.5 s]" in text


@pytest.mark.parametrize(("measured", "later"), [([], False), ([12.0], False), ([180.0], True)])
def test_a_run_waits_only_for_nodes_that_come_quickly(
    world: World, monkeypatch: pytest.MonkeyPatch, measured: list[float], later: bool
) -> None:
    world.load = 8.0  # one node more, a step that is not cut
    world.pass_time(15)
    monkeypatch.setattr(world.ledger, "launch_times", lambda: measured)
    sources = replace(world.sources, image=lambda release: ("an image", release))
    (launch,) = [step for step in check(POLICY, world.ledger, sources).plan.steps if step.action == "launch"]
    assert launch.later is later


def test_what_another_plan_is_about_to_drain_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(POLICY, Ledger(MEMORY), size=3, load=0.5)
    for _count in range(12):
        world.pass_time(15)
        [*steps] = check(POLICY, world.ledger, world.sources).plan.steps
    (chosen,) = (step.node for step in steps if step.action == "drain")
    other = next(f"first-{number}" for number in range(3) if f"first-{number}" != chosen)
    monkeypatch.setattr(world.ledger, "leaving", lambda since: {other: world.sources.clock() - 5})
    assert [step.node for step in check(POLICY, world.ledger, world.sources).plan.steps] == [other]


def test_a_failed_run_is_recorded_as_such(world: World) -> None:
    world.load = 14.0
    world.pass_time(15)
    outcome = run(POLICY, world.ledger, world.sources, lambda _o: RunResult("failed", "no capacity"))
    assert (outcome.status, outcome.message) == ("failed", "no capacity")
    text = "\n".join(explain(world.ledger.checks(1)[0], outcome.activities))
    assert "It ended as failed." in text and "no capacity" in text and "[unknown]" in text


def test_an_interrupted_run_closes_its_check(world: World) -> None:
    world.load = 14.0
    world.pass_time(15)

    def act(_outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(POLICY, world.ledger, world.sources, act)
    assert world.ledger.checks(1)[0]["status"] == "failed"


def test_a_look_leaves_no_trace(world: World) -> None:
    before = world.ledger.checks(99)
    world.load = 14.0
    world.pass_time(15)
    outcome = check(POLICY, world.ledger, world.sources, record=False)
    assert outcome.plan and outcome.check == 0
    assert status(POLICY, world.ledger, world.sources)["size"] == 2
    assert world.ledger.checks(99) == before
    assert world.ledger.intents(1e12) == []


def test_a_cloud_that_does_not_answer_stops_everything(world: World) -> None:
    world.cloud_down = True
    outcome = world.check()
    assert outcome is not None
    assert (outcome.status, outcome.decision.desired, bool(outcome.plan)) == ("blind", 2, False)
    assert "cloud: no answer" in outcome.errors[0]
    assert outcome.decision.reasons[0].code == "no_cloud"


def test_a_balancer_that_does_not_answer_holds_the_size(world: World) -> None:
    world.balancer_down = True
    outcome = world.check()
    assert outcome is not None
    assert (outcome.status, outcome.decision.desired, bool(outcome.plan)) == ("blind", 2, False)
    assert outcome.phases == {"first-0": "unknown", "first-1": "unknown"}


def test_a_drivers_own_fault_is_an_outage_not_a_crash(world: World) -> None:
    import dataclasses

    def broken(_nodes):
        raise KeyError("surprise")

    outcome = check(POLICY, world.ledger, dataclasses.replace(world.sources, read=broken))
    assert "KeyError" in outcome.errors[0]


def test_announcements_that_are_not_heard_stop_nothing(world: World) -> None:
    import dataclasses

    heard = []

    def hear(nodes):
        heard.append(len(nodes))
        raise CloudError("no answer")

    world.load = 14.0
    world.pass_time(15)
    sources = dataclasses.replace(world.sources, hear=hear)
    assert check(POLICY, world.ledger, sources, record=False).errors == () and heard == []
    outcome = check(POLICY, world.ledger, sources)
    assert outcome.plan and outcome.errors == ("announcements: no answer",) and heard == [2]


def test_old_members_are_not_acted_upon(world: World) -> None:
    world.hung.add("first-0")
    world.pass_time(300)
    world.fault = "stale"
    outcome = world.check()
    assert outcome is not None and not outcome.plan


def test_a_manual_count_is_followed(world: World) -> None:
    outcome = run(POLICY, world.ledger, world.sources, world.act, manual=3, origin="by hand")
    assert outcome.decision.desired == 3
    assert len(world.nodes) == 3


def test_a_pause_of_everything(world: World) -> None:
    world.ledger.pause("all", "work", world.now)
    world.load = 14.0
    world.pass_time(15)
    outcome = world.check()
    assert outcome is not None and not outcome.plan
    assert "paused" in "\n".join(explain(world.ledger.checks(1)[0]))


def test_a_release_with_its_two_pools_holds_everything(world: World) -> None:
    """Also a node that died: what took its place would have the other release's code."""
    world.nodes = {name: replace(node, tags={**node.tags, "lane": "old"}) for name, node in world.nodes.items()}
    dead = next(iter(world.nodes))
    world.nodes[dead] = replace(world.nodes[dead], state="failed")
    world.load = 14.0
    world.pass_time(15)
    outcome = world.check()
    assert outcome is not None and not outcome.plan
    assert "a release is under way" in "\n".join(explain(world.ledger.checks(1)[0]))
    world.nodes = {name: replace(node, tags={}) for name, node in world.nodes.items()}
    world.pass_time(15)
    after = world.check()
    assert after is not None and after.plan


def test_the_ledger_is_made_only_where_something_is_recorded(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import open_ledger

    fleet = SimpleNamespace(state_dir=tmp_path / "state", ledger={})
    open_ledger(fleet, trace=False).close()
    assert not fleet.state_dir.exists()
    open_ledger(fleet).close()
    assert (fleet.state_dir / "ledger.sqlite").exists()


@pytest.mark.parametrize("joins_again", [False, True])
def test_a_vanished_member_is_missed_for_longer_than_one_check(joins_again: bool) -> None:
    world = World(Policy(max_nodes=2, scale_in_window=60), Ledger(MEMORY))
    world.check()
    world.pass_time(15)
    world.check()
    world.fault = "partial"
    if not joins_again:
        world.hung.add(max(world.nodes))
    for seconds, trusted in ((15, False), (60, False), (60, False), (120, False), (15, not joins_again)):
        world.pass_time(seconds)
        outcome = world.check()
        assert outcome is not None
        assert outcome.sample.trusted is trusted


def test_a_member_that_joined_is_missed_though_it_was_never_read() -> None:
    # Members lost, read so, joined again; then one hangs and is missing from the reading, and there is no room for another.
    policy = Policy.from_settings({"min_nodes": 2, "max_nodes": 2})
    world = World(policy, Ledger(MEMORY))
    world.check()
    world.pass_time(15)
    world.forget_members()
    world.pass_time(300)
    assert world.check().plan.steps[0].action == "join"
    world.hung.add("first-1")
    world.fault = "partial"
    world.pass_time(15)
    assert world.check().plan.steps == ()
