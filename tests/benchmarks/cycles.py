# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The fleet grows under load and shrinks when it goes, again and again, while learners read and write.

Beside it, what it costs when the node is simply removed, as nothing but the cloud's own termination would do it. The
policy is that of the fleet, with shorter windows, so that a cycle takes a minute and not ten.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver, load
from measure import median, report, run, say, wait_for
from nodes import ROOT, Fleet

POLICY = {"min_nodes": 2, "max_nodes": 3, "scale_in_window": 10, "cooldown_out": 5, "cooldown_in": 5, "target": 0.5}
EVERY = 4.0  # seconds between two checks, as a timer would start them
LIMIT = 300
HIGH, LOW = 14, 2
RATE = 1.5  # requests a second of one learner


class Trigger:
    """``moodle-fleet check`` in turns, with a fleet file of its own."""

    def __init__(self, fleet: Fleet, folder: Path):
        shutil.copytree(fleet.file.parent, folder / "inventory")
        self.file = folder / "inventory" / fleet.file.name
        data = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        data["state_dir"] = str(fleet.state)
        data["scaling"] = {**(data.get("scaling") or {}), **POLICY}
        self.file.write_text(yaml.safe_dump(data), encoding="utf-8")
        self.cloud = cloud_driver(load(self.file))
        self.problems: list[str] = []
        self._stop = threading.Event()

    def check(self, *arguments: str) -> dict:
        """One check."""
        command = [sys.executable, "-m", "ansible_collections.elearning.moodle_fleet.trigger", "--fleet", str(self.file)]
        done = subprocess.run([*command, "check", "--json", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
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


def row(way: str, cycles: int, seconds: list[float], seen: dict) -> dict:
    """One line of the table."""
    return {
        "a node goes by": way, "cycles": cycles, "requests": seen["requests"], "failed": seen["failed_requests"],
        "lost sessions": seen["lost_sessions"], "posts lost": seen["posts_lost"], "posts doubled": seen["posts_doubled"],
        "log lines": seen["log_lines_expected"], "log lines lost": seen["log_lines_lost"],
        "slowest s": seen["slowest_request_ms"] / 1000, "cycle s": median(seconds),
    }


def drained(fleet: Fleet, folder: Path, cycles: int) -> tuple[dict, list[str]]:
    """Out and in by the trigger alone."""
    trigger, seen, seconds = Trigger(fleet, folder), {}, []
    trigger.check("--desired", "2")
    with learners(fleet, folder, seen) as follow, trigger.runs():
        for number in range(cycles):
            began = time.monotonic()
            follow.write_text(str(HIGH), encoding="ascii")
            wait_for("a bigger fleet", lambda: len(trigger.web()) > 2 and trigger.check("--dry-run")["decision"]["size"] > 2, LIMIT, 1)
            new = max(trigger.web(), key=lambda name: run("podman", "inspect", "--format", "{{.Created}}", name))
            wait_for(f"requests at {new}", lambda name=new: served(fleet, name) > 20, LIMIT, 0.5)
            follow.write_text(str(LOW), encoding="ascii")
            wait_for("a smaller fleet", lambda: trigger.exist() == 2, LIMIT, 1)
            seconds.append(time.monotonic() - began)
            say(f"  cycle {number + 1} of {cycles}: {seconds[-1]:.0f} s")
    return row("draining", cycles, seconds, seen), trigger.problems


def removed(fleet: Fleet, folder: Path, cycles: int) -> dict:
    """The same load, and a node that is just removed while it works."""
    trigger, seen, seconds = Trigger(fleet, folder), {}, []
    with learners(fleet, folder, seen) as follow:
        follow.write_text(str(HIGH), encoding="ascii")
        for _number in range(cycles):
            began = time.monotonic()
            trigger.check("--desired", "3")
            wait_for("three nodes that serve", lambda: trigger.check("--dry-run")["decision"]["size"] > 2, LIMIT, 1)
            new = max(trigger.web(), key=lambda name: run("podman", "inspect", "--format", "{{.Created}}", name))
            wait_for(f"requests at {new}", lambda name=new: served(fleet, name) > 20, LIMIT, 0.5)
            run("podman", "rm", "--force", "--time", "0", "--volumes", new)
            time.sleep(5)
            trigger.check("--desired", "2")
            seconds.append(time.monotonic() - began)
    for _number in range(3):
        trigger.check("--desired", "2")
    return row("removing it", cycles, seconds, seen)


def served(fleet: Fleet, name: str) -> int:
    """Requests that the balancer gave to a node."""
    from launch import served as count

    return count(fleet, name)


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `cycles`."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
        (Path(folder) / "a").mkdir()
        (Path(folder) / "b").mkdir()
        first, problems = drained(fleet, Path(folder) / "a", given.cycles)
        rows = [first, removed(fleet, Path(folder) / "b", max(1, given.cycles // 5))]
    notes = [f"{len(problems)} checks ended with an error: {problems[:3]}"] if problems else []
    report("cycles", f"The fleet grows and shrinks under load, {fleet.what}", rows, notes)
