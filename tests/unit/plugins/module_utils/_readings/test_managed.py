# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is asked of CloudWatch, and what its minutes say."""

from __future__ import annotations

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings.managed import Series, judge, series, wanted

NOW = 1_000_000.0
DATABASE = Series("database", "AWS/RDS", "CPUUtilization", {"DBInstanceIdentifier": "prod"}, "of its CPUs")


@pytest.mark.parametrize(
    ("host", "metric", "dimensions"),
    [
        ("prod.abc123.eu-central-1.rds.amazonaws.com", "CPUUtilization", [{"DBInstanceIdentifier": "prod"}]),
        ("Prod.cluster-abc123.eu-central-1.rds.amazonaws.com", "CPUUtilization", [{"DBClusterIdentifier": "prod", "Role": "WRITER"}]),
        ("prod.abc.cn-north-1.rds.amazonaws.com.cn", "CPUUtilization", [{"DBInstanceIdentifier": "prod"}]),
        ("master.prod-muc.abc123.euc1.cache.amazonaws.com", "EngineCPUUtilization",
         [{"CacheClusterId": f"prod-muc-00{number}"} for number in range(1, 7)]),
        ("prod-muc.abc123.ng.0001.euc1.cache.amazonaws.com", "EngineCPUUtilization",
         [{"CacheClusterId": f"prod-muc-00{number}"} for number in range(1, 7)]),
        ("single.abc123.0001.euc1.cache.amazonaws.com", "EngineCPUUtilization", [{"CacheClusterId": "single"}]),
        ("fs-0123abcd.efs.eu-central-1.amazonaws.com", "PercentIOLimit", [{"FileSystemId": "fs-0123abcd"}]),
    ],
)
def test_names_are_found_in_endpoints(host: str, metric: str, dimensions: list[dict[str, str]]) -> None:
    found = series("tier", host)
    assert [one.dimensions for one in found] == dimensions
    assert {one.metric for one in found} == {metric}


@pytest.mark.parametrize("host", ["db.example.org", "10.0.0.4", "", "prod.rds.amazonaws.com.example.org", "x.serverless.euc1.cache.amazonaws.com"])
def test_nobody_else_is_asked_for(host: str) -> None:
    assert series("tier", host) == []


def test_every_tier_has_the_name_under_which_it_is_read_itself() -> None:
    services = {
        "database": {"endpoint": "prod.abc.eu-central-1.rds.amazonaws.com:3306"},
        "cache": {"endpoint": "master.s.abc.euc1.cache.amazonaws.com:6379", "muc_endpoint": "one.abc.0001.euc1.cache.amazonaws.com:6380"},
        "files": {"src": "fs-0a.efs.eu-central-1.amazonaws.com:/"},
    }
    servers = {"default": {"host": "prod.abc.eu-central-1.rds.amazonaws.com"}, "second": {"host": "two.abc.eu-central-1.rds.amazonaws.com"}}
    assert list(dict.fromkeys(one.tier for one in wanted(services, servers))) == [
        "database second", "database", "cache master.s.abc.euc1.cache.amazonaws.com:6379", "cache one.abc.0001.euc1.cache.amazonaws.com:6380",
        "files",
    ]
    assert wanted({"database": {"endpoint": None}, "cache": {}, "files": {}}, {}) == []


def test_two_minutes_have_to_be_busy() -> None:
    (tier,), silent = judge([DATABASE], {0: {NOW - 240: 20.0, NOW - 180: 99.0, NOW - 120: 95.0}}, NOW)
    assert (tier.name, round(tier.share, 3), tier.text) == ("database", round(0.95 / 0.9, 3), "95% of its CPUs, says CloudWatch")
    assert silent == {}
    (calm,), _silent = judge([DATABASE], {0: {NOW - 180: 20.0, NOW - 120: 99.0}}, NOW)
    assert calm.share < 0.3


def test_the_busiest_member_is_the_primary_and_those_that_do_not_exist_are_no_failure() -> None:
    group = series("cache x", "master.g.abc.euc1.cache.amazonaws.com")
    (tier,), silent = judge(group, {0: {NOW - 120: 5.0}, 1: {NOW - 120: 45.0}}, NOW)
    assert (round(tier.share, 3), silent) == (0.5, {})


@pytest.mark.parametrize("minutes", [{}, {NOW - 361: 99.0}])
def test_absent_and_old_minutes_are_told_and_say_nothing(minutes: dict[float, float]) -> None:
    found, silent = judge([DATABASE], {0: minutes}, NOW)
    assert (found, silent) == ([], {"database": "CloudWatch has no CPUUtilization of the last 5 min of prod"})
