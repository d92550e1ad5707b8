# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What CloudWatch's figures of an Application Load Balancer mean. Pure.

CloudWatch knows whole minutes, a minute or two late, and is silent where there was no request. HealthyHostCount is told
for every minute in which a target is registered: it shows how far the figures reach, so that silence can be told from
lateness.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PERIOD = 60
# Name in the query: (metric, statistic, whether it is counted at the target group).
QUERIES = {
    "requests": ("RequestCount", "Sum", True),
    "seconds": ("TargetResponseTime", "Sum", True),
    "healthy": ("HealthyHostCount", "Maximum", True),
    "unhealthy": ("UnHealthyHostCount", "Maximum", True),
    "rejected": ("RejectedConnectionCount", "Sum", False),
    "failed": ("HTTPCode_ELB_5XX_Count", "Sum", False),
}

Series = Mapping[str, Mapping[float, float]]


@dataclass(frozen=True)
class Minute:
    """One minute: ``end`` is its last moment. ``seconds`` is the time all its requests took together."""

    end: float
    requests: int
    seconds: float
    rejected: int
    failed: int

    @property
    def mean_seconds(self) -> float | None:
        """Mean time of a request at the nodes, their own queue included."""
        return self.seconds / self.requests if self.requests else None

    @property
    def in_service(self) -> float:
        """Mean number of requests in service (Little's law)."""
        return self.seconds / PERIOD

    @property
    def refused(self) -> int:
        """Requests that the balancer had no node for, as so many in service: they would have taken as long as others."""
        lost = self.rejected + self.failed
        return math.ceil(lost * max(self.mean_seconds or 0.0, 1.0) / PERIOD) if lost else 0


def queries(target_group: str, load_balancer: str) -> list[dict[str, Any]]:
    """The queries of GetMetricData, from the ARNs."""
    balancer = load_balancer.partition(":loadbalancer/")[2]
    group = target_group.rpartition(":")[2]
    result = []
    for name, (metric, statistic, by_group) in QUERIES.items():
        dimensions = [{"Name": "LoadBalancer", "Value": balancer}]
        if by_group:
            dimensions.append({"Name": "TargetGroup", "Value": group})
        result.append({
            "Id": name, "ReturnData": True,
            "MetricStat": {
                "Metric": {"Namespace": "AWS/ApplicationELB", "MetricName": metric, "Dimensions": dimensions},
                "Period": PERIOD, "Stat": statistic,
            },
        })
    return result


def newest(series: Series, now: float, delay: float) -> Minute | None:
    """The newest minute that is complete: told of by a count of hosts or by requests, and ended ``delay`` seconds ago.

    None where CloudWatch tells of no minute.
    """
    told = {start for name in ("healthy", "unhealthy", "requests") for start in series.get(name, {})}
    complete = [start for start in told if start + PERIOD + delay <= now]
    if not complete:
        return None
    start = max(complete)

    def at(name: str) -> float:
        return float(series.get(name, {}).get(start, 0.0))

    return Minute(start + PERIOD, round(at("requests")), at("seconds"), round(at("rejected")), round(at("failed")))
