# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Benchmarks. Each prints tables and writes results/*.csv. Those of the first part need the running local fleet.

  pages       CPU of a page: a fleet's node against one stand-alone server; each measure's gain; freshness across nodes
  first-hit   the first pages of a fresh node, warmed up and not, against warm pages
  launch      launch → first request served through the balancer, from the image and from bare, against bare commands
  pools       a pool of PHP workers of a tenant's own against the shared one: CPU, memory, the first page after idling
  tenant-map  finding the tenant among 1, 130 and 5,000
  tenants     many tenants: copies against full installations, a second apply, isolation of every pair
  jobs        the cron of many tenants: CPU against plain cron, a busy neighbour, takeover
  cycles      the fleet grows and shrinks under load: failed requests, lost sessions, posts and log lines
  live        the simulator's prediction beside what the fleet does under that load
  crashes     the controller dies at each step of growing and shrinking: what the next checks make of it
  outages     balancer, database and log server stop for a minute while the fleet grows and shrinks
  release     a release for many tenants: how long each is closed, against all being closed; builds a fleet of its own
  no-change   a second site.yml: seconds, tasks, ssh executions

  inventory   1,000 nodes: the inventory plugin against one that asks nobody
  aws         a fleet on AWS's test server: inventory and launch against amazon.aws, API calls of growth, every interruption
  check-cost  a check with nothing to do: seconds, memory, whether Ansible is started
  report-page the report of 14 days of minutes: until it is seen in a browser, and its size
  histories   random histories of a simulated fleet that dies at every call, and how many invariants broke
  policies    our policy against documented autoscalers and an oracle, on traces of six shapes
  exam        a tenfold exam start with launches of 300 s: unknown, scheduled, known from the quiz, and an oracle
  mutations   faults seeded into the scaling, and the test that catches each
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import sys
import time
from pathlib import Path

from measure import say

BENCHMARKS = ("pages", "first-hit", "launch", "pools", "tenant-map", "tenants", "jobs", "release", "no-change", "cycles", "live", "crashes", "outages",
              "inventory", "aws", "check-cost", "report-page", "histories", "policies", "exam", "mutations")
# These need no running fleet, or build their own.
ALONE = {"release", "no-change", "inventory", "aws", "check-cost", "report-page", "histories", "policies", "exam", "mutations"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="which; all of them by default")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; the median counts (default 5)")
    parser.add_argument("--requests", type=int, default=60, help="pages: requests for each page and round (default 60)")
    parser.add_argument("--clients", type=int, default=8, help="pages: clients that saturate; 1 leaves that out (default 8)")
    parser.add_argument("--changes", type=int, default=20, help="pages: changes of the freshness check (default 20)")
    parser.add_argument("--cycles", type=int, default=20, help="cycles: how often the fleet grows and shrinks (default 20)")
    parser.add_argument("--tenants", type=int, default=20, help="tenants, jobs, release: how many (default 20)")
    parser.add_argument("--histories", type=int, default=100_000, help="histories: how many (default 100000)")
    parser.add_argument("--seeds", type=int, default=30, help="policies: traces of each shape (default 30)")
    parser.add_argument("--shapes", default="", help="policies: which shapes, with commas, or others (default: the six of the goals)")
    parser.add_argument("--trace", type=lambda path: Path(os.environ.get("OLDPWD", "."), path), metavar="FILE",
                        help="policies: the weeks of this load (CSV as for simulate) instead of shapes, --seeds of them at most")
    parser.add_argument("--targets", default="0.7", help="policies: our targets, the default among them (default: %(default)s)")
    parser.add_argument("--scaling", default="", metavar="KEY=VALUE,...", help="policies, exam: settings of ours besides the defaults")
    parser.add_argument("--parts", default="versus,measures,freshness,cost,likeness,neighbour,takeover",
                        help="pages, jobs: which parts, with commas (default: all)")
    parser.add_argument("--goal", type=int, default=40, help="aws: nodes to which 2 grow while each call is interrupted (default 40)")
    parser.add_argument("--keep", action="store_true", help="keep the benchmarks' own containers, for the next time")
    parser.add_argument("--fleet-file", default=os.environ.get("MOODLE_FLEET_FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = sorted(set(given.benchmarks) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; known: {' '.join(BENCHMARKS)}")
    given.benchmarks = given.benchmarks or list(BENCHMARKS)
    given.parts = given.parts.split(",")
    given.targets = [float(target) for target in given.targets.split(",")]
    given.scaling = dict(part.partition("=")[::2] for part in given.scaling.split(",") if part)
    given.shapes = [name for name in given.shapes.split(",") if name]
    return given


def main() -> None:
    """Run what was asked for, then take the benchmarks' own containers away."""
    given = arguments()
    # What was paused goes on and what was added goes away, also when somebody ends this.
    signal.signal(signal.SIGTERM, lambda *_signal: sys.exit(143))
    fleet = None
    if set(given.benchmarks) - ALONE:
        from nodes import Fleet

        fleet = Fleet(given.fleet_file)
    print(f"{platform.node()}: {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M %Z')}"
          + (f", fleet {fleet.name}, {fleet.what}" if fleet else ""), flush=True)
    try:
        for name in given.benchmarks:
            say(f"== {name}")
            importlib.import_module(name.replace("-", "_")).main(fleet, given)
    finally:
        if fleet and not given.keep:
            from pages import clean

            clean(fleet)


if __name__ == "__main__":
    main()
