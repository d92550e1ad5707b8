# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the ledger knows of the latest check, in Prometheus' text format: as a file after each check, or over HTTP.

Written by hand: importing prometheus_client takes longer than a whole check's decision (see docs/monitoring.md), and the
format of a page of gauges is a few lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import launch_seconds
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import PHASES
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node

# Reasons that hold the fleet back; each has a series even while it does not hold.
BRAKES = ("many_sick", "max_nodes", "no_cloud", "paused", "paused_in", "saturated", "untrusted")
DIRECTIONS = ("out", "in", "none")
STATUSES = ("idle", "planned", "done", "failed", "refused")
ACTIONS = ("launch", "join", "drain", "retire", "forget")
RESULTS = ("done", "failed", "deadline", "unknown")
HOUR = 3600.0
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class MetricsError(Exception):
    """The metrics can't be written or served. The message names what to do."""


class _Page:
    """Series in the order in which they came, each family with its help and type once."""

    def __init__(self, fleet: str) -> None:
        self.fleet = fleet
        self.lines: list[str] = []

    def add(self, name: str, text: str, values: Iterable[tuple[Mapping[str, str], float]], kind: str = "gauge") -> None:
        """A family with labels."""
        name = f"moodle_fleet_{name}"
        self.lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for labels, value in values:
            told = ",".join(f'{key}="{_escaped(one)}"' for key, one in {"fleet": self.fleet, **labels}.items())
            self.lines.append(f"{name}{{{told}}} {float(value):.15g}")

    def one(self, name: str, text: str, value: float | None, kind: str = "gauge") -> None:
        """A family of one series; none where the value is not known."""
        if value is not None:
            self.add(name, text, [({}, value)], kind)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def render(fleet: str, policy: Policy, ledger: Ledger, now: float) -> str:
    """The page of a fleet at this moment (Unix seconds)."""
    page = _Page(fleet)
    page.one("nodes_min", "Web nodes that always stay in service.", policy.min_nodes)
    page.one("nodes_max", "Web nodes that may exist.", policy.max_nodes)
    latest = ledger.checks(2)
    if latest:
        _check(page, latest, ledger)
    page.one("launch_seconds", "What a launch is taken to need, from the latest launches.", launch_seconds(policy, ledger.launch_times()))
    pauses = {pause.scope: pause for pause in ledger.pauses(now)}
    page.add("paused", "Whether an operator paused scaling (all) or scaling in (in).",
             [({"scope": scope}, scope in pauses) for scope in ("all", "in")])
    page.add("paused_since_timestamp_seconds", "When the pause began, 0 for none.",
             [({"scope": scope}, pauses[scope].since if scope in pauses else 0) for scope in ("all", "in")])
    statuses, activities = ledger.tallies(now - HOUR)
    page.add("checks_last_hour", "Checks that began within the last hour.",
             [({"status": one}, statuses.get(one, 0)) for one in dict.fromkeys((*STATUSES, *statuses))])
    known = [(action, result) for action in ACTIONS for result in RESULTS]
    page.add("activities_last_hour", "Steps planned within the last hour that have ended.",
             [({"action": action, "status": result}, activities.get((action, result), 0)) for action, result in dict.fromkeys((*known, *activities))])
    return "\n".join(page.lines) + "\n"


