# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import codecs
import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _fleet
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import RunResult
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError, LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger, single_flight
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node, Plan, Step
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.world import World
from ansible_collections.elearning.moodle_fleet.trigger import awx, cli, output, runner


@pytest.fixture(name="world")
def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A fleet file whose cloud and balancer are simulated."""
    world = World(Policy(), Ledger(tmp_path / "ledger.sqlite"), size=2, load=5.0)
    world.pass_time(15)
    world.check()
    world.pass_time(15)
    fleet = SimpleNamespace(name="test", path=tmp_path / "moodle_fleet.yml", state_dir=tmp_path, scaling={}, metrics={}, ledger={})
    monkeypatch.setattr(cli, "load", lambda _path: fleet)
    monkeypatch.setattr(cli, "sources_of", lambda _fleet: dataclasses.replace(world.sources))
    monkeypatch.setenv("MOODLE_FLEET_FILE", "")
    monkeypatch.setattr(runner, "run_playbook", lambda *_args, **_more: RunResult("done"))
    return world


def run(*arguments: str) -> int:
    return cli.main(["--fleet", "moodle_fleet.yml", *arguments])


def test_a_check_with_nothing_to_do(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["status"], data["plan"]["steps"], data["check_id"]) == ("idle", [], 2)


def test_a_check_that_acts_gives_the_plan_to_the_playbook(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list = []

    def fake(playbook, inventory, variables, folder, **more):
        given.append((playbook, variables, more["lock"]))
        return RunResult("failed", "no capacity")

    monkeypatch.setattr(runner, "run_playbook", fake)
    world.load = 14.0
    world.pass_time(15)
    assert run("check") == 5
    playbook, variables, lock = given[0]
    assert playbook.name == "scale.yml"
    assert variables["fleet_check_id"] == 2
    assert variables["fleet_plan"][0]["action"] == "launch"
    assert isinstance(lock, int)
    assert "no capacity" in capsys.readouterr().out
    assert run("history") == 0
    assert "2 → 5" in capsys.readouterr().out
    assert run("explain") == 0
    assert "should grow from 2 to 5" in capsys.readouterr().out


def test_a_check_gives_the_plan_to_awx_and_records_what_became_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list = []

    def fake(_awx, variables, **_more):
        given.append(variables)
        return RunResult("done", "AWX job 7", [{"action": "launch", "node": "test-web-9", "status": "done", "seconds": 31.5}])

    monkeypatch.setattr(awx.AWX, "run", fake)
    monkeypatch.setenv("MOODLE_FLEET_AWX_TOKEN", "a-token-of-the-test")
    world.load = 14.0
    world.pass_time(15)
    assert run("check", "--awx-url", "https://awx.example.org", "--awx-template", "7") == 0
    # AWX has neither this machine's files nor its ledger.
    assert {name: value for name, value in given[0].items() if name != "fleet_plan"} == {"fleet_check_id": 2, "fleet_record": False}
    assert ("test-web-9", 31.5) in [(one["node"], one["seconds"]) for one in world.ledger.activities(2)]


def test_a_dry_run_changes_and_records_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.load = 14.0
    world.pass_time(15)
    before = world.ledger.checks(9)
    assert run("check", "--dry-run") == 0
    assert "launch 3 nodes" in capsys.readouterr().out
    assert world.ledger.checks(9) == before


def test_exit_codes(world: World, tmp_path: Path) -> None:
    world.balancer_down = True
    assert run("check") == 4
    world.balancer_down = False
    with single_flight(SimpleNamespace(state_dir=tmp_path, ledger={}), "check"):
        assert run("check") == 6
    assert cli.main(["check"]) == 2
    assert run("check", "--awx-url", "http://127.0.0.1:1") == 2
    assert run("explain", "999") == 2


def test_a_wrong_fleet_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--fleet", str(tmp_path / "none.yml"), "status"]) == 3
    assert "none.yml" in capsys.readouterr().err


def test_pause_and_resume(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pause", "--in-only", "--reason", "exams", "--for", "2h") == 0
    pause = world.ledger.pauses(time.time())[0]
    assert (pause.scope, pause.reason, round(pause.until - pause.since)) == ("in", "exams", 7200)
    world.now = time.time()
    capsys.readouterr()
    assert run("status") == 0
    assert "Scaling in is paused" in capsys.readouterr().out
    assert run("resume") == 0
    assert "1 pause ended" in capsys.readouterr().out
    assert run("pause", "--for", "soon") == 2


def test_status_as_data(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["phases"] == {"first-0": "in_service", "first-1": "in_service"}
    assert data["last_check"]["id"] == 1


def test_the_quick_path_loads_neither_ansible_nor_drivers_nor_rich() -> None:
    code = (
        "import sys, ansible_collections.elearning.moodle_fleet.trigger.cli\n"
        "print([name for name in ('ansible', 'ansible_runner', 'rich', 'urllib.request', 'boto3', 'yaml')"
        " if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"


def test_a_missing_playbook_fails_clearly(tmp_path: Path) -> None:
    result = runner.run_playbook(tmp_path / "scale.yml", tmp_path, {}, tmp_path / "run")
    assert result.status == "failed" and "does not exist" in result.message


def test_a_playbook_runs_with_the_plan_and_its_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSIBLE_INVENTORY_ENABLED", "ini")
    playbook = tmp_path / "play.yml"
    playbook.write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.fail:\n        msg: 'got {{ fleet_check_id }}'\n      when: fleet_check_id > 1\n"
    )
    (tmp_path / "hosts").write_text("localhost ansible_connection=local\n")
    good = runner.run_playbook(playbook, tmp_path / "hosts", {"fleet_check_id": 1}, tmp_path / "runs" / "1")
    assert good == RunResult("done")
    bad = runner.run_playbook(playbook, tmp_path / "hosts", {"fleet_check_id": 2}, tmp_path / "runs" / "2")
    assert bad.status == "failed" and "got 2" in bad.message
    assert (tmp_path / "runs" / "2" / "env" / "extravars").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("room", [True, False])
def test_a_quick_cloud_is_asked_for_nodes_while_ansible_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_once: bool, room: bool) -> None:
    asked: list[LaunchSpec] = []

    class Cloud:
        def launch(self, spec: LaunchSpec) -> list[Node]:
            asked.append(spec)
            if not room and spec.token == "t2":
                raise CloudError("no room: the playbook says so")
            return [Node(f"{spec.token}-1", "web", "192.0.2.1", "a", "running", 1.0)]

        def as_result(self, node: Node) -> dict[str, str]:
            return {"name": node.name}

    Cloud.at_once = at_once
    monkeypatch.setattr(_fleet, "cloud_driver", lambda _fleet: Cloud())
    steps = [Step("launch", "2 wanted", count=2, token=token, image="i", release="r", zones=("a", "b")) for token in ("t1", "t2")]
    plan = Plan((*steps, Step("drain", "", node="n")))
    runner.launch_at_once(SimpleNamespace(), plan, tmp_path / "launched.json")
    assert asked == ([LaunchSpec("web", 2, token, "i", "r", ["a", "b"], {"launch": token}) for token in ("t1", "t2")] if at_once else [])
    # The playbook takes an answer for the whole of it, or asks again.
    assert [path.name for path in tmp_path.iterdir()] == (["launched.json"] if at_once and room else [])
    if at_once and room:
        answer = json.loads((tmp_path / "launched.json").read_text())
        assert [(one["step"]["token"], one["nodes"]) for one in answer] == [("t1", [{"name": "t1-1"}]), ("t2", [{"name": "t2-1"}])]


WATCHED = """
import signal, sys
from ansible_collections.elearning.moodle_fleet.trigger import output
# Whoever runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
now = [0]
def read():
    now[0] += 1
    return {"now": 1e9 + now[0], "size": 2, "desired": 2, "min_nodes": 2, "max_nodes": 6, "phases": {"web-[red]1": "in_service"},
            "sample": {"load": float(now[0]), "capacity": 8, "waiting": 0, "trusted": True, "faults": []}, "pauses": [], "last_check": None,
            "errors": [], "plan": {"steps": []}, "decision": {"reasons": [{"code": "tracking", "text": "two [b]are[/b] enough", "desired": 2}]}}
