# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``moodle-fleet simulate``: reads a trace, lets a simulated fleet follow it, and says how well that went."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger, open_ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import elasticity, queueing
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import DAY, WEEKS, slot_of
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import LOOKBACK, MINUTE
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.replay import Replay, replay
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import Past, Run, simulate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import Model
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import (
    Trace,
    TraceError,
    from_csv,
    from_samples,
)

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import Survey
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Sample
    from ansible_collections.elearning.moodle_fleet.trigger.report.story import Story

OWN = Path("ledger")
SQLITE = b"SQLite format 3\0"
SHOWN_DECISIONS = 20
HOLD = 600.0


def read(path: Path, policy: Policy, fleet: Fleet) -> tuple[Trace, Replay | None]:
    """The trace of a CSV file, or of a ledger together with its decisions made again; ``ledger`` is the fleet's own.

    :raises TraceError: naming file, place and remedy.
    """
    try:
        if _is_ledger(path):
            with _ledger(path, fleet) as book:
                return _recorded(book, policy)
        with open(path, encoding="utf-8-sig", newline="") as text:
            return from_csv(text), None
    except UnicodeDecodeError as exc:
        raise TraceError(f"{path}: is not text: give CSV in UTF-8 with 'time,load', or a ledger") from exc
    except TraceError as exc:
        raise TraceError(f"{path}: {exc}") from exc


def _is_ledger(path: Path) -> bool:
    """Whether this is a ledger's file, or ``ledger`` for the fleet's own."""
    if path == OWN:
        return True
    try:
        with open(path, "rb") as handle:
            return handle.read(len(SQLITE)) == SQLITE
    except OSError as exc:
        raise TraceError(f"can't be read: {exc.strerror}: give a CSV file with 'time,load' or a ledger") from exc


def _ledger(path: Path, fleet: Fleet) -> Ledger:
    if not _is_ledger(path):
        raise TraceError("is no ledger: give a ledger's file, or 'ledger' for the fleet's own")
    return open_ledger(fleet, trace=False) if path == OWN else Ledger(path)


def known_before(book: Ledger, policy: Policy, begin: float) -> Past:
    """What a ledger knows of the time before a trace: checks, weeks for the forecast, launches.

    :raises TraceError: where it holds no check of that time.
    """
    checks = list(book.recorded(since=begin - max(policy.lookback, LOOKBACK) - MINUTE, until=begin))
    span = book.span()
    if span is None or span[0] >= begin:
        first = "" if span is None else f" before {_utc(span[0])}"
        raise TraceError(f"holds no check{first}, and the trace begins at {_utc(begin)}: give a trace that begins later")
    slots = book.slots([(slot_of(begin - (WEEKS + 1) * 7 * DAY), int(begin))])[1]
    return Past(checks, slots, book.launch_times())


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def _recorded(book: Ledger, policy: Policy) -> tuple[Trace, Replay]:
    again = replay(policy, book.recorded(), book.all_pauses())
    return from_samples(sample for _row, sample in book.recorded()), again


