# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Our policy against documented autoscalers and an oracle, on traces of six shapes.

    [taskset -c 0] scripts/bench policies --seeds 30 [--scaling trend=growth,max_step_in=1,max_draining=1]

Under-provisioned time and node-hours of every policy at each of its settings, so that each shows its best curve. Needed at a
moment: ceil(one-minute load / (workers x 0.85)), at least the minimum. The oracle knows the future (see ``elasticity.oracle``).
Ours runs the production code, sees no more than the others, and has learnt its weekly shape from the three weeks before.
What it gains where the tenants' databases told of the exams is a table of its own (``known_exams``).
``--shapes others`` takes the traces of ``other_traces``; ``--trace FILE`` the weeks of a recorded load.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from curves import OURS, at_most_half, averages, lacks, least
from exam import exam
from known_exams import EXAMS, KNOWING, compare, foreseen, told
from other_traces import SIX
from own_trace import register
from traces import SHAPES, WEEK, WORKERS, generate

import rivals
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import elasticity, forecast
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import Past, simulate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import Model
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace
from measure import RESULTS, report, say

LAUNCHES = (30, 60, 180, 300)
LEAST, MOST = 2, 60
DEFAULT = f"{Policy().target:g}"
# Begins on a Monday at 00:00 UTC.
BEGIN = 345600.0 + 2000 * WEEK * 60
STATIC_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def measures(supply: np.ndarray, demand: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(under-provisioned seconds, instability) of supplies (steps, ...) for one demand (minutes)."""
    shape = (len(demand), rivals.MINUTE_STEPS) + (1,) * (supply.ndim - 1)
    need = np.repeat(demand, rivals.MINUTE_STEPS).reshape((-1,) + shape[2:])
    under = (supply < need).sum(axis=0) * rivals.STEP
    minutes = supply[rivals.MINUTE_STEPS - 1::rivals.MINUTE_STEPS]
    turns = np.sign(np.diff(minutes, axis=0)) != np.sign(np.diff(demand)).reshape((-1,) + shape[2:])
    return under, turns.mean(axis=0)


def slots(history: Sequence[float], begin: float) -> dict[int, float]:
    """What a ledger would have kept of the weeks before."""
    first = int(begin - 60 * len(history))
    each = forecast.SLOT // 60
    return {
        first + forecast.SLOT * i: sum(history[each * i:each * (i + 1)]) / each for i in range(len(history) // each)
    }


def leapt(loads: Sequence[float], launch: float, target: float) -> list[bool]:
    """Of each minute, whether its load leapt: when the last node for it had to be ordered, a fleet at the target would have had fewer.

    That is a launch before the minute begins, by the five minutes that were over then. Who only watches lacks nodes here, unless he always
    keeps more of them than the target asks for.
    """
    ago = 1 + math.ceil(launch / 60)
    found = []
    for minute, need in enumerate(elasticity.needed(loads, WORKERS, LEAST)):
        before = loads[max(0, minute - ago - 4):max(0, minute - ago + 1)]
        found.append(bool(before) and need > max(LEAST, math.ceil(max(before) / (WORKERS * target) - 1e-9)))
    return found


def ours(job: tuple[str, int, int, Sequence[float], dict[str, Any]], knowing: bool = False) -> list[dict[str, Any]]:
    """Our policy on one trace with one launch time, at each of its targets; ``knowing`` of the exams or, as all the others, not."""
    name, seed, launch, targets, scaling = job
    trace = generate(name, seed)
    demand = elasticity.needed(trace.loads, WORKERS, LEAST)
    known = slots(trace.history, BEGIN)
    ahead = foreseen(told(trace, seed), BEGIN, known) if knowing else None
    rows = []
    for target in targets:
        policy = Policy.from_settings({"min_nodes": LEAST, "max_nodes": MOST, "workers": WORKERS, "target": target,
                                       **({"scale_out_above": 0.85} if target * 1.1 > 0.85 else {}), **scaling})
        run = simulate(policy, Trace(BEGIN, trace.loads), Model(launch_seconds=launch), past=Past(slots=known or {}), events=ahead)
        found = elasticity.elasticity(demand, BEGIN, run.supply)
        surprises = [need if leaps else LEAST for need, leaps in zip(demand, leapt(trace.loads, launch, target))]
        rows.append({"shape": name, "launch": launch, "seed": seed, "policy": KNOWING if knowing else OURS, "setting": f"{target:g}",
                     "hours": run.node_hours, "under": found.under_provisioned_seconds, "instability": found.instability,
                     "leapt": elasticity.elasticity(surprises, BEGIN, run.supply).under_provisioned_seconds})
    return rows


def others(job: tuple[str, str, int]) -> list[dict[str, Any]]:
    """One rival, or the oracle and fixed fleets, on all seeds of a shape with every launch time."""
    name, rival, seeds = job
    traces = [generate(name, seed) for seed in range(seeds)]
    demands = [np.array(elasticity.needed(trace.loads, WORKERS, LEAST)) for trace in traces]
    rows = []

    def add(policy: str, setting: str, seed: int, launch: int, hours: float, under: float, instability: float) -> None:
        rows.append({"shape": name, "launch": launch, "seed": seed, "policy": policy, "setting": setting,
                     "hours": float(hours), "under": float(under), "instability": float(instability), "leapt": ""})

    if rival in rivals.RIVALS:
        loads = np.array([trace.loads for trace in traces])
        history = np.array([trace.history for trace in traces])
        supply, hours = rivals.run(rival, loads, history, LAUNCHES, WORKERS, LEAST, MOST)
        for seed, demand in enumerate(demands):
            under, unstable = measures(supply[:, seed], demand)
            for place, launch in enumerate(LAUNCHES):
                for index, setting in enumerate(rivals.RIVALS[rival]):
                    add(rival, "/".join(f"{value:g}" for value in setting), seed, launch, hours[seed, place, index],
                        under[place, index], unstable[place, index])
        return rows
    for seed, demand in enumerate(demands):
        peak = int(demand.max())
        for launch in LAUNCHES:
            for share in STATIC_SHARES:
                size = max(LEAST, round(share * peak))
                add("static", f"{share:g}", seed, launch, size * len(demand) / 60, float((demand > size).sum() * 60),
                    float((np.diff(demand) != 0).mean()))
            add("oracle", "", seed, launch, elasticity.oracle(demand.tolist(), launch), 0.0, 0.0)
    return rows


def judge(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Tables of curves and of goals, and the sentences on whether they are reached."""
    average = averages(rows)
    goals, curves = [], []
    weekly = {name for name, (_function, rhythm) in SHAPES.items() if rhythm}
    wins = 0
    totals: dict[str, list[float]] = {}
    for name in SHAPES:
        minutes = len(generate(name, 0).loads)
        for launch in LAUNCHES:
            if (name, launch, OURS, DEFAULT) not in average:
                continue
            hours, under, unstable = average[name, launch, OURS, DEFAULT]
            best_hours = average[name, launch, "oracle", ""][0]
            known = lacks(average, name, launch, hours)
            rival, lack = least(known)
            # Each at the setting that costs about the same: one that never shrinks is calm, and so is one that is always late.
            calm = min(
                min((abs(value[0] - hours), value[2]) for key, value in average.items() if key[:3] == (name, launch, rival))[1]
                for rival in rivals.RIVALS if rival != "predictive"
            )
            half = at_most_half(under, lack)
            wins += half
            here = [row for row in rows if (row["shape"], row["launch"], row["policy"], row["setting"]) == (name, launch, OURS, DEFAULT)]
            surprised = sum(row["leapt"] for row in here) / max(1.0, sum(row["under"] for row in here))
            for one, value in known.items():
                totals.setdefault(one, []).append(value)
            totals.setdefault(OURS, []).append(under)
            goals.append({
                "shape": name, "launch s": launch, "of oracle": hours / best_hours, "under %": under / minutes / 0.6,
                "of it leapt %": 100 * surprised, "best other": rival, "its under % at these hours": lack / minutes / 0.6, "half": "yes" if half else "NO",
                "instability": unstable, "calmest reactive": calm,
                "weekly goal": "" if name not in weekly else "yes" if under <= 0.01 * minutes * 60 and hours <= 1.25 * best_hours else "NO",
            })
            for key, value in average.items():
                if key[:2] == (name, launch):
                    curves.append({"shape": name, "launch s": launch, "policy": key[2], "setting": key[3], "of oracle": value[0] / best_hours,
                                   "under %": value[1] / minutes / 0.6, "instability": value[2]})
    pairs = dominated = 0
    mine = {(row["shape"], row["launch"], row["seed"]): row for row in rows if row["policy"] == OURS and row["setting"] == DEFAULT}
    for row in rows:
        if row["policy"] in (OURS, "oracle"):
            continue
        own = mine[row["shape"], row["launch"], row["seed"]]
        pairs += 1
        dominated += row["hours"] <= own["hours"] and row["under"] <= own["under"] and (row["hours"] < own["hours"] or row["under"] < own["under"])
    mean_all = {one: sum(values) / len(values) for one, values in totals.items() if len(values) == len(totals[OURS])}
    rest = {one: value for one, value in mean_all.items() if one != OURS}
    over = min(rest, key=lambda one: rest[one]) if rest else "-"
    notes = [
        f"At equal node-hours at most half the best other's under-provisioned time: {wins} of {len(goals)} shapes and launch times"
        + (f"; over all of them {mean_all[OURS]:.0f} s against {rest[over]:.0f} s of the best single one ({over}), mean per trace." if rest else "."),
        f"Dominated (no more node-hours and no more lack) in {dominated} of {pairs} pairs, {dominated / max(1, pairs):.2%}.",
        f"Calmer than every reactive one at about the same node-hours: {sum(g['instability'] < g['calmest reactive'] for g in goals)} of {len(goals)}.",
        f"Weekly goal (lack at most 1 %, at most 1.25 of the oracle): {sum(g['weekly goal'] == 'yes' for g in goals)} of "
        f"{sum(g['weekly goal'] != '' for g in goals)}.",
    ]
    return goals, curves, notes


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """What ``--scaling`` asks for; numbers are numbers, the rest are words. A wrong setting ends the run at once."""
    scaling: dict[str, Any] = {}
    for key, text in given.scaling.items():
        try:
            scaling[key] = float(text)
        except ValueError:
            scaling[key] = text
    try:
        Policy.from_settings({"max_nodes": MOST, **scaling})
    except ValueError as exc:
        raise SystemExit(f"--scaling: {exc}") from exc
    return scaling


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `policies`."""
    begun = time.monotonic()
    scaling = settings_of(given)
    if given.trace:
        given.shapes, given.seeds = register(given.trace, given.seeds), 1
    asked = set(SIX if not given.shapes else set(SHAPES) - set(SIX) if given.shapes == ["others"] else given.shapes)
    unknown = sorted(asked - set(SHAPES))
    if unknown:
        raise SystemExit(f"--shapes: {unknown[0]!r} is unknown; known: others, {', '.join(SHAPES)}")
    shapes = [name for name in SHAPES if name in asked]
    jobs = [(name, seed, launch, given.targets, scaling) for name in shapes for launch in LAUNCHES for seed in range(given.seeds)]
    rows: list[dict[str, Any]] = []
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        for found in pool.imap_unordered(others, [(name, rival, given.seeds) for name in shapes for rival in (*rivals.RIVALS, "fixed")]):
            rows += found
        say(f"  the others are done ({time.monotonic() - begun:.0f} s)")
        for number, found in enumerate(pool.imap_unordered(ours, jobs), 1):
            rows += found
            if number % 100 == 0:
                say(f"  {number} of {len(jobs)} traces of ours ({time.monotonic() - begun:.0f} s)")
        # Kept apart: the others know of no exam.
        exams = [(name, seed, launch, [float(DEFAULT)], scaling) for name, seed, launch, _targets, _scaling in jobs if name == EXAMS]
        informed = [row for found in pool.imap_unordered(partial(ours, knowing=True), exams) for row in found]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "policies_all.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    goals, curves, notes = judge(rows)
    report("policies_curves", "Every policy at every setting (means over the seeds)", curves)
    report("policies", f"Ours at its default target against the best other at equal node-hours, {given.seeds} seeds", goals,
           [*notes, f"Ours with {', '.join(f'{key} {value}' for key, value in given.scaling.items()) or 'the defaults'}.",
            f"{len(jobs)} traces of ours at {len(given.targets)} targets, {time.monotonic() - begun:.0f} s."])
    if informed:
        table, summary = compare(rows + informed, given.seeds)
        report("policies_known", f"Ours at its default target in the {EXAMS} without and with known exams, {given.seeds} seeds", table, [summary])
    if not given.trace:
        report("policies_exam", "A tenfold exam start, launch 300 s", exam(scaling))
