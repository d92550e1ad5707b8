# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a ledger tells of the checks before, for checks that are simulated or made again. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import Minutes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import History, Sample


class Memory:
    """Checks, oldest first, of which the wishes of ``lookback`` seconds are kept, with the last one before them."""

    def __init__(self, lookback: float) -> None:
        self.lookback = lookback
        self.wishes: deque[tuple[float, int]] = deque()
        self.minutes = Minutes()
        self.newest: Sample | None = None
        self.last_out = self.last_in = 0.0

    def add(self, when: float, recommended: int, sample: Sample, acted: str) -> None:
        """A check that began at ``when``, with what it wanted, what it saw, and whether it ``acted`` ``out`` or ``in``."""
        self.wishes.append((when, recommended))
        self.minutes.add(sample)
        if sample.trusted:
            self.newest = sample
        if acted == "out":
            self.last_out = when
        elif acted == "in":
            self.last_in = when

    def again(self, moments: Sequence[float]) -> None:
        """The last check came again at these times, all within one minute, with the same wish and the same trusted load."""
        _when, recommended = self.wishes[-1]
        self.wishes.extend([(when, recommended) for when in moments])
        self.minutes.again(len(moments))

    def history(self, now: float) -> History:
        """The history of a check at ``now``; of the samples, the newest trusted one."""
        while len(self.wishes) > 1 and self.wishes[1][0] <= now - self.lookback:
            self.wishes.popleft()
        return History(
            tuple(self.wishes), () if self.newest is None else (self.newest,), self.last_out, self.last_in,
            minutes=self.minutes.lately(now), swing=self.minutes.swing(now), flutter=self.minutes.flutter(now),
        )
