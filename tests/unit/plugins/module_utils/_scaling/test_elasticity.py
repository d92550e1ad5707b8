# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import itertools
import random

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.elasticity import (
    elasticity,
    needed,
    oracle,
    static_fleets,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.queueing import erlang_c, waiting


def test_what_is_needed() -> None:
    assert needed([0.0, 13.6, 13.7, None, 68.0], 8, 2) == [2, 2, 3, None, 10]


def test_the_measures_by_hand() -> None:
    # Needed 2, 4, 4, 2; there are 2, and from 90 s on 4.
    found = elasticity([2, 4, 4, 2], 0.0, [(0.0, 2), (90.0, 4)])
    assert found.under_provisioned_seconds == 30.0
    assert found.under_provisioned_share == pytest.approx(30 / 240)
    assert found.under_provisioning_accuracy == pytest.approx(30 * 0.5 / 240)
    assert found.over_provisioned_share == pytest.approx(60 / 240)
    assert found.over_provisioning_accuracy == pytest.approx(60 * 1.0 / 240)
    # Minute to minute: demand +, 0, -; supply +, 0, 0.
    assert found.instability == pytest.approx(1 / 3)
    assert found.jitter == pytest.approx((1 - 2) / (240 / 3600))


def test_gaps_do_not_count() -> None:
    found = elasticity([2, None, 4, 4], 0.0, [(0.0, 2)])
    assert found.under_provisioned_share == pytest.approx(2 / 3)
    assert found.instability == 0.0


def test_a_supply_that_is_never_wrong() -> None:
    found = elasticity([3] * 60, 0.0, [(0.0, 3)])
    assert (found.under_provisioned_share, found.over_provisioned_share, found.instability) == (0, 0, 0)


def fewest(demand: list[int], launch: float, hold: int) -> float:
    """Node-hours of the cheapest supply, by trying every one, minute by minute; ``hold`` in minutes."""
    top = max(demand)
    # How many serve, and how many of them began to within the hold, the latest first.
    states = {(size, (size,) + (0,) * (hold - 2)): 60.0 * size for size in range(demand[0], top + 1)}
    for minute, need in enumerate(demand[1:], 1):
        following: dict[tuple[int, tuple[int, ...]], float] = {}
        for (size, young), cost in states.items():
            for new, kept in itertools.product(range(top + 1), range(sum(young), size + 1)):
                if need <= new + kept <= top + 1:
                    key = new + kept, ((new, *young))[:hold - 1]
                    total = cost + 60.0 * (new + kept) + new * min(launch, 60.0 * minute)
                    following[key] = min(total, following.get(key, total))
        states = following
    return min(states.values()) / 3600


def test_the_oracle_is_the_cheapest_but_for_a_little() -> None:
    chance = random.Random(5)
    ratios = []
    for _trial in range(100):
        demand = [1 + chance.choice((0, 0, 1, 2)) for _minute in range(11)]
        launch, hold = chance.choice((30.0, 60.0, 180.0)), chance.choice((2, 3, 4))
        ratios.append(oracle(demand, launch, 60.0 * hold) / fewest(demand, launch, hold))
    # Never cheaper than possible, seldom dearer, though such a demand leaves hardly a minute in peace.
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratios) / len(ratios) < 1.02
    assert sum(ratio < 1 + 1e-9 for ratio in ratios) > 60


def test_a_node_that_is_held_serves_what_others_would_have_to() -> None:
    # The third is launched for one minute (1 + 10); held so long, it lets the second go for good after 21, and the first come back at 25 only.
    demand = [2] * 20 + [3] + [1] * 4 + [2] * 3 + [1] * 30
    assert oracle(demand, 60.0, 600.0) == pytest.approx((1 + 10 + 21 + 21 + 1 + 33) / 60)


def test_the_oracle_pays_for_launch_and_hold() -> None:
    demand = [2] * 60 + [3] * 2 + [2] * 58
    # While the third is held, one of the others need not be there, which is worth a launch.
    assert oracle(demand, 300.0, 600.0) == pytest.approx(4.0 + (300 + 600 - 480 + 300) / 3600)
    assert oracle(demand, 300.0, 120.0) == pytest.approx(4.0 + (300 + 120) / 3600)
    assert oracle([2] * 60, 300.0) == pytest.approx(2.0)
    assert oracle([2] * 30 + [None] * 30, 300.0) == pytest.approx(2.0)
    assert oracle([None], 300.0) == oracle([], 300.0) == 0.0


def test_fixed_fleets() -> None:
    assert static_fleets([2, 2, 4, 3, None]) == [(2, 0.5), (3, 0.25), (4, 0.0)]


def test_erlang_c_against_known_values() -> None:
    # One server: the probability to wait is the load itself. Tables of Erlang C: 10 servers, 8 in service.
    assert erlang_c(1, 0.3) == pytest.approx(0.3)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10, 8.0) == pytest.approx(0.4092, abs=1e-4)
    assert erlang_c(4, 0.0) == 0.0
    assert erlang_c(4, 4.0) == 1.0
    assert erlang_c(0, 1.0) == 1.0


def test_waiting_below_saturation() -> None:
    # It takes a moment until a queue that was empty is the usual one.
    found = waiting([(8.0, 10.0)] * 100, 0.5, 60.0)
    assert found.requests == pytest.approx(16 * 6000)
    assert found.mean_seconds == pytest.approx(0.4092 * 0.5 / 2, rel=1e-3)
    assert found.delayed_share == pytest.approx(0.4092, abs=2e-4)
    assert found.lost < 1e-6


def test_waiting_while_too_few_serve() -> None:
    # 20 asked for, 10 served, 0.5 s each: 20 a second more than can be served, 600 fit into the queue of 30 s.
    found = waiting([(20.0, 10.0)] * 2, 0.5, 30.0)
    assert found.requests == pytest.approx(4800)
    assert found.lost == pytest.approx(2 * 1200 - 600, rel=0.01)
    # The queue of 600 is served at 10 a second before anybody finds a free worker again, in the third minute.
    after = waiting([(20.0, 10.0), (5.0, 10.0), (5.0, 10.0)], 0.5, 30.0)
    assert after.over_a_second_share == pytest.approx(3000 / 3600, abs=0.01)
    assert waiting([(5.0, 0.0)], 0.5, 30.0).lost == pytest.approx(600)
    assert waiting([(0.0, 0.0)], 0.5, 30.0).requests == 0
