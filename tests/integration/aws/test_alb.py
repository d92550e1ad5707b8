# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the driver ``alb`` makes of CloudWatch and of target health, beyond the contract of every balancer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb import AlbMembers, AlbReader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import check, sources_of
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet, cloud_driver
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import MEMORY, Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings, fleet
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.loadbalancer import LoadBalancer, put_minute
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer

pytestmark = pytest.mark.slow
POLICY = Policy(max_nodes=6)


@pytest.fixture(name="balancer")
def fixture_balancer(aws: AwsServer) -> Iterator[LoadBalancer]:
    balancer = LoadBalancer(aws)
    aws.targets.probe = lambda _target: True
    yield balancer
    balancer.close()


@pytest.fixture(name="definition")
def fixture_definition(aws: AwsServer, balancer: LoadBalancer, tmp_path: Path) -> Fleet:
    return fleet(tmp_path, cloud_settings(aws), balancer=balancer.settings())


@pytest.fixture(name="nodes")
def fixture_nodes(aws: AwsServer, definition: Fleet) -> list[Node]:
    """Two nodes that are healthy targets with 10 workers each."""
    nodes = cloud_driver(definition).launch(LaunchSpec("web", 2, "abc"))
    AlbMembers(definition, lambda: nodes).register({node.name: (node.address, 80, 10) for node in nodes})
    aws.calls.clear()
    return [replace(node, tags={"workers": "10"}) for node in nodes]


def minute(ago: float) -> float:
    """The begin of the minute in which it was so many seconds ago."""
    return (time.time() - ago) // 60 * 60


def test_load_is_requests_times_their_time(aws: AwsServer, balancer: LoadBalancer, definition: Fleet, nodes: list[Node]) -> None:
    begin = minute(180)
    # Two requests of 30 s and 60 s in a minute: one and a half in service on average.
    for seconds in (30.0, 60.0):
        put_minute(aws, balancer, begin, RequestCount=1, TargetResponseTime=seconds, HealthyHostCount=2)
    reading = AlbReader(definition, nodes).read()
    assert (reading.requests, reading.in_service, reading.mean_seconds) == (2, 2, 45.0)
    assert (reading.taken, reading.interval, reading.members_fresh) == (begin + 60, 60.0, True)
    assert [(m.state, m.capacity) for m in reading.members] == [("up", 10)] * 2 and reading.faults == ()
    assert aws.counts() == {"DescribeTargetHealth": 1, "GetMetricData": 1}


def test_silence_is_no_request_only_where_hosts_were_counted(aws: AwsServer, balancer: LoadBalancer, definition: Fleet, nodes: list[Node]) -> None:
    put_minute(aws, balancer, minute(240), RequestCount=1, TargetResponseTime=6.0, HealthyHostCount=2)
    put_minute(aws, balancer, minute(180), HealthyHostCount=2)
    reading = AlbReader(definition, nodes).read()
    assert (reading.taken, reading.requests) == (minute(180) + 60, 0)


def test_a_minute_that_may_not_be_complete_is_left_out(aws: AwsServer, balancer: LoadBalancer, definition: Fleet, nodes: list[Node]) -> None:
    put_minute(aws, balancer, minute(200), RequestCount=1, TargetResponseTime=6.0, HealthyHostCount=2)
    put_minute(aws, balancer, minute(60), HealthyHostCount=2)
    assert AlbReader(definition, nodes).read().taken == minute(200) + 60


def test_requests_that_found_no_node_are_load_too(aws: AwsServer, balancer: LoadBalancer, definition: Fleet, nodes: list[Node]) -> None:
    begin = minute(180)
    put_minute(aws, balancer, begin, RequestCount=1, TargetResponseTime=12.0, HealthyHostCount=2, HTTPCode_ELB_5XX_Count=30, RejectedConnectionCount=10)
    assert AlbReader(definition, nodes).read().waiting == 8


def test_without_figures_the_members_are_known_and_nothing_shrinks(aws: AwsServer, definition: Fleet, nodes: list[Node]) -> None:
    outcome = check(POLICY, Ledger(MEMORY), replace(sources_of(definition), probe=lambda _nodes: {}))
    assert [code for code, _text in outcome.sample.faults] == ["stale"]
    assert set(outcome.phases.values()) == {"in_service"} and not outcome.plan
    aws.ec2.terminate_instances([nodes[0].id])
    outcome = check(POLICY, Ledger(MEMORY), replace(sources_of(definition), probe=lambda _nodes: {}))
    assert [step.action for step in outcome.plan.steps] == ["launch"]


