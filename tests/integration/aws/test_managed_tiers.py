# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Databases, caches and files that AWS runs, as CloudWatch tells of them over HTTP: read at once, throttled, silent, refused."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import boto3
import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import kept, managed, reader
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings, fleet
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import REGION, AwsServer, Fault
from ansible_collections.elearning.moodle_fleet.trigger import capacity

pytestmark = pytest.mark.slow
CACHE = "master.aws-sessions.abc.euc1.cache.amazonaws.com:6379"
SERVICES = {
    "database": {"endpoint": "moodle-fleet-aws.abc.eu-central-1.rds.amazonaws.com:3306"},
    "cache": {"endpoint": CACHE, "shared_user": True},
    "files": {"src": "fs-0a.efs.eu-central-1.amazonaws.com:/"},
}


@pytest.fixture(name="definition")
def fixture_definition(aws: AwsServer, tmp_path: Path) -> Fleet:
    return fleet(tmp_path, cloud_settings(aws), services=SERVICES)


def put(server: AwsServer, namespace: str, metric: str, dimension: str, name: str, *percents: float) -> None:
    """Minutes of one metric, the last of them ended two minutes ago."""
    client = boto3.client("cloudwatch", endpoint_url=server.url, region_name=REGION)
    minute = time.time() // 60 * 60 - 180
    for back, percent in enumerate(reversed(percents)):
        when = datetime.datetime.fromtimestamp(minute - 60 * back, datetime.timezone.utc)
        client.put_metric_data(Namespace=namespace, MetricData=[
            {"MetricName": metric, "Dimensions": [{"Name": dimension, "Value": name}], "Timestamp": when, "Value": percent},
        ])
    server.calls.clear()


def busy(server: AwsServer, database: float = 40.0) -> None:
    put(server, "AWS/RDS", "CPUUtilization", "DBInstanceIdentifier", "moodle-fleet-aws", database, database)
    put(server, "AWS/ElastiCache", "EngineCPUUtilization", "CacheClusterId", "aws-sessions-001", 3.0, 3.0)
    put(server, "AWS/ElastiCache", "EngineCPUUtilization", "CacheClusterId", "aws-sessions-002", 72.0, 72.0)
    put(server, "AWS/EFS", "PercentIOLimit", "FileSystemId", "fs-0a", 9.0, 9.0)


def test_one_call_tells_of_all(aws: AwsServer, definition: Fleet) -> None:
    busy(aws)
    found, silent = managed.read(definition, {}, time.time())
    assert {one.name: round(one.share, 2) for one in found} == {"database": 0.44, f"cache {CACHE}": 0.8, "files": 0.1}
    assert silent == {} and [call.action for call in aws.calls] == ["GetMetricData"]
    assert aws.policy_actions() == {"cloudwatch:GetMetricData"}


def test_a_database_that_stays_full_holds_growth_back(aws: AwsServer, definition: Fleet) -> None:
    busy(aws, 97.0)
    data = capacity.look(definition)
    assert {one["name"] for one in data["tiers"]} == {"database", f"cache {CACHE}", "files"}
    # Nobody has made the reader's account here: that is told, and hides nothing of what CloudWatch says.
    assert list(data["failures"]) == ["database, cache"] and data["saturated"] == {}
    first = _kept.load(definition, kept.TIERS)
    _kept.write(definition, kept.TIERS, {**first, "taken": first["taken"] - 30, "full": {"database": first["taken"] - 30}})
    assert capacity.look(definition)["saturated"] == {"database": "97% of its CPUs, says CloudWatch"}


def test_throttling_is_waited_for_and_then_told(aws: AwsServer, definition: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    busy(aws)
    aws.faults = [Fault("GetMetricData", "Throttling", 400, times=2)]
    assert len(managed.read(definition, {}, time.time())[0]) == 3
    assert aws.count("GetMetricData") == 3
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    aws.faults = [Fault("GetMetricData", "Throttling", 400, times=100)]
    data = capacity.look(definition)
    assert "AWS throttles this account" in data["failures"]["CloudWatch"]
    assert (data["tiers"], data["saturated"]) == ([], {})


def test_silence_and_refusal_hold_nothing_back_and_are_told(aws: AwsServer, definition: Fleet) -> None:
    found, silent = managed.read(definition, {}, time.time())
    assert found == [] and set(silent) == {"database", f"cache {CACHE}", "files"}
    aws.faults = [Fault("GetMetricData", "AccessDenied", 403)]
    with pytest.raises(reader.ReadError, match="allow this action in the IAM policy"):
        managed.read(definition, {}, time.time())
    aws.faults = []
    data = capacity.look(definition)
    assert (data["tiers"], data["saturated"]) == ([], {}) and "CloudWatch has no" in data["failures"]["database"]


def test_a_fleet_elsewhere_asks_nobody(aws: AwsServer, tmp_path: Path) -> None:
    elsewhere = fleet(tmp_path, {"driver": "podman"}, services=SERVICES)
    assert managed.read(elsewhere, {}, time.time()) == ([], {}) and aws.calls == []
