# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the driver ``aws`` does beyond the contract of every cloud driver."""

from __future__ import annotations

import base64
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from jinja2 import Template

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import observed_nodes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import aws_launch
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.aws import AwsDriver
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError, LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings, fleet
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer, Fault

pytestmark = pytest.mark.slow
A, B, C = (f"eu-central-1{zone}" for zone in "abc")


@pytest.fixture(name="cloud")
def fixture_cloud(aws: AwsServer) -> dict[str, Any]:
    return cloud_settings(aws)


@pytest.fixture(name="driver")
def fixture_driver(cloud: dict[str, Any], tmp_path: Path) -> AwsDriver:
    return AwsDriver(fleet(tmp_path, cloud))


def zones(nodes: list[Node]) -> dict[str, int]:
    return dict(Counter(node.zone for node in nodes))


def kinds(aws: AwsServer) -> dict[str, int]:
    return dict(Counter(one.instance_type for one in aws.instances()))


def test_a_launch_is_one_call_for_each_zone_and_needs_no_other(aws: AwsServer, driver: AwsDriver) -> None:
    nodes = driver.launch(LaunchSpec("web", 7, "abc"))
    assert zones(nodes) == {A: 3, B: 2, C: 2}
    assert aws.counts() == {"CreateLaunchTemplate": 1, "RunInstances": 3}
    driver.launch(LaunchSpec("web", 3, "def"))
    assert aws.counts() == {"CreateLaunchTemplate": 1, "RunInstances": 6}


def test_instances_are_closed_up(aws: AwsServer, driver: AwsDriver) -> None:
    (node,) = driver.launch(LaunchSpec("web", 1, "abc", tags={"launch": "abc"}))
    ec2 = boto3.client("ec2")
    (found,) = ec2.describe_instances(InstanceIds=[node.id])["Reservations"][0]["Instances"]
    assert found["MetadataOptions"]["HttpTokens"] == "required"
    assert found["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    template = ec2.describe_launch_template_versions(LaunchTemplateName="moodle-fleet-aws-web")["LaunchTemplateVersions"][0]
    (disk,) = template["LaunchTemplateData"]["BlockDeviceMappings"]
    assert disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"] and disk["DeviceName"] == "/dev/xvda"
    volumes = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [node.id]}])["Volumes"]
    for tags in (found["Tags"], *(volume["Tags"] for volume in volumes)):
        named = {one["Key"]: one["Value"] for one in tags}
        assert (named["moodle_fleet"], named["moodle_fleet:role"]) == ("aws", "web")
    assert volumes and any(volume["Encrypted"] for volume in volumes)


def test_user_data_names_each_node_and_brings_its_host_key(aws: AwsServer, driver: AwsDriver, tmp_path: Path) -> None:
    nodes = driver.launch(LaunchSpec("web", 4, "abc"))
    known = (tmp_path / "state/launches/aws-web-abc/known_hosts").read_text().split()
    for number, node in enumerate(sorted(nodes, key=lambda n: n.name)):
        instance = aws.ec2.get_instance(node.id)
        found = boto3.client("ec2").describe_instance_attribute(InstanceId=node.id, Attribute="userData")
        text = base64.b64decode(found["UserData"]["Value"]).decode()
        assert text.startswith("## template: jinja\n#cloud-config\n")
        # As cloud-init renders it.
        data = {"meta_data": {"ami_launch_index": str(instance.ami_launch_index)}}
        config = yaml.safe_load(Template(text).render(ds=data))
        assert config["hostname"] == node.name == f"aws-web-abc-{number + 1}"
        assert config["ssh_keys"]["ed25519_public"].split()[:2] == known[1:3]
        assert "BEGIN OPENSSH PRIVATE KEY" in config["ssh_keys"]["ed25519_private"]
        own = (tmp_path / "state/ssh/id_ed25519.pub").read_text().strip()
        assert config["write_files"][0]["content"] == own + "\n"
        denied = next(one for one in config["write_files"] if "system.slice.d" in one["path"])
        assert "IPAddressDeny=169.254.169.254/32" in denied["content"]
    assert (tmp_path / "state/launches/aws-web-abc/ssh_host_ed25519_key").stat().st_mode & 0o077 == 0


