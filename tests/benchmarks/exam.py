# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tenfold exam start with launches of 300 s: unknown, scheduled by hand, known from the quiz and its enrolments, and an oracle.

    scripts/bench exam [--scaling KEY=VALUE,...]
"""

from __future__ import annotations

import argparse
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import elasticity, events
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import simulate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import Model
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace
from measure import report

WORKERS, LEAST, MOST = 8, 2, 60
BEGIN = 19 * 7 * 86400.0  # 00:00 UTC
BASE, TIMES, START, MINUTES, LAUNCH = 16.0, 10, 9 * 60, 90, 300.0


def quiz(name: str, begin: float, minutes: float, load: float, learnt: events.Learnt) -> events.Event:
    """An exam as the reader finds it, with as many enrolled as keep so many workers busy at its opening, by the habits that were learnt."""
    enrolled = round(load / learnt.load("exam_start", learnt.habits["exam_start"].share))
    return events.Event("acme", "quiz", name, begin, begin + 60 * minutes, enrolled)


def known(share: float) -> events.Foreseen:
    """The exam as the reader finds it, were the people's habits learnt; ``share`` of those who come are enrolled."""
    learnt = events.Learnt()
    begin = BEGIN + 60 * START
    final = quiz("Final exam", begin, MINUTES, share * BASE * (TIMES - 1), learnt)
    return events.Foreseen(tuple(events.coming([final], learnt, BEGIN, {int(begin // 3600): BASE})), BEGIN)


def exam(scaling: dict[str, Any]) -> list[dict[str, Any]]:
    """The day of the exam, once for each way to know of it; hours more than the same day where nobody knew."""
    loads = [BASE * (TIMES if START <= minute < START + MINUTES else 1.0) for minute in range(1440)]
    demand = elasticity.needed(loads, WORKERS, LEAST)
    peak = max(one for one in demand if one is not None)
    policy = {"min_nodes": LEAST, "max_nodes": MOST, "workers": WORKERS, **scaling}
    # A schedule says itself when nodes have to be there: a launch before.
    begin, end = START - 8, START + MINUTES
    entry = {"name": "exam", "nodes": peak, "from": f"{begin // 60:02d}:{begin % 60:02d}", "until": f"{end // 60:02d}:{end % 60:02d}"}
    ways: list[tuple[str, dict[str, Any], events.Foreseen | None]] = [
        ("nobody knows", policy, None),
        ("scheduled by hand", {**policy, "schedule": [entry]}, None),
        ("quiz and enrolments", policy, known(1.0)),
        ("a quarter more come than are known", policy, known(0.8)),
        ("a quarter fewer come than are known", policy, known(4 / 3)),
    ]
    rows: list[dict[str, Any]] = []
    for label, settings, foreseen in ways:
        run = simulate(Policy.from_settings(settings), Trace(BEGIN, loads), Model(launch_seconds=LAUNCH), events=foreseen)
        found = elasticity.elasticity(demand, BEGIN, run.supply)
        rows.append({"tenfold exam": label, "under-provisioned s": found.under_provisioned_seconds, "node-hours": run.node_hours})
    rows.append({"tenfold exam": "oracle", "under-provisioned s": 0.0, "node-hours": elasticity.oracle(demand, LAUNCH)})
    for row in rows:
        row["÷ nobody knows"] = row["node-hours"] / rows[0]["node-hours"]
        row["÷ oracle"] = row["node-hours"] / rows[-1]["node-hours"]
    return rows


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `exam`."""
    scaling = {key: float(text) if text.replace(".", "", 1).isdigit() else text for key, text in given.scaling.items()}
    report("exam", f"A tenfold exam start, launch {LAUNCH:.0f} s", exam(scaling))
