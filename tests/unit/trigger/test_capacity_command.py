# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""moodle-fleet capacity and tiers: what is said of a node, which tier is named, and that the checks find what was read."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import sources_of
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import kept, reader, tiers
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.capacity import Curve
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Node, Plan, Sample
from ansible_collections.elearning.moodle_fleet.trigger import capacity, cli


class Cloud:
    """Two web nodes and a database, or an outage."""

    settle = 0.0

    def __init__(self, down: bool = False) -> None:
        self.down = down

    def nodes(self) -> list[Node]:
        if self.down:
            raise CloudError("the cloud is away")
        return [Node(f"w{i}", "web", f"10.0.0.{i}", "a", "running", 0.0) for i in range(2)] + [Node("d", "database", "x", "a", "running", 0.0)]


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "moodle_fleet.yml"
    path.write_text("plugin: elearning.moodle_fleet.fleet\nfleet: sim\nstate_dir: state\ncloud: {driver: podman}\nscaling: {workers: 8}\n")
    monkeypatch.setattr(capacity, "cloud_driver", lambda _fleet: Cloud())
    monkeypatch.setattr(tiers, "files", lambda addresses: [0.05 for _address in addresses])
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "reader.json").write_text(json.dumps({
        "password": "x", "servers": {"default": {"host": "db", "port": 1}}, "tenants": [{"name": "a", "database": "a", "server": "default"}],
    }))
    return path


def database(running: float) -> dict[str, float]:
    return {"taken": time.time(), "up": 9e5, "cpus": 8.0, "connections": 500.0, "running": running, "connected": 9.0, "lock_seconds": 0.0}


def record(path: Path, curve: Curve, workers: int = 8, nodes: int = 2) -> None:
    """Checks of two hours, as the trigger would have written them."""
    now = time.time()
    with Ledger(path) as ledger:
        for index in range(480):
            busy = 0.5 + (index % 60) / 60 * 0.9 * workers
            rate = nodes * curve.rate(busy)
            sample = Sample(now - 15 * (480 - index), 15.0, busy * nodes, 5, 0, workers * nodes, nodes, round(15 * rate), True)
            ledger.commit(sample.taken, "check", sample, Decision(nodes, "none", nodes, nodes, True), Plan(), ledger.mark())


def test_a_node_is_known_by_its_counters(fleet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tiers, "database", lambda *_given: database(2.0))
    record(fleet.parent / "state" / "ledger.sqlite", Curve(0.2, 0.05))
    assert cli.main(["capacity", "--fleet", str(fleet), "--json", "--think", "20"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["curve"]["alone"] == pytest.approx(0.2, rel=0.05) and data["curve"]["sigma"] == pytest.approx(0.05, abs=0.02)
    assert data["rate"] == pytest.approx(Curve(0.2, 0.05).rate(data["busy_workers"]), rel=0.03)
    assert data["learners"] == pytest.approx(data["rate"] * (20 + data["seconds"] + data["mean_wait"]), abs=1)
    assert 0.5 < data["grounded_target"] < 1.0
    assert data["bottleneck"] == "web" and not data["extrapolated"]
    assert cli.main(["capacity", "--fleet", str(fleet)]) == 0
    text = capsys.readouterr().out
    assert "a node of 8 workers takes" in text and "Nearest to its limit: web" in text and "the policy says 0.7" in text


def test_a_tier_that_stays_full_holds_the_next_checks_back(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiers, "database", lambda *_given: database(40.0))
    assert cli.main(["tiers", "--fleet", str(fleet)]) == 0
    assert "database: 250% of its limit: 40 threads run on 8 CPUs" in capsys.readouterr().out
    sources = sources_of(load(fleet))
    assert sources.saturated() == {}
    first = _kept.load(load(fleet), kept.TIERS)
    _kept.write(load(fleet), kept.TIERS, {**first, "taken": first["taken"] - 30, "full": {"database": first["taken"] - 30}})
    assert cli.main(["capacity", "--fleet", str(fleet)]) == 0
    text = capsys.readouterr().out
    assert "More web nodes would not help now (database: 40 threads run on 8 CPUs)." in text
    assert "Nearest to its limit: database (250%)" in text and "too few trusted samples" in text
    assert sources.saturated() == {"database": "40 threads run on 8 CPUs"}


def test_what_cannot_be_read_is_named_and_holds_nothing_back(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_given: object) -> dict[str, float]:
        raise reader.ReadError("nobody answers")

    monkeypatch.setattr(tiers, "database", refuse)
    monkeypatch.setattr(capacity, "cloud_driver", lambda _fleet: Cloud(down=True))
    assert cli.main(["tiers", "--fleet", str(fleet), "--json"]) == 4
    data = json.loads(capsys.readouterr().out)
    assert data["failures"] == {"database": "nobody answers", "files": "the cloud is away"}
    assert (data["tiers"], data["saturated"]) == ([], {})
    (fleet.parent / "state" / "reader.json").unlink()
    assert cli.main(["capacity", "--fleet", str(fleet)]) == 4
    assert "playbooks/tenants.yml" in capsys.readouterr().out


@pytest.fixture(name="node")
def _node(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A web node whose health page says what the test puts there."""
    answers: list[bytes] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(answers[0])

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        original = http.client.HTTPConnection
        port = server.server_address[1]
        monkeypatch.setattr(http.client, "HTTPConnection", lambda host, _port, timeout: original(host, port, timeout=timeout))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield answers
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("body", "seconds"),
    [(b'{"files_seconds": 0.07}', [0.07]), (b'{"files_seconds": 0}', [0.0]), (b'{"status": "ready"}', []), (b"<html>", []),
     (b'{"files_seconds": "x"}', []), (b'{"files_seconds": -1}', []), (b"[1]", [])],
)
def test_the_shared_files_as_a_node_sees_them(node: list[bytes], body: bytes, seconds: list[float]) -> None:
    node.append(body)
    assert tiers.files(["127.0.0.1"]) == seconds