def result(policy: Policy, trace: Trace, model: Model, run: Run, again: Replay | None, *, patience: float, price: float | None) -> dict[str, Any]:
    """Everything that can be said of a run, as plain data. Shares are from 0 to 1."""
    demand = elasticity.needed(trace.loads, policy.workers, policy.min_nodes)
    measures = elasticity.elasticity(demand, trace.begin, run.supply)
    best = elasticity.oracle(demand, model.launch_seconds, HOLD)
    hours = len(trace.loads) / 60
    fleets = elasticity.static_fleets(demand)
    waited = queueing.waiting(_served(policy, trace, run), model.service_seconds, patience)
    peak = fleets[-1][0] if fleets else policy.min_nodes
    # The smallest fixed fleet that lacks no more often than this one did.
    like = next((size for size, lack in fleets if lack <= measures.under_provisioned_share), peak)
    data: dict[str, Any] = {
        **asdict(measures),
        "node_hours": run.node_hours,
        "oracle_node_hours": best,
        "static_peak_nodes": peak,
        "static_peak_node_hours": peak * hours,
        "static_equal_nodes": like,
        "static_equal_node_hours": like * hours,
        "minutes": len(trace.loads),
        "gap_minutes": sum(load is None for load in trace.loads),
        "begin": trace.begin,
        "checks": run.checks,
        "launched": run.launched,
        "launch_failures": run.failed,
        "waiting": asdict(waited),
        "model": {**asdict(model), "patience": patience, "hold": HOLD},
        "decisions": [{"time": one.time, **one.decision.to_data()} for one in run.decisions],
    }
    if price is not None:
        data["cost"] = {
            name: round(price * data[key], 2)
            for name, key in (("fleet", "node_hours"), ("oracle", "oracle_node_hours"),
                              ("static_peak", "static_peak_node_hours"), ("static_equal", "static_equal_node_hours"))
        }
    if again is not None:
        data["replay"] = {
            "checks": again.checks, "identical": again.identical, "skipped": again.skipped,
            "differences": [
                {"check": number, "recorded": was.to_data(), "now": now.to_data()}
                for number, was, now in again.differences[:SHOWN_DECISIONS]
            ],
        }
    return data


def _served(policy: Policy, trace: Trace, run: Run) -> list[tuple[float, float]]:
    """(load, workers in service) of each known minute; of a change within a minute the mean counts."""
    rows: list[tuple[float, float]] = []
    place, have, supply = 0, run.supply[0][1], run.supply
    for index, load in enumerate(trace.loads):
        begin = trace.begin + 60 * index
        area, moment = 0.0, begin
        while place + 1 < len(supply) and supply[place + 1][0] < begin + 60:
            place += 1
            area += have * (supply[place][0] - moment)
            moment, have = supply[place][0], supply[place][1]
        area += have * (begin + 60 - moment)
        if load is not None:
            rows.append((load, area / 60 * policy.workers))
    return rows


def run_command(fleet: Fleet, policy: Policy, arguments: Any) -> tuple[dict[str, Any], str]:
    """Simulate as the command line asks; the result as data and, for people, as text."""
    trace, again = read(arguments.trace, policy, fleet)
    model = Model(
        launch_seconds=arguments.launch_seconds, drain_seconds=arguments.drain_seconds, interval=arguments.interval,
        metric_lag=arguments.metric_lag, launch_failures=arguments.launch_failures, node_life=arguments.node_life,
        service_seconds=arguments.service_seconds, seed=arguments.seed,
    )
    known = None
    if arguments.events:
        from ansible_collections.elearning.moodle_fleet.trigger import events, ical

        try:
            known = events.for_simulation(arguments.events, policy.timezone, trace.begin, trace.end)
        except ical.CalendarError as exc:
            raise TraceError(f"--events: {exc}") from exc
    past = Past()
    if arguments.past:
        try:
            with _ledger(arguments.past, fleet) as book:
                past = known_before(book, policy, trace.begin)
        except TraceError as exc:
            raise TraceError(f"--past {arguments.past}: {exc}") from exc
    begun = time.perf_counter()
    story = None
    watchers: list[Callable[..., None]] = []
    if arguments.plot:
        from ansible_collections.elearning.moodle_fleet.trigger.report.story import Story

        story = Story(policy, trace.begin, trace.end, model.interval)
        watchers.append(partial(_tell, story))
    if sys.stderr.isatty():
        watchers.append(_progress(trace))

    def watch(*seen: Any) -> None:
        for watcher in watchers:
            watcher(*seen)

    try:
        outcome = simulate(policy, trace, model, past=past, events=known, watch=watch if watchers else None, each=False)
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - begun
    data = result(policy, trace, model, outcome, again, patience=arguments.patience, price=arguments.price)
    if story is not None:
        from ansible_collections.elearning.moodle_fleet.trigger.report.command import ReportError, simulation_page, write

        story.forecast(outcome.outlooks)
        story.checks = outcome.checks
        try:
            write(arguments.plot, simulation_page(fleet.name, policy, story, data, arguments.price))
        except ReportError as exc:
            raise TraceError(f"--plot {exc}") from exc
    return data, _text(fleet.name, data, seconds)


