# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The trigger and learners, as the benchmarks of scaling use them beside the running fleet."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver, load
from measure import run, say, wait_for
from nodes import ROOT, Fleet

# The fleet's own policy with shorter windows, so that a cycle takes a minute and not ten.
POLICY = {"min_nodes": 2, "max_nodes": 3, "scale_in_window": 10, "cooldown_out": 5, "cooldown_in": 5, "target": 0.5}
EVERY = 4.0  # seconds between two checks, as a timer would start them
LIMIT = 300
HIGH, HALF, LOW = 14, 6, 2  # learners
RATE = 1.5  # requests a second of one learner


class Trigger:
    """``moodle-fleet check`` in turns, with a fleet file of its own."""

    def __init__(self, fleet: Fleet, folder: Path, **policy: object):
        shutil.copytree(fleet.file.parent, folder / "inventory")
        self.file = folder / "inventory" / fleet.file.name
        data = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        data["state_dir"] = str(fleet.state)
        data["scaling"] = {**(data.get("scaling") or {}), **POLICY, **policy}
        self.file.write_text(yaml.safe_dump(data), encoding="utf-8")
        self.cloud = cloud_driver(load(self.file))
        self.problems: list[str] = []
        self._stop = threading.Event()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``moodle-fleet`` with these arguments."""
        command = [sys.executable, "-m", "ansible_collections.elearning.moodle_fleet.trigger", "--fleet", str(self.file)]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)

    def check(self, *arguments: str) -> dict:
        """One check."""
        done = self.command("check", "--json", *arguments)
        if done.returncode or not done.stdout:
            self.problems.append((done.stderr or done.stdout).strip()[-500:])
        return json.loads(done.stdout or "{}")

    def web(self) -> set[str]:
        """Names of the web nodes that run and stay."""
        return {
            node.name for node in self.cloud.nodes()
            if node.role == "web" and node.state == "running" and "retiring" not in node.tags
        }

    def exist(self) -> int:
        """Web nodes that exist in any state."""
        return sum(node.role == "web" for node in self.cloud.nodes())

    @contextlib.contextmanager
    def runs(self) -> Iterator[None]:
        """Check in turns until the end."""
        def work() -> None:
            while not self._stop.wait(EVERY):
                self.check()

        self._stop.clear()
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


@contextlib.contextmanager
def learners(fleet: Fleet, folder: Path, result: dict) -> Iterator[Path]:
    """scripts/load in the background; the file says how many learners there are."""
    follow, target = folder / "users", folder / "load.json"
    follow.write_text(str(LOW), encoding="ascii")
    command = [sys.executable, str(ROOT / "tests/load/load.py"), "--fleet-file", str(fleet.file), "--users", str(HIGH),
               "--rate", str(HIGH * RATE), "--follow", str(follow), "--json", str(target)]
    with (folder / "load.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for("the learners", lambda: process.poll() is not None or "requests/s" in (folder / "load.log").read_text(), LIMIT)
            time.sleep(5)
            yield follow
        finally:
            follow.write_text("0", encoding="ascii")
            process.wait(timeout=LIMIT)
    text = (folder / "load.log").read_text(encoding="utf-8")
    if not target.exists():
        raise SystemExit(f"scripts/load could not run:\n{text[-3000:]}")
    result |= json.loads(target.read_text(encoding="utf-8"))
    if result["failed_requests"]:
        say("\n".join(re.findall(r"^failed at .*$", text, re.MULTILINE)))


def members(fleet: Fleet) -> dict[str, int]:
    """Requests that the balancer gave to each of its members."""
    connection = http.client.HTTPConnection(fleet.of("balancer")[0]["address"], 8404, timeout=5)
    try:
        connection.request("GET", "/stats;csv")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    lines = csv.DictReader(text.lstrip("# ").splitlines())
    return {line["svname"]: int(line["stot"] or 0) for line in lines if line["pxname"] == "web" and line["svname"] != "BACKEND"}


def served(fleet: Fleet, name: str) -> int:
    """Requests that the balancer gave to a member; -1 where it has no such member."""
    return members(fleet).get(name, -1)


def settle(trigger: Trigger, size: int) -> list[dict]:
    """Check until so many nodes serve and nothing else exists; returns the checks."""
    checks: list[dict] = []

    def there() -> bool:
        checks.append(trigger.check("--desired", str(size)))
        return list((checks[-1].get("phases") or {}).values()) == ["in_service"] * size and not checks[-1]["plan"]["steps"]

    wait_for(f"{size} nodes that serve", there, LIMIT, 1)
    return checks


def newest(names: set[str]) -> str:
    """The container made last."""
    return max(names, key=lambda name: run("podman", "inspect", "--format", "{{.Created}}", name))