try:
    output.watch("test", read, 0.05)
except KeyboardInterrupt:
    print("ended cleanly")
"""


def test_a_watched_status_is_plain_where_there_is_no_terminal() -> None:
    process = subprocess.Popen([sys.executable, "-c", WATCHED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _line in range(14)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert sum(line.startswith("Fleet test: 2 web nodes") for line in lines) == 2 and "\x1b" not in "".join(lines)
    assert rest.endswith("ended cleanly\n") and errors == ""


def test_a_watched_status_is_drawn_in_place_on_a_terminal() -> None:
    here, there = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", WATCHED], stdout=there, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "TERM": "xterm", "COLUMNS": "100"})
    os.close(there)
    # A reading may end within a character.
    seen, decoder = "", codecs.getincrementaldecoder("utf-8")()
    while "Load 5.0" not in seen:
        seen += decoder.decode(os.read(here, 65536))
    process.send_signal(signal.SIGINT)
    while "ended cleanly" not in seen:
        seen += decoder.decode(os.read(here, 65536))
    assert process.wait(timeout=20) == 0 and process.stderr is not None and process.stderr.read() == ""
    os.close(here)
    assert "web-[red]1" in seen and "two [b]are[/b] enough" in seen and "Ctrl-C ends" in seen
    # The other screen is left again, and the cursor is back.
    assert "\x1b[?1049h" in seen and "\x1b[?1049l" in seen and "\x1b[?25h" in seen


def test_a_watched_status_as_data(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output.time, "sleep", stop)
    assert run("status", "--watch", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["size"] == 2
