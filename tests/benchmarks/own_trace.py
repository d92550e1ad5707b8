# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The weeks of a recorded load as shapes of the policy benchmark, each with what came before it as its history."""

from __future__ import annotations

import random
from pathlib import Path

from traces import HISTORY_WEEKS, WEEK, Generator, shape

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import TraceError, from_csv


def register(path: Path, most: int) -> list[str]:
    """Register the latest weeks of a trace, ``most`` of them at most, and return their names. A trace that cannot be used ends the run.

    Each has the weeks before it (:data:`HISTORY_WEEKS`) to learn from. Where nothing was recorded the load before stands.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            trace = from_csv(lines)
    except (OSError, UnicodeDecodeError, TraceError) as exc:
        raise SystemExit(f"--trace {path}: {exc}") from exc
    loads: list[float] = []
    for load in trace.loads:
        loads.append(loads[-1] if load is None else load)
    weeks = len(loads) // WEEK - HISTORY_WEEKS
    if weeks < 1:
        raise SystemExit(f"--trace {path}: it covers {len(loads) / 1440:.1f} days: give {HISTORY_WEEKS} weeks to learn from and at least one to follow")
    names = []
    for ago in range(min(weeks, most), 0, -1):
        end = len(loads) - (ago - 1) * WEEK
        names.append(f"{path.stem}, week -{ago}")
        shape(names[-1], weekly=True)(_recorded(loads[end - (HISTORY_WEEKS + 1) * WEEK:end]))
    return names


def _recorded(loads: list[float]) -> Generator:
    """What happened once leaves nothing to chance."""
    def generator(_chance: random.Random) -> tuple[list[float], int]:
        return loads, HISTORY_WEEKS * WEEK
    return generator
