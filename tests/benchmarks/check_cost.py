# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What one check with nothing to do costs: wall and CPU seconds, memory, processes.

Each check is a process of its own, as the timer starts it, with a real fleet file and the real ledger, filled with a
check a minute: once as a file, and once in a MariaDB on this machine, by TLS. The answers of cloud and balancer are given:
their time is the network's and theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import FILE_NAME, Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_mariadb import Access, MariaDB
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Reason, Sample
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import Server
from ansible_collections.elearning.moodle_fleet.tests.integration import managed
from measure import median, report, say

NODES, DAYS = 200, 14
# Not getrusage's peak, which a process has from the one that started it.
PEAK = 'print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], "ansible" in sys.modules, file=sys.stderr)'
CHILD = """
import json, sys, time
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
""" + PEAK + """
sys.exit(code)
"""


def fill(path: Path, days: float, size: int) -> None:
    """A check a minute for so many days, up to half a minute ago."""
    now = time.time() - 30
    reasons = (Reason("tracking", f"{size * 2.8:.1f} of {size * 4} workers busy (70%), target 70%: {size} nodes", size),)
    decision = Decision(size, "none", size, size, True, reasons)
    with Ledger(path) as ledger:
        ledger._store._db.execute("PRAGMA synchronous=OFF")
        for minute in range(int(days * 1440), -1, -1):
            at = now - minute * 60
            taken = Sample(at, 60.0, size * 2.8, size * 3, 0, size * 4, size, 60_000, True)
            ledger.commit(at, "check", taken, decision, Plan(), 0)


def copy(path: Path, access: Access) -> None:
    """The same ledger in MariaDB."""
    with Ledger(path) as source, Ledger(MariaDB(access)) as target:
        for table in ("checks", "samples", "slots", "state"):
            rows = source._store.rows(f"SELECT * FROM {table}")
            names = ", ".join(f'"{name}"' for name in rows[0])
            with target._store.write(), target._store._db.cursor() as cursor:
                cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(rows[0]))})", [tuple(row.values()) for row in rows])


def timed(code: str, *arguments: str) -> tuple[tuple[float, float, float], str, str]:
    """Run Python code in a process of its own; (wall s, CPU s, peak MB), what it printed, what it said beside that."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"a check failed:\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (wall, cpu, int(done.stderr.split()[-2]) / 1024), done.stdout, done.stderr


FLEET = """plugin: elearning.moodle_fleet.fleet
fleet: bench
state_dir: {folder}/state
cloud: {{driver: podman}}
scaling: {{min_nodes: 2, max_nodes: {most}}}
metrics: {{textfile: {folder}/fleet.prom}}
"""
MARIADB = "ledger: {{driver: mariadb, endpoint: 'localhost:{port}', user: fleet_admin, tls: true}}\n"
PASSWORD = "Bench-password-0123456789"


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `check-cost`."""
    names = ("an empty Python", "moodle-fleet check", "the same, its ledger in MariaDB")
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        certificate = managed.Certificate.make(folder)
        os.environ |= {"SSL_CERT_FILE": str(certificate.certificate), "MOODLE_FLEET_LEDGER_PASSWORD": PASSWORD}
        ledger = folder / "state" / FILE_NAME
        say(f"  filling a ledger with {DAYS} days …")
        fill(ledger, DAYS, NODES)
        listing = folder / "nodes.json"
        listing.write_text(json.dumps([
            {"name": f"web-{i}", "role": "web", "address": f"10.0.{i // 250}.{i % 250}", "zone": "ab"[i % 2],
             "state": "running", "launched": 1.0}
            for i in range(NODES)
        ]), encoding="utf-8")
        with managed.database(folder, certificate, PASSWORD) as port:
            fleets = {names[1]: folder / "file.yml", names[2]: folder / "mariadb.yml"}
            fleets[names[1]].write_text(FLEET.format(folder=folder, most=NODES * 2), encoding="utf-8")
            fleets[names[2]].write_text((FLEET + MARIADB).format(folder=folder, most=NODES * 2, port=port), encoding="utf-8")
            access = Access("localhost", port, "fleet_ledger", "fleet_admin", PASSWORD, tls=True)
            Server("localhost", port, "fleet_admin", PASSWORD, True).query("CREATE DATABASE fleet_ledger")
            copy(ledger, access)
            for _round in range(3 * given.rounds):
                found[names[0]].append(timed("import sys\n" + PEAK)[0])
                for name, fleet in fleets.items():
                    cost, answer, told = timed(CHILD, str(listing), str(fleet))
                    found[name].append(cost)
                    if json.loads(answer)["status"] != "idle" or told.split()[-1] != "False":
                        raise SystemExit(f"not a quiet check, or one that loaded Ansible: {answer[:500]}\n{told}")
        size = ledger.stat().st_size / 1e6
    columns = ("wall s", "CPU s", "memory MB")
    rows = [
        {"process": name} | {column: median([cost[i] for cost in costs]) for i, column in enumerate(columns)}
        | {"longest s": max(cost[0] for cost in costs), "runs": len(costs)}
        for name, costs in found.items()
    ]
    report("check_cost", f"A check with nothing to do: {NODES} nodes, {DAYS} days of minutes in the ledger ({size:.0f} MB)", rows,
           ["No check loaded Ansible, so none started it."])
