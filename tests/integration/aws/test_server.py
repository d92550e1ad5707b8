# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The test server behaves like AWS where moto does not: what other tests rely on."""

from __future__ import annotations

import time
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer, Fault

ONCE = Config(retries={"total_max_attempts": 1})
STANDARD = Config(retries={"mode": "standard", "total_max_attempts": 5})


@pytest.fixture
def ec2(aws: AwsServer) -> Any:
    return boto3.client("ec2", config=ONCE)


@pytest.fixture
def launch(aws: AwsServer, ec2: Any) -> dict[str, Any]:
    """Parameters of a launch that works."""
    image = aws.base_image()
    subnet = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"][0]
    aws.calls.clear()
    return {"ImageId": image, "SubnetId": subnet["SubnetId"], "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1}


def code(caught: Any) -> str:
    return str(caught.value.response["Error"]["Code"])


def test_a_client_token_launches_once(aws: AwsServer, ec2: Any, launch: dict[str, Any]) -> None:
    ids = [ec2.run_instances(**launch, ClientToken="one")["Instances"][0]["InstanceId"] for _number in range(2)]
    assert ids[0] == ids[1] and len(aws.instances()) == 1
    with pytest.raises(ClientError) as caught:
        ec2.run_instances(**{**launch, "MaxCount": 2}, ClientToken="one")
    assert code(caught) == "IdempotentParameterMismatch"
    ec2.terminate_instances(InstanceIds=ids[:1])
    again = ec2.run_instances(**launch, ClientToken="one")["Instances"][0]
    assert (again["InstanceId"], again["State"]["Name"]) == (ids[0], "terminated")


def test_as_many_as_there_is_room_for(aws: AwsServer, ec2: Any, launch: dict[str, Any]) -> None:
    zone = ec2.describe_subnets(SubnetIds=[launch["SubnetId"]])["Subnets"][0]["AvailabilityZone"]
    aws.capacity[zone, "t3.small"] = 3
    assert len(ec2.run_instances(**{**launch, "MaxCount": 5})["Instances"]) == 3
    with pytest.raises(ClientError) as caught:
        ec2.run_instances(**launch)
    assert code(caught) == "InsufficientInstanceCapacity"
    aws.vcpu_quota = 4 * 2
    assert len(ec2.run_instances(**{**launch, "InstanceType": "t3.large", "MaxCount": 5})["Instances"]) == 1
    with pytest.raises(ClientError) as caught:
        ec2.run_instances(**{**launch, "InstanceType": "t3.large"})
    assert code(caught) == "VcpuLimitExceeded"


def test_an_unknown_image_is_refused(ec2: Any, launch: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as caught:
        ec2.run_instances(**{**launch, "ImageId": "ami-00000000"})
    assert code(caught) == "InvalidAMIID.NotFound"


def test_a_new_instance_is_shown_late(aws: AwsServer, ec2: Any, launch: dict[str, Any]) -> None:
    aws.hidden_calls = 2
    name = ec2.run_instances(**launch)["Instances"][0]["InstanceId"]
    with pytest.raises(ClientError) as caught:
        ec2.create_tags(Resources=[name], Tags=[{"Key": "a", "Value": "b"}])
    assert code(caught) == "InvalidInstanceID.NotFound"
    seen = [len(ec2.describe_instances()["Reservations"][0]["Instances"]) for _number in range(3)]
    assert seen == [0, 0, 1]


def test_faults(aws: AwsServer, ec2: Any, launch: dict[str, Any]) -> None:
    aws.faults = [Fault("RunInstances", "RequestLimitExceeded", 503, times=2), Fault("RunInstances", when="lost", skip=2)]
    for expected in ("RequestLimitExceeded", "RequestLimitExceeded"):
        with pytest.raises(ClientError) as caught:
            ec2.run_instances(**launch)
        assert code(caught) == expected
    with pytest.raises(ClientError):
        aws.faults.append(Fault("DescribeInstances", "InternalError", 500))
        ec2.describe_instances()
    aws.faults = [Fault("RunInstances", when="lost")]
    with pytest.raises(ConnectionClosedError):
        ec2.run_instances(**launch)
    assert len(aws.instances()) == 1
    assert [call.outcome for call in aws.calls if call.action == "RunInstances"] == ["RequestLimitExceeded"] * 2 + ["lost"]


def test_standard_retries_meet_a_lost_answer_with_the_same_token(aws: AwsServer, launch: dict[str, Any]) -> None:
    client = boto3.client("ec2", config=STANDARD)
    aws.faults = [Fault("RunInstances", when="lost"), Fault("RunInstances")]
    assert len(client.run_instances(**launch)["Instances"]) == 1
    assert len(aws.instances()) == 1 and aws.count("RunInstances") == 3


def test_throttling_of_the_other_protocols(aws: AwsServer) -> None:
    aws.faults = [Fault(code="ThrottlingException", status=400, times=None)]
    for service, method, arguments in (
        ("cloudwatch", "list_metrics", {}), ("ssm", "describe_parameters", {}), ("elbv2", "describe_load_balancers", {}),
    ):
        with pytest.raises(ClientError) as caught:
            getattr(boto3.client(service, config=ONCE), method)(**arguments)
        assert code(caught) == "ThrottlingException"
    assert aws.policy_actions() == {
        "cloudwatch:ListMetrics", "ssm:DescribeParameters", "elasticloadbalancing:DescribeLoadBalancers"
    }


def test_notices(aws: AwsServer, ec2: Any, launch: dict[str, Any]) -> None:
    spot = ec2.run_instances(**launch, InstanceMarketOptions={"MarketType": "spot"})["Instances"][0]["InstanceId"]
    old = ec2.run_instances(**launch)["Instances"][0]["InstanceId"]
    filters = [{"Name": "status-code", "Values": ["marked-for-termination"]}]
    assert ec2.describe_spot_instance_requests(Filters=filters)["SpotInstanceRequests"] == []
    aws.interrupt(spot)
    aws.interrupt(old, "instance-retirement", 3600)
    (found,) = ec2.describe_spot_instance_requests(Filters=filters)["SpotInstanceRequests"]
    assert found["InstanceId"] == spot
    filters = [{"Name": "event.code", "Values": ["instance-retirement"]}]
    (status,) = ec2.describe_instance_status(Filters=filters)["InstanceStatuses"]
    assert (status["InstanceId"], status["Events"][0]["Code"]) == (old, "instance-retirement")
    assert 3500 < status["Events"][0]["NotBefore"].timestamp() - time.time() <= 3600


def test_targets_have_a_life(aws: AwsServer, ec2: Any, launch: dict[str, Any]) -> None:
    elb = boto3.client("elbv2", config=ONCE)
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = elb.create_target_group(Name="web", Protocol="HTTP", Port=80, VpcId=vpc)["TargetGroups"][0]["TargetGroupArn"]
    name = ec2.run_instances(**launch)["Instances"][0]["InstanceId"]

    def state() -> list[str]:
        found = elb.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
        return [one["TargetHealth"]["State"] for one in found]

    aws.targets.initial_seconds, aws.targets.drain_seconds = 0.3, 0.3
    elb.register_targets(TargetGroupArn=group, Targets=[{"Id": name}])
    assert state() == ["initial"]
    time.sleep(0.4)
    assert state() == ["healthy"]
    aws.targets.probe = lambda _target: False
    assert state() == ["unhealthy"]
    elb.deregister_targets(TargetGroupArn=group, Targets=[{"Id": name}])
    assert state() == ["draining"]
    time.sleep(0.4)
    assert state() == []
