# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How well a supply of nodes followed the demand, and what the best possible would have cost.

The measures are those of the SPEC Research Group (N. Herbst et al., Ready for Rain? A View from SPEC Research on the Future
of Cloud Metrics, SPEC-RG-2016-01, section on elasticity; also N. Herbst, S. Kounev, R. Reussner, Elasticity in Cloud
Computing, ICAC 2013), with demand d and supply s over the time T, here as shares instead of percent:

- under-provisioning accuracy: mean of max(d - s, 0) / d; over-provisioning accuracy: mean of max(s - d, 0) / d
- under- and over-provisioned time share: share of T with d > s, and with s > d
- instability: share of T in which supply and demand move in different directions, sign(change of s) and sign(change of d)
  differing between one minute and the next
- jitter: changes of the supply less changes of the demand, here for each hour
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MINUTE = 60.0
# Demand: this share of the workers may be busy. Beyond it a request waits noticeably.
NEEDED_SHARE = 0.85


@dataclass(frozen=True)
class Elasticity:
    """The measures; shares from 0 to 1, accuracies as mean shares of the demand, jitter in changes an hour."""

    under_provisioned_share: float
    over_provisioned_share: float
    under_provisioning_accuracy: float
    over_provisioning_accuracy: float
    instability: float
    jitter: float
    under_provisioned_seconds: float


def needed(loads: Iterable[float | None], workers: float, least: int) -> list[int | None]:
    """Nodes that each minute needs: its load by what the workers of a node should take at most, never below ``least``."""
    each = workers * NEEDED_SHARE
    return [None if load is None else max(least, math.ceil(load / each - 1e-9)) for load in loads]


def elasticity(demand: Sequence[int | None], begin: float, supply: Sequence[tuple[float, int]]) -> Elasticity:
    """Compare one-minute demands from ``begin`` with a supply given as (time, nodes in service from then on)."""
    under = over = short = surplus = known = 0.0
    unlike = moves = supply_moves = demand_moves = 0
    place, have = 0, supply[0][1]
    before_demand: int | None = None
    before_supply = have
    moment = begin
    for need in demand:
        end = moment + MINUTE
        if need is not None:
            known += MINUTE
        while True:
            until = supply[place + 1][0] if place + 1 < len(supply) and supply[place + 1][0] < end else end
            if until > moment and need is not None:
                if need > have:
                    under += until - moment
                    short += (until - moment) * (need - have) / need
                elif have > need:
                    over += until - moment
                    surplus += (until - moment) * (have - need) / need
            moment = max(moment, until)
            if until == end:
                break
            place += 1
            have = supply[place][1]
            supply_moves += 1
        if need is not None and before_demand is not None:
            moves += 1
            demand_moves += need != before_demand
            unlike += _sign(have - before_supply) != _sign(need - before_demand)
        before_demand, before_supply = need, have
    whole = max(known, 1e-9)
    return Elasticity(
        under / whole, over / whole, short / whole, surplus / whole, unlike / max(1, moves),
        (supply_moves - demand_moves) / max(whole / 3600, 1e-9), under,
    )


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def oracle(demand: Sequence[int | None], launch_seconds: float, hold_seconds: float = 600.0) -> float:
    """Node-hours of the cheapest supply that never lacks a node, knowing the future.

    A node is paid for from its launch, serves ``launch_seconds`` later, and stays for at least ``hold_seconds`` then. What
    is needed at the begin is there already. From the highest peak down, one node after the other takes what is left to be served, in
    the runs that are cheapest for it: going on through a pause costs the pause, a new run costs a launch and may cost a hold. While a node is
    held beyond its need it serves what others would have to. The linear program of the same problem finds at most a hundredth less.
    """
    # In a gap as little is needed as ever was: the fleet goes on there, too.
    low = min([one for one in demand if one is not None], default=0)
    rest = [low if one is None else one for one in demand]
    end = len(rest) * MINUTE
    seconds = 0.0
    for level in range(max(rest, default=0), 0, -1):
        for begin, finish in _cheapest(_spans(rest, level), launch_seconds, hold_seconds, end):
            seconds += finish - begin + min(launch_seconds, begin)
            first, last = int(begin // MINUTE), math.ceil(finish / MINUTE - 1e-9)
            rest[first:last] = [one - 1 for one in rest[first:last]]
    return seconds / 3600


def _spans(rest: Sequence[int], level: int) -> list[tuple[float, float]]:
    """The spans of time (begin, end) in which so many nodes are needed, or more."""
    # As bytes, of which the next one or zero is found fastest.
    needed = bytes([one >= level for one in rest])
    spans, end = [], 0
    while (begin := needed.find(1, end)) >= 0:
        end = needed.find(0, begin)
        if end < 0:
            end = len(needed)
        spans.append((begin * MINUTE, end * MINUTE))
    return spans


def _cheapest(needs: Sequence[tuple[float, float]], launch: float, hold: float, end: float) -> list[tuple[float, float]]:
    """The runs (begin, end) of one node that cost least and cover all of these spans."""
    best = [0.0]
    # How the last run of the cheapest way to have everything up to span i done began and ended.
    runs: list[tuple[int, float]] = [(0, 0.0)]
    # Cheapest way to have everything before a span done, less its begin: what a run from there to i is compared by.
    longest, opened = math.inf, 0
    young: list[int] = []
    for index, (_begin, finish) in enumerate(needs):
        young.append(index)
        cost, run = math.inf, (0, 0.0)
        still = []
        for first in young:
            begin = needs[first][0]
            base = best[first] + min(launch, begin) - begin
            if finish - begin < hold:
                still.append(first)
                held = min(begin + hold, end)
                if base + held < cost:
                    cost, run = base + held, (first, held)
            elif base < longest:
                longest, opened = base, first
        young = still
        if longest + finish < cost:
            cost, run = longest + finish, (opened, finish)
        best.append(cost)
        runs.append(run)
    chosen, place = [], len(needs)
    while place:
        place, finish = runs[place]
        chosen.append((needs[place][0], finish))
    return chosen


def static_fleets(demand: Sequence[int | None]) -> list[tuple[int, float]]:
    """(size, under-provisioned share of the time) of every fleet that never changes its size, up to the first without a lack."""
    known = sorted(one for one in demand if one is not None)
    if not known:
        return []
    result, place = [], 0
    for size in range(known[0], known[-1] + 1):
        while place < len(known) and known[place] <= size:
            place += 1
        result.append((size, 1 - place / len(known)))
    return result
