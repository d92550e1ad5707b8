# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What one check with nothing to do costs: wall and CPU seconds, memory, processes.

    PYTHONPATH=<folder that holds ansible_collections> python tests/benchmarks/check_cost.py --nodes 200 --days 14

Each check is a process of its own, as the timer starts it, with a real fleet file and the real ledger, filled with a
check a minute. The answers of cloud and balancer are given: their time is the network's and theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import FILE_NAME, Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Reason, Sample

CHILD = """
import json, resource, sys, time
from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _check
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import Counters
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member, Node
from ansible_collections.elearning.moodle_fleet.trigger import cli

def sources(fleet):
    data = json.load(open(sys.argv[1]))
    nodes = [Node(**one) for one in data]
    def read(_nodes):
        members = [Member(n.name, n.address, "up", 4, 3, 0, 5000.0) for n in nodes]
        now = time.time()
        return Counters(now, int(now * 1000), 3 * len(nodes), 0, 0.7 * 4 * len(nodes) / 1000, 1.0, members, 0)
    return _check.Sources(nodes=lambda: nodes, read=read, probe=lambda _n: {}, image=lambda r: ("", r))

cli.sources_of = sources
code = cli.main(["--fleet", sys.argv[2], "check", "--json"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "ansible" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


def fill(path: Path, days: float, size: int) -> None:
    """A check a minute for so many days, up to half a minute ago."""
    now = time.time() - 30
    reasons = (Reason("tracking", f"{size * 2.8:.1f} of {size * 4} workers busy (70%), target 70%: {size} nodes", size),)
    decision = Decision(size, "none", size, size, True, reasons)
    with Ledger(path) as ledger:
        ledger._db.execute("PRAGMA synchronous=OFF")
        for minute in range(int(days * 1440), -1, -1):
            at = now - minute * 60
            taken = Sample(at, 60.0, size * 2.8, size * 3, 0, size * 4, size, 60_000, True)
            ledger.commit(at, "check", taken, decision, Plan(), 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--days", type=float, default=14)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fleet = Path(folder) / "moodle_fleet.yml"
        fleet.write_text(
            "plugin: elearning.moodle_fleet.fleet\nfleet: bench\nstate_dir: state\ncloud: {driver: podman}\n"
            f"scaling: {{min_nodes: 2, max_nodes: {arguments.nodes * 2}}}\n", encoding="utf-8",
        )
        ledger = Path(folder) / "state" / FILE_NAME
        fill(ledger, arguments.days, arguments.nodes)
        nodes = [
            {"name": f"web-{i}", "role": "web", "address": f"10.0.{i // 250}.{i % 250}", "zone": "ab"[i % 2],
             "state": "running", "launched": 1.0}
            for i in range(arguments.nodes)
        ]
        listing = Path(folder) / "nodes.json"
        listing.write_text(json.dumps(nodes), encoding="utf-8")
        walls, cpus, peaks, empty = [], [], [], []
        for _index in range(arguments.runs):
            begun = time.monotonic()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            empty.append(time.monotonic() - begun)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            begun = time.monotonic()
            run = subprocess.run([sys.executable, "-c", CHILD, str(listing), str(fleet)], capture_output=True,
                                 text=True, env=os.environ, check=False)
            walls.append(time.monotonic() - begun)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            peak, ansible = run.stderr.split()[-2:]
            peaks.append(int(peak) / 1024)
            status = json.loads(run.stdout)["status"]
            if run.returncode or status != "idle" or ansible != "False":
                print(f"not a quiet check: {run.returncode} {status} ansible={ansible}\n{run.stderr}")
                return 1
        print(f"{arguments.nodes} nodes, {arguments.days:g} days of minutes, ledger "
              f"{ledger.stat().st_size / 1e6:.0f} MB, {arguments.runs} checks, Ansible not loaded")
        for name, values, unit in (("wall", walls, "s"), ("CPU", cpus, "s"), ("memory", peaks, "MB"),
                                   ("an empty Python, wall", empty, "s")):
            print(f"  {name:22} median {statistics.median(values):7.3f} {unit}  highest {max(values):7.3f} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