def test_what_lacks_is_had_elsewhere_in_the_same_pass_and_remembered(aws: AwsServer, driver: AwsDriver) -> None:
    aws.capacity = {(A, "m7i.large"): 1, (B, "m7i.large"): 0, (B, "m6i.large"): 0}
    nodes = driver.launch(LaunchSpec("web", 9, "abc"))
    assert len(nodes) == len({node.name for node in nodes}) == 9
    assert zones(nodes) in ({A: 5, C: 4}, {A: 4, C: 5})
    assert kinds(aws)["m6i.large"] >= 3
    assert driver.zones() == [A, C]
    aws.calls.clear()
    again = driver.launch(LaunchSpec("web", 2, "def", zones=driver.zones()))
    assert zones(again) == {A: 1, C: 1} and aws.counts() == {"RunInstances": 2}
    later = time.time() + aws_launch.REMEMBERED + 1
    capacity = aws_launch.Capacity(driver.state / "capacity.json", clock=lambda: later)
    assert capacity.zones([A, B, C], ["m7i.large", "m6i.large"]) == [A, B, C]


def test_what_cannot_be_had_at_all_is_named(aws: AwsServer, driver: AwsDriver) -> None:
    aws.capacity = {(zone, kind): 1 if zone == A else 0 for zone in (A, B, C) for kind in ("m7i.large", "m6i.large")}
    with pytest.raises(CloudError, match="Failed to launch 2 of the nodes: .*m6i.large in eu-central-1b.*cloud.instance_types"):
        driver.launch(LaunchSpec("web", 4, "abc"))
    assert len(driver.nodes()) == 2
    aws.capacity = {}
    (driver.state / "capacity.json").unlink()
    assert len(driver.launch(LaunchSpec("web", 4, "abc"))) == 4 == len(driver.nodes())


def test_a_quota_ends_a_launch_with_its_remedy(aws: AwsServer, driver: AwsDriver) -> None:
    aws.vcpu_quota = 6
    with pytest.raises(CloudError, match="VcpuLimitExceeded"):
        driver.launch(LaunchSpec("web", 5, "abc"))
    assert len(driver.nodes()) == 3


def test_an_unknown_image_is_an_error_that_says_what_to_do(driver: AwsDriver) -> None:
    with pytest.raises(CloudError, match="InvalidAMIID.NotFound.*name an image"):
        driver.launch(LaunchSpec("web", 1, "abc", image="ami-00000001"))


def test_a_repeated_launch_with_other_zones_launches_nothing_twice(aws: AwsServer, driver: AwsDriver) -> None:
    aws.hidden_calls = 5
    names = [node.name for node in driver.launch(LaunchSpec("web", 4, "abc", zones=[A, B]))]
    assert [node.name for node in driver.launch(LaunchSpec("web", 4, "abc", zones=[C, B, A]))] == names
    assert len(aws.instances()) == 4


def test_without_the_journal_the_nodes_are_still_known(aws: AwsServer, driver: AwsDriver, cloud: dict[str, Any], tmp_path: Path) -> None:
    nodes = driver.launch(LaunchSpec("web", 3, "abc"))
    other = AwsDriver(fleet(tmp_path / "elsewhere", cloud))
    assert [(n.name, n.id) for n in other.nodes()] == [(n.name, n.id) for n in nodes]


def test_two_instances_of_one_name_are_both_seen(aws: AwsServer, driver: AwsDriver) -> None:
    (node,) = driver.launch(LaunchSpec("web", 1, "abc"))
    boto3.client("ec2").run_instances(
        ImageId=aws.base_image(), MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [
            {"Key": key, "Value": value} for key, value in (
                ("moodle_fleet", "aws"), ("moodle_fleet:role", "web"), ("moodle_fleet:token", "abc"), ("moodle_fleet:indices", "0"),
            )
        ]}],
    )
    names = [one.name for one in driver.nodes()]
    assert len(names) == 2 and node.name in names and any(name.startswith("i-") for name in names)


