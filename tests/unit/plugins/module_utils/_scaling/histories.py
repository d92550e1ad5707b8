# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Random histories of a simulated fleet, repeatable by their number."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.world import (
    FAULTS,
    MODES,
    Violation,
    World,
)

POLICIES = tuple(
    Policy.from_settings(settings)
    for settings in (
        {"min_nodes": 2, "max_nodes": 5, "scale_in_window": 60, "cooldown_in": 60, "cooldown_out": 15},
        {"min_nodes": 1, "max_nodes": 3, "scale_in_window": 30, "cooldown_in": 0, "cooldown_out": 0},
        {"min_nodes": 3, "max_nodes": 12, "scale_in_window": 120, "cooldown_in": 120, "max_step_in": 3,
         "max_draining": 2},
        {"min_nodes": 2, "max_nodes": 2},
    )
)


def history(number: int, make_ledger: Callable[[], Any], checks: int = 8) -> World:
    """Play one history; raises Violation with its number when an invariant breaks."""
    chance = random.Random(number)
    policy = chance.choice(POLICIES)
    size = chance.randint(policy.min_nodes, policy.max_nodes)
    world = World(policy, make_ledger(), size=size, load=chance.choice((0.0, 3.0, 8.0, 20.0)))
    try:
        for _index in range(checks):
            world.pass_time(chance.choice((1, 15, 15, 15, 60, 60, 300)))
            _trouble(world, chance)
            world.check()
        world.settle()
    except Violation as exc:
        raise Violation(f"history {number}: {exc}") from exc
    return world


def _trouble(world: World, chance: random.Random) -> None:
    """Something happens, and perhaps the controller dies at one of its next calls."""
    world.read_stale = chance.random() < 0.15
    world.fault = chance.choice(tuple(FAULTS)) if chance.random() < 0.15 else ""
    world.cloud_down = chance.random() < 0.04
    world.balancer_down = chance.random() < 0.04
    world.trap = (world.calls + chance.randrange(9), chance.choice(MODES)) if chance.random() < 0.6 else None
    world.meanwhile = (lambda: _other(world)) if chance.random() < 0.15 else None
    event = chance.random()
    names = sorted(world.nodes)
    if event < 0.35:
        world.load = chance.choice((0.0, 1.0, 4.0, 10.0, 25.0, 60.0))
    elif event < 0.45 and names:
        world.kill(chance.choice(names))
    elif event < 0.53 and names:
        world.hung.add(chance.choice(names))
    elif event < 0.57:
        world.hung.clear()
    elif event < 0.61:
        world.forget_members()
    elif event < 0.65 and names:
        _tag(world, chance.choice(names), chance.choice(("protected", "held")))
    elif event < 0.68 and names:
        world.notices[chance.choice(names)] = world.now + chance.choice((30.0, 120.0, 120.0, 4000.0))
    elif event < 0.72:
        world.ledger.pause(chance.choice(("all", "in")), "test", world.now, world.now + 200)


def _other(world: World) -> None:
    """Another controller's whole check; it reads the present, and does not die."""
    trap, stale, world.trap, world.read_stale = world.trap, world.read_stale, None, False
    world.check()
    world.trap, world.read_stale = trap, stale


def _tag(world: World, name: str, tag: str) -> None:
    from dataclasses import replace

    if sum("protected" in node.tags or "held" in node.tags for node in world.nodes.values()) == 0:
        node = world.nodes[name]
        world.nodes[name] = replace(node, tags={**node.tags, tag: str(world.now)})
