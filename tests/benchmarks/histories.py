# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plays random histories of a simulated fleet and counts the crash points that they covered.

    PYTHONPATH=<folder that holds ansible_collections> python tests/benchmarks/histories.py --count 100000

Each history dies or loses answers at calls to the cloud and the balancer, reads outdated node lists, is crossed by a
second controller, and must then come to rest. The first broken invariant is printed with its number, which repeats it.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
import time
from collections import Counter

from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.histories import history
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.memory_ledger import (
    MemoryLedger,
)

CHUNK = 200


def chunk(first: int) -> tuple[int, Counter[tuple[str, str]], int, list[str]]:
    """Play one chunk; (histories, crash points, calls, broken)."""
    points: Counter[tuple[str, str]] = Counter()
    calls, broken = 0, []
    for number in range(first, first + CHUNK):
        try:
            world = history(number, MemoryLedger)
        except AssertionError as exc:
            broken.append(str(exc))
        else:
            points += world.points
            calls += world.calls
    return CHUNK, points, calls, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first history")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--csv", help="write the crash points there")
    arguments = parser.parse_args()
    begun, played, calls = time.monotonic(), 0, 0
    points: Counter[tuple[str, str]] = Counter()
    broken: list[str] = []
    with multiprocessing.Pool(arguments.jobs) as pool:
        starts = range(arguments.first, arguments.first + arguments.count, CHUNK)
        for count, found, made, wrong in pool.imap_unordered(chunk, starts):
            played, calls, points, broken = played + count, calls + made, points + found, broken + wrong
            for text in wrong:
                print(text, file=sys.stderr, flush=True)
            if played % 10_000 == 0:
                print(f"{played} histories, {len(broken)} broken", file=sys.stderr, flush=True)
    print(f"histories {played}  external calls {calls}  crash points {sum(points.values())}  broken {len(broken)}  "
          f"seconds {time.monotonic() - begun:.0f}")
    rows = [(kind, mode, points[kind, mode]) for kind, mode in sorted(points)]
    for kind, mode, count in rows:
        print(f"  {kind:18} {mode:7} {count:8}")
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([("call", "mode", "count"), *rows])
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
