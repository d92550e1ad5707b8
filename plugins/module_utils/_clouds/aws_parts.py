# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Driver ``aws``: what is sent to EC2 and what its answers mean. Pure: no call is made here."""

from __future__ import annotations

import calendar
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._aws import TAG, pairs, tag_list
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node

ROLES = ("web", "balancer", "database", "cache", "jobs", "logs", "monitoring", "builder")
# Tags of the fleet's words (retiring, held, launch ...) have this prefix, so that they never meet the driver's own.
WORD = f"{TAG}:tag:"
STATES = {"pending": "pending", "running": "running", "shutting-down": "stopping", "stopping": "failed", "stopped": "failed"}
RECOMMENDATION = "EC2 Instance Rebalance Recommendation"
# What is asked of a page of DescribeInstances.
INSTANCES = (
    "Reservations[].Instances[].{id: InstanceId, index: AmiLaunchIndex, state: State.Name, address: PrivateIpAddress, "
    "zone: Placement.AvailabilityZone, kind: InstanceType, launched: LaunchTime, image: ImageId, tags: Tags, spot: InstanceLifecycle}"
)
# An AWS tag's value holds 256 characters; that many indices fit into it.
MOST_AT_ONCE = 60

USER_DATA = """\
## template: jinja
#cloud-config
# One host key for the nodes of one launch, so that the first connection is verified already.
hostname: {{{{ {names}[ds.meta_data.ami_launch_index | int] }}}}
preserve_hostname: false
disable_root: false
ssh_pwauth: false
ssh_deletekeys: true
ssh_keys:
  ed25519_private: |
{private}
  ed25519_public: {public}
write_files:
  - path: /root/.ssh/authorized_keys
    permissions: "0600"
    content: "{authorized}\\n"
  - path: /etc/ssh/sshd_config.d/10-fleet.conf
    permissions: "0644"
    content: "HostKey /etc/ssh/ssh_host_ed25519_key\\nPermitRootLogin prohibit-password\\nPasswordAuthentication no\\n"
  # No service but cloud-init may read the instance's metadata, and with it this text.
  - path: /etc/systemd/system/system.slice.d/90-metadata.conf
    permissions: "0644"
    content: "[Slice]\\nIPAddressDeny=169.254.169.254/32 fd00:ec2::254/128\\n"
  - &allow
    path: /etc/systemd/system/cloud-init-local.service.d/90-metadata.conf
    permissions: "0644"
    content: "[Service]\\nIPAddressAllow=169.254.169.254/32 fd00:ec2::254/128\\n"
  - {{<<: *allow, path: /etc/systemd/system/cloud-init.service.d/90-metadata.conf}}
  - {{<<: *allow, path: /etc/systemd/system/cloud-init-network.service.d/90-metadata.conf}}
  - {{<<: *allow, path: /etc/systemd/system/cloud-init-main.service.d/90-metadata.conf}}
  - {{<<: *allow, path: /etc/systemd/system/cloud-config.service.d/90-metadata.conf}}
  - {{<<: *allow, path: /etc/systemd/system/cloud-final.service.d/90-metadata.conf}}
runcmd:
  - [systemctl, daemon-reload]
  # It began with these files, unless it was faster than they; who connects now is not refused.
  - [systemctl, try-reload-or-restart, ssh.service]
"""


def prefix(fleet: str, role: str, token: str) -> str:
    """What the names of a launch's nodes have in common."""
    return "-".join([fleet, role, token] if token else [fleet, role])


def user_data(names: Sequence[str], private: str, public: str, authorized: str) -> str:
    """cloud-init's text for the nodes of one call: each takes its name by its place in the launch."""
    key = "\n".join(f"    {line}" for line in private.strip().splitlines())
    return USER_DATA.format(names=json.dumps(list(names)), private=key, public=public.strip(), authorized=authorized.strip())


