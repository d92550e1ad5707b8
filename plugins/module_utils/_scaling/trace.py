# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Load traces: what would be in service, minute by minute. Pure; files are opened by whoever calls this."""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Sample

MINUTE = 60.0
# A trace of ten years; more is more likely a column of wrong numbers.
LONGEST_MINUTES = 10 * 366 * 1440
# The columns, by the names that monitoring gives them.
TIMES = ("time", "timestamp", "datetime", "ts", "date")
LOADS = ("load", "in_service", "value")
# Of a later time is no second, but a millisecond; of an earlier one neither.
LATEST, EARLIEST = 1e11, -1e10
# More requests in service at once are no load, but a count of some interval.
MOST = 1e6
# Values come in a rhythm where so many of the steps are no longer than so many usual ones; then a pause of more than so many usual
# steps, and of so many seconds, is a gap.
REGULAR, REGULAR_SHARE = 1.5, 0.9
GAP_STEPS, GAP_SECONDS = 3.0, 300.0


class TraceError(ValueError):
    """The trace cannot be used. The message names line, value and remedy."""


@dataclass(frozen=True)
class Trace:
    """One-minute mean loads from ``begin`` (Unix seconds); None where nothing was recorded."""

    begin: float
    loads: Sequence[float | None]
    areas: Sequence[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        total, areas, last = 0.0, [0.0], 0.0
        for load in self.loads:
            last = last if load is None else load
            total += last * MINUTE
            areas.append(total)
        object.__setattr__(self, "areas", areas)

    @property
    def end(self) -> float:
        """When the last minute ends."""
        return self.begin + MINUTE * len(self.loads)

    def minute_end(self, moment: float) -> float:
        """End of the minute that ends at or holds this moment."""
        return self.begin + MINUTE * math.ceil((moment - self.begin) / MINUTE)

    def mean(self, begin: float, end: float) -> float | None:
        """The mean load between two moments, or None where the minute that ends at or holds the later one was not recorded. Before and
        after the trace its first and last minute stand, in a gap the minute before it."""
        index = min(len(self.loads) - 1, max(0, math.ceil((end - self.begin) / MINUTE) - 1))
        load = self.loads[index]
        if load is None or begin >= self.begin + MINUTE * index:
            return load
        if end <= begin:
            begin = end - 1.0
        return (self._area(end) - self._area(begin)) / (end - begin)

    def _area(self, moment: float) -> float:
        place = (moment - self.begin) / MINUTE
        if place <= 0:
            return place * self.areas[1]
        index = int(place)
        if index >= len(self.loads):
            return self.areas[-1] + (place - len(self.loads)) * (self.areas[-1] - self.areas[-2])
        return self.areas[index] + (place - index) * (self.areas[index + 1] - self.areas[index])


def from_csv(lines: Iterable[str]) -> Trace:
    """A trace from CSV with the columns ``time`` (seconds or ISO 8601) and ``load`` (requests in service), in any order.

    A value holds until the next one. Values more than a minute apart are points on a line: what comes every five minutes or every
    hour is a sampled curve, not a stair. Where values come regularly, a much longer pause is a gap of which nothing is known.

    :raises TraceError: naming the line, the value and what to do.
    """
    rows, above, head = iter(lines), 0, ""
    for head in rows:
        above += 1
        if head.strip():
            break
    # Semicolons and tabs as spreadsheets write them.
    mark = next((one for one in (",", ";", "\t") if one in head), ",")
    try:
        names = [name.strip().lower() for name in next(csv.reader([head.lstrip("\ufeff")], delimiter=mark), [])]
    except csv.Error as exc:
        raise TraceError(f"line {above}: no CSV: {exc}") from exc
    if not any(names):
        raise TraceError("the trace is empty: give CSV with the head 'time,load' and at least two lines")
    at, of = [next((names.index(name) for name in known if name in names), -1) for known in (TIMES, LOADS)]
    if min(at, of) < 0:
        name = "time" if at < 0 else "load"
        raise TraceError(f"line {above}: {mark.join(names)[:80]!r} has no column {name!r}: begin the file with 'time,load'")
    points = _points(csv.reader(rows, delimiter=mark), above, at, of)
    if len(points) < 2:
        raise TraceError(f"only {len(points)} line(s) with a load: give at least two")
    if (points[-1][0] - points[0][0]) / MINUTE > LONGEST_MINUTES:
        raise TraceError(f"from {points[0][0]:.0f} to {points[-1][0]:.0f} are more than ten years: is 'time' in seconds?")
    steps = [later[0] - sooner[0] for sooner, later in zip(points, points[1:])]
    usual = sorted(steps)[len(steps) // 2]
    # A pause is a gap only among values that come in a rhythm.
    regular = sum(step <= REGULAR * usual for step in steps) >= REGULAR_SHARE * len(steps)
    longest = max(GAP_STEPS * usual, GAP_SECONDS) if regular else math.inf
    spans = []
    for (moment, load), (following, after) in zip(points, points[1:]):
        if following - moment <= longest:
            spans.append((moment, following, load, load if following - moment <= MINUTE else after))
        else:
            spans.append((moment, moment + min(usual, MINUTE), load, load))
    last = points[-1]
    spans.append((last[0], last[0] + min(usual, MINUTE), last[1], last[1]))
    return _minutes(spans)


def _points(rows: Any, above: int, at: int, of: int) -> list[tuple[float, float]]:
    """Times and loads of all lines below the head, by time, each time once; ``above`` is the number of the head's line."""
    points: list[tuple[float, float]] = []
    sorted_by_time = True
    try:
        for row in rows:
            if not row or not "".join(row).strip():
                continue
            number = rows.line_num + above
            if len(row) <= max(at, of):
                raise TraceError(f"line {number}: {','.join(row)[:80]!r} lacks a column: give time and load")
            moment, load = _time(row[at], number), _load(row[of], number)
            sorted_by_time = sorted_by_time and (not points or moment > points[-1][0])
            points.append((moment, load))
    except csv.Error as exc:
        raise TraceError(f"line {rows.line_num + above}: no CSV: {exc}") from exc
    if sorted_by_time:
        return points
    points.sort()
    once = points[:1]
    for moment, load in points[1:]:
        if moment > once[-1][0]:
            once.append((moment, load))
        elif load != once[-1][1]:
            when = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise TraceError(
                f"time {moment:.15g} ({when}) has two loads, {once[-1][1]:g} and {load:g}: keep one; "
                "local times need their zone where clocks are set back"
            )
    return once


def from_samples(samples: Iterable[Sample]) -> Trace:
    """A trace from what a fleet's own checks saw; untrusted readings are gaps.

    :raises TraceError: when no reading is usable.
    """
    spans = [
        (one.taken - one.seconds, one.taken, one.load, one.load)
        for one in samples
        if one.trusted and one.seconds > 0
    ]
    if not spans:
        raise TraceError("the ledger holds no trusted sample yet: let the trigger run for a while")
    return _minutes(spans)


def _time(text: str, number: int) -> float:
    text = text.strip()
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.datetime.fromisoformat(text[:-4] + "Z" if text.endswith((" UTC", " GMT")) else text)
        except ValueError:
            raise TraceError(
                f"line {number}: time {text[:40]!r} is neither a number of seconds nor ISO 8601: "
                "write for example 2026-12-01T07:30:00+01:00"
            ) from None
        # Without a zone it is UTC: the trace of one machine must not depend on another's.
        value = (moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.timezone.utc)).timestamp()
    if not math.isfinite(value):
        raise TraceError(f"line {number}: time {text[:40]!r} is no time: give seconds or ISO 8601")
    if not EARLIEST <= value <= LATEST:
        raise TraceError(f"line {number}: time {text[:40]!r} is beyond any date: give seconds, not milliseconds")
    return value


def _load(text: str, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise TraceError(f"line {number}: load {text.strip()[:40]!r} is no load: give requests in service, 0 or more")
    if value > MOST:
        raise TraceError(f"line {number}: load {text.strip()[:40]!r} is too much: give requests in service at one time, not a count of them")
    return value


def _minutes(spans: Sequence[tuple[float, float, float, float]]) -> Trace:
    """Minutes from spans (begin, end, load at the begin, load at the end), each a piece of a line."""
    begin = spans[0][0]
    count = max(1, math.ceil((max(span[1] for span in spans) - begin) / MINUTE - 1e-6))
    area, time = [0.0] * count, [0.0] * count
    for first, last, low, high in spans:
        place = first
        while place < last - 1e-6:
            index = int((place - begin) / MINUTE + 1e-9)
            if index < 0:
                place = begin
                continue
            if index >= count:
                break
            until = min(last, begin + (index + 1) * MINUTE)
            middle = ((place + until) / 2 - first) / (last - first)
            area[index] += (low + (high - low) * middle) * (until - place)
            time[index] += until - place
            place = until
    # A minute of which less than half was seen is not known, unless it is the last.
    loads = [a / t if t >= MINUTE / 2 or t > 0 and i == count - 1 else None for i, (a, t) in enumerate(zip(area, time))]
    return Trace(begin, loads)