def series(text: str) -> list[dict[str, Any]]:
    """A page as data: name, labels and value of each series."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _brace, rest = line.partition("{")
            told, _space, value = rest.rpartition("} ")
            labels = {key: json.loads(f'"{one}"') for key, one in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', told)}
            found.append({"name": name, "labels": labels, "value": float(value)})
    return found


def _check(page: _Page, latest: Sequence[Mapping[str, Any]], ledger: Ledger) -> None:
    """The latest check, its decision and what it saw."""
    row = latest[0]
    page.one("checks_total", "Checks since the ledger began.", row["id"], "counter")
    page.one("check_timestamp_seconds", "When the latest check began.", row["started"])
    page.one("check_seconds", "How long the latest check took, with all that it did.",
             row["finished"] - row["started"] if row["finished"] is not None else None)
    page.one("check_interval_seconds", "From the begin of the check before to that of the latest.",
             row["started"] - latest[1]["started"] if len(latest) > 1 else None)
    page.add("check_status", "How the latest check ended.", [({"status": one}, row["status"] == one) for one in dict.fromkeys((*STATUSES, row["status"]))])
    page.one("check_errors", "Whether the cloud or the balancer failed to answer the latest check.", bool(row["message"]) and row["status"] == "idle")
    decision = row["decision"] or {}
    codes = {reason["code"]: reason["desired"] for reason in decision.get("reasons", ())}
    page.one("nodes_desired", "Web nodes that there should be.", row["desired"])
    page.one("nodes_recommended", "Web nodes that were recommended, before all caps.", row["recommended"])
    page.one("nodes_present", "Web nodes in service or on the way.", row["size"])
    page.add("decision_direction", "Where the latest decision goes.", [({"direction": one}, row["direction"] == one) for one in DIRECTIONS])
    page.add("decision_reason", "The reasons of the latest decision: the count after each.", [({"code": code}, desired) for code, desired in codes.items()])
    page.add("brake", "Whether this holds the fleet back at present.", [({"brake": one}, one in codes) for one in BRAKES])
    inputs = row["inputs"] or {}
    if "phases" in inputs:
        page.add("nodes", "Web nodes by phase.", [({"phase": one}, inputs["phases"].get(one, 0)) for one in (*PHASES, "asked")])
    points = (inputs.get("outlook") or {}).get("points") or ()
    page.one("forecast_load", "Greatest load that the weekly shape expects until a launch is done.", max((load for _at, load in points), default=None))
    taken = ledger.last_sample()
    if taken is not None:
        page.one("load", "Requests in service and waiting, mean since the check before.", taken.load)
        page.one("waiting", "Requests that wait at present.", taken.waiting)
        page.one("capacity", "Workers of the members that are up.", taken.capacity)
        page.one("members_up", "Members that the balancer sends requests to.", taken.up)
        page.one("sample_timestamp_seconds", "When the balancer's counters were taken.", taken.taken)
        page.one("sample_trusted", "Whether the latest reading may shrink the fleet.", taken.trusted)


def write(path: Path, text: str) -> None:
    """Write the file whole or not at all, readable for node_exporter.

    :raises MetricsError: when it can't be written.
    """
    try:
        # node_exporter reads what ends in .prom only: a half-written file is none of its.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as exc:
        raise MetricsError(f"metrics {path}: can't be written: {exc.strerror}: the folder must exist and be writable for this user") from exc


def targets(nodes: Iterable[Node]) -> str:
    """The web nodes' exporters as Prometheus' HTTP service discovery wants them."""
    return json.dumps([
        {"targets": [f"{node.address}:9100"], "labels": {"node": node.name, "role": node.role, "zone": node.zone}}
        for node in nodes if node.role == "web" and node.state == "running" and node.address
    ])


def serve(address: str, make: Mapping[str, tuple[str, Callable[[], str]]]) -> None:
    """Answer GET at ``host:port`` until interrupted. ``make`` has a type and a maker for each path; each answer is made anew.

    :raises MetricsError: when the address can't be used.
    """
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            kind, maker = make.get(self.path.split("?", 1)[0], ("", None))
            if maker is None:
                self.send_error(404)
                return
            try:
                body = maker().encode("utf-8")
            except Exception as exc:  # noqa: BLE001 one bad moment of the ledger must not end the endpoint
                self.log_error("%s", exc)
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Scrapes are no news."""

    host, colon, port = address.rpartition(":")
    try:
        if not colon or not 0 < int(port) < 65536:
            raise ValueError
        server = http.server.ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
    except ValueError:
        raise MetricsError(f"--listen {address!r}: write host:port, for example 127.0.0.1:9709") from None
    except OSError as exc:
        raise MetricsError(f"--listen {address}: {exc.strerror}: choose an address of this machine and a free port") from exc
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
