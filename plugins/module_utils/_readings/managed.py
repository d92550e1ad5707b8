# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What CloudWatch tells of databases, caches and shared files that AWS runs: one call for all of them.

AWS's names are found in the endpoints of the fleet file: ``NAME.….rds.amazonaws.com``, ``master.NAME.….cache.amazonaws.com``,
``NAME.efs.….amazonaws.com``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._aws import Aws, doing
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings.reader import ReadError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import tiers

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

PERIOD = 60
# Minutes come late. One that ended longer ago than this says nothing of now.
OLDEST = 300.0
# A group has a primary and at most five replicas. Which of them is the primary changes; it is the busiest.
MEMBERS = 6
_HOSTS: tuple[tuple[str, str], ...] = (
    (r"(?P<name>[^.]+)\.cluster-[^.]+\.[^.]+\.rds\.amazonaws\.com(\.cn)?", "cluster"),
    (r"(?P<name>[^.]+)\.[^.]+\.[^.]+\.rds\.amazonaws\.com(\.cn)?", "instance"),
    (r"master\.(?P<name>[^.]+)\.[^.]+\.[^.]+\.cache\.amazonaws\.com(\.cn)?", "group"),
    (r"(?P<name>[^.]+)\.[^.]+\.ng\.0001\.[^.]+\.cache\.amazonaws\.com(\.cn)?", "group"),
    (r"(?P<name>[^.]+)\.[^.]+\.0001\.[^.]+\.cache\.amazonaws\.com(\.cn)?", "node"),
    (r"(?P<name>fs-[0-9a-f]+)\.efs\.[^.]+\.amazonaws\.com(\.cn)?", "files"),
)


@dataclass(frozen=True)
class Series:
    """One metric of a tier: where CloudWatch keeps it, and of what it is a percentage."""

    tier: str
    namespace: str
    metric: str
    dimensions: Mapping[str, str]
    unit: str


def series(tier: str, host: str) -> list[Series]:
    """What to ask for about the host of a tier; nothing where it is none of AWS's."""
    for pattern, kind in _HOSTS:
        found = re.fullmatch(pattern, host.lower())
        if found:
            name = found["name"]
            if kind == "instance":
                return [Series(tier, "AWS/RDS", "CPUUtilization", {"DBInstanceIdentifier": name}, "of its CPUs")]
            if kind == "cluster":
                return [Series(tier, "AWS/RDS", "CPUUtilization", {"DBClusterIdentifier": name, "Role": "WRITER"}, "of its CPUs")]
            if kind == "files":
                return [Series(tier, "AWS/EFS", "PercentIOLimit", {"FileSystemId": name}, "of the operations that EFS allows")]
            members = [name] if kind == "node" else [f"{name}-{number:03d}" for number in range(1, MEMBERS + 1)]
            return [
                Series(tier, "AWS/ElastiCache", "EngineCPUUtilization", {"CacheClusterId": one}, "of the one CPU that Redis uses")
                for one in members
            ]
    return []


def wanted(services: Mapping[str, Mapping[str, Any]], servers: Mapping[str, Mapping[str, Any]]) -> list[Series]:
    """All that is to be asked for: the fleet's services, and further database servers by their names."""
    hosts = {f"database {name}": str(one["host"]) for name, one in servers.items() if name != "default"}
    for name, key in (("database", "endpoint"), ("cache", "endpoint"), ("cache", "muc_endpoint")):
        endpoint = str(services.get(name, {}).get(key) or "")
        if endpoint:
            # A cache has the name that it has where it is read itself.
            hosts[f"cache {endpoint}" if name == "cache" else name] = endpoint.rpartition(":")[0]
    source = str((services.get("files") or {}).get("src") or "")
    hosts["files"] = source.partition(":")[0]
    return [one for tier, host in hosts.items() for one in series(tier, host)]


def judge(asked: Iterable[Series], found: Mapping[int, Mapping[float, float]], now: float) -> tuple[list[tiers.Tier], dict[str, str]]:
    """The tiers by the minutes of each series (begin → percent), and those of which nothing recent is known."""
    shares: dict[str, tiers.Tier] = {}
    silent: dict[str, str] = {}
    for place, one in enumerate(asked):
        recent = [value for begin, value in sorted(found.get(place, {}).items(), reverse=True) if begin + PERIOD >= now - OLDEST]
        if not recent:
            silent.setdefault(one.tier, f"CloudWatch has no {one.metric} of the last {OLDEST / 60:.0f} min of {next(iter(one.dimensions.values()))}")
            continue
        tier = tiers.managed(one.tier, recent[:2], one.unit)
        if one.tier not in shares or tier.share > shares[one.tier].share:
            shares[one.tier] = tier
    return list(shares.values()), {tier: text for tier, text in silent.items() if tier not in shares}


def read(fleet: Fleet, servers: Mapping[str, Mapping[str, Any]], now: float, aws: Aws | None = None) -> tuple[list[tiers.Tier], dict[str, str]]:
    """(tiers, those that could not be read and why) of what AWS runs for this fleet.

    :raises ReadError: when CloudWatch can't be asked: no boto3, no permission, throttled for longer than the retries last.
    """
    asked = wanted(fleet.services, servers)
    if fleet.cloud["driver"] != "aws" or not asked:
        return [], {}
    client = aws or Aws(fleet.cloud.get("region") or "")
    minutes: dict[int, dict[float, float]] = {}
    with doing("read databases, caches and files from CloudWatch", ReadError):
        pages = client.client("cloudwatch").get_paginator("get_metric_data").paginate(
            MetricDataQueries=_queries(asked), StartTime=now - OLDEST - PERIOD - now % PERIOD, EndTime=now,
        )
        for one in pages.search("MetricDataResults[]"):
            values = zip(one["Timestamps"], one["Values"])
            minutes.setdefault(int(one["Id"][1:]), {}).update({when.timestamp(): float(value) for when, value in values})
    return judge(asked, minutes, now)


def _queries(asked: Sequence[Series]) -> list[dict[str, Any]]:
    return [
        {"Id": f"m{place}", "MetricStat": {"Period": PERIOD, "Stat": "Average", "Metric": {
            "Namespace": one.namespace, "MetricName": one.metric,
            "Dimensions": [{"Name": name, "Value": value} for name, value in one.dimensions.items()],
        }}}
        for place, one in enumerate(asked)
    ]
