# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Histories with crashes at every external call; ``tests/benchmarks/histories.py`` plays very many more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import MEMORY, Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Plan
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.histories import POLICIES, history
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.memory_ledger import MemoryLedger
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.world import FAULTS, MODES, World


@pytest.mark.parametrize("first", range(0, 240, 20))
def test_random_histories_come_to_rest(first: int) -> None:
    for number in range(first, first + 20):
        history(number, MemoryLedger)


@pytest.mark.parametrize("number", range(5000, 5012))
def test_the_real_ledger_gives_the_same_histories(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The one in memory measures no launches, and what they took changes what a growth needs.
    monkeypatch.setattr(Ledger, "launch_times", MemoryLedger.launch_times)
    one = history(number, MemoryLedger)
    other = history(number, lambda: Ledger(MEMORY))
    assert (one.nodes, one.members, one.calls) == (other.nodes, other.members, other.calls)


def growing(world: World) -> None:
    world.load = 12.0


def shrinking(world: World) -> None:
    world.load = 0.0


def losing(world: World) -> None:
    world.kill("first-1")


def hanging(world: World) -> None:
    world.hung.add("first-0")


def announced(world: World) -> None:
    world.notices["first-0"] = world.now + 120


@pytest.mark.parametrize("event", [growing, shrinking, losing, hanging, announced])
@pytest.mark.parametrize("mode", MODES)
def test_every_call_of_a_change_may_be_the_last(event: Callable[[World], None], mode: str) -> None:
    """The same change again and again, each time cut off one call later, until it is no longer cut off."""
    for cut in range(200):
        world = World(POLICIES[0], MemoryLedger(), size=3, load=6.0)
        for _index in range(6):
            world.pass_time(15)
            world.check()
        begun = world.calls
        event(world)
        world.trap = (begun + cut, mode)
        for _index in range(20):
            world.pass_time(20)
            world.check()
        world.settle()
        if world.calls <= begun + cut + 100 and not world.points:
            break
        if cut >= 60:
            break
    assert cut > 10


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", [*FAULTS, "balancer_down", "cloud_down"])
def test_bad_metrics_never_shrink_and_bounds_hold(fault: str, policy: Any) -> None:
    world = World(policy, MemoryLedger(), size=policy.max_nodes, load=0.0)
    world.load = policy.max_nodes * 2.8
    for _index in range(10):
        world.pass_time(60)
        world.check()
    before = set(world.nodes)
    world.fault = fault if fault in FAULTS else ""
    world.balancer_down, world.cloud_down = fault == "balancer_down", fault == "cloud_down"
    world.load = 0.0
    limit = 4 if fault in ("zero", "jump", "partial", "reset", "frozen") else 15
    for _index in range(limit):
        world.pass_time(20)
        outcome = world.check()
        assert outcome is not None
        if not outcome.sample.trusted:
            assert outcome.decision.desired >= outcome.decision.size
            assert not [step for step in outcome.plan.steps if step.action in ("drain", "retire")]
    if fault not in ("zero", "frozen", "partial", "reset"):
        assert set(world.nodes) == before
    # Bounds are enforced even so: nodes that die are replaced up to the minimum where the cloud answers.
    if fault != "cloud_down":
        for name in list(world.nodes)[1:]:
            del world.nodes[name]
            world.members.pop(name, None)
        for _index in range(6):
            world.pass_time(60)
            world.check()
        assert policy.min_nodes <= len(world.nodes) <= policy.max_nodes


def test_two_controllers_launch_once() -> None:
    world = World(POLICIES[0], MemoryLedger(), size=2, load=30.0)
    world.meanwhile = lambda: world.check() and None
    world.check()
    world.pass_time(15)
    assert len(world.nodes) == 5


def test_an_outdated_list_of_nodes_launches_nothing_twice() -> None:
    world = World(POLICIES[0], MemoryLedger(), size=2, load=9.0)
    world.check()
    assert len(world.nodes) == 4
    old = (world.now, [node for node in world.nodes.values() if "launch" not in node.tags])
    for _index in range(3):
        world.pass_time(15)
        world.check()
    world.stale_nodes, world.read_stale = (world.now, old[1]), True
    world.check()
    assert len(world.nodes) == 4


def test_the_controller_that_looked_too_early_gives_way() -> None:
    world = World(POLICIES[0], MemoryLedger(), size=2, load=30.0)
    other: list[Any] = []
    world.meanwhile = lambda: other.append(world.check())
    assert world.check() is None
    assert isinstance(other[0].plan, Plan) and other[0].plan


@pytest.mark.parametrize("load", [7.0, 8.0])
def test_an_announced_loss_is_replaced_and_drained_before_it_comes(load: float) -> None:
    world = World(POLICIES[0], MemoryLedger(), size=3, load=load)
    for _index in range(6):
        world.pass_time(15)
        world.check()
    before = set(world.nodes)
    lost = sorted(before)[0]
    world.notices[lost] = world.now + 120
    log = []
    for _index in range(8):
        world.pass_time(15)
        if lost not in world.nodes:
            break
        outcome = world.check()
        assert outcome is not None
        log += [(step.action, step.node) for step in outcome.plan.steps]
    assert log[0][0] == "launch"
    actions = [action for action, node in log if action == "launch" or node == lost]
    assert actions[:2] == ["launch", "drain"] and actions[-1] == "retire"
    # It had left in peace before the cloud came for it, and one took its place.
    assert lost not in world.nodes and lost not in world.members
    assert len(world.nodes) == len(before) and world.launched == 1


class Fleet(RuleBasedStateMachine):
    """Anything may happen in any order; at the end the fleet comes to rest."""

    @initialize(policy=st.sampled_from(POLICIES), load=st.sampled_from((0.0, 5.0, 20.0)))
    def begin(self, policy: Any, load: float) -> None:
        self.world = World(policy, MemoryLedger(), size=policy.min_nodes, load=load)

    @rule(load=st.sampled_from((0.0, 2.0, 10.0, 40.0)))
    def traffic(self, load: float) -> None:
        self.world.load = load

    @rule(seconds=st.sampled_from((1, 15, 60, 400)))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(cut=st.integers(0, 8), mode=st.sampled_from((*MODES, "")), fault=st.sampled_from(("", *FAULTS)))
    def check(self, cut: int, mode: str, fault: str) -> None:
        self.world.trap = (self.world.calls + cut, mode) if mode else None
        self.world.fault = fault
        self.world.check()
        self.world.trap, self.world.fault = None, ""

    @rule()
    def stale_check(self) -> None:
        self.world.read_stale = True
        self.world.check()
        self.world.read_stale = False

    @rule()
    def crossed_check(self) -> None:
        self.world.meanwhile = lambda: self.world.check() and None
        self.world.check()

    @precondition(lambda self: self.world.nodes)
    @rule(data=st.data(), how=st.sampled_from(("kill", "hang")))
    def trouble(self, data: Any, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.nodes)))
        self.world.kill(name) if how == "kill" else self.world.hung.add(name)

    @precondition(lambda self: self.world.nodes)
    @rule(data=st.data(), seconds=st.sampled_from((20.0, 120.0, 3000.0)))
    def the_cloud_wants_a_node_back(self, data: Any, seconds: float) -> None:
        self.world.notices[data.draw(st.sampled_from(sorted(self.world.nodes)))] = self.world.now + seconds

    @rule()
    def balancer_restarts(self) -> None:
        self.world.forget_members()

    @rule(scope=st.sampled_from(("all", "in")))
    def pause(self, scope: str) -> None:
        self.world.ledger.pause(scope, "", self.world.now, self.world.now + 100)

    @invariant()
    def never_too_many(self) -> None:
        if hasattr(self, "world"):
            assert len(self.world.nodes) <= self.world.policy.max_nodes

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)
