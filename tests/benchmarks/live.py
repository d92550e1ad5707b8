# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The simulator's prediction beside what the running fleet did.

A load of some minutes is written down first, and what the fleet will do is simulated from that and from what its ledger knows by then: a quarter
of an hour of checks, with one node that comes and goes. Then learners make this load, and the trigger checks the fleet every 15 s, as its
timer does. In the end the recorded decisions are made again from the ledger.
"""

from __future__ import annotations

import argparse
import http.client
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path

from checks import Trigger, settle

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import LOOKBACK, MINUTE
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.replay import replay
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import Run, simulate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import Model
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import from_csv
from ansible_collections.elearning.moodle_fleet.trigger.simulate import known_before
from measure import report, say
from nodes import Fleet
from site_client import Target, Visitor

# The fleet's own policy with shorter windows, so that it shrinks within minutes.
POLICY = {"min_nodes": 2, "max_nodes": 5, "scale_in_window": 120, "cooldown_in": 120}
INTERVAL = 15.0
# Before: long enough that the swing is known and nothing of the first node's coming stands within the windows.
QUIET_MINUTES = 16
# Requests in service, minute by minute, as shares of a node's workers: 70 % of them is what a node should take. No fall is within a check
# or two of the end of a window: else it were chance whether a check sees both at once.
MINUTES = (0.5, 2.5, 2.5, 2.5, 1.5, 1.5, 1.5, 1.5, 1.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
# How long a learner's request keeps a worker busy; the stand-in site waits for it.
REQUEST_MS = 500


class Holders:
    """So many learners that always have one request in service or waiting."""

    def __init__(self, fleet: Fleet) -> None:
        tenant = fleet.tenants[0]
        self.target = Target(tenant["name"], fleet.of("balancer")[0]["address"], tenant["host"], 443, str(fleet.state / "tls/ca.pem"),
                             {"Host": tenant["host"] + (f":{fleet.port}" if fleet.port != 443 else "")})
        self.wanted = 0
        self.failed = self.done = 0
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def set(self, count: int) -> None:
        """From now on so many."""
        self.wanted = count
        while len(self._threads) < count:
            thread = threading.Thread(target=self._work, args=(len(self._threads),), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self, number: int) -> None:
        visitor = None
        while True:
            if number >= self.wanted:
                visitor = None  # the balancer ends a connection that rests
                time.sleep(0.05)
                continue
            try:
                visitor = visitor or Visitor(self.target)
                status, _body, _seconds = visitor.request("POST", "/local/write.php", {"client": f"live-{number}", "ms": REQUEST_MS})
            except (OSError, http.client.HTTPException):
                status, visitor = 0, None
            with self._lock:
                self.done += 1
                self.failed += status != 200


def checks(trigger: Trigger, begin: float, seconds: float, holders: Holders, loads: Sequence[int]) -> None:
    """Check on a grid of 15 s, as the timer does, while the learners follow the loads, a minute each."""
    def follow() -> None:
        for minute, count in enumerate(loads):
            time.sleep(max(0.0, begin + 60 * minute - time.time()))
            holders.set(count)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    while (now := time.time()) < begin + seconds:
        time.sleep(INTERVAL - (now - begin) % INTERVAL)
        trigger.check()


def durations(ledger: Ledger, since: float) -> tuple[list[float], list[float]]:
    """Seconds of launches until their nodes served, and of drains, in activities planned since then."""
    rows = list(ledger.activities_between(since, time.time() + 1))
    ends = {row["node"]: row["finished"] for row in rows if row["action"] == "join" and row["status"] == "done"}
    launches = [
        ends[name] - row["planned"] for row in rows if row["action"] == "launch"
        for name in str(row["message"]).split(", ") if name in ends
    ]
    drains = [row["finished"] - row["planned"] for row in rows if row["action"] in ("drain", "retire") and row["status"] == "done"]
    return launches, drains


def served(ledger: Ledger, since: float, first: int) -> list[tuple[float, int]]:
    """(time, nodes in service from then on), from what became of each step."""
    changes, left = [], set()
    for row in ledger.activities_between(since, time.time() + 1):
        if row["action"] == "join" and row["status"] == "done":
            changes.append((float(row["finished"]), 1))
        elif row["action"] == "drain" and row["node"] not in left:
            left.add(row["node"])
            changes.append((float(row["started"] or row["planned"]), -1))
    supply, have = [(since, first)], first
    for when, change in sorted(changes):
        have += change
        supply.append((when, have))
    return supply


def at(supply: Sequence[tuple[float, int]], moment: float) -> int:
    """Nodes in service at a moment."""
    return [count for when, count in supply if when <= moment][-1]


def compare(
    begin: float, run: Run, live: Sequence[tuple[float, int, int]], supply: Sequence[tuple[float, int]], loads: Sequence[int]
) -> tuple[list[dict], list[dict]]:
    """Decisions side by side, those that follow each other in one direction with each other, and nodes in service every half minute."""
    told = [(one.time - begin, one.decision.size, one.decision.desired) for one in run.decisions]
    done = [(when - begin, size, desired) for when, size, desired in live]
    sides = [[list(rows) for _grows, rows in groupby(side, key=lambda row: row[2] > row[1])] for side in (told, done)]
    pairs = [pair for both in zip_longest(*sides, fillvalue=[]) for pair in zip_longest(*both)]
    decisions = []
    for number, (left, right) in enumerate(pairs, 1):
        decisions.append({
            "decision": number, "predicted": f"{left[1]} → {left[2]}" if left else "-", "happened": f"{right[1]} → {right[2]}" if right else "-",
            "predicted at s": left[0] if left else "", "happened at s": right[0] if right else "",
            "later s": right[0] - left[0] if left and right else "",
        })
    nodes = [
        {"at s": second, "load": loads[min(len(loads) - 1, second // 60)], "predicted": at(run.supply, begin + second),
         "happened": at(supply, begin + second)}
        for second in range(0, 60 * len(loads) + 1, 30)
    ]
    return decisions, nodes


def judge(
    ledger: Ledger, policy: Policy, begin: float, run: Run, loads: Sequence[int]
) -> tuple[list[dict], list[dict], list[str]]:
    """What the ledger says of the minutes from ``begin``, beside the prediction: decisions, nodes in service, and sentences on both."""
    # A decision looks at what was before it.
    recorded = list(ledger.recorded(since=begin - max(policy.lookback, LOOKBACK) - MINUTE))
    again = replay(policy, recorded)
    mine = [(row, sample) for row, sample in recorded if row["started"] >= begin]
    if not mine:
        raise SystemExit("no check of these minutes is in the ledger: see 'moodle-fleet history'")
    differ = sum(number >= mine[0][0]["id"] for number, _was, _now in again.differences)
    live = [
        (row["started"], row["decision"]["size"], row["decision"]["desired"]) for row, _sample in mine
        if row["decision"] and row["decision"]["direction"] != "none"
    ]
    decisions, nodes = compare(begin, run, live, served(ledger, begin, policy.min_nodes), loads)
    off = [
        abs(sample.load - loads[min(len(loads) - 1, int((sample.taken - sample.seconds / 2 - begin) // 60))])
        for _row, sample in mine if sample.taken - sample.seconds >= begin
    ]
    same = sum(row["predicted"] == row["happened"] for row in nodes)
    launches, _drains = durations(ledger, begin)
    return decisions, nodes, [
        f"As many as predicted at {same} of {len(nodes)} moments; {sum(row['predicted'] for row in nodes) / 120:.2f} node-hours predicted, "
        f"{sum(row['happened'] for row in nodes) / 120:.2f} served.",
        f"Launches took {', '.join(f'{one:.1f}' for one in launches) or 'no'} s.",
        f"Load asked for and seen by the checks: {sum(off) / max(1, len(off)):.2f} apart on average.",
        f"Recorded decisions made again from the ledger: {len(mine) - differ} of {len(mine)} identical.",
    ]


def main(fleet: Fleet, _given: argparse.Namespace) -> None:
    """The benchmark `live`."""
    if not fleet.standin:
        raise SystemExit("live needs the stand-in site, whose requests last as long as they are told to: run scripts/demo without Moodle's code")
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
        trigger, holders = Trigger(fleet, Path(folder), **{"target": 0.7, "cooldown_out": 30, **POLICY}), Holders(fleet)
        say("  one node comes and goes")
        began = time.time()
        settle(trigger, 2)
        settle(trigger, 3)
        settle(trigger, 2)
        with Ledger(fleet.state / "ledger.sqlite") as ledger:
            launches, drains = durations(ledger, began)
            # As many as the members themselves say.
            workers = round(last.capacity / last.up) if (last := ledger.last_sample()) and last.up else 0
            if not workers or not launches:
                raise SystemExit("the checks before saw no member in service, or no launch: see 'moodle-fleet history'")
            policy = Policy.from_settings({**load(trigger.file).scaling, "workers": workers})
            loads = [round(share * workers) for share in MINUTES]
            # On a minute of the clock, as the trigger's samples are counted.
            begin = (time.time() // MINUTE + 1 + QUIET_MINUTES) * MINUTE
            checks(trigger, begin - QUIET_MINUTES * MINUTE, QUIET_MINUTES * MINUTE - INTERVAL, holders, loads[:1])
            file = Path(folder) / "load.csv"
            lines = [f"{begin + 60 * minute:.0f},{count}" for minute, count in enumerate(loads)]
            file.write_text("\n".join(["time,load", *lines, ""]), encoding="ascii")
            model = Model(launch_seconds=launches[0], drain_seconds=drains[0] if drains else 5.0, interval=INTERVAL, run_seconds=5.0)
            run = simulate(policy, from_csv(file.read_text(encoding="ascii").splitlines()), model, past=known_before(ledger, policy, begin))
            say(f"  predicted {len(run.decisions)} decisions; the real fleet takes {len(loads)} minutes")
            checks(trigger, begin, 60.0 * len(loads), holders, loads)
            holders.set(0)
            decisions, nodes, notes = judge(ledger, policy, begin, run, loads)
    report("live", f"Decisions: the prediction beside what happened, {fleet.what}", decisions)
    report("live_nodes", "Nodes in service, every half minute", nodes, [
        *notes, f"Predicted with a launch of {launches[0]:.1f} s, as the one before took.",
        f"{holders.done} requests, {holders.failed} failed. {len(trigger.problems)} checks ended with an error{''.join(trigger.problems[:1])}.",
    ])
