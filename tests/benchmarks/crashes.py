# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller is killed at every step of growing and of shrinking, while learners work: what the next checks make of it."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from checks import HALF, Trigger, learners, settle

from ansible_collections.elearning.moodle_fleet.tests.integration.crash_points import points
from measure import report, say
from nodes import Fleet


def crash(trigger: Trigger, size: int, point: str) -> dict:
    """Die at one point on the way to so many nodes."""
    settle(trigger, 5 - size)
    points(trigger.file.parent, size, point)
    began, most = time.monotonic(), trigger.exist()
    checks = settle(trigger, size)
    return {
        "while": "growing" if size == 3 else "shrinking", "the controller dies at": point, "checks until as wanted": len(checks) - 1,
        "as wanted after s": time.monotonic() - began, "nodes at most": max(most, trigger.exist()), "nodes left": trigger.exist(),
    }


def main(fleet: Fleet, _given: argparse.Namespace) -> None:
    """The benchmark `crashes`."""
    rows, seen = [], {}
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
        trigger = Trigger(fleet, Path(folder))
        with learners(fleet, Path(folder), seen) as follow:
            follow.write_text(str(HALF), encoding="ascii")
            for size in (3, 2):
                settle(trigger, 5 - size)
                for point in points(trigger.file.parent, size):
                    rows.append(crash(trigger, size, point))
                    say(f"  {point}: {rows[-1]['checks until as wanted']} checks")
    wrong = sum(row["nodes at most"] > 3 for row in rows)
    counts = ("requests", "failed_requests", "lost_sessions", "posts_lost", "posts_doubled", "log_lines_lost")
    report("crashes", f"The controller dies at each step, {fleet.what}", rows, [
        f"{len(rows)} crash points, {wrong} of them with a node too many.",
        "Learners meanwhile: " + ", ".join(f"{seen[name]} {name.replace('_', ' ')}" for name in counts) + ".",
    ])
