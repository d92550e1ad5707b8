# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``moodle-fleet tenants``: runs one of the playbooks about tenants, and shows what became of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

ACTIONS = {
    "apply": ("tenants", "bring all tenants into the wanted state"),
    "check": ("tenants_check", "try whether each tenant is kept from every other"),
    "backup": ("backup", "back up all tenants, or those that are named"),
    "drill": ("backup", "prove that the newest backups could be restored"),
    "restore": ("restore", "restore a tenant from a backup"),
    "jobs": ("jobs", "how the tenants' background tasks are doing"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("action", choices=ACTIONS, help="; ".join(f"{name}: {text}" for name, (_playbook, text) in ACTIONS.items()))
    parser.add_argument("names", nargs="*", default=[], metavar="TENANT", help="backup, drill: which, all by default; restore: the one")
    parser.add_argument("--from", dest="origin", default="", metavar="TENANT", help="restore: the tenant whose backup it is")
    parser.add_argument("--snapshot", default="latest", metavar="ID", help="restore: which (the newest)")
    parser.add_argument("--overwrite", action="store_true", help="restore: replace a site that is there")
    parser.add_argument("--timeout", type=float, default=24 * 3600, metavar="S", help="seconds a run may take (86400)")


def variables(given: argparse.Namespace) -> dict[str, Any] | str:
    """The playbook's variables, or a text that says what is wrong."""
    if given.action in ("apply", "check", "jobs"):
        return {} if not given.names else f"'{given.action}' is for all tenants; leave out {given.names[0]!r}"
    if given.action == "restore":
        if len(given.names) != 1:
            return "name the one tenant to restore"
        more = {"restore_from": given.origin} if given.origin else {}
        return {"restore_tenant": given.names[0], "restore_snapshot": given.snapshot, "restore_overwrite": given.overwrite, **more}
    return {"backup_only": given.names, "backup_drill": given.action == "drill"}


def run(given: argparse.Namespace, fleet: Fleet) -> tuple[int, dict[str, Any], str]:
    """Run it; returns an exit code, the report, and what went wrong."""
    values = variables(given)
    if isinstance(values, str):
        return 2, {}, values
    return run_playbook(ACTIONS[given.action][0], given.action, values, fleet, given.timeout)


def run_playbook(name: str, what: str, values: Mapping[str, Any], fleet: Fleet, timeout: float) -> tuple[int, dict[str, Any], str]:
    """Run a playbook that writes a report; returns an exit code, the report, and what went wrong."""
    from ansible_collections.elearning.moodle_fleet.trigger import runner

    folder = fleet.state_dir / "tenants" / f"{time.strftime('%Y%m%d-%H%M%S')}-{what}"
    folder.mkdir(mode=0o700, parents=True)
    report = folder / "report.json"
    playbook = runner.COLLECTION / "playbooks" / f"{name}.yml"
    done = runner.run_playbook(playbook, fleet.path, {**values, "tenants_report": str(report)}, folder, timeout=timeout)
    data = _read(report)
    if done.status == "done" and not data and what != "apply":
        return 5, {}, "the fleet has no jobs node that could do it: run playbooks/site.yml first"
    return (0, data, "") if done.status == "done" else (5, data, done.message)


def _read(report: Path) -> dict[str, Any]:
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lines(action: str, data: Mapping[str, Any]) -> list[str]:
    """What a person wants to know of a report."""
    if action == "check" and "pairs" in data:
        found = [f"{one['kind']}: {one['tenant']}{' → ' + one['other'] if one['other'] else ''}: {one['text']}" for one in data["findings"]]
        tried = ", ".join(f"{number} {kind}" for kind, number in data["pairs"].items())
        notes = [f"note: {one}" for one in data.get("notes", [])]
        return [*found, *notes, f"{data['tenants']} tenants, ordered pairs tried: {tried}; {len(found)} findings in {data['seconds']} s"]
    if action == "restore" and "restored" in data:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(data["restored"]["made"]))
        return [f"Restored from the backup of {data['restored']['tenant']}, {made}, snapshot {data['snapshot'][:8]}"]
    if action == "jobs":
        return _jobs(data.get("nodes", {}))
    rows = []
    for one in data.get("tenants", []):
        figures = ", ".join(f"{key} {value}" for key, value in (one.get("figures") or {}).items())
        rows.append(f"{one['name']:<20} {one['error'] or one.get('snapshot', '')[:8] + '  ' + figures}  ({one['seconds']} s)")
    return rows


def _jobs(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The jobs nodes, then what is not as it should be, the worst first."""
    found = []
    for name, node in nodes.items():
        if "role" not in node:
            found.append(f"{name}: silent")
            continue
        problem = f", {node['problem']}" if node["problem"] else ""
        if node["role"] != "active":
            found.append(f"{name}: {node['role']}{problem}")
            continue
        late, totals = node["lateness"], node["totals"]
        found.append(
            f"{name}: active, {len(node['tenants'])} tenants, {len(node['running'])} runs under way; started late by {late['p50']:.1f} s"
            f" (median), {late['p99']:.1f} s (p99); {totals['runs']} runs, {totals['failed']} failed, {totals['cpu']:.0f} CPU s{problem}"
        )
        found += [f"  {run['tenant']}: runs for {node['time'] - run['started']:.0f} s" for run in node["running"] if run["long"]]
        notes = []
        for tenant, one in node["tenants"].items():
            backlog = one.get("backlog", {})
            waits = backlog.get("oldest", 0)
            words = [
                f"{node['failures'][tenant]} failed runs in a row" if tenant in node["failures"] else "",
                one.get("resting", ""),
                f"{backlog['scheduled']} scheduled and {backlog['adhoc']} ad-hoc tasks wait, the oldest for {waits} s" if waits > 120 else "",
                f"{backlog['failing']} tasks delayed because they failed" if backlog.get("failing") else "",
                backlog.get("error", ""),
            ]
            if any(words):
                notes.append((-waits, f"  {tenant}: {'; '.join(word for word in words if word)}"))
        found += [text for _waits, text in sorted(notes)]
    return found
