# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The policies allow exactly the calls that the drivers make: what is recorded is compared, in both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb import AlbMembers, AlbReader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.aws import AwsDriver
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import LaunchSpec
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings, fleet
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.loadbalancer import LoadBalancer
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import REGION, AwsServer

pytestmark = pytest.mark.slow
TEMPLATES = Path(__file__).parents[3] / "roles" / "aws_services" / "templates"
# Calls that AWS lets nobody limit to a resource; everything else has to be limited by the fleet's tag.
UNLIMITED = re.compile(r"(ec2|elasticloadbalancing):Describe\w+|cloudwatch:GetMetricData")


def policy(name: str, **more: Any) -> list[dict[str, Any]]:
    """The statements of a policy."""
    values = {"aws_services_region": REGION, "aws_services_tag": "moodle_fleet", "aws_services_fleet": "aws",
              "aws_services_node_policies": [], **more}
    text = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string((TEMPLATES / f"{name}.json.j2").read_text())
    return json.loads(text.render(**values))["Statement"]


def listed(value: str | list[str]) -> list[str]:
    """IAM writes one or many."""
    return [value] if isinstance(value, str) else value


def actions(statements: list[dict[str, Any]]) -> set[str]:
    """Every action that is allowed."""
    return {action for one in statements for action in listed(one["Action"])}


@pytest.fixture(name="balancer")
def fixture_balancer(aws: AwsServer) -> Iterator[LoadBalancer]:
    balancer = LoadBalancer(aws)
    aws.targets.probe = lambda _target: True
    yield balancer
    balancer.close()


def scale(driver: AwsDriver, members: AlbMembers, reader: AlbReader, server: AwsServer) -> None:
    """All that a check and playbooks/scale.yml have the drivers do: launch, spot too, join, mark, drain, terminate."""
    nodes = driver.launch(LaunchSpec("web", 3, "abc"))
    driver.images()
    members.register({node.name: (node.address, 80, 8) for node in nodes})
    driver.notices(driver.nodes())
    server.recommend(driver.settings["events_queue"], nodes[1].id)
    server.recommend(driver.settings["events_queue"], nodes[2].id)
    server.calls = [call for call in server.calls if call.action not in ("GetQueueUrl", "SendMessage")]
    driver.hear(nodes)
    reader.read()
    driver.tag(nodes[0].name, {"retiring": "1"})
    driver.tag(nodes[0].name, {"retiring": None})
    members.deregister([nodes[0].name])
    driver.terminate([nodes[0].name])
    # Another image: another version of the template.
    driver.launch(LaunchSpec("web", 1, "def", image=server.ec2.register_image("another", "").id))


def bake(driver: AwsDriver) -> None:
    """All that playbooks/bake.yml and destroy.yml have the driver do, beside what scaling does."""
    (builder,) = driver.launch(LaunchSpec("builder", 1, ""))
    images = [driver.bake(builder.name, release, "0123") for release in ("4.5.1", "4.5.2")]
    driver.terminate([builder.name])
    driver.remove_images(images[:1])
    driver.settle = 0.0
    driver.destroy()


def test_policies_and_calls_are_the_same(aws: AwsServer, balancer: LoadBalancer, tmp_path: Path) -> None:
    cloud = cloud_settings(aws, spot_share=0.5, on_demand_base=1, events_queue=aws.queue("aws"))
    definition = fleet(tmp_path, cloud, balancer=balancer.settings())
    driver = AwsDriver(definition)
    members = AlbMembers(definition, driver.nodes)
    scale(driver, members, AlbReader(definition, driver.nodes()), aws)
    # Tags that come with a thing are a permission of their own, though no call.
    tagging = {"ec2:CreateTags"}
    assert aws.policy_actions() | tagging == actions(policy("trigger"))
    aws.calls.clear()
    bake(driver)
    assert aws.policy_actions() | tagging | actions(policy("trigger")) == actions(policy("baker")) | actions(policy("trigger"))
    assert not (actions(policy("baker")) & actions(policy("trigger"))) - tagging


@pytest.mark.parametrize("name", ["trigger", "baker"])
def test_nothing_is_allowed_beyond_the_fleet(name: str) -> None:
    for one in policy(name, aws_services_node_policies=["x"]):
        assert one["Effect"] == "Allow"
        assert not [action for action in listed(one["Action"]) if "*" in action]
        conditions = json.dumps(one.get("Condition", {}))
        if all(UNLIMITED.fullmatch(action) for action in listed(one["Action"])):
            continue
        assert "*" not in listed(one["Resource"]), one["Sid"]
        # What a launch uses of others' or makes without tags: images and network interfaces.
        if one["Sid"] == "LaunchFromImages":
            assert {resource.rsplit(":", 1)[-1] for resource in one["Resource"]} == {"network-interface/*", "image/*", "snapshot/*"}
        elif one["Sid"] == "GiveNodesTheirRole":
            assert listed(one["Resource"]) == ["arn:aws:iam::*:role/moodle-fleet-aws-node"]
        else:
            assert '"aws:ResourceTag/moodle_fleet": "aws"' in conditions or '"aws:RequestTag/moodle_fleet": "aws"' in conditions
