# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the policy benchmark compares: means over the seeds, and the lack of the others at as many node-hours as ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rivals

OURS = "moodle-fleet"
# (node-hours, under-provisioned seconds, instability) by shape, launch time, policy and setting.
Averages = Mapping[tuple[str, int, str, str], tuple[float, float, float]]


def averages(rows: Iterable[Mapping[str, Any]]) -> Averages:
    """The means over the seeds."""
    mean: dict[tuple[str, int, str, str], list[float]] = {}
    for row in rows:
        cell = mean.setdefault((row["shape"], row["launch"], row["policy"], row["setting"]), [0.0, 0.0, 0.0, 0.0])
        for place, value in enumerate((row["hours"], row["under"], row["instability"], 1.0)):
            cell[place] += value
    return {key: (h / n, u / n, i / n) for key, (h, u, i, n) in mean.items()}


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of (node-hours, lack) that no other is better than, by rising node-hours."""
    best: list[tuple[float, float]] = []
    for hours, under in sorted(points):
        if not best or under < best[-1][1]:
            best.append((hours, under))
    return best


def at_hours(points: Sequence[tuple[float, float]], hours: float) -> float:
    """The least lack on a front at so many node-hours, between two settings on the line; nan below its cheapest."""
    line = front(points)
    if hours < line[0][0]:
        return float("nan")
    for (low, more), (high, less) in zip(line, line[1:]):
        if low <= hours <= high:
            return more + (less - more) * (hours - low) / (high - low)
    return line[-1][1]


def lacks(average: Averages, name: str, launch: int, hours: float) -> dict[str, float]:
    """The lack of every other at so many node-hours, of those that can be as cheap."""
    found = {
        rival: at_hours([value[:2] for key, value in average.items() if key[:3] == (name, launch, rival)], hours)
        for rival in (*rivals.RIVALS, "static")
    }
    return {rival: value for rival, value in found.items() if not math.isnan(value)}


def least(known: Mapping[str, float]) -> tuple[str, float]:
    """Who lacks least, and how much."""
    return min(known.items(), key=lambda one: one[1]) if known else ("-", float("nan"))


def at_most_half(under: float, lack: float) -> bool:
    """Whether a lack reaches the goal, which is half of the best other's."""
    return under <= lack / 2 or under == 0
