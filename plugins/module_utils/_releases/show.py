# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A release as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lines(state: Mapping[str, Any]) -> list[str]:
    """Return the lines: one for each tenant, and a last one that counts."""
    rows = []
    for one in state["tenants"]:
        downtime = f"{one['downtime']:.1f} s" if one["downtime"] else ""
        rows.append(f"{one['name']:<31} {one['state']:<10} {one['release']:<28} {downtime:>10}  {one['error']}".rstrip())
    counts = ", ".join(f"{number} {name}" for name, number in sorted(state["counts"].items()))
    times = sorted(one["downtime"] for one in state["tenants"] if one["downtime"])
    closed = f"; closed for {times[0]:.1f} to {times[-1]:.1f} s, in the middle {times[len(times) // 2]:.1f} s" if times else ""
    return [*rows, f"{state['target'] or 'no release yet'}: {counts or 'no tenants'}{closed}"]
