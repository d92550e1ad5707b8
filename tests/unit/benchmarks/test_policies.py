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


@pytest.fixture(name="own_trace")
def _own_trace(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(importlib.import_module("traces"), "SHAPES", {})
    return importlib.import_module("own_trace")


def recorded(path: Path, hours: int) -> Path:
    path.write_text("time,load\n" + "".join(f"{3600 * hour},{hour}\n" for hour in range(hours) if not 700 < hour < 750), encoding="utf-8")
    return path


def test_each_week_of_an_own_trace_has_those_before_it_to_learn_from(own_trace: ModuleType, tmp_path: Path) -> None:
    path = recorded(tmp_path / "campus.csv", 168 * 6 + 1)
    assert own_trace.register(path, 30) == ["campus, week -3", "campus, week -2", "campus, week -1"]
    latest = importlib.import_module("traces").generate("campus, week -1", 0)
    assert (len(latest.history), len(latest.loads), latest.weekly) == (3 * 10080, 10080, True)
    # The trace ends with the minute that its last value stands for.
    assert latest.loads[0] == pytest.approx(168 * 5, abs=0.1)
    assert latest.history[-1] == pytest.approx(168 * 5, abs=0.1)
    # Where nothing was recorded the load before stands.
    assert latest.history.count(700) > 48 * 60
    assert own_trace.register(path, 1) == ["campus, week -1"]


@pytest.mark.parametrize(("text", "said"), [
    ("time,load\n0,1\n3600,2\n", "covers 0.0 days: give 3 weeks to learn from"),
    ("time,weight\n0,1\n", "has no column 'load'"),
])
def test_an_own_trace_that_says_too_little_is_refused(own_trace: ModuleType, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "campus.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=said):
        own_trace.register(path, 30)
    with pytest.raises(SystemExit, match="No such file"):
        own_trace.register(tmp_path / "none.csv", 30)