def _tell(story: Story, now: float, taken: Sample, decision: Decision, seen: Survey) -> None:
    """One simulated check for the report."""
    story.check(now, taken, decision.to_data(), seen.counts)


def _progress(trace: Trace) -> Callable[..., None]:
    """What tells a terminal twice a second how far a run is."""
    told = time.monotonic()

    def tell(now: float, *_seen: Any) -> None:
        nonlocal told
        if time.monotonic() - told < 0.5:
            return
        told = time.monotonic()
        share = (now - trace.begin) / (trace.end - trace.begin)
        print(f"\r{(now - trace.begin) / 86400:.1f} of {len(trace.loads) / 1440:.1f} days, {share:.0%} ", end="", file=sys.stderr, flush=True)

    return tell


def _text(name: str, data: Mapping[str, Any], seconds: float) -> str:
    waited, model = data["waiting"], data["model"]
    hours, days = data["node_hours"], data["minutes"] / 1440
    lines = [
        f"Fleet {name}: {days:.1f} days in {data['checks']} checks, {seconds:.1f} s; launch {model['launch_seconds']:g} s, "
        f"check every {model['interval']:g} s",
        f"Under-provisioned {data['under_provisioned_share']:.3%} of the time ({data['under_provisioned_seconds']:.0f} s), "
        f"accuracy {data['under_provisioning_accuracy']:.3%}",
        f"Over-provisioned  {data['over_provisioned_share']:.1%} of the time, accuracy {data['over_provisioning_accuracy']:.1%}",
        f"Instability {data['instability']:.1%}, jitter {data['jitter']:+.2f} changes an hour, {len(data['decisions'])} decisions, "
        f"{data['launched']} launches ({data['launch_failures']} failed)",
        f"Requests {waited['requests']:.0f}: {waited['lost']:.0f} turned away, mean wait {waited['mean_seconds'] * 1000:.1f} ms, "
        f"{waited['over_a_second_share']:.3%} waited over a second",
        f"Node-hours {hours:.1f}: {_ratio(hours, data['oracle_node_hours'])} the oracle's {data['oracle_node_hours']:.1f}, "
        f"{_ratio(hours, data['static_peak_node_hours'])} those of {data['static_peak_nodes']} nodes that are never too few "
        f"({data['static_peak_node_hours']:.1f})",
    ]
    if "cost" in data:
        lines.append("Cost: " + ", ".join(f"{what.replace('_', ' ')} {value:.2f}" for what, value in data["cost"].items()))
    if "replay" in data:
        again = data["replay"]
        lines.append(f"Recorded decisions made again: {again['identical']} of {again['checks']} identical"
                     + (f", {again['skipped']} without their inputs" if again["skipped"] else ""))
        lines += [
            f"  check {one['check']}: recorded {one['recorded']['desired']}, now {one['now']['desired']}"
            for one in again["differences"]
        ]
    shown: Sequence[Mapping[str, Any]] = data["decisions"][-SHOWN_DECISIONS:]
    if shown:
        lines.append(f"The last {len(shown)} of {len(data['decisions'])} decisions:")
    for one in shown:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one["time"]))
        lines.append(f"  {when} UTC  {one['size']} → {one['desired']}  {'; '.join(r['text'] for r in one['reasons'])}")
    return os.linesep.join(lines)


def _ratio(value: float, other: float) -> str:
    return f"{value / other:.2f} ×" if other > 0 else "–"
