# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules and dashboards: each alert fires when it should and has a runbook; each of our own series that is asked for exists.

The names of all other series are looked for in a real Prometheus by the molecule scenario `services`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import MEMORY, Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Sample
from ansible_collections.elearning.moodle_fleet.trigger.metrics import render

FILES = Path(__file__).parents[3] / "roles" / "monitoring" / "files"
BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((FILES / "dashboards").glob("*.json"))}
RULES = yaml.safe_load((FILES / "rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]


@pytest.fixture(name="promtool")
def _promtool() -> str:
    found = shutil.which("promtool")
    if not found:
        assert not os.environ.get("CI"), "promtool is missing (Debian's package prometheus)"
        pytest.skip("no promtool: apt install prometheus")
    return found


def test_the_rules_are_correct_and_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    shutil.copy(FILES / "rules.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("monitoring_rules.yml"), tmp_path / "tests.yml")
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "tests.yml"]):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_both_ways_and_has_a_runbook() -> None:
    alerts = {rule["alert"]: rule for rule in RULES if "alert" in rule}
    tried = yaml.safe_load(Path(__file__).with_name("monitoring_rules.yml").read_text(encoding="utf-8"))["tests"]
    fires = {one["alertname"] for test in tried for one in test["alert_rule_test"] if one.get("exp_alerts")}
    silent = {one["alertname"] for test in tried for one in test["alert_rule_test"] if not one.get("exp_alerts")}
    assert fires == silent == set(alerts)
    for rule in alerts.values():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(rule["annotations"]["runbook"]) > 40


def test_what_is_asked_of_the_fleet_itself_is_told_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(MEMORY) as ledger:
        for at in (1000.0, 1015.0):
            ledger.commit(at, "check", Sample(at, 15, 5, 5, 0, 8, 2, 9, True), Decision(2, "none", 2, 2, True), Plan(), 0,
                          inputs={"phases": {}, "outlook": {"points": [[1, 2.0]]}})
        told = set(re.findall(r"^# TYPE (\S+)", render("f", Policy(), ledger, 1020), re.M))
    monkeypatch.syspath_prepend(str(FILES.parents[1] / "jobs" / "files"))
    jobs = importlib.import_module("metrics").prometheus({
        "role": "active", "late": 0, "lateness": {}, "running": [], "failures": {}, "tenants": {"acme": {"backlog": {}}},
        "totals": {"runs": 0, "failed": 0, "failed_tasks": 0, "cpu": 0},
    })
    told |= set(re.findall(r"^# TYPE (\S+)", jobs, re.M))
    asked = {
        name for text in [*(rule["expr"] for rule in RULES), *(target["expr"] for board in BOARDS.values() for panel in board["panels"]
                                                               for target in panel["targets"])]
        for name in re.findall(r"moodle_(?:fleet|jobs)_\w+", text)
    }
    assert len(asked) > 15 and asked <= told
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    used = {name for board in BOARDS.values() for panel in board["panels"] for target in panel["targets"]
            for name in re.findall(r"\b(?:fleet|node):[\w:]+", target["expr"])}
    assert used <= recorded


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_a_dashboard_is_whole(board: dict) -> None:
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    assert board["uid"].startswith("moodle-fleet-")
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"moodle-fleet"}
