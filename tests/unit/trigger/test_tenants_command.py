# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import argparse

import pytest

from ansible_collections.elearning.moodle_fleet.trigger import tenants


def given(*words):
    parser = argparse.ArgumentParser()
    tenants.arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (("check",), {}),
        (("jobs",), {}),
        (("backup", "acme"), {"backup_only": ["acme"], "backup_drill": False}),
        (("drill",), {"backup_only": [], "backup_drill": True}),
        (("restore", "acme"), {"restore_tenant": "acme", "restore_snapshot": "latest", "restore_overwrite": False}),
        (
            ("restore", "twin", "--from", "acme", "--snapshot", "ab12", "--overwrite"),
            {"restore_tenant": "twin", "restore_from": "acme", "restore_snapshot": "ab12", "restore_overwrite": True},
        ),
    ],
)
def test_what_the_playbook_is_told(words, variables):
    assert tenants.variables(given(*words)) == variables


@pytest.mark.parametrize(("words", "text"), [(("restore",), "name the one tenant"), (("check", "acme"), "leave out 'acme'")])
def test_what_cannot_be_done_is_said(words, text):
    assert text in tenants.variables(given(*words))


def test_what_a_person_is_told():
    checked = {
        "findings": [{"kind": "rows", "tenant": "acme", "other": "globex", "text": "its account can read moodle_globex"}],
        "pairs": {"rows": 2}, "tenants": 2, "seconds": 0.1,
    }
    assert tenants.lines("check", checked) == [
        "rows: acme → globex: its account can read moodle_globex", "2 tenants, ordered pairs tried: 2 rows; 1 findings in 0.1 s",
    ]
    assert tenants.lines("check", {**checked, "findings": [], "notes": ["keys were not tried"]})[0] == "note: keys were not tried"
    backed_up = {"tenants": [
        {"name": "acme", "snapshot": "0123456789", "figures": {"files": 3}, "error": "", "seconds": 1.5},
        {"name": "globex", "snapshot": "", "figures": {}, "error": "no site", "seconds": 0.0},
    ]}
    assert [line.split() for line in tenants.lines("backup", backed_up)] == [
        ["acme", "01234567", "files", "3", "(1.5", "s)"], ["globex", "no", "site", "(0.0", "s)"],
    ]


def test_what_a_person_is_told_of_background_tasks():
    active = {
        "role": "active", "problem": "", "time": 1000.0, "failures": {"bad": 3}, "lateness": {"p50": 0.1, "p99": 2.0, "max": 3.0},
        "totals": {"runs": 90, "failed": 3, "failed_tasks": 0, "cpu": 12.3},
        "running": [{"tenant": "slow", "started": 400.0, "long": True}, {"tenant": "good", "started": 999.0, "long": False}],
        "tenants": {
            "good": {"backlog": {"scheduled": 3, "adhoc": 0, "failing": 0, "oldest": 30}}, "bad": {},
            "slow": {"backlog": {"scheduled": 2, "adhoc": 7, "failing": 1, "oldest": 700}}, "closed": {"resting": "Cron is disabled"},
        },
    }
    nodes = {"jobs-1": active, "jobs-2": {"role": "standby", "problem": ""}, "jobs-3": {}}
    assert tenants.lines("jobs", {"nodes": nodes}) == [
        "jobs-1: active, 4 tenants, 2 runs under way; started late by 0.1 s (median), 2.0 s (p99); 90 runs, 3 failed, 12 CPU s",
        "  slow: runs for 600 s",
        "  slow: 2 scheduled and 7 ad-hoc tasks wait, the oldest for 700 s; 1 tasks delayed because they failed",
        "  bad: 3 failed runs in a row",
        "  closed: Cron is disabled",
        "jobs-2: standby",
        "jobs-3: silent",
    ]
