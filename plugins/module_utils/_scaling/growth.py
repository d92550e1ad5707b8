# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the minutes before say: how much the load swings by itself, and whether it grows. Pure.

A load is a count, so it swings by a multiple of its square root: a small fleet relatively more than a large one. Once the swing is
known, a growth of two minutes can be told from chance as well as one of fifteen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import median
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Minute, Sample

MINUTE = 60.0
# What the swing is learnt from, and what a growth may be as old as at most.
LOOKBACK = 7200.0
LINE_SECONDS = 900.0
# Fewer changes between minutes tell no swing. A count of requests swings by this much at least, in square roots of it.
FEWEST = 8
LEAST_SWING = 0.1
# Standard errors: those that slopes of longer and shorter lines may differ by, and by how many growth must stand out.
ALIKE = 2.5
SURE = 4.0


@dataclass(frozen=True)
class Growth:
    """The present ``level`` of a line that surely rises by ``slope`` a second, and for how many ``seconds`` it has."""

    slope: float
    level: float
    seconds: float


class Minutes:
    """The mean load of each minute of the clock, from trusted samples: those within one minute are too much alike to count each."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._kept: deque[Minute] = deque()
        # (begin of the earlier one, change to the next in square roots of the load) of minutes that are over.
        self._changes: deque[tuple[float, float]] = deque()
        self._swing: float | None = None
        for one in samples:
            self.add(one)

    def add(self, sample: Sample) -> None:
        """Count a sample that is not older than those before it."""
        if not sample.trusted:
            return
        count = len(self._kept)
        added(self._kept, sample)
        if len(self._kept) > count >= 2:
            (begin, before, _samples), (_begin, after, _more), _present = [self._kept[place] for place in (-3, -2, -1)]
            self._changes.append((begin, (after - before) / math.sqrt(max(1.0, (before + after) / 2))))
            self._swing = None

    def lately(self, now: float) -> tuple[Minute, ...]:
        """The minutes that a line may go through. Older ones are forgotten but for those that the next change is reckoned from."""
        since = now - LINE_SECONDS - MINUTE
        while len(self._kept) > 2 and self._kept[0][0] < since:
            self._kept.popleft()
        return tuple([one for one in self._kept if one[0] >= since])

    def swing(self, now: float) -> float:
        """Standard deviation of a minute's load, in square roots of the load; 0 where too few minutes tell it.

        From the changes between minutes, by medians (the median absolute deviation times 1.48 is a standard deviation, a change
        has twice the variance of its sides), so that neither a step nor a steady growth counts as swing.
        """
        while self._changes and self._changes[0][0] < now - LOOKBACK:
            self._changes.popleft()
            self._swing = None
        if self._swing is None:
            changes = [change for _begin, change in self._changes]
            self._swing = 0.0
            if len(changes) >= FEWEST:
                usual = median(changes)
                self._swing = max(LEAST_SWING, 1.48 / math.sqrt(2) * median([abs(change - usual) for change in changes]))
        return self._swing


def added(minutes: deque[Minute] | list[Minute], sample: Sample) -> None:
    """Count a sample into the last minute, or begin the next one with it."""
    begin = (sample.taken - sample.seconds / 2) // MINUTE * MINUTE
    if minutes and minutes[-1][0] == begin:
        _begin, load, count = minutes.pop()
        minutes.append((begin, (load * count + sample.load) / (count + 1), count + 1))
    else:
        minutes.append((begin, sample.load, 1))


def growth(minutes: Sequence[Minute], noise: float) -> Growth | None:
    """The line through the last minutes, where it surely rises: through as many as a straight line fits.

    ``noise`` is the standard deviation of a minute. The line grows longer minute by minute as long as the confidence intervals of the
    slopes so far have a point in common (the rule of intersecting intervals: A. Goldenshluger, A. Nemirovski, On spatially adaptive
    estimation of nonparametric regression, Mathematical Methods of Statistics 6, 1997). After a step it is short, so what
    leapt and stays does not look as if it went on.
    """
    if not minutes or noise <= 0:
        return None
    last = minutes[-1][0]
    count, whens, loads, squares, products = 0, 0.0, 0.0, 0.0, 0.0
    low, high = -math.inf, math.inf
    found: tuple[float, float, float, float] | None = None
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
        error = noise / math.sqrt(spread)
        low, high = max(low, slope - ALIKE * error), min(high, slope + ALIKE * error)
        if low > high:
            break
        found = slope, error, (loads - slope * whens) / count, -when
    if found is None or found[0] <= SURE * found[1]:
        return None
    return Growth(found[0], found[2], found[3])