def test_a_whole_check_sees_load_and_grows(aws: AwsServer, balancer: LoadBalancer, definition: Fleet, nodes: list[Node]) -> None:
    # 20 workers, 18 of them busy.
    put_minute(aws, balancer, minute(150), RequestCount=1, TargetResponseTime=18.0 * 60, HealthyHostCount=2)
    outcome = check(POLICY, Ledger(MEMORY), sources_of(definition))
    assert outcome.sample.trusted and outcome.sample.load == pytest.approx(18.0) and outcome.sample.capacity == 20
    assert outcome.decision.desired == 3 and [step.action for step in outcome.plan.steps] == ["launch"]
    # Nodes, announced events, targets, figures, images: five calls in all.
    assert aws.counts() == dict.fromkeys(
        ("DescribeInstances", "DescribeInstanceStatus", "DescribeTargetHealth", "GetMetricData", "DescribeImages"), 1
    )


def test_no_healthy_target_is_a_fault_and_no_outage_of_the_reading(
    aws: AwsServer, balancer: LoadBalancer, definition: Fleet, nodes: list[Node]
) -> None:
    put_minute(aws, balancer, minute(150), RequestCount=1, TargetResponseTime=1.0, UnHealthyHostCount=2)
    aws.targets.probe = lambda _target: False
    outcome = check(POLICY, Ledger(MEMORY), replace(sources_of(definition), probe=lambda _nodes: {}))
    (fault,) = outcome.sample.faults
    assert fault[0] == "fail_open" and "no target of 2 is healthy" in fault[1]
    assert not outcome.sample.trusted and outcome.sample.lower_bound
    assert not [step for step in outcome.plan.steps if step.action in ("drain", "retire")]


def test_how_long_a_target_is_unhealthy_is_remembered(aws: AwsServer, definition: Fleet, nodes: list[Node]) -> None:
    aws.targets.probe = lambda target: target.id != nodes[0].id
    now = time.time()
    states = []
    for seconds in (0, 50, 70):
        reading = AlbReader(definition, nodes, clock=lambda: now + seconds).read()  # noqa: B023 called at once
        states.append({member.name: (member.state, round(member.since)) for member in reading.members}[nodes[0].name])
    assert states == [("down", 0), ("down", 50), ("down", 70)]


def test_a_target_whose_node_is_gone_has_its_id_and_can_be_forgotten(aws: AwsServer, definition: Fleet, nodes: list[Node]) -> None:
    members = AlbMembers(definition, lambda: nodes[1:])
    assert {one.name for one in members.members()} == {nodes[0].id, nodes[1].name}
    assert members.remove(nodes[0].id) is True


def test_many_targets_are_one_call(aws: AwsServer, definition: Fleet) -> None:
    nodes = cloud_driver(definition).launch(LaunchSpec("web", 6, "many"))
    aws.calls.clear()
    members = AlbMembers(definition, lambda: nodes)
    members.register({node.name: (node.address, 80, 8 if node.zone.endswith("a") else 6) for node in nodes})
    assert aws.counts() == {"DescribeTargetHealth": 1, "RegisterTargets": 1, "CreateTags": 2}
    members.deregister([node.name for node in nodes])
    assert aws.count("DeregisterTargets") == 1


def test_what_a_node_says_of_itself_has_limits(definition: Fleet, nodes: list[Node]) -> None:
    for said, taken in (("10", 10), ("0", 4), ("{{ 7 }}", 4), ("99999999999999999999", 4), ("-3", 4)):
        group = AlbMembers(definition, lambda: nodes).group
        assert group.workers(replace(nodes[0], tags={"workers": said})) == taken


def test_the_queries_name_group_and_balancer(aws: AwsServer, balancer: LoadBalancer, definition: Fleet, nodes: list[Node]) -> None:
    found = boto3.client("cloudwatch")
    put_minute(aws, balancer, minute(180), RequestCount=1)
    (metric,) = found.list_metrics(Namespace="AWS/ApplicationELB")["Metrics"]
    values = {one["Name"]: one["Value"] for one in metric["Dimensions"]}
    assert values["LoadBalancer"].startswith("app/fleet/") and values["TargetGroup"].startswith("targetgroup/web/")
