# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb import fail_open
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb_metrics import newest, queries
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import Counters
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.metrics import sample
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member, Node

NOW = 600_000.0
POLICY = Policy()
MEMBERS = [Member(f"n{i}", f"10.0.0.{i}", "up", 10) for i in range(2)]


def reading(**more: Any) -> Counters:
    """A quiet minute: 600 requests of half a second."""
    values = {"requests": 600, "in_service": 5, "waiting": 0, "mean_seconds": 0.5} | more
    return Counters(
        taken=values.pop("taken", NOW - 70), started=0.0, members=values.pop("members", MEMBERS), mean_window=0, interval=60.0,
        members_fresh=True, **values,
    )


def test_load_is_that_of_the_minute() -> None:
    got = sample(POLICY, None, reading(), NOW)
    assert (got.load, got.capacity, got.trusted, got.seconds) == (5.0, 20, True, 60.0)


def test_the_same_minute_read_again_is_as_true() -> None:
    first = sample(POLICY, None, reading(), NOW)
    assert sample(POLICY, reading(), reading(), NOW + 15, recent=[first]).trusted


def test_a_minute_that_is_too_old_is_stale() -> None:
    got = sample(POLICY, reading(), reading(taken=NOW - 181), NOW)
    assert [code for code, _text in got.faults] == ["stale"] and not got.trusted and not got.lower_bound


def test_silence_after_traffic_is_not_believed_at_once() -> None:
    before = sample(POLICY, None, reading(taken=NOW - 130), NOW - 60)
    quiet = reading(requests=0, in_service=0, mean_seconds=None)
    got = sample(POLICY, reading(), quiet, NOW, recent=[before])
    assert [code for code, _text in got.faults] == ["zero"]
    assert sample(POLICY, reading(), quiet, NOW + 400, recent=[before._replace(taken=NOW - 400)]).faults[0][0] == "stale"


def test_a_jump_is_confirmed_by_another_minute_only() -> None:
    wild = reading(requests=60_000, mean_seconds=1.0)
    first = sample(POLICY, reading(), wild, NOW)
    assert [code for code, _text in first.faults] == ["jump"]
    again = sample(POLICY, wild, wild, NOW + 15, recent=[first])
    assert not again.trusted
    later = reading(requests=60_000, mean_seconds=1.0, taken=NOW - 10)
    assert sample(POLICY, wild, later, NOW + 60, recent=[first, again]).trusted


def test_members_that_vanish_are_missed() -> None:
    nodes = [Node(one.name, "web", one.address, "a", "running", 0.0) for one in MEMBERS]
    got = sample(POLICY, reading(), reading(members=MEMBERS[:1]), NOW, nodes=nodes)
    assert [code for code, _text in got.faults] == ["partial"]


def test_faults_of_the_driver_count() -> None:
    got = sample(POLICY, None, reading(faults=(("fail_open", "no target is healthy"),)), NOW)
    assert not got.trusted and got.lower_bound and got.load == 5.0


@pytest.mark.parametrize("wrong", [{"waiting": -1}, {"mean_seconds": float("nan")}, {"requests": float("inf")}])
def test_absurd_figures(wrong: dict[str, Any]) -> None:
    assert sample(POLICY, None, reading(**wrong), NOW).faults[0][0] == "absurd"


def test_the_newest_complete_minute() -> None:
    series = {"healthy": {540_000.0: 2, 540_060.0: 2, 540_120.0: 2}, "requests": {540_000.0: 9}, "seconds": {540_000.0: 30.0}}
    assert newest(series, 540_125.0, 60.0).end == 540_060.0
    minute = newest(series, 540_185.0, 60.0)
    assert (minute.end, minute.requests, minute.mean_seconds) == (540_120.0, 0, None)
    assert newest({}, NOW, 60.0) is None
    assert newest(series, 540_010.0, 60.0) is None


def test_refused_requests_count_as_long_as_others_take() -> None:
    series = {"requests": {0.0: 10}, "seconds": {0.0: 40.0}, "rejected": {0.0: 20}, "failed": {0.0: 10}}
    assert newest(series, 200.0, 60.0).refused == 2
    assert newest({"failed": {0.0: 30}, "unhealthy": {0.0: 2}}, 200.0, 60.0).refused == 1


def test_queries_are_of_this_group_and_balancer() -> None:
    arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:"
    found = {one["Id"]: one["MetricStat"] for one in queries(f"{arn}targetgroup/web/0a", f"{arn}loadbalancer/app/fleet/0b")}
    names = {one["Name"]: one["Value"] for one in found["requests"]["Metric"]["Dimensions"]}
    assert names == {"LoadBalancer": "app/fleet/0b", "TargetGroup": "targetgroup/web/0a"}
    assert {one["Name"] for one in found["rejected"]["Metric"]["Dimensions"]} == {"LoadBalancer"}


def test_fail_open() -> None:
    def group(*states: str) -> list[dict[str, str]]:
        return [{"state": state} for state in states]

    assert fail_open(group("unhealthy", "initial"))[0][0] == "fail_open"
    for states in ([], ["draining"], ["healthy", "unhealthy"], ["unused"]):
        assert fail_open(group(*states)) == ()
