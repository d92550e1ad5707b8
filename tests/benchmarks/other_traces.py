# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Load traces of other kinds, to see whether what helps on those of ``traces`` helps elsewhere. Of the policy only the bounds of a return and how
long a growth goes on were chosen with them in view.

Other generators with other parameters and other noise: schools, lessons on the hour, a sawtooth, steps, a public web site, a random walk without
any noise, a week of holidays, an even load, mornings as steep as a switch, lines that are cut, a day on which all go home.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from traces import HISTORY_WEEKS, SHAPES, WEEK, campus, noisy, shape

# Those of the goals; the ones below come on top.
SIX = tuple(SHAPES)
DAY = 1440
BEGIN = HISTORY_WEEKS * WEEK


def linked(chance: random.Random, loads: Sequence[float], much: float) -> list[float]:
    """Noise of a count of which half lasts into the next minute, as where requests take long."""
    noise, result = 0.0, []
    for load in loads:
        noise = 0.5 * noise + chance.gauss(0, math.sqrt(0.75))
        result.append(load + much * 0.5 * math.sqrt(max(load, 0.05)) * noise)
    return result


@shape("school with two peaks", weekly=True)
def _school(chance: random.Random) -> tuple[list[float], int]:
    peak, loads = chance.uniform(40, 160), []
    for day in range(HISTORY_WEEKS * 7 + 7):
        level = 0.05 if day % 7 >= 5 else chance.uniform(0.9, 1.1)
        for minute in range(DAY):
            hour = minute / 60
            morning = math.sin(math.pi * (hour - 7.5) / 5) if 7.5 <= hour <= 12.5 else 0.0
            afternoon = 0.8 * math.sin(math.pi * (hour - 13.5) / 4) if 13.5 <= hour <= 17.5 else 0.0
            loads.append(peak * (0.02 + level * max(0.02, morning, afternoon)))
    return linked(chance, loads, 1.0), BEGIN


@shape("lessons on the hour", weekly=True)
def _lessons(chance: random.Random) -> tuple[list[float], int]:
    base, loads = chance.uniform(20, 60), []
    for day in range(HISTORY_WEEKS * 7 + 5):
        for minute in range(DAY):
            hour, past = minute / 60, minute % 60
            load = base * (0.1 + 0.5 * math.exp(-((hour - 13) / 5) ** 2))
            if 8 <= hour < 16 and day % 7 < 5:
                load += 1.2 * base * (min(1.0, past / 3) if past < 50 else max(0.0, 1 - (past - 50) / 5))
            loads.append(load)
    return noisy(chance, loads, slow=0.04, spread=0.3), BEGIN


@shape("sawtooth", weekly=False)
def _sawtooth(chance: random.Random) -> tuple[list[float], int]:
    period, height = chance.choice((37, 95, 181)), chance.uniform(50, 150)
    return noisy(chance, [8 + height * (minute % period) / period for minute in range(BEGIN + DAY)]), BEGIN


@shape("steps", weekly=False)
def _steps(chance: random.Random) -> tuple[list[float], int]:
    level, loads = 30.0, []
    while len(loads) < BEGIN + DAY:
        level = min(200.0, max(8.0, level * math.exp(chance.gauss(0, 0.5))))
        loads += [level] * chance.randint(10, 120)
    return noisy(chance, loads[:BEGIN + DAY], slow=0.02), BEGIN


@shape("public web site", weekly=True)
def _web_site(chance: random.Random) -> tuple[list[float], int]:
    base, drift, burst, loads = chance.uniform(30, 90), 0.0, 0.0, []
    for minute in range(BEGIN + 3 * DAY):
        drift = 0.995 * drift + chance.gauss(0, 0.015)
        burst *= 0.85
        if chance.random() < 1 / 240:
            burst = min(3.0, 0.3 * chance.paretovariate(1.6))
        day = 0.55 - 0.4 * math.cos(2 * math.pi * (minute / 60 - 4) / 24)
        loads.append(base * day * math.exp(drift) * (1 + 0.5 * burst))
    return linked(chance, loads, 0.8), BEGIN


@shape("random walk", weekly=False)
def _random_walk(chance: random.Random) -> tuple[list[float], int]:
    middle = math.log(40)
    place, loads = middle, []
    for _minute in range(BEGIN + DAY):
        place += chance.gauss(0, 0.02) - 0.0005 * (place - middle)
        loads.append(min(250.0, math.exp(place)))
    return loads, BEGIN


@shape("holidays begin", weekly=True)
def _holidays(chance: random.Random) -> tuple[list[float], int]:
    loads = campus(chance, HISTORY_WEEKS * 7 + 7, chance.uniform(60, 140))
    loads[BEGIN + 2 * DAY:] = [0.25 * load for load in loads[BEGIN + 2 * DAY:]]
    return noisy(chance, loads), BEGIN


@shape("even and small", weekly=True)
def _even(chance: random.Random) -> tuple[list[float], int]:
    return linked(chance, [chance.uniform(6, 60)] * (BEGIN + 2 * DAY), 1.2), BEGIN


@shape("steep mornings", weekly=True)
def _steep(chance: random.Random) -> tuple[list[float], int]:
    peak, loads = chance.uniform(60, 180), []
    for day in range(HISTORY_WEEKS * 7 + 4):
        for minute in range(DAY):
            hour = minute / 60
            open_ = 1 / (1 + math.exp(-8 * (hour - 8))) - 1 / (1 + math.exp(-3 * (hour - 16.5)))
            loads.append(peak * (0.04 + (0.9 if day % 7 < 5 else 0.15) * open_))
    return noisy(chance, loads, spread=0.5), BEGIN


@shape("line cut", weekly=False)
def _line_cut(chance: random.Random) -> tuple[list[float], int]:
    loads = campus(chance, HISTORY_WEEKS * 7 + 1, chance.uniform(30, 140))
    for _cut in range(chance.randint(1, 3)):
        start, minutes = BEGIN + chance.randrange(420, 1200), chance.randint(3, 45)
        left, rush, calm = chance.uniform(0, 0.3), chance.uniform(0, 4), chance.uniform(3, 20)
        for minute in range(minutes):
            loads[start + minute] *= left
        for minute in range(180):
            loads[start + minutes + minute] *= 1 + rush * math.exp(-minute / calm)
    return linked(chance, loads, 0.9), BEGIN


@shape("sent home", weekly=False)
def _sent_home(chance: random.Random) -> tuple[list[float], int]:
    loads = campus(chance, HISTORY_WEEKS * 7 + 1, chance.uniform(30, 140))
    leave = BEGIN + chance.randrange(540, 840)
    loads[leave:] = [load * chance.uniform(0.03, 0.12) for load in loads[leave:]]
    return noisy(chance, loads), BEGIN
