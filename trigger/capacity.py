# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``moodle-fleet capacity``: what a node can take, how many learners that is, and which tier is the nearest to its limit."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet, cloud_driver
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import kept, managed, reader, tiers
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import capacity
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.tiers import Tier
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import counted

DAY = 86400.0
SHARE = 0.95


def look(fleet: Fleet) -> dict[str, Any]:
    """Read the tiers and keep what was found for the checks.

    :raises KeptError: when the file can't be written.
    """
    before = _kept.load(fleet, kept.TIERS)
    failures: dict[str, str] = {}
    addresses: list[str] = []
    try:
        addresses = [node.address for node in cloud_driver(fleet).nodes() if node.role == "web" and node.state == "running"]
    except CloudError as exc:
        failures["files"] = str(exc)
    try:
        given = reader.access(fleet.state_dir)
    except reader.ReadError as exc:
        failures["database, cache"] = str(exc)
        given = reader.Access("", {}, [])
    elsewhere: list[Tier] = []
    try:
        elsewhere, silent = managed.read(fleet, given.servers, time.time())
        failures.update(silent)
    except reader.ReadError as exc:
        failures["CloudWatch"] = str(exc)
    found = tiers.read(given, addresses, before, elsewhere)
    found["failures"].update(failures)
    _kept.write(fleet, kept.TIERS, found)
    return {"tiers": found["tiers"], "failures": found["failures"], "saturated": kept.saturated(fleet, found["taken"])}


def model(policy: Policy, ledger: Ledger, now: float, given: argparse.Namespace) -> dict[str, Any]:
    """What the ledger's samples say of a node; ``curve`` is None where they are too few."""
    samples = ledger.samples(now - given.days * DAY, now)
    last = next((one for one in reversed(samples) if one.trusted and one.up), None)
    nodes = last.up if last else policy.min_nodes
    workers = round(last.capacity / last.up) if last and last.capacity else policy.workers
    curve = capacity.fit(samples)
    data: dict[str, Any] = {
        "nodes": nodes, "workers": workers, "wait": given.wait, "wait_share": SHARE, "think": given.think, "days": given.days,
        "target": policy.target, "busy": round(last.load / (nodes * workers), 4) if last else None, "curve": None,
    }
    if curve is not None:
        best = capacity.capacity(curve, workers, nodes, given.wait, SHARE)
        data |= {
            "curve": asdict(curve), "rate": round(best.rate, 3), "busy_workers": round(best.busy, 3), "seconds": round(best.seconds, 4),
            "mean_wait": round(best.wait, 4), "learners": int(capacity.learners(best, given.think)),
            "fleet_learners": int(nodes * capacity.learners(best, given.think)), "grounded_target": round(best.busy / workers, 3),
            "extrapolated": best.busy > 1.2 * curve.high,
        }
    return data


def bottleneck(data: Mapping[str, Any]) -> tuple[str, float]:
    """The tier nearest to its limit, and the share of it; the web nodes among them, by their busy workers."""
    shares = {one["name"]: float(one["share"]) for one in data["tiers"]}
    if data["busy"] is not None:
        # Full at what keeps the wanted wait; without a curve at all workers.
        shares["web"] = data["busy"] / max(0.05, data.get("grounded_target") or 1.0)
    if not shares:
        return "", 0.0
    name = max(shares, key=lambda one: shares[one])
    return name, round(shares[name], 4)


def lines(name: str, data: Mapping[str, Any]) -> list[str]:
    """What a person wants to know."""
    said = []
    curve = data["curve"]
    if curve is None:
        said.append(f"Fleet {name}: the ledger holds too few trusted samples with traffic of the last {data['days']:g} days; let it run.")
    else:
        said += [
            f"Fleet {name}: a node of {data['workers']} workers takes {data['rate']:.1f} requests a second "
            f"while {data['wait_share']:.0%} of them wait at most {data['wait']:g} s, with {counted(data['nodes'])} behind one queue.",
            f"That is {counted(data['learners'], 'learner')} a node who ask again {data['think']:g} s after each answer, "
            f"{data['fleet_learners']} on all.",
            f"A request takes {curve['alone']:.3f} s alone and {data['seconds']:.3f} s with {data['busy_workers']:.1f} in service "
            f"(sigma {curve['sigma']:.3f}, kappa {curve['kappa']:.5f}; {curve['samples']} samples with {curve['low']:.1f} to "
            f"{curve['high']:.1f} in service at a node).",
            f"A target of {data['grounded_target']:.2f} would use that; the policy says {data['target']:g}.",
        ]
        if data["extrapolated"]:
            said.append("So many in service were never seen: this is an extrapolation.")
    where, share = data["bottleneck"], data["bottleneck_share"]
    if where:
        said.append(f"Nearest to its limit: {where} ({share:.0%}).")
    return said + tier_lines(data)


def tier_lines(data: Mapping[str, Any]) -> list[str]:
    """The tiers, those that hold scaling out back, and those that could not be read."""
    said = [f"{one['name']}: {one['share']:.0%} of its limit: {one['text']}" for one in data["tiers"]]
    said += [f"More web nodes would not help now ({what}: {how})." for what, how in data["saturated"].items()]
    return said + [f"Not read: {what}: {why}" for what, why in sorted(data["failures"].items())]
