# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tables of the live benchmark, from the ledger of a fleet that was checked for real."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import Outcome, RunResult, run
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import simulate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import Model
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.world import World

POLICY = Policy(max_nodes=5, workers=4, scale_in_window=60, cooldown_in=60)
LOADS = [2, 10, 10, 6, 6, 2, 2]


@pytest.fixture(name="live")
def _live(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("live")


@pytest.fixture(name="ledger")
def _ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def check(world: World, ledger: Ledger) -> None:
    """A check a quarter of a minute later, whose run tells when its steps were done."""
    def act(outcome: Outcome) -> RunResult:
        done = world.act(outcome)
        return dataclasses.replace(done, activities=[{**one, "started": world.now, "finished": world.now} for one in done.activities])

    world.pass_time(15)
    run(POLICY, ledger, world.sources, act)


def test_the_tables_are_made_from_a_ledger(live: ModuleType, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(POLICY, ledger, size=2, load=float(LOADS[0]))
    for _check in range(8):
        check(world, ledger)
    begin = world.now
    for load in LOADS:
        world.load = float(load)
        for _check in range(4):
            check(world, ledger)
    model = Model(launch_seconds=40.0, drain_seconds=15.0)
    predicted = simulate(POLICY, Trace(begin, [float(load) for load in LOADS]), model)
    decisions, nodes, notes = live.judge(ledger, POLICY, begin, predicted, LOADS)
    assert (decisions[0]["predicted"], decisions[0]["happened"]) == ("2 → 4", "2 → 4")
    assert decisions[0]["later s"] == pytest.approx(0, abs=15)
    assert [row["happened"] for row in decisions[1:]] == [row["predicted"] for row in decisions[1:]] == ["4 → 5", "5 → 4", "4 → 3"]
    assert (nodes[0]["happened"], nodes[-1]["happened"]) == (2, 3) and max(row["happened"] for row in nodes) == 5
    # The one at the very begin is among them.
    assert any("29 of 29 identical" in note for note in notes), notes
    monkeypatch.setattr(importlib.import_module("measure"), "RESULTS", tmp_path)
    live.report("live", "Decisions", decisions)
    live.report("live_nodes", "Nodes", nodes, notes)
    assert (tmp_path / "live.csv").read_text(encoding="utf-8").count("\n") == len(decisions) + 1


def test_more_decisions_on_either_side_are_shown(live: ModuleType, ledger: Ledger) -> None:
    predicted = simulate(POLICY, Trace(1_000_000.0, [float(load) for load in LOADS]), Model(launch_seconds=40.0))
    nothing = dataclasses.replace(predicted, decisions=[])
    for one, happened, words in ((predicted, [], ("2 → 4", "-")), (nothing, [(1_000_075.0, 2, 4)], ("-", "2 → 4"))):
        decisions, _nodes = live.compare(1_000_000.0, one, happened, [(1_000_000.0, 2)], LOADS)
        assert (decisions[0]["predicted"], decisions[0]["happened"], decisions[0]["later s"]) == (*words, "")


def test_growing_in_two_steps_stands_beside_growing_in_one(live: ModuleType) -> None:
    predicted = simulate(POLICY, Trace(1_000_000.0, [float(load) for load in LOADS]), Model(launch_seconds=40.0))
    first, *_later = [one for one in predicted.decisions if one.decision.direction == "in"]
    run_ = dataclasses.replace(predicted, decisions=[next(one for one in predicted.decisions if one.decision.direction == "out"), first])
    happened = [(1_000_060.0, 2, 3), (1_000_090.0, 3, 4), (first.time + 1.0, 4, 3)]
    decisions, _nodes = live.compare(1_000_000.0, run_, happened, [(1_000_000.0, 2)], LOADS)
    assert [row["happened"] for row in decisions] == ["2 → 3", "3 → 4", "4 → 3"]
    assert [row["later s"] for row in decisions] == [pytest.approx(-15.0), "", pytest.approx(1.0)]


def test_a_ledger_without_these_minutes_is_named(live: ModuleType, ledger: Ledger) -> None:
    predicted = simulate(POLICY, Trace(1_000_000.0, [2.0]), Model())
    with pytest.raises(SystemExit, match="no check of these minutes"):
        live.judge(ledger, POLICY, 1_000_000.0, predicted, LOADS)
