# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._releases import lane, plan
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._releases.table import Line
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import definition

OLD, NEW = lane.Release("4.5.6-a", "/old", "a" * 40), lane.Release("4.5.7-b", "/new", "b" * 40)
COURSE = lane.Course(OLD, NEW, "run-2", "/dumps")


def tenant(*hosts):
    (one,) = definition.load([{"name": "acme", "hosts": list(hosts), "title": "Acme", "admin": {"email": "a@acme.example"}}])
    return one


@pytest.mark.parametrize(
    ("routes", "where"),
    [
        ([{}, {}], plan.OLD),
        ([{"a.example": "web_next", "b.example": "web_next"}] * 2, plan.NEXT),
        # One host, or one balancer, that is behind the others: nowhere for sure.
        ([{"a.example": "web_next"}] * 2, ""),
        ([{"a.example": "web_next", "b.example": "web_next"}, {}], ""),
        ([], ""),
    ],
)
def test_a_tenant_is_led_where_all_balancers_lead_all_its_hosts(routes, where):
    assert lane.lane_of(tenant("a.example", "b.example"), routes) == where


@pytest.mark.parametrize(("versions", "fits"), [("a" * 40, "old"), ("b" * 40, "next"), ("", ""), ("c" * 40, "")])
def test_the_database_says_whose_it_is(versions, fits):
    assert lane.observed(COURSE, Line(), {"allversionshash": versions}, plan.OLD, False).fits == fits


def test_only_this_run_does_not_try_again():
    given_up = Line(run="run-1", error="it threw", phase=plan.FAILED)
    assert not lane.observed(COURSE, given_up, {}, plan.OLD, False).tried
    assert lane.observed(COURSE, given_up._replace(run="run-2"), {}, plan.OLD, False).tried


def test_another_release_that_was_broken_off_comes_first():
    broken_off = Line(target="4.5.5-x", phase=plan.UPGRADING)
    with pytest.raises(lane.ReleaseError, match=r"4\.5\.5-x was broken off"):
        lane.current(broken_off, COURSE)
    assert lane.current(broken_off._replace(phase=plan.DONE), COURSE) == Line()


def test_a_release_that_is_not_complete_is_refused(tmp_path):
    (tmp_path / "releases" / "4.5.7-b").mkdir(parents=True)
    with pytest.raises(lane.ReleaseError, match="not on this node, or not complete"):
        lane.find_release("4.5.7-b", str(tmp_path), str(tmp_path / "component"))
    (tmp_path / "component" / "4.5.7-b").mkdir(parents=True)
    (tmp_path / "component" / "4.5.7-b" / "versions.php").write_text(f"<?php\nreturn '{'b' * 40}';\n")
    assert lane.find_release("4.5.7-b", str(tmp_path), str(tmp_path / "component")).versions == "b" * 40
