# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What one node can take, learnt from the balancer's counters. Pure.

The time that a request spends at a node with n requests in service there follows the universal scalability law (N. J. Gunther,
Guerrilla Capacity Planning, Springer 2007, chapter 4), written for times:

    R(n) = S (1 + sigma (n - 1) + kappa n (n - 1))

S is the time of a request that is alone, sigma what waits in turn for something shared (a CPU, a lock), kappa what keeps shared
things the same everywhere. The three are found by least squares with none below zero. Samples are put together by their throughput:
a minute of slow reports raises time and concurrency alike, and would look like contention if they were put together by these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import median
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.queueing import erlang_c
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Sample

# Samples with fewer requests say little of a request's time.
FEWEST_REQUESTS = 20
# Groups of equal size by throughput, and how many samples make one.
GROUPS = 24
GROUP_SAMPLES = 8
# The largest concurrency must be so many times the smallest, or nothing can be said of what it does.
SPAN = 1.5


@dataclass(frozen=True)
class Curve:
    """Seconds that a request spends at a node, by the requests in service there; see the module.

    ``samples`` is how many it was learnt from, ``low`` and ``high`` the concurrencies of a node that were seen. Beyond ``high`` it is
    an extrapolation.
    """

    alone: float
    sigma: float = 0.0
    kappa: float = 0.0
    samples: int = 0
    low: float = 0.0
    high: float = 0.0

    def seconds(self, busy: float) -> float:
        """Time of a request with so many in service."""
        others = max(0.0, busy - 1.0)
        return self.alone * (1.0 + self.sigma * others + self.kappa * busy * others)

    @property
    def peak(self) -> float:
        """Requests in service beyond which more of them give less throughput."""
        return max(1.0, math.sqrt(max(0.0, 1.0 - self.sigma) / self.kappa)) if self.kappa > 0 else math.inf

    def rate(self, busy: float) -> float:
        """Requests a second that leave a node with so many in service (Little's law)."""
        return busy / self.seconds(busy)


def fit(samples: Iterable[Sample]) -> Curve | None:
    """The curve that samples show, or None where they are too few. Untrusted ones and those in which requests waited don't count."""
    points = []
    for one in samples:
        if one.trusted and not one.waiting and one.seconds > 0 and one.up > 0 and one.load > 0 and one.requests >= FEWEST_REQUESTS:
            points.append((one.requests / one.seconds / one.up, one.load / one.up, one.load * one.seconds / one.requests))
    if len(points) < 3 * GROUP_SAMPLES:
        return None
    points.sort()
    number = min(GROUPS, len(points) // GROUP_SAMPLES)
    groups = [points[len(points) * index // number:len(points) * (index + 1) // number] for index in range(number)]
    seen = [(median([busy for _rate, busy, _time in group]), median([time for _rate, _busy, time in group])) for group in groups]
    low, high = min(busy for busy, _time in seen), max(busy for busy, _time in seen)
    if high < SPAN * max(low, 1.0):
        return Curve(median([time for _busy, time in seen]), 0.0, 0.0, len(points), low, high)
    alone, sigma, kappa = _least_squares(seen)
    return Curve(alone, sigma / alone, kappa / alone, len(points), low, high)


def _least_squares(seen: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The three coefficients of the smallest square error of which none is negative, relative to the times."""
    best, error = (median([time for _busy, time in seen]), 0.0, 0.0), math.inf
    rows = [(1.0, max(0.0, busy - 1), busy * max(0.0, busy - 1)) for busy, _time in seen]
    for size in range(3):
        for chosen in combinations((1, 2), size):
            columns = (0, *chosen)
            solved = _solve([[row[c] / time for c in columns] for row, (_busy, time) in zip(rows, seen)])
            if solved is None or min(solved) < 0 or solved[0] <= 0:
                continue
            whole = dict(zip(columns, solved))
            miss = sum(
                (1 - sum(whole.get(c, 0.0) * row[c] for c in range(3)) / time) ** 2 for row, (_busy, time) in zip(rows, seen)
            )
            if miss < error * (1 - 1e-9):
                best, error = (whole[0], whole.get(1, 0.0), whole.get(2, 0.0)), miss
    return best


def _solve(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """Least squares of ``rows`` × x = 1, by the normal equations; None where they have no single solution."""
    size = len(rows[0])
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(size)] + [sum(row[i] for row in rows)] for i in range(size)]
    scale = max(abs(value) for line in matrix for value in line)
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(matrix[k][i]))
        if abs(matrix[pivot][i]) < 1e-12 * scale:
            return None
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for k in range(size):
            if k != i:
                share = matrix[k][i] / matrix[i][i]
                matrix[k] = [a - share * b for a, b in zip(matrix[k], matrix[i])]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]


@dataclass(frozen=True)
class Capacity:
    """What a node takes while the wanted waiting time is kept.

    ``rate`` is requests a second and node, ``busy`` the workers that are in service on average then, ``seconds`` the time of a
    request, ``wait`` the mean time it waits before.
    """

    rate: float
    busy: float
    seconds: float
    wait: float


def capacity(curve: Curve, workers: int, nodes: int, wait: float, share: float = 0.95) -> Capacity:
    """The most that each of ``nodes`` nodes takes so that ``share`` of the requests wait at most ``wait`` seconds for a worker.

    The balancer has one queue for all: with more nodes the same number of workers waits less for each other. Erlang C.
    """
    def fits(busy: float) -> bool:
        spare = (workers - busy) * nodes / curve.seconds(busy)
        return erlang_c(workers * nodes, busy * nodes) * math.exp(-min(700.0, spare * wait)) <= 1.0 - share

    low, high = 0.0, float(workers)
    for _step in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    busy = min(low, curve.peak)
    seconds = curve.seconds(busy)
    spare = (workers - busy) * nodes / seconds
    mean = erlang_c(workers * nodes, busy * nodes) / spare if spare > 0 else 0.0
    return Capacity(curve.rate(busy), busy, seconds, mean)


def learners(found: Capacity, think: float) -> float:
    """Learners that one node carries if each asks again ``think`` seconds after an answer (the interactive response time law)."""
    return found.rate * (think + found.seconds + found.wait)
