# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plays random histories of a simulated fleet and counts the crash points that they covered.

    scripts/bench histories --histories 100000

Each history dies or loses answers at calls to the cloud and the balancer, reads outdated node lists, is crossed by a
second controller, and must then come to rest. The first broken invariant is printed with its number, which repeats it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter

from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.histories import history
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.memory_ledger import (
    MemoryLedger,
)
from measure import report, say

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


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `histories`."""
    begun, played, calls = time.monotonic(), 0, 0
    points: Counter[tuple[str, str]] = Counter()
    broken: list[str] = []
    with multiprocessing.Pool() as pool:
        for count, found, made, wrong in pool.imap_unordered(chunk, range(0, given.histories, CHUNK)):
            played, calls, points, broken = played + count, calls + made, points + found, broken + wrong
            for text in wrong:
                print(text, file=sys.stderr, flush=True)
            if played % 10_000 == 0:
                say(f"  {played} histories, {len(broken)} broken")
    rows = [{"external call": kind, "how it ends": mode, "times": points[kind, mode]} for kind, mode in sorted(points)]
    report("histories", f"Crash points of {played} random histories", rows, [
        f"{played} histories, {calls} external calls, {sum(points.values())} crash points, {len(broken)} broken invariants, "
        f"{time.monotonic() - begun:.0f} s.",
    ])
    if broken:
        raise SystemExit(1)
