# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a fleet on the test server needs beforehand: a network over three zones, a security group, an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet, validate

from .server import REGION, AwsServer

NETWORK = "10.20.0.0/16"


def cloud_settings(server: AwsServer, network: str = NETWORK, **more: Any) -> dict[str, Any]:
    """The section ``cloud`` of a fleet file, with a network made for it. The calls for it are not kept."""
    ec2 = boto3.client("ec2", endpoint_url=server.url, region_name=REGION)
    vpc = ec2.create_vpc(CidrBlock=network)["Vpc"]["VpcId"]
    first, second, *_rest = network.split(".")
    zones = {}
    for number, zone in enumerate("abc"):
        made = ec2.create_subnet(VpcId=vpc, CidrBlock=f"{first}.{second}.{16 * number}.0/20", AvailabilityZone=f"{REGION}{zone}")
        zones[f"{REGION}{zone}"] = made["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=vpc)["GroupId"]
    server.calls.clear()
    return {
        "driver": "aws", "region": REGION, "network": network, "zones": zones, "base_image": server.base_image(),
        "instance_types": ["m7i.large", "m6i.large"], "security_groups": {"all": [group]}, **more,
    }


def fleet(folder: Path, cloud: dict[str, Any], **more: Any) -> Fleet:
    """A validated fleet whose state is kept in the folder."""
    values = {
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "aws", "state_dir": str(folder / "state"), "cloud": cloud,
        "scaling": {"min_nodes": 2, "max_nodes": 40}, **more,
    }
    return validate(values, folder / "moodle_fleet.yml")
