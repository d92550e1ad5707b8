# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""When a tier is full, when that holds scaling out back, and above all when it does not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import tiers

NOW = 1_000_000.0


def db(**more: float) -> dict[str, float]:
    return {"taken": NOW, "up": 5000.0, "cpus": 8.0, "connections": 500.0, "running": 3.0, "connected": 40.0, "lock_seconds": 100.0, **more}


def redis(**more: float) -> dict[str, float]:
    return {"taken": NOW, "up": 5000.0, "cpu": 100.0, "evicted": 0.0, "blocked": 0.0, "memory": 50.0, "most": 100.0, "keeps": 1.0, **more}


@pytest.mark.parametrize(
    ("now", "share", "text"),
    [
        (db(), 3 / 16, "3 threads run on 8 CPUs"),
        (db(running=16), 1.0, "16 threads run on 8 CPUs"),
        (db(connected=475), 1.0, "475 of 500 connections"),
        (db(lock_seconds=100.0 + 30 * 8), 1.0, "8.0 transactions wait for row locks"),
        (db(running=0, connected=0, lock_seconds=50.0), 0.0, "0 threads run"),
        (db(cpus=0, running=2), 1.0, "2 threads run on 1 CPUs"),
    ],
)
def test_a_database(now: dict[str, float], share: float, text: str) -> None:
    found = tiers.database(now, db(taken=NOW - 30, up=4970.0))
    assert found.share == pytest.approx(share) and (text in found.text or share == 0.0)


def test_a_restarted_server_and_readings_of_no_use_together_say_nothing_of_rates() -> None:
    much = db(lock_seconds=1e9)
    for before in (None, db(taken=NOW - 30, up=6000.0), db(taken=NOW - 4000), db(taken=NOW + 30)):
        assert tiers.database(much, before).share < 0.5
    assert tiers.cache(redis(cpu=1e9, memory=0.0), redis(taken=NOW, up=1e9)).share == 0.0


def test_a_cache() -> None:
    before = redis(taken=NOW - 30)
    assert tiers.cache(redis(cpu=127.0), before).share == pytest.approx(1.0)
    full = tiers.cache(redis(memory=95.0), before)
    assert full.share == pytest.approx(1.0) and "nothing may go" in full.text
    # Where what is used least may go, full memory is how it is meant.
    assert tiers.cache(redis(memory=100.0, keeps=0.0), before).share == 0.0
    assert tiers.cache(redis(most=0.0), before).share == 0.0


def test_shared_files_count_by_the_median_node() -> None:
    assert tiers.files([0.01, 0.0, 9.0]).share == pytest.approx(0.02)
    assert tiers.files([0.5, 0.6]).share > 1


def reading(taken: float, before: dict[str, Any] | None = None, **shares: float) -> dict[str, Any]:
    found = [tiers.Tier(name.replace("_", " "), share, f"by {name}") for name, share in shares.items()]
    data = {"taken": taken, "tiers": [one.__dict__ for one in found], "full": tiers.standing(found, taken, before)}
    return json.loads(json.dumps(data))


def test_only_what_stands_is_saturated() -> None:
    first = reading(NOW, database=1.2, files=0.3)
    assert tiers.saturated(first, NOW) == {}
    second = reading(NOW + 30, first, database=1.1, files=0.3)
    assert tiers.saturated(second, NOW + 35) == {"database": "by database"}
    third = reading(NOW + 60, second, database=0.9, files=0.3)
    assert tiers.saturated(third, NOW + 60) == {}
    again = reading(NOW + 90, third, database=1.5)
    assert tiers.saturated(again, NOW + 90) == {}
    # A gap between two readings begins anew.
    assert tiers.saturated(reading(NOW + 300, second, database=1.5), NOW + 300) == {}


def test_old_readings_and_those_of_a_wrong_clock_hold_nothing_back() -> None:
    second = reading(NOW + 30, reading(NOW, database=2.0), database=2.0)
    assert tiers.saturated(second, NOW + 150)
    assert tiers.saturated(second, NOW + 151) == {}
    assert tiers.saturated(second, NOW) == {}


def test_one_of_several_databases_holds_back_nobody() -> None:
    first = reading(NOW, database=2.0, database_second=0.2, cache=0.1)
    assert tiers.saturated(reading(NOW + 30, first, database=2.0, database_second=0.2), NOW + 30) == {}
    first = reading(NOW, database=2.0, database_second=2.0)
    assert set(tiers.saturated(reading(NOW + 30, first, database=2.0, database_second=2.0), NOW + 30)) == {"database", "database second"}


def fleet(state_dir: Path) -> Any:
    return SimpleNamespace(state_dir=state_dir, ledger={})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"taken": "now"}', '{"taken": 1000000, "tiers": [{}], "full": {}}', '{"taken": 1000000, "tiers": 3}',
             '{"taken": 1000000, "tiers": [], "full": []}'],
)
def test_a_damaged_file_holds_nothing_back(text: str, tmp_path: Path) -> None:
    (tmp_path / kept.TIERS).write_text(text)
    assert kept.saturated(fleet(tmp_path), NOW) == {}
    assert kept.saturated(fleet(tmp_path / "nowhere"), NOW) == {}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    _kept.write(fleet(tmp_path), kept.TIERS, reading(NOW + 30, reading(NOW, cache=1.0), cache=1.0))
    assert kept.saturated(fleet(tmp_path), NOW + 31) == {"cache": "by cache"}
    assert [path.name for path in tmp_path.iterdir()] == [kept.TIERS]
    assert (tmp_path / kept.TIERS).stat().st_mode & 0o777 == 0o600


def test_a_service_that_aws_runs_is_as_full_as_its_calmer_minute() -> None:
    assert tiers.managed("database", [99.0, 20.0], "of its CPUs").share == pytest.approx(0.2 / 0.9)
    assert tiers.managed("database", [99.0, 95.0], "of its CPUs") == tiers.Tier("database", 0.95 / 0.9, "95% of its CPUs, says CloudWatch")


@pytest.mark.parametrize("turn", [1, -1])
def test_a_tier_is_as_full_as_the_fullest_that_is_known_of_it(turn: int) -> None:
    calm, full = tiers.Tier("database", 0.2, "calm"), tiers.Tier("database", 1.1, "full")
    cache = tiers.Tier("cache", 0.5, "the other")
    one, other = (calm, full)[::turn]
    assert tiers.together([one, cache], [other]) == [full, cache]
    assert tiers.together([], []) == []
