# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the minutes before say: how much the load swings by itself, and whether it grows. Pure.

A load is a count, so it swings by a multiple of its square root: a small fleet relatively more than a large one. Once the swing is
known, a growth of two minutes can be told from chance as well as one of fifteen.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import median
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Minute, Sample

MINUTE = 60.0
# How far back the samples go that matter, and how old a growth may be at most.
LOOKBACK = 7200.0
LINE_SECONDS = 900.0
# The swing is reckoned anew every so many seconds, from what was known before the last of these steps: so it is the same for all
# checks within a step, and the samples that it takes are all within LOOKBACK.
STEP = 300.0
# Fewer changes between minutes tell no swing. A count of requests swings by this much at least, in square roots of it, and it is taken to
# swing by that much while nobody knows: who begins to look while it grows must see it.
FEWEST = 8
LEAST_SWING = 0.1
USUAL_SWING = 0.3
# Standard errors: those that slopes of longer and shorter lines may differ by, and by how many growth must stand out.
ALIKE = 2.5
SURE = 4.0


class Growth(NamedTuple):
    """The present ``level`` of a line that surely rises by ``slope`` a second, and for how many ``seconds`` it has."""

    slope: float
    level: float
    seconds: float


class Minutes:
    """The mean load of each minute of the clock, from trusted samples: those within one minute are too much alike to count each."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._kept: deque[Minute] = deque()
        # Of minutes that are over: (begin of the next one, change to the one before, steps within it), in square roots of the load.
        self._changes: deque[tuple[float, float, float]] = deque()
        # The last reading, and the steps between the readings of its minute together.
        self._load = self._steps = 0.0
        self._known: tuple[float, float, float] | None = None
        for one in samples:
            self.add(one)

    def add(self, sample: Sample) -> None:
        """Count a sample that is not older than those before it."""
        if not sample.trusted:
            return
        count = len(self._kept)
        added(self._kept, sample)
        if len(self._kept) == count:
            self._steps += abs(sample.load - self._load)
        else:
            if count >= 2:
                (_begin, before, _samples), (_over, after, readings), (present, _load, _one) = [self._kept[place] for place in (-3, -2, -1)]
                root = math.sqrt(max(1.0, (before + after) / 2))
                self._changes.append((present, (after - before) / root, self._steps / max(1, readings - 1) / root))
                if self._known is not None and present <= self._known[0] - STEP:
                    self._known = None
            self._steps = 0.0
        self._load = sample.load

    @property
    def last(self) -> Minute:
        """The minute of the last sample that counted."""
        return self._kept[-1]

    def again(self, times: int) -> None:
        """Count the last sample so many times more, all within its minute."""
        begin, load, count = self._kept.pop()
        self._kept.append((begin, load, count + times))

    def lately(self, now: float) -> tuple[Minute, ...]:
        """The minutes that a line may go through. Older ones are forgotten but for those that the next change is reckoned from."""
        since = now - LINE_SECONDS - MINUTE
        while len(self._kept) > 2 and self._kept[0][0] < since:
            self._kept.popleft()
        return tuple([one for one in self._kept if one[0] >= since])

    def swing(self, now: float) -> float:
        """Standard deviation of a minute's load, in square roots of the load; :data:`USUAL_SWING` where too few minutes tell it.

        From the changes between minutes, by medians (the median absolute deviation times 1.48 is a standard deviation, a change
        has twice the variance of its sides), so that neither a step nor a steady growth counts as swing.
        """
        return self._reckoned(now)[1]

    def flutter(self, now: float) -> float:
        """Standard deviation of a single reading within its minute, in square roots of the load; 0 where each minute has but one.

        From the mean step between readings, by the median of the minutes: two values of a normal distribution are 2 / √π
        standard deviations apart on average.
        """
        return self._reckoned(now)[2]

    def _reckoned(self, now: float) -> tuple[float, float, float]:
        """(begin of the step of time, swing, flutter)."""
        begin = now // STEP * STEP
        if self._known is None or self._known[0] != begin:
            while self._changes and self._changes[0][0] <= begin - LOOKBACK + 2 * STEP:
                self._changes.popleft()
            rows = [row for row in self._changes if row[0] <= begin - STEP]
            swing, flutter = USUAL_SWING, 0.0
            if len(rows) >= FEWEST:
                _present, changes, steps = zip(*rows)
                ordered = sorted(changes)
                usual = median(ordered)
                swing = max(LEAST_SWING, 1.48 / math.sqrt(2) * median([abs(change - usual) for change in ordered]))
                flutter = math.sqrt(math.pi) / 2 * median(steps)
            self._known = begin, swing, flutter
        return self._known


def added(minutes: deque[Minute] | list[Minute], sample: Sample) -> None:
    """Count a sample into the last minute, or begin the next one with it."""
    begin = (sample.taken - sample.seconds / 2) // MINUTE * MINUTE
    if minutes and minutes[-1][0] == begin:
        _begin, load, count = minutes.pop()
        minutes.append((begin, (load * count + sample.load) / (count + 1), count + 1))
    else:
        minutes.append((begin, sample.load, 1))


def growth(minutes: Sequence[Minute], noise: float, weight: float = 1.0) -> Growth | None:
    """The line through the last minutes, where it surely rises: through as many as a straight line fits.

    ``noise`` is the standard deviation of a minute. The last one counts by ``weight``, less than one while it is not over. The line
    grows longer minute by minute as long as the confidence intervals of the slopes so far have a point in common (the rule of
    intersecting intervals: A. Goldenshluger, A. Nemirovski, On spatially adaptive estimation of nonparametric regression,
    Mathematical Methods of Statistics 6, 1997). After a step it is short, so what leapt and stays does not look as if it went on.
    """
    if not minutes or noise <= 0:
        return None
    last = minutes[-1][0]
    # What a line explains is never more than how far the loads lie from their mean (Cauchy and Schwarz): mostly too little, and then
    # no line need be drawn.
    near = [load for begin, load, _samples in minutes if begin > last - LINE_SECONDS]
    if sum(map(operator.mul, near, near)) - sum(near) ** 2 / len(near) <= (SURE * noise) ** 2:
        return None
    # The last minute is the origin of time, so that its weight matters only to these two.
    count, loads = weight - 1.0, (weight - 1.0) * minutes[-1][1]
    whens, squares, products = 0.0, 0.0, 0.0
    low, high = -math.inf, math.inf
    # The slope of the longest line so far, the sums that it comes from, and where it begins.
    best = 0.0, 1.0, 1.0, 0.0, 0.0, 0.0
    for begin, load, _samples in reversed(minutes):
        when = begin - last
        if when <= -LINE_SECONDS:
            break
        count += 1
        whens += when
        loads += load
        squares += when * when
        products += when * load
        spread = squares - whens * whens / count
        if spread <= 0:
            continue
        slope = (products - whens * loads / count) / spread
        apart = ALIKE * noise / math.sqrt(spread)
        if slope - apart > low:
            low = slope - apart
        if slope + apart < high:
            high = slope + apart
        if low > high:
            break
        if high <= 0:
            return None  # no line that still fits surely rises
        best = slope, spread, count, whens, loads, when
    slope, spread, count, whens, loads, when = best
    if slope <= SURE * noise / math.sqrt(spread):
        return None
    return Growth(slope, (loads - slope * whens) / count, -when)
