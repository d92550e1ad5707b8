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


def brute(demand: list[int], launch: float, hold: float) -> float:
    """The oracle by trying every set of runs of every node, for short demands."""
    end, total = len(demand) * 60.0, 0.0
    for level in range(1, max(demand) + 1):
        minutes = [i for i, need in enumerate(demand) if need >= level]
        spans = []
        for minute in minutes:
            if spans and spans[-1][1] == minute * 60.0:
                spans[-1][1] += 60.0
            else:
                spans.append([minute * 60.0, minute * 60.0 + 60.0])
        best = float("inf")
        for cuts in itertools.product((0, 1), repeat=max(0, len(spans) - 1)):
            runs = [list(spans[0])]
            for cut, span in zip(cuts, spans[1:]):
                if cut:
                    runs.append(list(span))
                else:
                    runs[-1][1] = span[1]
            cost = sum((min(launch, a) if a > 0 else 0.0) + max(b - a, min(hold, end - a)) for a, b in runs)
            best = min(best, cost)
        total += best
    return total / 3600


def test_the_oracle_is_the_cheapest() -> None:
    chance = random.Random(5)
    for _trial in range(300):
        demand = [2 + chance.choice((0, 0, 1, 2)) for _minute in range(14)]
        launch, hold = chance.choice((30.0, 60.0, 180.0)), chance.choice((0.0, 120.0, 300.0))
        assert oracle(demand, launch, hold) == pytest.approx(brute(demand, launch, hold))


def test_the_oracle_pays_for_launch_and_hold() -> None:
    demand = [2] * 60 + [3] * 2 + [2] * 58
    assert oracle(demand, 300.0, 600.0) == pytest.approx(4.0 + (300 + 600) / 3600)
    assert oracle([2] * 60, 300.0) == pytest.approx(2.0)


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
