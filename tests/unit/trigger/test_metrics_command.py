# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""moodle-fleet metrics: the text format, the file after each check, and the endpoint."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Node, Plan, Reason, Sample
from ansible_collections.elearning.moodle_fleet.tests.unit.trigger import ledgers
from ansible_collections.elearning.moodle_fleet.trigger import cli, metrics


def values(text: str) -> dict[tuple[str, ...], float]:
    """Every series by its name and labels, as Prometheus' own reader understands the page."""
    return {
        (sample.name.removeprefix("moodle_fleet_"), *(value for key, value in sorted(sample.labels.items()) if key != "fleet")): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }


@pytest.fixture(name="ledger")
def _ledger(tmp_path: Path) -> Ledger:
    """Two checks: the second wants more than may exist, and doubts its reading."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    quiet = Decision(2, "none", 2, 2, True, (Reason("tracking", "enough", 2),))
    held = Decision(6, "out", 2, 9, True, (Reason("tracking", "busy", 9), Reason("max_nodes", "never more", 6)))
    ledger.commit(1000, "check", Sample(1000, 15, 5, 5, 0, 8, 2, 100, True), quiet, Plan(), 0)
    ledger.commit(1020, "check", Sample(1018, 15, 31.5, 8, 23, 8, 2, 100, False), held, Plan(), 0, inputs={
        "now": 1020.0, "phases": {"in_service": 2, "building": 1}, "outlook": {"points": [[900, 8.0], [1200, 12.5]]}})
    ledger.record(2, [{"action": "launch", "node": "a", "status": "failed", "started": 1020}, {"action": "join", "node": "b", "started": 1020}])
    ledger.pause("in", "exams", 990)
    return ledger


def test_every_fact_of_the_latest_check(ledger: Ledger) -> None:
    found = values(metrics.render('ca"mp\\us', Policy(), ledger, 1030))
    expected = {
        ("nodes_desired",): 6, ("nodes_recommended",): 9, ("nodes_present",): 2, ("nodes_max",): 6,
        ("nodes", "in_service"): 2, ("nodes", "building"): 1, ("nodes", "sick"): 0,
        ("decision_direction", "out"): 1, ("decision_direction", "none"): 0, ("decision_reason", "tracking"): 9, ("decision_reason", "max_nodes"): 6,
        ("brake", "max_nodes"): 1, ("brake", "saturated"): 0,
        ("load",): 31.5, ("waiting",): 23, ("sample_trusted",): 0, ("sample_timestamp_seconds",): 1018,
        ("check_timestamp_seconds",): 1020, ("check_interval_seconds",): 20, ("check_status", "idle"): 1, ("checks_total",): 2,
        ("forecast_load",): 12.5, ("launch_seconds",): 300, ("paused", "in"): 1, ("paused", "all"): 0, ("paused_since_timestamp_seconds", "in"): 990,
        ("activities_last_hour", "launch", "failed"): 1, ("activities_last_hour", "join", "done"): 1, ("activities_last_hour", "drain", "done"): 0,
        ("checks_last_hour", "idle"): 2,
    }
    assert {key: found.get(key) for key in expected} == expected
    families = list(text_string_to_metric_families(metrics.render('ca"mp\\us', Policy(), ledger, 1030)))
    assert {sample.labels["fleet"] for family in families for sample in family.samples} == {'ca"mp\\us'}


def test_a_fleet_that_was_never_checked_has_a_page(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        found = values(metrics.render("new", Policy(), ledger, 1000))
    assert found[("nodes_min",)] == 2 and ("nodes_desired",) not in found


def test_a_file_is_whole_readable_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "fleet.prom"
    metrics.write(path, "a 1\n")
    metrics.write(path, "a 2\n")
    assert path.read_text() == "a 2\n" and path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in tmp_path.iterdir()] == ["fleet.prom"]
    with pytest.raises(metrics.MetricsError, match="must exist and be writable"):
        metrics.write(tmp_path / "none" / "fleet.prom", "")


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path) -> Path:
    """A fleet whose cloud does not answer, with a text file for its metrics."""
    path = tmp_path / "moodle_fleet.yml"
    path.write_text(ledgers.FLEET.format(name="campus") + f"metrics: {{textfile: {tmp_path}/fleet.prom}}\n", encoding="utf-8")
    return path


def test_each_check_writes_the_file_and_an_unwritable_one_is_a_warning(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no podman: the cloud is silent
    assert cli.main(["--fleet", str(fleet), "check"]) == 4
    found = values((fleet.parent / "fleet.prom").read_text(encoding="utf-8"))
    assert found[("brake", "no_cloud")] == 1 and found[("check_errors",)] == 1
    fleet.write_text(fleet.read_text().replace("/fleet.prom", "/none/fleet.prom"))
    assert cli.main(["--fleet", str(fleet), "check"]) == 4
    assert "none/fleet.prom: can't be written" in capsys.readouterr().err


def test_the_endpoint_answers_anew_and_ends_cleanly(fleet: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "ansible_collections.elearning.moodle_fleet.trigger", "--fleet", str(fleet),
                                "metrics", "--listen", f"127.0.0.1:{port}"], stderr=subprocess.PIPE, text=True,
                               # Whoever runs the tests in the background has it ignored.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return answer.read().decode()
    for _attempt in range(100):
        try:
            assert ("nodes_desired",) not in values(get("/metrics"))
            break
        except urllib.error.URLError:
            time.sleep(0.1)
    with Ledger(fleet.parent / "state" / "ledger.sqlite") as ledger:
        ledger.commit(time.time(), "check", Sample(1000, 15, 5, 5, 0, 8, 2, 100, True), Decision(3, "out", 2, 3, True), Plan(), 0)
    assert values(get("/metrics"))[("nodes_desired",)] == 3
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get("/etc/passwd")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0


def test_web_nodes_that_run_are_targets() -> None:
    nodes = [Node(name, role, address, "a", state, 0.0) for name, role, address, state in (
        ("web-1", "web", "10.0.0.1", "running"), ("web-2", "web", "10.0.0.2", "pending"), ("db", "database", "10.0.0.3", "running"))]
    assert json.loads(metrics.targets(nodes)) == [{"targets": ["10.0.0.1:9100"], "labels": {"node": "web-1", "role": "web", "zone": "a"}}]


@pytest.mark.parametrize("address", ["9709", "127.0.0.1:0", "127.0.0.1:x", "203.0.113.7:9709"])
def test_a_wrong_address_gets_one_error(fleet: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--fleet", str(fleet), "metrics", "--listen", address]) == 2
    assert "--listen" in capsys.readouterr().err
