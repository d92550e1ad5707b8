# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import argparse

from ansible_collections.elearning.moodle_fleet.trigger import release


def given(*words):
    parser = argparse.ArgumentParser()
    release.arguments(parser)
    return parser.parse_args(words)


def test_what_the_playbook_is_told():
    assert release.variables(given("status")) == {}
    assert release.variables(given("run", "--version", "v4.5.7", "--canary", "acme", "--canary", "globex", "--max-failures", "2")) == {
        "moodle_version": "v4.5.7", "release_canaries": ["acme", "globex"], "release_parallel": 2, "release_max_failures": 2,
    }


def test_no_place_at_all_is_refused():
    code, data, message = release.run(given("run", "--parallel", "0"), None)
    assert (code, data) == (2, {})
    assert "at least 1" in message


def test_what_a_person_is_told():
    state = {
        "target": "4.5.7-1a2b", "counts": {"done": 2, "failed": 1},
        "tenants": [
            {"name": "acme", "state": "done", "release": "4.5.7-1a2b", "downtime": 14.26, "error": ""},
            {"name": "globex", "state": "done", "release": "4.5.7-1a2b", "downtime": 20.0, "error": ""},
            {"name": "initech", "state": "failed", "release": "4.5.6-aa00", "downtime": 0.0, "error": "upgrade: it threw"},
        ],
    }
    lines = release.lines(state)
    assert lines[0].split() == ["acme", "done", "4.5.7-1a2b", "14.3", "s"]
    assert lines[2].split() == ["initech", "failed", "4.5.6-aa00", "upgrade:", "it", "threw"]
    assert lines[3] == "4.5.7-1a2b: 2 done, 1 failed; closed for 14.3 to 20.0 s, in the middle 20.0 s"
