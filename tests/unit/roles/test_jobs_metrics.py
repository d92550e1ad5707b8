# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the dispatcher counts, as JSON and as Prometheus reads it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "roles/jobs/files"))

from metrics import WINDOW, Figures
from schedule import DONE, FAILED, Run

STATE = {"role": "active", "holder": "", "epoch": 3, "problem": "", "late": 1.5, "failures": {"two": 4},
         "running": [{"number": 9, "tenant": "one", "due": 0, "started": 1, "long": True}]}


def figures() -> Figures:
    made = Figures("jobs-1")
    made.keep(["two", "one"])
    for number, (tenant, late, outcome) in enumerate([("one", 0.25, DONE), ("two", 4.0, FAILED), ("one", 0.75, DONE)]):
        run = Run(number, tenant, 1000.0 + 60 * number, 1000.0 + 60 * number + late)
        made.started(run)
        made.ended(run, outcome, run.started + 2, 0.5, number, "")
    made.backlog = {"one": {"scheduled": 2, "adhoc": 5, "failing": 1, "oldest": 90}}
    return made


def test_both_files_say_the_same(tmp_path):
    figures().write(tmp_path, STATE, 1200.0)
    data = json.loads((tmp_path / "status.json").read_text())
    assert data["lateness"] == {"p50": 0.75, "p99": 4.0, "max": 4.0}
    assert data["totals"] == {"runs": 3, "failed": 1, "failed_tasks": 3, "cpu": 1.5}
    assert data["tenants"]["one"]["backlog"]["adhoc"] == 5
    text = (tmp_path / "jobs.prom").read_text()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["moodle_jobs_active"] == "1" and values["moodle_jobs_runs_failed_total"] == "1"
    assert values['moodle_jobs_lateness_seconds{quantile="0.99"}'] == "4"
    assert values['moodle_jobs_tenant_adhoc_tasks{tenant="one"}'] == "5"
    assert values['moodle_jobs_tenant_oldest_task_seconds{tenant="one"}'] == "90"
    assert values['moodle_jobs_tenant_failures{tenant="two"}'] == "4"
    assert values['moodle_jobs_tenant_running{tenant="one"}'] == values["moodle_jobs_long_runs"] == "1"
    assert all(re.fullmatch(r'moodle_jobs_[a-z_]+(\{(tenant|quantile)="[^"]+"\})?', name) for name in values)
    assert [line.name for line in tmp_path.iterdir() if line.name.startswith(".")] == []


def test_what_is_due_is_counted_from_the_last_run_that_did_not_fail():
    """A minute less, for the tasks that became due in that very second; tenants without one are not asked about."""
    assert figures().complete_since() == {"one": 1120 - 60}


def test_lateness_is_that_of_the_last_quarter_of_an_hour():
    made = figures()
    assert made.lateness(1060 + WINDOW)["max"] == 4.0
    assert made.lateness(1070 + WINDOW)["max"] == 0.75
    assert made.lateness(5000) == {"p50": 0.0, "p99": 0.0, "max": 0.0}


def test_tenants_that_left_are_forgotten():
    made = figures()
    made.keep(["two"])
    assert list(made.tenants) == ["two"] and made.backlog == {}