@pytest.mark.parametrize("tags", [
    {"moodle_fleet:role": "king", "moodle_fleet:token": "abc", "moodle_fleet:indices": "0"},
    {"moodle_fleet:role": "web", "moodle_fleet:token": "{{ x }}", "moodle_fleet:indices": "0"},
    {"moodle_fleet:role": "web", "moodle_fleet:token": "abc", "moodle_fleet:indices": "../0"},
    {},
])
def test_tags_that_do_not_fit_make_no_name(aws: AwsServer, driver: AwsDriver, tags: dict[str, str]) -> None:
    made = boto3.client("ec2").run_instances(
        ImageId=aws.base_image(), MinCount=1, MaxCount=1, TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in {**tags, "moodle_fleet": "aws"}.items()]}
        ],
    )
    (node,) = driver.nodes()
    assert (node.name, node.role) == (made["Instances"][0]["InstanceId"], "unknown")


def test_nothing_of_anybody_else_is_seen_or_touched(aws: AwsServer, driver: AwsDriver, cloud: dict[str, Any], tmp_path: Path) -> None:
    boto3.client("ec2").run_instances(ImageId=aws.base_image(), MinCount=1, MaxCount=1)
    other = AwsDriver(fleet(tmp_path / "other", cloud, fleet="other"))
    (foreign,) = other.launch(LaunchSpec("web", 1, "abc"))
    assert driver.nodes() == []
    assert driver.terminate([foreign.name, foreign.id]) == []
    driver.destroy()
    assert len(aws.instances()) == 2
    assert [node.name for node in other.nodes()] == [foreign.name]


def test_a_share_above_the_base_is_spot(aws: AwsServer, cloud: dict[str, Any], tmp_path: Path) -> None:
    driver = AwsDriver(fleet(tmp_path, {**cloud, "spot_share": 0.5, "on_demand_base": 2}))
    driver.launch(LaunchSpec("web", 2, "abc"))
    assert [one.lifecycle for one in aws.instances()] == [None, None]
    driver.launch(LaunchSpec("web", 6, "def"))
    assert sum(one.lifecycle == "spot" for one in aws.instances()) == 3
    driver.launch(LaunchSpec("database", 1, ""))
    assert sum(one.lifecycle == "spot" for one in aws.instances()) == 3


def test_without_spot_capacity_the_nodes_are_on_demand(aws: AwsServer, cloud: dict[str, Any], tmp_path: Path) -> None:
    driver = AwsDriver(fleet(tmp_path, {**cloud, "spot_share": 1.0, "on_demand_base": 0}))
    aws.faults = [Fault("RunInstances", "MaxSpotInstanceCountExceeded", 400, times=6)]
    assert len(driver.launch(LaunchSpec("web", 4, "abc"))) == 4
    assert {one.lifecycle for one in aws.instances()} == {None}


def test_announcements_are_seen_with_their_time(aws: AwsServer, cloud: dict[str, Any], tmp_path: Path) -> None:
    driver = AwsDriver(fleet(tmp_path, {**cloud, "spot_share": 0.5, "on_demand_base": 1}))
    spot, old, quiet = driver.launch(LaunchSpec("web", 3, "abc"))
    (is_spot,) = (one.id for one in aws.instances() if one.lifecycle == "spot")
    aws.interrupt(is_spot)
    (is_old, _quiet) = (node for node in (spot, old, quiet) if node.id != is_spot)
    aws.interrupt(is_old.id, "instance-retirement", 3600)
    seen = {node.id: node.notice - time.time() for node in observed_nodes(driver)}
    assert 100 < seen[is_spot] <= 120 and 3500 < seen[is_old.id] <= 3600
    assert sum(notice > 0 for notice in seen.values()) == 2


