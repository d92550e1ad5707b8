# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Load traces of different shapes from a seeded generator: one-minute loads in requests being served.

The shapes follow what is published of learning platforms and web sites: day and week of campus traffic with a dip at noon and a
second peak in the evening; arrivals of an exam's participants within a minute or two and a tail of those who finish early;
flash crowds that rise within minutes and decay like a power law (J. Jung, B. Krishnamurthy, M. Rabinovich, Flash Crowds and Denial
of Service Attacks, WWW 2002; D. Ari et al., Managing flash crowds on the Internet, MASCOTS 2003); retries after an outage.
Minute noise is that of a count (its variance grows with the load) times a slow factor of some per cent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WORKERS = 8
WEEK = 7 * 1440
HISTORY_WEEKS = 3


@dataclass(frozen=True)
class Exam:
    """People who begin at once, ``start`` minutes after the begin of what is followed. Each keeps a worker busy at first."""

    start: int
    people: float
    minutes: int


@dataclass(frozen=True)
class Shape:
    """A trace: ``history`` came before it (whole weeks), ``loads`` is what is followed; ``weekly`` if it has a rhythm.

    ``exams`` are those in it that somebody could know of before.
    """

    name: str
    history: Sequence[float]
    loads: Sequence[float]
    weekly: bool
    exams: Sequence[Exam] = ()


Generator = Callable[[random.Random], tuple[list[float], int, *tuple[Exam, ...]]]
SHAPES: dict[str, tuple[Generator, bool]] = {}


def shape(name: str, weekly: bool) -> Callable[[Generator], Generator]:
    """Register a generator: it gives the loads with their history, where the history ends, and the exams."""
    def register(function: Generator) -> Generator:
        SHAPES[name] = function, weekly
        return function
    return register


def generate(name: str, seed: int) -> Shape:
    """The trace of a shape for a seed; the same on every machine."""
    function, weekly = SHAPES[name]
    loads, begin, *exams = function(random.Random(f"{name}-{seed}"))
    loads = [round(max(0.0, load), 3) for load in loads]
    return Shape(name, loads[:begin], loads[begin:], weekly, exams)


def bump(hour: float, middle: float, width: float) -> float:
    """A smooth hill."""
    return math.exp(-0.5 * ((hour - middle) / width) ** 2)


def campus(chance: random.Random, days: int, peak: float, night: float = 0.05) -> list[float]:
    """The expected load of days from a Monday on, without noise."""
    morning, evening = chance.uniform(9.5, 11), chance.uniform(19, 20.5)
    noon, weekend = chance.uniform(0.1, 0.3), chance.uniform(0.25, 0.5)
    loads = []
    for day in range(days):
        level = weekend if day % 7 >= 5 else 1.0
        level *= chance.uniform(0.93, 1.07) * (0.85 if day % 7 == 4 else 1.0)
        for minute in range(1440):
            hour = minute / 60
            value = bump(hour, morning, 1.8) + 0.95 * bump(hour, 14.5, 2.2) + 0.7 * bump(hour, evening, 1.9)
            value *= 1 - noon * bump(hour, 12.5, 0.5)
            loads.append(peak * (night + level * value / 1.25))
    return loads


def noisy(chance: random.Random, loads: Sequence[float], slow: float = 0.03, spread: float = 0.35) -> list[float]:
    """Add what a count fluctuates by in a minute, and a slow drift."""
    drift, result = 0.0, []
    for load in loads:
        drift = 0.97 * drift + chance.gauss(0, slow * 0.243)
        result.append(load * (1 + drift) + chance.gauss(0, spread * math.sqrt(max(load, 0.05))))
    return result


def season(chance: random.Random, days: int, peak: float) -> tuple[list[float], int]:
    """History and days of campus traffic; in half of the cases a holiday lies in the history."""
    loads = campus(chance, HISTORY_WEEKS * 7 + days, peak)
    if chance.random() < 0.5:
        day = chance.randrange(HISTORY_WEEKS * 7)
        loads[day * 1440:(day + 1) * 1440] = [0.3 * load for load in loads[day * 1440:(day + 1) * 1440]]
    return loads, HISTORY_WEEKS * WEEK


@shape("campus week", weekly=True)
def _campus_week(chance: random.Random) -> tuple[list[float], int]:
    loads, begin = season(chance, 7, chance.uniform(80, 130))
    return noisy(chance, loads), begin


@shape("slow growth", weekly=True)
def _slow_growth(chance: random.Random) -> tuple[list[float], int]:
    loads, begin = season(chance, 7, chance.uniform(60, 90))
    growth = chance.uniform(1.08, 1.2)
    return noisy(chance, [load * growth ** (i / WEEK - 3) for i, load in enumerate(loads)]), begin


@shape("noisy small fleet", weekly=True)
def _noisy_small(chance: random.Random) -> tuple[list[float], int]:
    loads, begin = season(chance, 7, chance.uniform(20, 34))
    return noisy(chance, loads, slow=0.05, spread=0.45), begin


@shape("exam storm", weekly=False)
def _exam_storm(chance: random.Random) -> tuple[list[float], int, *tuple[Exam, ...]]:
    loads, begin = season(chance, 1, chance.uniform(50, 80))
    exams = []
    for _exam in range(chance.randint(2, 4)):
        start = begin + 15 * chance.randint(32, 68)
        people, minutes = chance.uniform(60, 200), chance.choice((45, 60, 90))
        exams.append(Exam(start - begin, people, minutes))
        for minute in range(minutes + 20):
            arrived = min(1.0, (minute + 1) / chance.choice((1, 2)))
            busy = 1.0 if minute < 3 else 0.45
            left = 1.0 if minute < 0.6 * minutes else max(0.0, 1 - (minute - 0.6 * minutes) / (0.5 * minutes))
            if start + minute < len(loads):
                loads[start + minute] += people * arrived * busy * left
    return noisy(chance, loads), begin, *exams


@shape("flash crowd", weekly=False)
def _flash_crowd(chance: random.Random) -> tuple[list[float], int]:
    loads, begin = season(chance, 1, chance.uniform(40, 80))
    start = begin + chance.randint(400, 1100)
    height, rise, decay = chance.uniform(100, 220), chance.uniform(2, 12), chance.uniform(0.6, 1.2)
    for minute in range(len(loads) - start):
        up = min(1.0, minute / rise)
        loads[start + minute] += height * up * (1 + max(0.0, minute - rise) / 15) ** -decay
    return noisy(chance, loads), begin


@shape("outage with retry storm", weekly=False)
def _outage(chance: random.Random) -> tuple[list[float], int]:
    loads, begin = season(chance, 1, chance.uniform(70, 120))
    start, minutes = begin + chance.randint(520, 900), chance.randint(5, 30)
    storm = chance.uniform(1.2, 2.5)
    for minute in range(minutes):
        loads[start + minute] *= 0.02
    for minute in range(60):
        loads[start + minutes + minute] *= 1 + storm * math.exp(-minute / 8)
    return noisy(chance, loads), begin
