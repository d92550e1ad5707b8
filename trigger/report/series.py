# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Series over time as short plain data: what is drawn keeps every extreme, however many values there were. Pure.

Times in the page are whole seconds since its begin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# Buckets of the load over the whole page: at 14 days a minute each.
BUCKETS = 20_160
# Changes of one stepped series that are kept one by one; of more, each bucket keeps its first, least, greatest and last.
MOST_CHANGES = 6_000


def bucket_seconds(begin: float, end: float) -> int:
    """Width of the buckets, in whole minutes."""
    return max(1, math.ceil((end - begin) / 60 / BUCKETS - 1e-9)) * 60


class Band:
    """Least, mean and greatest value of each bucket; nothing for a bucket that nobody saw."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin = begin
        self.width = bucket_seconds(begin, end)
        count = max(1, math.ceil((end - begin) / self.width))
        self.low = [math.inf] * count
        self.high = [-math.inf] * count
        self.area = [0.0] * count
        self.weight = [0.0] * count

    def add(self, moment: float, value: float, weight: float) -> None:
        """Take a mean value of the ``weight`` seconds before a moment."""
        # A value belongs to the bucket that holds its middle.
        index = int((moment - weight / 2 - self.begin) // self.width)
        if 0 <= index < len(self.low):
            self.low[index] = min(self.low[index], value)
            self.high[index] = max(self.high[index], value)
            self.area[index] += value * weight
            self.weight[index] += weight

    def means(self) -> list[float | None]:
        """The mean of each bucket."""
        return [area / weight if weight > 0 else None for area, weight in zip(self.area, self.weight)]

    def to_data(self) -> dict[str, Any]:
        """Plain data; ``low`` and ``high`` only where they differ from the mean."""
        means = self.means()
        data: dict[str, Any] = {"width": self.width, "mean": [_short(one) for one in means]}
        if any(one is not None and high - low > 0.05 for one, low, high in zip(means, self.low, self.high)):
            data["low"] = [_short(None if one is None else low) for one, low in zip(means, self.low)]
            data["high"] = [_short(None if one is None else high) for one, high in zip(means, self.high)]
        return data


class Steps:
    """Values that hold until the next one; only changes are kept."""

    def __init__(self) -> None:
        self.points: list[tuple[float, Any]] = []

    def add(self, moment: float, value: Any) -> None:
        """Take a value (None: unknown from here on)."""
        if not self.points or self.points[-1][1] != value:
            self.points.append((moment, value))

    def to_data(self, begin: float, end: float) -> list[list[Any]]:
        """``[[seconds since the begin, value], …]``."""
        return [[int(moment - begin), value] for moment, value in thinned(self.points, begin, end)]


def thinned(points: Sequence[tuple[float, Any]], begin: float, end: float) -> list[tuple[float, Any]]:
    """Of more than MOST_CHANGES: first, least, greatest and last of each bucket, in their order."""
    if len(points) <= MOST_CHANGES:
        return list(points)
    width = (end - begin) / (MOST_CHANGES / 4)
    result: list[tuple[float, Any]] = []
    place = 0
    while place < len(points):
        bucket = int((points[place][0] - begin) // width)
        first = place
        while place < len(points) and int((points[place][0] - begin) // width) == bucket:
            place += 1
        group = range(first, place)
        known = [index for index in group if points[index][1] is not None]
        chosen = {first, place - 1}
        if known:
            chosen |= {min(known, key=lambda index: points[index][1]), max(known, key=lambda index: points[index][1])}
        result += [points[index] for index in sorted(chosen)]
    return result


class Spans:
    """Times in which something held, with what was said of it; pauses of up to ``join`` seconds are bridged."""

    def __init__(self, join: float) -> None:
        self.join = join
        self.spans: list[tuple[float, float, str]] = []

    def add(self, begin: float, end: float, text: str) -> None:
        """Take a time in which it held."""
        if self.spans and begin <= self.spans[-1][1] + self.join:
            first, last, said = self.spans[-1]
            self.spans[-1] = (first, max(last, end), said)
        else:
            self.spans.append((begin, end, text))

    def to_data(self, begin: float, most: int) -> list[list[Any]]:
        """``[[begin, end, text], …]``, the newest ``most``."""
        return [[int(first - begin), int(last - begin), text] for first, last, text in self.spans[-most:]]


def _short(value: float | None) -> float | int | None:
    """One digit after the point: more nobody can see."""
    if value is None or not math.isfinite(value):
        return None
    rounded = round(value, 1)
    return int(rounded) if rounded == int(rounded) else rounded
