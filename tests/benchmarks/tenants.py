# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Many tenants at once: sites as copies against sites installed in full, a second apply, and the isolation of every pair."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from measure import Cpu, median, percentile, report, run, say
from nodes import HERE, Fleet

# Installing in full takes the same for each site: a few are enough to know.
FULL = 3


def entries(word: str, count: int, **more: object) -> list[dict]:
    """So many tenants for the list."""
    return [
        {"name": f"bench_{word}{number:03}", "hosts": [f"bench-{word}{number:03}.localhost"], "title": f"Bench {number}",
         "admin": {"user": "admin", "email": "admin@bench.example"}, **more}
        for number in range(count)
    ]


class Bench:
    """Applies lists, and counts what it takes."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.names = fleet.names("jobs", "database", "cache")

    def apply(self, what: str, tenants: list[dict], **variables: object) -> dict:
        """One run; returns the row of the table."""
        say(f"  {what} …")
        cpu = Cpu(self.names)
        before, began = cpu.read(), time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
            result = Path(folder) / "result.json"
            self.fleet.playbook(HERE / "tenants.yml", bench_result=str(result), bench_tenants=tenants, **variables)
            found = json.loads(result.read_text(encoding="utf-8"))
        seconds, spent = time.perf_counter() - began, cpu.since(before)
        touched = [one for one in found.get("tenants", []) if one["changed"]] if isinstance(found.get("tenants"), list) else []
        failed = [f"{one['name']}: {one['error']}" for one in touched if one["error"]]
        if failed:
            raise SystemExit("; ".join(failed))
        number = len(touched)
        self.last = found
        return {
            "run": what, "tenants": len(tenants), "changed": number, "seconds": seconds, "CPU s": sum(spent.values()),
            "CPU s a site": sum(spent.values()) / number if number else float("nan"),
            "s a site, median": median([one["seconds"] for one in touched]),
            "p95": percentile([one["seconds"] for one in touched], 0.95), "queries": found.get("queries", float("nan")),
        }


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `tenants`."""
    bench = Bench(fleet)
    copies, full = entries("c", given.tenants), entries("f", FULL)
    jobs = fleet.names("jobs")
    rows = []
    for name in jobs:
        run("podman", "exec", name, "systemctl", "stop", "moodle-fleet-cron", check=False)
    try:
        rows.append(bench.apply("installed in full", full, tenants_clone=False))
        run("podman", "exec", jobs[0], "rm", "-rf", "/var/lib/moodle-fleet/templates")
        rows.append(bench.apply("template and one copy", copies[:1] + full))
        rows.append(bench.apply("copies", copies + full))
        rows.append(bench.apply("second apply", copies + full))
        rows.append(bench.apply("every ordered pair", copies + full, bench_check=True))
        note = f"Pairs tried: {bench.last['pairs']}, findings: {len(bench.last['findings'])}, {bench.last['seconds']} s in the module."
    finally:
        # Kept copies are there for the benchmark `jobs`.
        gone = [one | {"state": "absent"} for one in (full if given.keep else copies + full)]
        rows.append(bench.apply("removed", gone, tenants_remove=[one["name"] for one in gone]))
        bench.apply("the fleet's own list again", [])
        for name in jobs:
            run("podman", "exec", name, "systemctl", "start", "moodle-fleet-cron", check=False)
    report("tenants", f"{given.tenants} tenants, {fleet.what}", rows, [
        "CPU of the jobs node, the database and Redis. Seconds are those of a whole playbook, whose own start is in them.", note,
    ])
