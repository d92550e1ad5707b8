# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long requests wait, and how many give up, with so many workers.

In a steady state the formula of Erlang C for c workers, Poisson arrivals and exponential service holds (A. K. Erlang, 1917; for
example L. Kleinrock, Queueing Systems 1, Wiley 1975, section 3.5): with a requests in service on average, rho = a / c and the
service time S a share C waits at all, and so many wait at a moment:

    L = C rho / (1 - rho),    mean wait = (L + C) S / c = C S / (c - a)

C follows from Erlang's B by C = B / (1 - rho (1 - B)), and B from the recursion B(n) = a B(n-1) / (n + a B(n-1)).

A steady state never comes where rho is near 1 or beyond. There, and until what has piled up is gone, L follows the sheared curve of R. M.
Kimber and E. M. Hollis (Traffic queues and delays at road junctions, TRRL LR 909, 1979): the L of the steady state of x, where x is rho
less what the change of L since the begin, L0, took of what could be served:

    L = C x / (1 - x),    x = rho - (L - L0) S / (c t)

It becomes Erlang's L with time where rho < 1, and the fluid queue L0 + (rho - 1) c t / S where rho is far beyond, without a
seam between them. Who would have to wait longer than the balancer's queue timeout is turned away: what does not fit into the queue,
and of those who come before it is full the share that M/M/c with such patience loses (D. Y. Barrer, Queuing with impatient
customers and ordered service, Operations Research 5, 1957).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

MINUTE = 60.0
# Where within a minute the queue is looked at: two points of Gauss, exact for a queue that grows or shrinks evenly.
LOOKS = (MINUTE * (0.5 - math.sqrt(1 / 12)), MINUTE * (0.5 + math.sqrt(1 / 12)))
# C is kept for so many shares of busy workers; between them it is taken from a line.
SHARES = 200
# Beyond this share Barrer's formula is its own limit.
ALMOST = 1 - 1e-6


def erlang_c(workers: int, load: float) -> float:
    """Probability that a request has to wait: 1 where the load is not below the number of workers."""
    if load <= 0:
        return 0.0
    if workers <= 0 or load >= workers:
        return 1.0
    blocked = 1.0
    for number in range(1, workers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1.0 - load / workers * (1.0 - blocked))


@lru_cache(maxsize=4096)
def _table(workers: int) -> tuple[float, ...]:
    return (*[erlang_c(workers, workers * place / SHARES) for place in range(SHARES + 1)], 1.0)


def _delayed(workers: float, share: float) -> float:
    """C for any number of workers, of which this share is asked for."""
    if share >= 1.0:
        return 1.0
    whole, place = int(workers), int(share * SHARES)
    part, rest = workers - whole, share * SHARES - place
    table = _table(whole)
    found = table[place] + (table[place + 1] - table[place]) * rest
    if part:
        table = _table(whole + 1)
        found += (table[place] + (table[place + 1] - table[place]) * rest - found) * part
    return found


@dataclass(frozen=True)
class Waiting:
    """Requests, those that were turned away, the mean wait in seconds, and the shares that waited at all and over a second."""

    requests: float
    lost: float
    mean_seconds: float
    delayed_share: float
    over_a_second_share: float


def waiting(minutes: Iterable[tuple[float, float]], service_seconds: float, patience: float) -> Waiting:
    """Waiting over minutes of (load, workers in service); ``patience`` is the balancer's queue timeout in seconds."""
    requests = lost = waited = delayed = long = queue = 0.0
    for load, workers in minutes:
        came = load * MINUTE / service_seconds
        requests += came
        if workers <= 0:
            # Nobody serves: who waits gives up.
            lost, queue = lost + came + queue, 0.0
            waited, delayed, long = waited + came * patience, delayed + came, long + (came if patience > 1.0 else 0.0)
            continue
        share, each = load / workers, service_seconds / workers
        often = _delayed(workers, share)
        room = patience / each
        for moment in LOOKS:
            there = _queue(share, often, moment / each, queue)
            busy = _delayed(workers, there / (there + often)) if there > 0 else 0.0
            there = min(room, there)
            wait = (there + busy) * each
            waited += came * min(patience, wait) / 2
            delayed += came * busy / 2
            if busy > 0:
                # Sure is what the fluid queue makes wait; what chance adds is exponential.
                sure = min(there, max(0.0, queue + (share - 1.0) * moment / each)) * each
                long += came * busy * math.exp(-max(0.0, 1.0 - sure) / max(each, wait / busy - sure)) / 2
        queue = _queue(share, often, MINUTE / each, queue)
        impatient = _impatient(min(share, ALMOST), _delayed(workers, min(share, ALMOST)), room)
        lost += max(0.0, queue - room) + came * impatient
        queue = min(queue, room)
    whole = max(requests, 1e-9)
    return Waiting(requests, min(lost, requests), waited / whole, delayed / whole, long / whole)


def _queue(share: float, often: float, served: float, before: float) -> float:
    """Requests that wait, after a time in which so many could be served: the sheared curve, solved for L."""
    middle = (1.0 - share) * served - before + often
    root = math.sqrt(middle * middle + 4.0 * often * (share * served + before))
    # Of the two ways to write the root the one that does not take two large numbers from each other.
    return (root - middle) / 2.0 if middle < 0 else 2.0 * often * (share * served + before) / (root + middle) if root else 0.0


def _impatient(share: float, often: float, room: float) -> float:
    """The share of requests that give up in a steady state, where so many fit into the time that they would wait."""
    tail = often * math.exp(-min(700.0, (1.0 - share) * room))
    return (1.0 - share) * tail / (1.0 - share * tail)
