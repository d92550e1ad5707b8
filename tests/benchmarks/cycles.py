# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The fleet grows under load and shrinks when it goes, again and again, while learners read and write.

Beside it, what it costs when a node dies under load, and when one is simply removed, as the cloud alone would do it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from checks import HALF, HIGH, LIMIT, LOW, Trigger, learners, newest, served, settle

from measure import median, report, run, say, wait_for
from nodes import Fleet


def row(way: str, cycles: int, seconds: list[float], seen: dict) -> dict:
    """One line of the table."""
    return {
        "a node goes by": way, "cycles": cycles, "requests": seen["requests"], "failed": seen["failed_requests"],
        "failed GETs": seen["failed_reads"], "lost sessions": seen["lost_sessions"], "posts lost": seen["posts_lost"], "posts doubled": seen["posts_doubled"],
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
            new = newest(trigger.web())
            wait_for(f"requests at {new}", lambda name=new: served(fleet, name) > 20, LIMIT, 0.5)
            follow.write_text(str(LOW), encoding="ascii")
            wait_for("a smaller fleet", lambda: trigger.exist() == 2, LIMIT, 1)
            seconds.append(time.monotonic() - began)
            say(f"  cycle {number + 1} of {cycles}: {seconds[-1]:.0f} s")
    return row("draining", cycles, seconds, seen), trigger.problems


def ended(fleet: Fleet, folder: Path, cycles: int, way: str, *command: str) -> dict:
    """A node that ends while it works, without anybody letting it finish."""
    trigger, seen, seconds = Trigger(fleet, folder), {}, []
    with learners(fleet, folder, seen) as follow:
        follow.write_text(str(HALF), encoding="ascii")
        for number in range(cycles):
            settle(trigger, 3)
            new = newest(trigger.web())
            wait_for(f"requests at {new}", lambda name=new: served(fleet, name) > 20, LIMIT, 0.5)
            began = time.monotonic()
            run(*command, new)
            settle(trigger, 3)
            seconds.append(time.monotonic() - began)
            say(f"  {way} {number + 1} of {cycles}: as before after {seconds[-1]:.0f} s")
    settle(trigger, 2)
    return row(way, cycles, seconds, seen)


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `cycles`."""
    few = max(1, given.cycles // 5)
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
        parts = [Path(folder) / name for name in "abc"]
        for part in parts:
            part.mkdir()
        first, problems = drained(fleet, parts[0], given.cycles)
        killed = ended(fleet, parts[1], few, "dying (SIGKILL)", "podman", "kill", "--signal", "KILL")
        removed = ended(fleet, parts[2], few, "removal at once", "podman", "rm", "--force", "--time", "0", "--volumes")
    notes = [f"{len(problems)} checks ended with an error: {problems[:3]}"] if problems else []
    report("cycles", f"The fleet grows and shrinks under load, {fleet.what}", [first, killed, removed], notes)
