# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Cloud driver ``aws``: nodes are EC2 instances.

Everything it makes carries the tag ``moodle_fleet`` with the fleet's name, and nothing without it is touched. A node's name
is made of its launch's token and its place in it, so that it needs no call of its own.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._aws import (
    TAG,
    Aws,
    doing,
    error_code,
    tag_list,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import aws_parts as parts
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import ssh
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.aws_images import Images
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.aws_launch import Capacity, Journal, Launch
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import (
    CloudDriver,
    CloudError,
    LaunchSpec,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._schema import Field

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

# The tag of a node that AWS recommends to replace, with the Unix time of it.
TAG_REBALANCE = "rebalance"
# When it will be taken away AWS does not say. By being always so far ahead, its replacement has the time it needs.
REBALANCE_SECONDS = 900.0
# A recommendation for an instance that is no node after so many seconds is somebody else's.
FOREIGN_SECONDS = 300.0
# Scheduled events after which an instance is gone, or away for a while.
EVENTS = ["instance-retirement", "instance-stop", "instance-reboot", "system-reboot", "system-maintenance"]


def _zones_problem(value: Mapping[str, Any]) -> str | None:
    wrong = [zone for zone, subnet in value.items() if not re.fullmatch("subnet-[0-9a-z]+", str(subnet))]
    if not value or wrong:
        return "give each zone its subnet, for example {eu-central-1a: subnet-0123456789abcdef0}"
    return None


def _groups_problem(value: Mapping[str, Any]) -> str | None:
    known = ("all", *parts.ROLES)
    for role, groups in value.items():
        if role not in known:
            return f"'{role}' is no role; use all, {', '.join(parts.ROLES)}"
        if not isinstance(groups, list) or not all(re.fullmatch("sg-[0-9a-z]+", str(one)) for one in groups):
            return f"give '{role}' a list of security groups, for example [sg-0123456789abcdef0]"
    return None


def _types_problem(value: Mapping[str, Any]) -> str | None:
    for role, kinds in value.items():
        if role not in parts.ROLES:
            return f"'{role}' is no role; use {', '.join(parts.ROLES)}"
        if not isinstance(kinds, list) or not kinds or not all(re.fullmatch(_TYPE, str(one)) for one in kinds):
            return f"give '{role}' a list of instance types, for example [m7i.large, m6i.large]"
    return None


def _network_problem(value: str) -> str | None:
    try:
        ipaddress.ip_network(value)
    except ValueError as exc:
        return f"write the network of the VPC, such as 10.20.0.0/16 ({exc})"
    return None


_TYPE = r"[a-z0-9-]+\.[a-z0-9-]+"
SETTINGS = {
    "region": Field(str, default="", pattern="([a-z]{2}(-[a-z]+)+-[0-9])?", help="the region; boto3's own where it is left out"),
    "network": Field(str, required=True, check=_network_problem, help="the VPC's network: who may reach database, cache and logs"),
    "zones": Field(dict, required=True, check=_zones_problem, help="each zone with its subnet; nodes are spread over them"),
    "base_image": Field(str, required=True, pattern="ami-[0-9a-z]+",
                        help="a Debian image with cloud-init: what a node starts from until an image was baked"),
    "instance_types": Field(list, default=["m7i.large", "m6i.large", "m6a.large"], items=Field(str, pattern=_TYPE),
                            help="kinds of instances, in order: the next is taken where one lacks"),
    "role_instance_types": Field(dict, default={}, check=_types_problem, help="the same for single roles: `{database: [r7i.large]}`"),
    "security_groups": Field(dict, default={}, check=_groups_problem,
                             help="ids for `all` and for single roles; a builder has those of `web`"),
    "instance_profile": Field(str, default="", pattern=r"[\w+=,.@-]{0,128}", help="instance profile of every node"),
    "volume_gb": Field(int, default=20, minimum=8, maximum=16384, help="size of the root volume, which is always encrypted"),
    "kms_key": Field(str, default="", help="key of the root volume's encryption; EBS's own where it is left out"),
    "root_device": Field(str, default="/dev/xvda", pattern="/dev/[a-z0-9]+", help="name that the base image gives its root volume"),
    "spot_share": Field(float, default=0.0, minimum=0.0, maximum=1.0, help="share of the web nodes above `on_demand_base` that are spot"),
    "events_queue": Field(str, default="", pattern=r"(arn:aws[a-z-]*:sqs:[a-z0-9-]+:\d{12}:[\w-]{1,80})?",
                          help="ARN of the queue to which EventBridge brings recommendations to replace spot nodes"),
    "on_demand_base": Field(int, default=2, minimum=0, maximum=10000, help="web nodes that are never spot"),
}


def driver(fleet: Fleet) -> AwsDriver:
    """The driver of one fleet."""
    return AwsDriver(fleet)


class AwsDriver(CloudDriver):
    """EC2 instances of one fleet, told apart by the tag ``moodle_fleet``."""

    settle = 60.0

    def __init__(self, fleet: Fleet, aws: Aws | None = None):
        self.fleet = fleet
        self.state = fleet.state_dir
        self.settings = fleet.cloud
        self.aws = aws or Aws(self.settings["region"])
        self.pictures = Images(fleet, self.aws)
        self._spot: set[str] = set()
        self._kind: dict[str, str] = {}

    @property
    def _ec2(self) -> Any:
        return self.aws.client("ec2")

    # -- observing ---------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        return self._listed(list(parts.STATES))

    def _listed(self, states: list[str]) -> list[Node]:
        """Nodes in these of AWS's states."""
        with doing("list the nodes", CloudError):
            pages = self._ec2.get_paginator("describe_instances").paginate(
                Filters=[
                    {"Name": f"tag:{TAG}", "Values": [self.fleet.name]},
                    {"Name": "instance-state-name", "Values": states},
                ],
                PaginationConfig={"PageSize": 1000},
            )
            found = [one for one in pages.search(parts.INSTANCES) if one]
        self._spot = {str(one["id"]) for one in found if one["spot"] == "spot"}
        self._kind = {str(one["id"]): str(one["kind"]) for one in found}
        return parts.distinct([parts.node(self.fleet.name, one) for one in found])

    def notices(self, nodes: Sequence[Node]) -> dict[str, float]:
        names = {node.id: node.name for node in nodes}
        result = {}
        with doing("read the scheduled events", CloudError):
            pages = self._ec2.get_paginator("describe_instance_status").paginate(
                Filters=[{"Name": "event.code", "Values": EVENTS}], IncludeAllInstances=False
            )
            for one in pages.search("InstanceStatuses[].{id: InstanceId, events: Events[].[Description, NotBefore]}"):
                for text, when in (one or {}).get("events") or ():
                    if one["id"] in names and not str(text).startswith(("[Completed]", "[Canceled]")):
                        result[names[one["id"]]] = when.timestamp()
        if self._spot & set(names):
            with doing("read the spot interruptions", CloudError):
                pages = self._ec2.get_paginator("describe_spot_instance_requests").paginate(
                    Filters=[
                        {"Name": "status-code", "Values": ["marked-for-termination", "marked-for-stop"]},
                        {"Name": "state", "Values": ["active"]},
                    ]
                )
                for one in pages.search("SpotInstanceRequests[].{id: InstanceId, since: Status.UpdateTime}"):
                    if one and one["id"] in names:
                        result[names[one["id"]]] = one["since"].timestamp() + 120
        for node in nodes:
            if TAG_REBALANCE in node.tags:
                result.setdefault(node.name, time.time() + REBALANCE_SECONDS)
        return result

    def hear(self, nodes: Sequence[Node]) -> None:
        """Take AWS's recommendations to replace spot instances out of the queue to which EventBridge brings them."""
        queue = self.settings["events_queue"]
        if not queue or not self._spot:
            return
        by_id = {node.id: node for node in nodes}
        with doing("read the recommendations", CloudError):
            sqs = self.aws.client("sqs")
            # As AWS builds it, so that nobody need be asked for it.
            url = "/".join([sqs.meta.endpoint_url, *queue.split(":")[4:]])
            for message in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", ()):
                instance, when = parts.recommendation(message["Body"])
                node = by_id.get(instance)
                if node is not None and TAG_REBALANCE not in node.tags:
                    self._tag(node, {TAG_REBALANCE: f"{when:.0f}"})
                    # Another one of this kind would be told the same.
                    self._capacity().remember(node.zone, self._kind.get(instance, ""), True)
                if node is not None or time.time() - when > FOREIGN_SECONDS:
                    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])

    def zones(self) -> list[str]:
        return self._capacity().zones(list(self.settings["zones"]), self._kinds("web"))

    def images(self) -> list[dict[str, Any]]:
        return [{key: one[key] for key in ("id", "role", "release", "recipe", "created")} for one in self.pictures.images()]

    def connection(self, node: Node) -> dict[str, Any]:
        folder = self._launch_folder(node.name.rpartition("-")[0])
        return ssh.connection(node.address, node.name, self.state / "ssh" / "id_ed25519", folder / "known_hosts")

    def networks(self) -> dict[str, list[str]]:
        # The controller is not in the VPC of necessity: whoever reads counters is named by management_networks.
        return {"fleet": [self.settings["network"]], "controller": []}

    # -- changing ----------------------------------------------------------------------------------------------

    def launch_names(self, spec: LaunchSpec) -> list[str]:
        if not re.fullmatch("[a-z0-9]{0,16}", spec.token):
            raise CloudError(f"token: {spec.token!r}: use at most 16 characters of a-z and 0-9")
        if spec.role not in parts.ROLES:
            raise CloudError(f"role: {spec.role!r}: use one of {', '.join(parts.ROLES)}")
        return [f"{parts.prefix(self.fleet.name, spec.role, spec.token)}-{i + 1}" for i in range(spec.count)]

    def launch(self, spec: LaunchSpec) -> list[Node]:
        names = self.launch_names(spec)
        unknown = sorted(set(spec.zones) - set(self.settings["zones"]))
        if unknown:
            raise CloudError(f"zones: {unknown!r}: not in cloud.zones of the fleet file, which has {', '.join(self.settings['zones'])}")
        journal = Journal(self._launch_folder(parts.prefix(self.fleet.name, spec.role, spec.token)))
        with journal.locked() as begun, doing(f"launch {spec.role} nodes", CloudError):
            # Nobody has used a new token: there is nothing to look for.
            listed = self.nodes() if begun or not spec.token or self._spot_wanted(spec) else None
            present = {node.name: node for node in listed or () if node.name in names}
            launch = self._launch(journal, spec, listed)
            wanted = {i for i, name in enumerate(names) if name not in present}
            launch.again(wanted)
            wanted -= set(launch.instances)
            if wanted:
                launch.fill(self._places(spec, wanted, listed), self._spot_count(spec, len(wanted), listed))
        found = [self._new(spec, names[index], one) for index, one in launch.instances.items()]
        return sorted([*present.values(), *found], key=lambda node: names.index(node.name))

    def terminate(self, names: Iterable[str]) -> list[str]:
        wanted = set(names)
        nodes = self.nodes()
        gone = [node for node in nodes if node.name in wanted and node.state != "stopping"]
        self._terminate([node.id for node in gone])
        self._prune({node.name for node in nodes} - wanted)
        return sorted(node.name for node in gone)

    def tag(self, name: str, tags: Mapping[str, str | None]) -> Node:
        node = next((node for node in self.nodes() if node.name == name), None)
        if node is None:
            raise CloudError(f"Failed to tag node {name}: fleet {self.fleet.name} has no node of this name")
        return self._tag(node, tags)

    def _tag(self, node: Node, tags: Mapping[str, str | None]) -> Node:
        added = {f"{parts.WORD}{key}": value for key, value in tags.items() if value is not None}
        removed = [f"{parts.WORD}{key}" for key, value in tags.items() if value is None and key in node.tags]
        with doing(f"tag node {node.name}", CloudError):
            if added:
                self._ec2.create_tags(Resources=[node.id], Tags=tag_list(added))
            if removed:
                self._ec2.delete_tags(Resources=[node.id], Tags=[{"Key": key} for key in removed])
        merged = {key: value for key, value in {**node.tags, **tags}.items() if value is not None}
        return replace(node, tags=merged)

    def wait_reachable(self, names: Iterable[str], timeout: float) -> list[str]:
        deadline, waiting = time.monotonic() + timeout, set(names)
        nodes: dict[str, Node] = {}

        def settled(name: str) -> bool:
            # cloud-init lets sshd read its configuration anew, which then refuses connections for a moment.
            return name in nodes and ssh.greets(nodes[name].address) and (
                ssh.run(self.connection(nodes[name]), "cloud-init status --wait", deadline - time.monotonic()) != 255
            )

        with ThreadPoolExecutor(16) as pool:
            while True:
                if waiting - set(nodes):
                    nodes |= {node.name: node for node in self.nodes() if node.name in waiting and node.address}
                asked = sorted(waiting)
                waiting -= {name for name, done in zip(asked, pool.map(settled, asked)) if done}
                if not waiting or time.monotonic() > deadline:
                    return sorted(waiting)
                time.sleep(min(2.0, max(0.05, deadline - time.monotonic())))

    def bake(self, name: str, release: str, recipe: str = "") -> str:
        builder = next((node for node in self.nodes() if node.name == name), None)
        if builder is None:
            raise CloudError(f"Failed to make an image of {name}: fleet {self.fleet.name} has no node of this name")
        return self.pictures.bake(builder, release, recipe)

    def remove_images(self, ids: Iterable[str]) -> None:
        self.pictures.remove(ids)

    def destroy(self) -> list[str]:
        """Remove every node, image and launch template of this fleet, and the controller's folder."""
        nodes = self._every_node()
        self._terminate([node.id for node in nodes if node.state != "stopping"])
        self.pictures.remove([one["id"] for one in self.pictures.images(every=True)])
        self.pictures.remove_templates()
        shutil.rmtree(self.state, ignore_errors=True)
        return sorted(node.name for node in nodes)

    # -- launching ---------------------------------------------------------------------------------------------

    def _launch(self, journal: Journal, spec: LaunchSpec, listed: Sequence[Node] | None) -> Launch:
        private, public = self._host_key(journal.folder, spec)
        authorized = self._own_key()
        names = self.launch_names(spec)

        def request(indices: Sequence[int], zone: str, kind: str, spot: bool) -> dict[str, Any]:
            template, version = self.pictures.template(spec.role, spec.image or self.settings["base_image"])
            tags = parts.node_tags(self.fleet.name, spec.role, spec.token, indices, spec.release, spec.tags)
            result: dict[str, Any] = {
                "LaunchTemplate": {"LaunchTemplateId": template, "Version": version},
                "InstanceType": kind,
                "SubnetId": self.settings["zones"][zone],
                "MinCount": 1,
                "MaxCount": len(indices),
                "UserData": parts.user_data([names[index] for index in indices], private, public, authorized),
                "TagSpecifications": parts.specifications(tags, spot),
            }
            if spot:
                result["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}
            return result

        def run(wanted: dict[str, Any]) -> list[dict[str, Any]]:
            try:
                return list(self._ec2.run_instances(**wanted)["Instances"])
            except Exception as exc:
                if error_code(exc).startswith("InvalidLaunchTemplate"):
                    # Somebody removed it: the next launch makes it anew.
                    (self.state / "templates.json").unlink(missing_ok=True)
                raise

        return Launch(
            journal, self._capacity(), zones=self.settings["zones"], kinds=self._kinds(spec.role), run=run,
            request=request, load=lambda: _by_zone(listed if listed is not None else self.nodes(), spec.role),
        )

    def _places(self, spec: LaunchSpec, wanted: Iterable[int], listed: Sequence[Node] | None) -> dict[int, str]:
        """The zone of each missing node, as asked for; else the driver's own, the emptiest first where that is known."""
        own = self._capacity().zones(list(self.settings["zones"]), self._kinds(spec.role))
        zones = list(spec.zones)
        if not zones:
            load = _by_zone(listed or (), spec.role)
            own.sort(key=lambda zone: load[zone])
        return {index: (zones or own)[index % len(zones or own)] for index in wanted}

    def _spot_wanted(self, spec: LaunchSpec) -> bool:
        return spec.role == "web" and self.settings["spot_share"] > 0

    def _spot_count(self, spec: LaunchSpec, count: int, listed: Sequence[Node] | None) -> int:
        """How many of the new nodes are spot, so that the share above the on-demand base is kept."""
        if not self._spot_wanted(spec):
            return 0
        present = [node for node in listed or () if node.role == "web" and node.state in ("pending", "running")]
        above = max(0, len(present) + count - self.settings["on_demand_base"])
        there = sum(node.id in self._spot for node in present)
        return max(0, min(count, int(above * self.settings["spot_share"]) - there))

    def _new(self, spec: LaunchSpec, name: str, found: Mapping[str, Any]) -> Node:
        """A node as RunInstances gives it."""
        return Node(
            name, spec.role, str(found.get("PrivateIpAddress") or ""), str(found["Placement"]["AvailabilityZone"]),
            parts.STATES.get(found["State"]["Name"], "failed"), found["LaunchTime"].timestamp(), spec.release,
            str(found.get("ImageId") or ""), dict(spec.tags), str(found["InstanceId"]),
        )

    def _kinds(self, role: str) -> list[str]:
        own = self.settings["role_instance_types"]
        return list(own.get(role) or (own.get("web") if role == "builder" else None) or self.settings["instance_types"])

    def _capacity(self) -> Capacity:
        return Capacity(self.state / "capacity.json")

    def _launch_folder(self, prefix: str) -> Path:
        return self.state / "launches" / prefix

    def _own_key(self) -> str:
        """The public half of the key with which Ansible comes."""
        key = self.state / "ssh" / "id_ed25519"
        key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (key.parent / "lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not key.with_suffix(".pub").exists():
                key.unlink(missing_ok=True)
                ssh.make_key(key, f"moodle-fleet {self.fleet.name}")
        return key.with_suffix(".pub").read_text(encoding="utf-8")

    def _host_key(self, folder: Path, spec: LaunchSpec) -> tuple[str, str]:
        """Both halves of the host key of a launch's nodes; made before the first call, under the launch's lock."""
        key = folder / "ssh_host_ed25519_key"
        prefix = parts.prefix(self.fleet.name, spec.role, spec.token)
        if not (folder / "known_hosts").exists():
            for half in (key, key.with_suffix(".pub")):
                half.unlink(missing_ok=True)
            ssh.make_key(key, prefix)
            kind, public = key.with_suffix(".pub").read_text(encoding="utf-8").split()[:2]
            ssh.write(folder / "known_hosts", f"{prefix}-* {kind} {public}\n")
        return key.read_text(encoding="utf-8"), key.with_suffix(".pub").read_text(encoding="utf-8")

    def _prune(self, left: set[str]) -> None:
        """Forget launches of which no node is left; a young one may have nodes that are not seen yet."""
        kept = {name.rpartition("-")[0] for name in left}
        for path in (self.state / "launches").glob("*/calls.json"):
            if path.parent.name not in kept and time.time() - path.stat().st_mtime > self.settle:
                shutil.rmtree(path.parent, ignore_errors=True)

    def _every_node(self) -> list[Node]:
        """All nodes, also those so young that the list may lack them."""
        deadline = time.monotonic() + self.settle
        while True:
            nodes = self.nodes()
            seen = {node.name for node in nodes} | {node.name for node in self._listed(["terminated"])}
            late = set()
            for path in (self.state / "launches").glob("*/calls.json"):
                if time.time() - path.stat().st_mtime < self.settle:
                    for one in json.loads(path.read_text(encoding="utf-8")):
                        late |= {f"{path.parent.name}-{index + 1}" for index in one["alive"] or ()} - seen
            if not late or time.monotonic() > deadline:
                return nodes
            time.sleep(2)

    def _terminate(self, ids: Sequence[str]) -> None:
        with doing("terminate nodes", CloudError):
            for start in range(0, len(ids), 500):
                self._ec2.terminate_instances(InstanceIds=list(ids[start:start + 500]))


def _by_zone(nodes: Iterable[Node], role: str) -> Counter[str]:
    return Counter(node.zone for node in nodes if node.role == role and node.state in ("pending", "running"))


__all__ = ["SETTINGS", "AwsDriver", "driver"]
