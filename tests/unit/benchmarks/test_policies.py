# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What of a lack the policy benchmark ascribes to a leap of the load."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(name="policies")
def _policies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("policies")


def leaps(policies: ModuleType, loads: list[float], launch: float) -> list[int]:
    return [minute for minute, leaps_ in enumerate(policies.leapt(loads, launch, 0.7)) if leaps_]


def test_a_leap_lasts_until_a_node_that_was_ordered_at_its_end_serves(policies: ModuleType) -> None:
    leap = [20.0] * 30 + [60.0] * 30
    # Seen when the first minute is over, and then it takes a launch.
    assert leaps(policies, leap, 30) == [30, 31]
    assert leaps(policies, leap, 300) == [30, 31, 32, 33, 34, 35]


def test_what_the_target_leaves_free_is_no_leap(policies: ModuleType) -> None:
    # 56 workers have room for 40 at the target and for 47.6 at the limit.
    assert leaps(policies, [39.0] * 30 + [47.0] * 30, 300) == []
    assert leaps(policies, [39.0] * 30 + [48.0] * 30, 300) != []
    # A gentle growth, and a pause of less than five minutes.
    assert leaps(policies, [20.0 + 0.3 * minute for minute in range(120)], 60) == []
    assert leaps(policies, [60.0] * 30 + [10.0] * 4 + [60.0] * 30, 30) == []
    assert leaps(policies, [5.0, 500.0], 60) == []
