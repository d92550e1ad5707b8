# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The rulebook under ansible-rulebook itself, with a moodle-fleet that plays a fleet whose requests begin to queue.

ansible-rulebook needs Java 17 and 150 MB of packages, so it runs where MOODLE_FLEET_TEST_EDA names a folder that has its command
(and ansible-playbook): the bin folder of a virtual environment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = os.environ.get("MOODLE_FLEET_TEST_EDA", "")
pytestmark = pytest.mark.skipif(not BIN, reason="MOODLE_FLEET_TEST_EDA names no folder with ansible-rulebook")
TOKEN = "a-token-of-alertmanager"

# Prints what the file beside it says as a reading, five times a second; a check adds a line to another file.
COMMAND = """
import json, pathlib, sys, time
here = pathlib.Path(__file__).parent
if "check" in sys.argv:
    with open(here / "checks", "a") as handle:
        handle.write(json.dumps([time.time(), *sys.argv[1:]]) + "\\n")
    print(json.dumps({"plan": {"steps": []}}))
    sys.exit()
while True:
    sample = {"load": 9.0, "capacity": 8, "waiting": int((here / "waiting").read_text()), "trusted": True}
    last = {"id": 1, "started": 1.0, "status": "done", "message": ""}
    print(json.dumps({"fleet": "prod", "size": 2, "desired": 2, "sample": sample, "last_check": last}), flush=True)
    time.sleep(0.2)
"""


class Rulebook:
    """ansible-rulebook with the rulebook, and what came of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "fleet_command.py").write_text(COMMAND)
        (home / "hosts").write_text("localhost ansible_connection=local\n")
        self.queue(0)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        variables = {"fleet_file": str(home / "moodle_fleet.yml"), "fleet_command": [sys.executable, str(home / "fleet_command.py")],
                     "alerts_host": "127.0.0.1", "alerts_port": self.port, "alerts_token": TOKEN}
        (home / "variables.yml").write_text(json.dumps(variables))
        environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}
        environment.pop("ANSIBLE_CONFIG", None)
        command = [f"{BIN}/ansible-rulebook", "--rulebook", "elearning.moodle_fleet.check", "--vars", str(home / "variables.yml"),
                   "--inventory", str(home / "hosts"), "--print-events"]
        with open(home / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=home, start_new_session=True)

    def queue(self, waiting: int) -> None:
        (self.home / "waiting.new").write_text(str(waiting))
        (self.home / "waiting.new").rename(self.home / "waiting")

    def checks(self) -> list[list[object]]:
        """Each check that was asked for: when, and its arguments."""
        file = self.home / "checks"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def output(self) -> str:
        return (self.home / "log").read_text()

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None and time.monotonic() < end, self.output()[-4000:]
            time.sleep(0.2)

    def alert(self, name: str, token: str = TOKEN) -> int:
        """The status of Alertmanager's request."""
        alert = {"status": "firing", "labels": {"alertname": name}}
        body = {"version": "4", "status": "firing", "commonLabels": {"alertname": name}, "alerts": [alert]}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/alerts", json.dumps(body).encode(),
                                         {"Content-Type": "application/json", "Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(20)


@pytest.fixture(name="rulebook")
def _rulebook(tmp_path: Path) -> Iterator[Rulebook]:
    running = Rulebook(tmp_path)
    yield running
    running.end()


def test_a_queue_is_checked_at_once_and_not_again_within_the_throttle(rulebook: Rulebook) -> None:
    rulebook.until(lambda: "fleet_status" in rulebook.output())
    time.sleep(2)
    assert rulebook.checks() == []
    rulebook.queue(3)
    rulebook.until(lambda: bool(rulebook.checks()))
    # A queue that goes on: some forty more readings, no more check.
    seen = rulebook.output().count("'waiting': 3")
    rulebook.until(lambda: rulebook.output().count("'waiting': 3") >= seen + 40)
    (check,) = rulebook.checks()
    assert check[1:] == ["--fleet", str(rulebook.home / "moodle_fleet.yml"), "check", "--json"]
    # Alerts count for themselves: one that a check can answer, and not a stranger's.
    assert rulebook.alert("NoScaleCheck", "a-wrong-token") == 401
    assert rulebook.alert("DiskFills") == 200
    assert rulebook.alert("NoScaleCheck") == 200
    rulebook.until(lambda: len(rulebook.checks()) == 2)
