# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A release for many tenants: how long each is closed, against all being closed until the last is done. On a fleet of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from measure import Cpu, median, percentile, report, run, say

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
NAME, SUBNET, PORT = "relbench", "10.89.98.0/24", 18446
SECRET = "a-secret-for-benchmarks-alone-0123456789"
FLEET = f"""
plugin: elearning.moodle_fleet.fleet
fleet: {NAME}
state_dir: ../state
cloud: {{driver: podman, subnet: {SUBNET}, zones: [a, b]}}
services:
  balancer: {{count: 1, publish: ["127.0.0.1:{PORT}:443"]}}
scaling: {{min_nodes: 2, max_nodes: 4, workers: 4}}
"""
PARALLEL = 2


def tenants(count: int) -> list[dict]:
    """So many tenants for the list."""
    return [
        {"name": f"site{number:03}", "hosts": [f"site{number:03}.localhost"], "title": f"Site {number}",
         "admin": {"user": "admin", "email": "admin@bench.example"}}
        for number in range(1, count + 1)
    ]


def version(base: Path, folder: Path, number: int) -> Path:
    """Moodle's code with the tests' own plugin in a version of its own; files are linked, not copied, where that works."""
    code = folder / f"version{number}"
    subprocess.run(["cp", "-al" if os.stat(base).st_dev == os.stat(folder).st_dev else "-a", str(base), str(code)], check=True)
    plugin = code / ("public/local" if (code / "public").is_dir() else "local") / "nextrelease"
    shutil.copytree(ROOT / "tests" / "plugin", plugin)
    file = plugin / "version.php"
    file.write_text(file.read_text(encoding="utf-8").replace("2026010100", f"20260101{number:02}"), encoding="utf-8")
    return code


class Bench:
    """A fleet with so many tenants, built for this."""

    def __init__(self, folder: Path, base: Path, count: int) -> None:
        self.folder, self.base = folder, base
        self.inventory = folder / "inventory"
        (self.inventory / "group_vars").mkdir(parents=True, exist_ok=True)
        (self.inventory / "moodle_fleet.yml").write_text(FLEET, encoding="utf-8")
        self.names = [one["name"] for one in tenants(count)]
        values = {"moodle_fleet_secret": SECRET, "moodle_public_port": PORT, "moodle_version": "", "moodle_tenants": tenants(count)}
        (self.inventory / "group_vars" / "all.yml").write_text(json.dumps(values), encoding="utf-8")
        state = folder / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        if os.environ.get("CONTAINERS_CONF"):
            shutil.copy(os.environ["CONTAINERS_CONF"], state / "containers.conf")

    def playbook(self, path: Path, **values: object) -> None:
        """Run a playbook of this fleet."""
        file = self.folder / "values.json"
        file.write_text(json.dumps(values), encoding="utf-8")
        run("ansible-playbook", "-i", str(self.inventory), str(path), "-e", f"@{file}", cwd=ROOT)

    def build(self, number: int) -> None:
        """The fleet with the first release."""
        self.playbook(ROOT / "playbooks/site.yml", moodle_source=str(version(self.base, self.folder, number)))

    def release(self, number: int, **more: object) -> list[dict]:
        """Our way; returns a line for each tenant, in the order in which they were closed."""
        result = self.folder / "report.json"
        self.playbook(ROOT / "playbooks/release.yml", moodle_source=str(version(self.base, self.folder, number)),
                      tenants_report=str(result), release_parallel=PARALLEL, **more)
        return sorted(json.loads(result.read_text(encoding="utf-8"))["tenants"], key=lambda one: one["closed"])

    def naive(self, number: int) -> float:
        """The plain way; returns for how many seconds all were closed."""
        result = self.folder / "naive.json"
        self.playbook(HERE / "naive.yml", moodle_source=str(version(self.base, self.folder, number)), bench_tenants=self.names,
                      bench_parallel=PARALLEL, bench_result=str(result))
        began, ended = json.loads(result.read_text(encoding="utf-8"))
        return float(ended) - float(began)

    def containers(self) -> list[str]:
        """Names of the nodes that do the work."""
        return [f"{NAME}-jobs-1", f"{NAME}-database-1", f"{NAME}-cache-1"]

    def destroy(self) -> None:
        """Take the fleet away."""
        self.playbook(ROOT / "playbooks/destroy.yml", destroy_confirmed=True)


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `release`."""
    base = Path(os.environ.get("MOODLE_SOURCE", ""))
    if not base.is_dir() or not (base / "version.php").exists() and not (base / "public").is_dir():
        raise SystemExit("release: MOODLE_SOURCE has to name a folder with Moodle's code")
    folder = Path(tempfile.mkdtemp(prefix="moodle-fleet-release-"))
    bench = Bench(folder, base, given.tenants)
    rows: list[dict[str, object]] = []
    try:
        say(f"  a fleet with {given.tenants} sites, its files in {folder} …")
        bench.build(1)
        say("  one by one …")
        cpu = Cpu(bench.containers())
        before, began = cpu.read(), time.perf_counter()
        lines = bench.release(2)
        rows.append(row("one by one", [one["downtime"] for one in lines], time.perf_counter() - began, sum(cpu.since(before).values())))
        report("release-tenants", f"Each of {given.tenants} tenants, in the order in which they were closed", [
            {"tenant": one["name"], "state": one["state"], "closed after s": one["closed"] - lines[0]["closed"], "closed for s": one["downtime"]}
            for one in lines
        ])
        say("  all at once …")
        before, began = cpu.read(), time.perf_counter()
        closed = bench.naive(3)
        rows.append(row("all at once", [closed] * given.tenants, time.perf_counter() - began, sum(cpu.since(before).values())))
    finally:
        if rows:
            report("release", f"A release for {given.tenants} tenants, {PARALLEL} at a time", rows, [
                "Closed: seconds for which a site answers with its page of maintenance. Whole run: with the start of the playbook, and for"
                " 'one by one' with baking, the second pool of nodes and the end of the first. CPU of the jobs node, the database and Redis.",
            ])
        if not given.keep:
            bench.destroy()
            shutil.rmtree(folder, ignore_errors=True)


def row(way: str, closed: list[float], seconds: float, cpu: float) -> dict[str, object]:
    """A line of the table."""
    return {
        "way": way, "tenants": len(closed), "closed s, least": min(closed), "median": median(closed), "p95": percentile(closed, 0.95),
        "most": max(closed), "site-minutes closed": sum(closed) / 60, "whole run s": seconds, "CPU s": cpu,
    }
