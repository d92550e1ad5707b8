# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A service stops for a minute while the fleet grows, and while it shrinks: what was done, what was lost, and whether the
fleet came to what was wanted afterwards."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from checks import HALF, Trigger, learners, settle

from measure import RESULTS, report, run, say
from nodes import Fleet

MINUTE = 60.0
# The log server with its socket, which would start it again.
SERVICES = {"balancer": ["haproxy"], "database": ["mariadb"], "logs": ["rsyslog.service", "syslog.socket"]}


def outage(fleet: Fleet, folder: Path, role: str, size: int) -> dict:
    """The service stops, the fleet is to have so many nodes, the service is back after a minute."""
    trigger, seen = Trigger(fleet, folder), {}
    settle(trigger, 5 - size)
    name, units = fleet.names(role)[0], SERVICES[role]
    unit = units[0].removesuffix(".service")
    with learners(fleet, folder, seen) as follow:
        follow.write_text(str(HALF), encoding="ascii")
        time.sleep(5)
        run("podman", "exec", name, "systemctl", "stop", *units)
        stopped, checks = time.monotonic(), []
        try:
            while time.monotonic() - stopped < MINUTE:
                checks.append(trigger.check("--desired", str(size)))
                time.sleep(4)
        finally:
            run("podman", "exec", name, "systemctl", "start", *units)
        back = time.monotonic()
        checks += settle(trigger, size)
        seconds = time.monotonic() - back
        time.sleep(5)
    history = trigger.command("history", "--all", "--limit", str(len(checks))).stdout
    with (RESULTS / "outages-history.txt").open("a", encoding="utf-8") as file:
        file.write(f"{unit} stopped for {MINUTE:.0f} s, {size} nodes wanted\n{history}\n")
    became = Counter(check.get("status", "error") for check in checks)
    return {
        "stopped": unit, "while": "growing" if size == 3 else "shrinking", "checks": ", ".join(f"{n} {s}" for s, n in became.items()),
        "as wanted after s": seconds, "requests": seen["requests"], "failed": seen["failed_requests"],
        "lost sessions": seen["lost_sessions"], "posts lost": seen["posts_lost"], "posts doubled": seen["posts_doubled"],
        "log lines": seen["log_lines_expected"], "log lines lost": seen["log_lines_lost"],
    }


def main(fleet: Fleet, _given: argparse.Namespace) -> None:
    """The benchmark `outages`."""
    rows = []
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "outages-history.txt").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
        for role in SERVICES:
            for size in (3, 2):
                say(f"  {SERVICES[role][0]} stops, {size} nodes wanted …")
                part = Path(folder) / f"{role}{size}"
                part.mkdir()
                rows.append(outage(fleet, part, role, size))
    report("outages", f"A service stops for a minute while the fleet changes, {fleet.what}", rows, [
        "Requests fail while the only balancer or the database is stopped; nothing that was acknowledged may be lost.",
        "What moodle-fleet history says of each stands in results/outages-history.txt.",
    ])