def template_data(settings: Mapping[str, Any], role: str, image: str) -> dict[str, Any]:
    """A launch template's data for one role and image."""
    groups = settings["security_groups"]
    disk: dict[str, Any] = {
        "VolumeSize": settings["volume_gb"], "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True,
    }
    if settings["kms_key"]:
        disk["KmsKeyId"] = settings["kms_key"]
    data: dict[str, Any] = {
        "ImageId": image,
        "SecurityGroupIds": sorted({*groups.get("all", ()), *groups.get("web" if role == "builder" else role, ())}),
        "BlockDeviceMappings": [{"DeviceName": settings["root_device"], "Ebs": disk}],
        # No token leaves the node, and no request without a token is answered.
        "MetadataOptions": {
            "HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1,
            "InstanceMetadataTags": "disabled",
        },
        "InstanceInitiatedShutdownBehavior": "stop",
    }
    if settings["instance_profile"]:
        data["IamInstanceProfile"] = {"Name": settings["instance_profile"]}
    return data


def recommendation(text: str) -> tuple[str, float]:
    """The instance that an event recommends to replace, and the event's Unix time; no instance where it is no such event."""
    try:
        event = json.loads(text)
        instance = str(event["detail"]["instance-id"])
        when = float(calendar.timegm(time.strptime(event["time"], "%Y-%m-%dT%H:%M:%SZ")))
    except (KeyError, TypeError, ValueError):
        return "", 0.0
    return (instance if event.get("detail-type") == RECOMMENDATION else ""), when


def fingerprint(value: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def node_tags(fleet: str, role: str, token: str, indices: Sequence[int], release: str, words: Mapping[str, str]) -> dict[str, str]:
    """The tags of the nodes of one call."""
    return {
        "Name": prefix(fleet, role, token), TAG: fleet, f"{TAG}:role": role, f"{TAG}:token": token,
        f"{TAG}:indices": ",".join(map(str, indices)), f"{TAG}:release": release,
        **{f"{WORD}{key}": value for key, value in words.items()},
    }


def specifications(tags: dict[str, str], spot: bool) -> list[dict[str, Any]]:
    """The tags of a call for everything it makes."""
    kinds = ["instance", "volume"] + (["spot-instances-request"] if spot else [])
    return [{"ResourceType": kind, "Tags": tag_list(tags)} for kind in kinds]


def node(fleet: str, found: Mapping[str, Any]) -> Node:
    """An instance as a node. Its tags are untrusted: what does not fit makes a node of the role ``unknown``."""
    tags = pairs(found["tags"])
    role, token = tags.get(f"{TAG}:role", ""), tags.get(f"{TAG}:token", "")
    name = str(found["id"])
    indices = tags.get(f"{TAG}:indices", "").split(",")
    place = int(found["index"] or 0)
    fits = role in ROLES and token.isascii() and (token.isalnum() or not token) and len(token) <= 16
    if fits and place < len(indices) and indices[place].isdecimal() and len(indices[place]) < 5:
        name = f"{prefix(fleet, role, token)}-{int(indices[place]) + 1}"
    else:
        role = "unknown"
    return Node(
        name=name,
        role=role,
        address=str(found["address"] or ""),
        zone=str(found["zone"] or ""),
        state=STATES.get(str(found["state"]), "failed"),
        launched=found["launched"].timestamp(),
        release=tags.get(f"{TAG}:release", ""),
        image=str(found["image"] or ""),
        tags={key.removeprefix(WORD): value for key, value in tags.items() if key.startswith(WORD)},
        id=str(found["id"]),
    )


def distinct(nodes: Sequence[Node]) -> list[Node]:
    """Nodes sorted by name. Two of one name are one too many: the younger has its own id as name, so that it is seen."""
    from dataclasses import replace

    result: dict[str, Node] = {}
    for one in sorted(nodes, key=lambda n: (n.launched, n.id)):
        result[one.id if one.name in result else one.name] = replace(one, name=one.id) if one.name in result else one
    return [result[name] for name in sorted(result)]
