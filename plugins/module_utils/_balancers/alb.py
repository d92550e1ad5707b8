# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Balancer driver ``alb``: an Application Load Balancer's target group, whose targets are EC2 instances.

Targets are registered by instance id, never by address: an address may belong to another node soon, an id does not, and a
terminated instance leaves by itself. A target that has drained is forgotten by AWS, so a drained member is an absent one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._aws import TAG, Aws, doing, tag_list
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers import alb_metrics as metrics
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import (
    BalancerError,
    BalancerMembers,
    BalancerReader,
    Counters,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member, Node
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._schema import Field

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

_ARN = r"arn:aws[a-z-]*:elasticloadbalancing:[a-z0-9-]+:\d{12}:"
SETTINGS = {
    "target_group": Field(str, required=True, pattern=_ARN + r"targetgroup/[\w-]+/[0-9a-f]+",
                          help="ARN of the target group; its targets are of type `instance`"),
    "load_balancer": Field(str, required=True, pattern=_ARN + r"loadbalancer/app/[\w-]+/[0-9a-f]+", help="ARN of the load balancer"),
    "networks": Field(list, default=[], items=Field(str, pattern=r"[0-9a-fA-F.:]+/\d+"),
                      help="of the balancer's own subnets: nodes believe X-Forwarded-For from there alone"),
    "metric_delay": Field(float, default=60.0, minimum=0.0, maximum=600.0, help="seconds that CloudWatch gets to complete a minute"),
}

# AWS's state of a target in the fleet's words. `unavailable`: health checks are switched off.
STATES = {
    "healthy": "up", "unavailable": "up", "initial": "starting", "unhealthy": "down", "unused": "down",
    "draining": "draining", "unhealthy.draining": "down",
}
# So far back the figures are asked for.
BEHIND = 900
TAG_WORKERS = "workers"


def reader(fleet: Fleet, _addresses: Sequence[str], nodes: Sequence[Node] = ()) -> AlbReader:
    """The reader of one fleet's target group."""
    return AlbReader(fleet, nodes)


def members(fleet: Fleet, nodes: Callable[[], Sequence[Node]]) -> AlbMembers:
    """The member list of one fleet; ``nodes`` gives its nodes as they are now."""
    return AlbMembers(fleet, nodes)


class Group:
    """The target group as AWS tells of it."""

    def __init__(self, fleet: Fleet, aws: Aws | None = None, clock: Callable[[], float] = time.time):
        self.fleet = fleet
        self.arn = fleet.balancer["target_group"]
        self.aws = aws or Aws(self.arn.split(":")[3])
        self.clock = clock

    @property
    def elb(self) -> Any:
        return self.aws.client("elbv2")

    def targets(self) -> list[dict[str, Any]]:
        """Every target: id, port, state, reason."""
        with doing("read the targets", BalancerError):
            found = self.elb.describe_target_health(TargetGroupArn=self.arn)["TargetHealthDescriptions"]
        return [
            {
                "id": str(one["Target"]["Id"]), "port": int(one["Target"].get("Port") or 0),
                "state": str(one["TargetHealth"]["State"]), "reason": str(one["TargetHealth"].get("Reason") or ""),
                "text": str(one["TargetHealth"].get("Description") or ""),
            }
            for one in found
        ]

    def members(
        self, targets: Sequence[Mapping[str, Any]], nodes: Sequence[Node], since: Mapping[str, float] | None = None
    ) -> list[Member]:
        """The targets as members, sorted by name; one whose node is gone has its instance's id as name."""
        by_id = {node.id: node for node in nodes}
        result = []
        for one in targets:
            node = by_id.get(one["id"])
            state = STATES.get(one["state"], "down")
            result.append(Member(
                name=node.name if node else one["id"],
                address=node.address if node else "",
                state=state,
                capacity=self.workers(node),
                since=(since or {}).get(one["id"], 0.0),
                ramp=0.0 if state == "draining" else 1.0,
            ))
        return sorted(result, key=lambda member: member.name)

    def workers(self, node: Node | None) -> int:
        """A node's workers, as it said itself when it joined; what the policy expects where that is not known."""
        said = node.tags.get(TAG_WORKERS, "") if node else ""
        expected = int(self.fleet.scaling.get("workers") or 4)
        return int(said) if said.isdecimal() and 0 < int(said[:6]) <= 10000 else expected

    def since(self, targets: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """For how long each target has been in its state. AWS does not tell: the first sight of it is remembered."""
        known = _kept.load(self.fleet, "targets.json")
        now = self.clock()
        seen = {
            one["id"]: known[one["id"]] if known.get(one["id"], [""])[0] == one["state"] else [one["state"], now]
            for one in targets
        }
        if seen != known:
            # A reader without the right to write there still reads; durations then begin anew.
            with contextlib.suppress(_kept.KeptError):
                _kept.write(self.fleet, "targets.json", seen)
        return {name: max(0.0, now - float(when)) for name, (_state, when) in seen.items()}


class AlbReader(BalancerReader):
    """Members from the target group, load from CloudWatch: two calls."""

    def __init__(self, fleet: Fleet, nodes: Sequence[Node], aws: Aws | None = None, clock: Callable[[], float] = time.time):
        self.group = Group(fleet, aws, clock)
        self.nodes = nodes
        self.settings = fleet.balancer
        self._clock = clock

    def read(self) -> Counters:
        targets = self.group.targets()
        members = self.group.members(targets, self.nodes, self.group.since(targets))
        now = self._clock()
        minute = metrics.newest(self._series(now), now, self.settings["metric_delay"])
        faults = fail_open(targets)
        if minute is None:
            # Nothing was ever told, or not for long: as old as what was asked for.
            return Counters(now - BEHIND, 0, 0, 0, None, 0.0, members, 0, float(metrics.PERIOD), True, faults)
        return Counters(
            taken=minute.end,
            requests=minute.requests,
            in_service=math.ceil(minute.in_service),
            waiting=minute.refused,
            mean_seconds=minute.mean_seconds,
            started=0.0,
            members=members,
            mean_window=0,
            interval=float(metrics.PERIOD),
            members_fresh=True,
            faults=faults,
        )

    def _series(self, now: float) -> dict[str, dict[float, float]]:
        with doing("read the load from CloudWatch", BalancerError):
            pages = self.group.aws.client("cloudwatch").get_paginator("get_metric_data").paginate(
                MetricDataQueries=metrics.queries(self.settings["target_group"], self.settings["load_balancer"]),
                StartTime=now - BEHIND - now % metrics.PERIOD, EndTime=now,
            )
            result: dict[str, dict[float, float]] = {}
            for one in pages.search("MetricDataResults[]"):
                values = zip(one["Timestamps"], one["Values"])
                result.setdefault(one["Id"], {}).update({when.timestamp(): float(value) for when, value in values})
        return result


class AlbMembers(BalancerMembers):
    """The targets of one group, changed through the API. All steps take several members in one call."""

    def __init__(self, fleet: Fleet, nodes: Callable[[], Sequence[Node]], aws: Aws | None = None):
        self.group = Group(fleet, aws)
        self._nodes = nodes

    def members(self) -> list[Member]:
        return self.group.members(self.group.targets(), self._nodes())

    def look(self) -> dict[str, tuple[str, str]]:
        """State of each member by name, and why it is not healthy, in AWS's words."""
        names = {node.id: node.name for node in self._nodes()}
        return {
            names.get(one["id"], one["id"]): (STATES.get(one["state"], "down"), f"{one['reason']} {one['text']}".strip())
            for one in self.group.targets()
        }

    def join(self, name: str, address: str, port: int, capacity: int) -> bool:
        return bool(self.register({name: (address, port, capacity)}))

    def register(self, wanted: Mapping[str, tuple[str, int, int]]) -> set[str]:
        """Register nodes by (address, port, workers); returns whom that changed. Wrong values change nothing."""
        nodes = {node.name: node for node in self._nodes()}
        for name, (address, port, capacity) in wanted.items():
            node = nodes.get(name)
            if node is None or not node.id:
                raise BalancerError(f"name: {name!r} is no node of this fleet that runs on EC2")
            if node.address != address:
                raise BalancerError(f"address: {address!r} of {name}: the node has {node.address!r}")
            if not 0 < port < 65536 or capacity < 1:
                raise BalancerError(f"port and capacity: {port!r}, {capacity!r} of {name}: use 1 to 65535 and at least 1")
        targets = self.group.targets()
        there = {(one["id"], one["port"]) for one in targets if "draining" not in one["state"]}
        missing = {name: (nodes[name].id, port) for name, (_a, port, _c) in wanted.items() if (nodes[name].id, port) not in there}
        # Another node under this name, or this one at another port: what AWS still has of it goes.
        stale = [one for one in targets if "draining" not in one["state"] and one["id"] in {i for i, _p in missing.values()}]
        changed = set(missing)
        with doing("register targets", BalancerError):
            if missing:
                self.group.elb.register_targets(TargetGroupArn=self.group.arn, Targets=_targets(missing.values()))
            if stale:
                self.group.elb.deregister_targets(
                    TargetGroupArn=self.group.arn, Targets=_targets((one["id"], one["port"]) for one in stale)
                )
            by_workers: dict[int, list[str]] = {}
            for name, (_address, _port, capacity) in wanted.items():
                if nodes[name].tags.get(TAG_WORKERS) != str(capacity):
                    by_workers.setdefault(capacity, []).append(name)
            for capacity, names in sorted(by_workers.items()):
                self.group.aws.client("ec2").create_tags(
                    Resources=[nodes[name].id for name in sorted(names)],
                    Tags=tag_list({f"{TAG}:tag:{TAG_WORKERS}": str(capacity)}),
                )
                changed |= set(names)
        return changed

    def ramp(self, name: str, share: float) -> bool:
        """Nothing: the group's own slow start does it, see ``slow_start.duration_seconds``."""
        return False

    def drain(self, name: str) -> bool:
        return bool(self.deregister([name]))

    def deregister(self, names: Sequence[str]) -> set[str]:
        """Deregister members; AWS lets their requests finish for the group's deregistration delay. Returns who was there."""
        ids = {node.name: node.id for node in self._nodes()}
        wanted = {ids.get(name, name): name for name in names}
        there = [one for one in self.group.targets() if one["id"] in wanted and "draining" not in one["state"]]
        if there:
            with doing("deregister targets", BalancerError):
                self.group.elb.deregister_targets(
                    TargetGroupArn=self.group.arn, Targets=_targets((one["id"], one["port"]) for one in there)
                )
        return {wanted[one["id"]] for one in there}

    def remove(self, name: str) -> bool:
        return self.drain(name)


def fail_open(targets: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """The fault of a group without a healthy target: the balancer then sends requests to all of them."""
    present = [one for one in targets if one["state"] not in ("draining", "unused")]
    if not present or any(one["state"] in ("healthy", "unavailable") for one in present):
        return ()
    return (("fail_open", f"no target of {len(present)} is healthy, so the balancer sends requests to all of them"),)


def _targets(pairs: Any) -> list[dict[str, Any]]:
    return [{"Id": name, "Port": port} for name, port in sorted(pairs)]


__all__ = ["SETTINGS", "AlbMembers", "AlbReader", "members", "reader"]
