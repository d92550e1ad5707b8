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
