# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A monitoring node in a whole fleet: after one run of site.yml it reads every node, and tells what a person should know at night."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from .conftest import ROOT, LocalFleet, changed, new_fleet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("MOODLE_FLEET_TEST_MONITORING"), reason="MOODLE_FLEET_TEST_MONITORING is not set"),
]


@pytest.fixture(name="watched", scope="module")
def _watched(tmp_path_factory: pytest.TempPathFactory, podman: Path | None) -> Iterator[LocalFleet]:
    """A fleet with a monitoring node, built by one run of site.yml."""
    for fleet in new_fleet(
        tmp_path_factory.mktemp("watched"), podman, name="watched", subnet="10.89.97.0/24", port=18497, source=f"{ROOT}/tests/standin"
    ):
        fleet.file.write_text(fleet.file.read_text().replace("services:\n", "services:\n  monitoring: {count: 1}\n"))
        fleet.playbook("site")
        yield fleet


def inside(name: str, *command: str) -> str:
    """Run something on a node."""
    return subprocess.run(["podman", "exec", name, *command], check=True, capture_output=True, text=True).stdout


def prometheus(fleet: LocalFleet, path: str, **query: str) -> Any:
    """What Prometheus answers on its node, where alone it listens."""
    (name,) = fleet.addresses("monitoring")
    code = "import sys, urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9090/api/v1/' + sys.argv[1], timeout=10).read().decode())"
    address = f"{path}?{urlencode(query)}"
    return json.loads(inside(name, "python3", "-c", code, address))["data"]


def eventually(what: str, seconds: float, found: Callable[[], bool]) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(2)


def test_every_node_is_read_after_the_first_run(watched: LocalFleet) -> None:
    everybody = {node.name for node in watched.cloud.nodes()}

    def up() -> set[str]:
        return {one["labels"].get("node", "") for one in prometheus(watched, "targets")["activeTargets"] if one["health"] == "up"}

    eventually("every node is read", 90, lambda: everybody <= up())
    rules = [rule for group in prometheus(watched, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) >= 15
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
    (active,) = prometheus(watched, "query", query="sum(moodle_jobs_active)")["result"]
    assert active["value"][1] == "1"
    assert changed(watched.playbook("site"))["watched-monitoring-1"] == 0


def test_a_database_that_is_down_is_told(watched: LocalFleet) -> None:
    def firing() -> list[str]:
        return [alert["labels"]["alertname"] for alert in prometheus(watched, "alerts")["alerts"] if alert["state"] == "firing"]

    assert "ServiceDown" not in firing()
    (database,) = watched.addresses("database")
    inside(database, "systemctl", "stop", "mariadb")
    try:
        eventually("the alert fires", 240, lambda: "ServiceDown" in firing())
    finally:
        inside(database, "systemctl", "start", "mariadb")
    eventually("it is over", 90, lambda: "ServiceDown" not in firing())
