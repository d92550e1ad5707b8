# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``moodle-fleet report`` and the page of ``moodle-fleet simulate --plot``: from a ledger or a simulated run to a file."""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import FILE_NAME, MEMORY, Ledger, open_ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.trigger.report import DEFAULT_DAYS
from ansible_collections.elearning.moodle_fleet.trigger.report.page import page
from ansible_collections.elearning.moodle_fleet.trigger.report.story import MOST_TENANTS, Story
from ansible_collections.elearning.moodle_fleet.trigger.report.tenants import LogError, collect


class ReportError(Exception):
    """The report can't be made. The message names option, value and remedy."""


def run(given: argparse.Namespace, fleet: Fleet, policy: Policy) -> tuple[dict[str, Any], str]:
    """Write the page; returns what can be said of it as data, and a line for people.

    :raises ReportError: naming what is wrong.
    """
    if given.price is not None and not given.price >= 0:
        raise ReportError(f"--price {given.price:g}: give the price of a node-hour, 0 or more")
    now = time.time()
    until = now if given.until is None else given.until
    with _ledger(given, fleet) as ledger:
        name, span = ledger.name, ledger.span()
        if span is not None and given.until is None and given.ledger:
            until = span[1] + 1  # a ledger that was put away ends with its last check
        since = given.since if given.since is not None else until - DEFAULT_DAYS * 86400
        if since >= until:
            raise ReportError(f"--since {_iso(since)} is not before --until {_iso(until)}: exchange them or leave one out")
        if span is not None and given.since is None:
            since = max(since, span[0] // 60 * 60)
        story = from_ledger(policy, ledger, since, until)
    data = story.to_data()
    data.update(_about(fleet.name, policy, since, until, f"from {os.path.basename(name)}, made {_local(now, policy)}", "ledger"))
    data["costs"] = _costs(fleet, given.price)
    data["empty"] = _nothing(name, span, since, until, policy)
    data["tenants"] = _tenants(given.logs, since, until)
    data["notes"] = _notes(policy)
    size = write(given.out, page(data))
    told = {"out": str(given.out), "bytes": size, "since": since, "until": until, "checks": story.checks,
            "decisions": len(story.decisions) + story.more_decisions, "activities": len(story.activities) + story.more_activities,
            "tenants": len(data["tenants"]["rows"])}
    text = f"{given.out}: {story.checks} checks, {told['decisions']} decisions, {told['activities']} steps, {size / 1e6:.1f} MB"
    return told, text if story.checks else f"{given.out}: {data['empty']}"


def _ledger(given: argparse.Namespace, fleet: Fleet) -> Ledger:
    """The ledger that was named, or the fleet's own.

    :raises ReportError: when there is none.
    """
    if given.ledger and given.ledger.exists():
        return Ledger(given.ledger)
    ledger = None if given.ledger else open_ledger(fleet, trace=False)
    if ledger is None or ledger.name == MEMORY:
        which = f"--ledger {given.ledger}" if given.ledger else f"the fleet's ledger {fleet.state_dir / FILE_NAME}"
        raise ReportError(f"{which}: does not exist: let the trigger make a check first, or name another by --ledger")
    return ledger


def from_ledger(policy: Policy, ledger: Ledger, since: float, until: float) -> Story:
    """The story that a ledger tells of a time."""
    story = Story(policy, since, until, interval=ledger.usual_interval(since, until))
    for row, sample in ledger.recorded(since=since, until=until):
        inputs = row["inputs"] or {}
        points = (inputs.get("outlook") or {}).get("points") or ()
        story.check(row["started"], sample, row["decision"], inputs.get("phases"), [load for _begin, load in points])
    for pause, ended in ledger.all_pauses():
        end = min(one for one in (ended or until, pause.until or until))
        if end > since and pause.since < until:
            story.pause(pause.scope, pause.since, end, pause.reason)
    for row in ledger.activities_between(since, until):
        story.activity(row)
    return story


def simulation_page(name: str, policy: Policy, story: Story, data: Mapping[str, Any], price: float | None) -> str:
    """The page of a simulated run, of which ``data`` is what the command says."""
    drawn = story.to_data()
    drawn.update(_about(name, policy, story.begin, story.end, "simulated", "simulation"))
    drawn["costs"] = {"node_hour": price, "currency": ""} if price else None
    drawn["requests_lost"] = f"{data['waiting']['lost']:.0f}"
    drawn["empty"] = "The trace is shorter than the time between two checks."
    drawn["tenants"] = {"rows": [], "note": "A simulated run has no tenants."}
    model = data["model"]
    drawn["notes"] = [*_notes(policy), f"Simulated: a launch takes {model['launch_seconds']:g} s, a check comes every {model['interval']:g} s."]
    return page(drawn)


def write(path: Path, text: str) -> int:
    """Write a file whole or not at all; returns its size in bytes.

    :raises ReportError: when it can't be written.
    """
    raw = text.encode("utf-8")
    try:
        handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as exc:
        raise ReportError(f"{path}: can't be written: {exc.strerror}: give another file") from exc
    return len(raw)


def _about(name: str, policy: Policy, since: float, until: float, source: str, kind: str) -> dict[str, Any]:
    return {"title": f"Fleet {name}" + (": simulation" if kind == "simulation" else ""), "kind": kind,
            "subtitle": f"{_local(since, policy)} to {_local(until, policy)} ({policy.timezone}), {source}"}


def _notes(policy: Policy) -> list[str]:
    return [
        "Needed: the mean load of each minute ÷ 85 % of a node's workers, at least the minimum.",
        "Saved: against a fixed fleet of as many nodes as were needed at the most in the shown time. Times without a check count for nothing.",
        f"Coming: launching, building, ready, joining. In trouble: failing, sick, stranded. Leaving: draining, drained, stopping. "
        f"{policy.min_nodes} to {policy.max_nodes} nodes of {policy.workers} workers, {policy.target:.0%} of them busy, are asked for.",
    ]


def _nothing(name: str, span: tuple[float, float] | None, since: float, until: float, policy: Policy) -> str:
    if span is None:
        return f"The ledger {name} holds no check yet: is the timer running?"
    return (f"No check was made from {_local(since, policy)} to {_local(until, policy)}: the ledger goes from {_local(span[0], policy)} "
            f"to {_local(span[1], policy)}; choose the time by --since and --until.")


def _tenants(logs: list[Path], since: float, until: float) -> dict[str, Any]:
    if not logs:
        return {"rows": [], "note": "No data: give the central logs or HAProxy's log by --logs to see the busiest and slowest tenants."}
    try:
        rows, useless = collect(logs, since, until)
    except LogError as exc:
        raise ReportError(str(exc)) from exc
    skipped = f" {useless} lines were no requests." if useless else ""
    if not rows:
        return {"rows": [], "note": f"No request of this time stands in {', '.join(map(str, logs))}.{skipped}"}
    more = f" The {MOST_TENANTS} busiest of {len(rows)} are shown." if len(rows) > MOST_TENANTS else ""
    note = f"From the logs, over the whole time of this page. Worker time is the sum of the requests' times.{more}{skipped}"
    return {"rows": rows[:MOST_TENANTS], "note": note}


def _costs(fleet: Fleet, price: float | None) -> dict[str, Any] | None:
    given = fleet.costs or {}
    if price is None and not given.get("node_hour"):
        return None
    return {"node_hour": given.get("node_hour") if price is None else price, "currency": given.get("currency") or ""}


def _iso(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).isoformat(" ", "minutes")


def _local(at: float, policy: Policy) -> str:
    import zoneinfo

    zone = datetime.timezone.utc if policy.timezone == "UTC" else zoneinfo.ZoneInfo(policy.timezone)
    return datetime.datetime.fromtimestamp(at, zone).strftime("%Y-%m-%d %H:%M")