def test_a_recommendation_is_heard_once_and_known_from_then_on(aws: AwsServer, cloud: dict[str, Any], tmp_path: Path) -> None:
    queue = aws.queue("aws")
    driver = AwsDriver(fleet(tmp_path, {**cloud, "spot_share": 0.5, "on_demand_base": 1, "events_queue": queue}))
    driver.launch(LaunchSpec("web", 3, "abc"))
    (spot,) = (one for one in aws.instances() if one.lifecycle == "spot")
    zone, kind = spot.placement.zone, spot.instance_type
    aws.recommend(queue, spot.id)
    aws.recommend(queue, "i-0123456789abcdef0")
    aws.recommend(queue, "i-0123456789abcdef1", seconds_ago=400)
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName="moodle-fleet-aws-events")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="{}")
    nodes = observed_nodes(driver)
    assert not any(node.notice for node in nodes)
    driver.hear(nodes)
    # Somebody else's may be that of a node which is not listed yet.
    left = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert left["ApproximateNumberOfMessagesNotVisible"] == "1" and left["ApproximateNumberOfMessages"] == "0"
    for _check in range(2):
        seen = {node.id: node.notice - time.time() for node in observed_nodes(driver) if node.notice}
        assert list(seen) == [spot.id] and 890 < seen[spot.id] <= 900
        driver.hear(driver.nodes())
    assert aws.count("CreateTags") == 1
    assert aws_launch.Capacity(driver.state / "capacity.json").lacks(zone, kind, True)
    # What is sure goes before what is likely.
    aws.interrupt(spot.id)
    (seen_now,) = (node.notice - time.time() for node in observed_nodes(driver) if node.notice)
    assert 100 < seen_now <= 120


def test_nobody_listens_where_there_are_no_spot_nodes(aws: AwsServer, cloud: dict[str, Any], tmp_path: Path) -> None:
    driver = AwsDriver(fleet(tmp_path, {**cloud, "events_queue": aws.queue("aws")}))
    driver.launch(LaunchSpec("web", 2, "abc"))
    aws.calls.clear()
    driver.hear(driver.nodes())
    assert aws.counts() == {"DescribeInstances": 1}


def test_a_template_somebody_removed_is_made_anew(driver: AwsDriver) -> None:
    driver.launch(LaunchSpec("web", 1, "abc"))
    boto3.client("ec2").delete_launch_template(LaunchTemplateName="moodle-fleet-aws-web")
    with pytest.raises(CloudError, match="LaunchTemplate"):
        driver.launch(LaunchSpec("web", 1, "def"))
    assert len(driver.launch(LaunchSpec("web", 1, "ghi"))) == 1


def test_images_become_versions_of_one_template_and_go_with_them(aws: AwsServer, driver: AwsDriver) -> None:
    ec2 = boto3.client("ec2")
    driver.launch(LaunchSpec("web", 1, "abc"))
    (builder,) = driver.launch(LaunchSpec("builder", 1, ""))
    images = [driver.bake(builder.name, f"4.5.{number}", "0123") for number in (1, 2)]
    assert driver.bake(builder.name, "4.5.2", "0123") == images[1]
    assert {one["id"] for one in driver.images()} == set(images)
    name = "moodle-fleet-aws-web"
    versions = ec2.describe_launch_template_versions(LaunchTemplateName=name)["LaunchTemplateVersions"]
    assert {one["LaunchTemplateData"]["ImageId"] for one in versions} == {aws.base_image(), *images}
    snapshots = {one.ebs_snapshot.id for one in aws.ec2.amis.values() if one.id == images[0]}
    driver.remove_images([images[0], "ami-ffffffff"])
    assert [one["id"] for one in driver.images()] == [images[1]]
    versions = ec2.describe_launch_template_versions(LaunchTemplateName=name)["LaunchTemplateVersions"]
    assert images[0] not in {one["LaunchTemplateData"]["ImageId"] for one in versions}
    assert not snapshots & set(aws.ec2.snapshots)


def test_a_thousand_nodes_are_one_call(aws: AwsServer, driver: AwsDriver) -> None:
    driver.launch(LaunchSpec("web", 150, "abc"))
    aws.calls.clear()
    assert len(driver.nodes()) == 150 and aws.counts() == {"DescribeInstances": 1}
    assert aws.calls[0].parameters["MaxResults"] == "1000"
