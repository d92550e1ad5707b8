# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers import haproxy_stats as stats
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member

COLUMNS = "pxname svname qcur scur slim status uweight check_status addr lastchg hrsp_1xx hrsp_2xx hrsp_5xx ttime".split()


def text(*rows: dict[str, str]) -> str:
    lines = ["# " + ",".join(COLUMNS) + ","]
    for row in ({"svname": "BACKEND"}, *rows):
        row = {"pxname": "web", **row}
        lines.append(",".join(row.get(column, "") for column in COLUMNS) + ",")
    return "\n".join(lines) + "\n\n"


def row(**values: str) -> dict[str, str]:
    return {"svname": "n", "status": "UP", "uweight": "100", "scur": "0", "qcur": "0", "slim": "4", "addr": "10.0.0.1:80", **values}


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, "up"),
        ({"status": "UP 1/2"}, "up"),
        ({"uweight": "25"}, "up"),
        ({"status": "DOWN"}, "down"),
        ({"status": "DOWN 1/2", "check_status": "L4CON"}, "down"),
        ({"status": "DOWN", "check_status": "INI"}, "starting"),
        ({"status": "DRAIN 1/2"}, "starting"),
        ({"status": "DRAIN", "check_status": "L7OK"}, "starting"),
        ({"status": "no check"}, "starting"),
        ({"status": "DRAIN", "uweight": "0"}, "drained"),
        ({"status": "DRAIN", "uweight": "0", "scur": "1"}, "draining"),
        ({"status": "DRAIN", "uweight": "0", "qcur": "1"}, "draining"),
        ({"status": "DOWN", "uweight": "0"}, "drained"),
        ({"status": "MAINT"}, "drained"),
        ({"status": "MAINT", "scur": "2"}, "draining"),
    ],
)
def test_states(values: dict[str, str], expected: str) -> None:
    _own, (found,) = stats.parse(text(row(**values)), "web")
    assert stats.state(found) == expected


@pytest.mark.parametrize(
    "status, check, expected",
    [("UP", "L7OK", True), ("DRAIN", "* L7OK", True), ("DRAIN 1/2", "L7OK", False), ("DOWN", "L7STS", False), ("MAINT", "L7OK", False)],
)
def test_health_is_what_the_last_check_said(status: str, check: str, expected: bool) -> None:
    assert stats.healthy(row(status=status, check_status=check)) is expected


@pytest.mark.parametrize(
    ("status", "check", "expected"),
    [
        ("DRAIN", "INI", True),
        ("DRAIN 1/2", "INI", True),
        ("DRAIN", "", True),
        ("UP", "* INI", True),
        ("DRAIN 1/2", "L4CON", False),
        ("DRAIN", "L4CON", False),
        ("DOWN 1/2", "INI", False),
        ("DOWN", "INI", False),
        ("MAINT", "", False),
    ],
)
def test_a_check_of_the_callers_own_holds_until_haproxys_first(status: str, check: str, expected: bool) -> None:
    unchecked = row(status=status, check_status=check)
    assert stats.healthy(unchecked, verified=True) is expected
    assert not stats.healthy(unchecked)


def test_a_row_becomes_a_member() -> None:
    _own, (found,) = stats.parse(text(row(scur="3", qcur="1", lastchg="12", uweight="25", addr="[fd00::1]:80")), "web")
    assert stats.member(found) == Member("n", "fd00::1", "up", 4, 3, 1, 12.0, 0.25)


def test_finished_requests_leave_interim_answers_out() -> None:
    own, _servers = stats.parse(text({"svname": "BACKEND", "hrsp_1xx": "9", "hrsp_2xx": "5", "hrsp_5xx": "2"}), "web")
    assert stats.finished(own) == 7


@pytest.mark.parametrize("answer", ["", "<html>no</html>", "# pxname,svname,\nother,BACKEND,\n"])
def test_anything_else_is_an_error(answer: str) -> None:
    with pytest.raises(BalancerError):
        stats.parse(answer, "web")


def test_a_number_that_is_none_is_an_error() -> None:
    with pytest.raises(BalancerError, match="scur"):
        stats.number(row(scur="NaN"), "scur")


@pytest.mark.parametrize(
    "states, expected",
    [
        (("up", "up"), "up"),
        (("up", "down"), "up"),
        (("up", "starting"), "up"),
        (("starting", "down"), "starting"),
        (("down", "down"), "down"),
        (("up", "drained"), "draining"),
        (("drained", "draining"), "draining"),
        (("drained", "drained"), "drained"),
    ],
)
def test_several_balancers_are_added_up(states: tuple[str, str], expected: str) -> None:
    readings = [[Member("n", "10.0.0.1", state, 2, 1, 1, since)] for state, since in zip(states, (5.0, 9.0))]
    assert stats.merge_all(readings) == [Member("n", "10.0.0.1", expected, 4, 2, 2, 5.0)]


def test_a_balancer_without_a_member_is_counted():
    one = Member("n", "10.0.0.1", "up", 2)
    assert [each.lacking for each in stats.merge_all([[one], [], []])] == [2]
