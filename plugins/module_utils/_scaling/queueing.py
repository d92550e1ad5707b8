# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long requests wait, and how many give up, with so many workers.

Below saturation the formula of Erlang C for c servers, Poisson arrivals and exponential service (A. K. Erlang, 1917; for
example L. Kleinrock, Queueing Systems 1, Wiley 1975, section 3.5):

    P(wait > t) = C(c, a) e^(-(c - a) t / S),    mean wait = C(c, a) S / (c - a)

with a requests in service on average and the service time S. C follows from Erlang's B by
C = B / (1 - a/c (1 - B)), and B from the recursion B(n) = a B(n-1) / (n + a B(n-1)).

While more is asked for than can be served, and until what has piled up is gone, the fluid limit holds instead (G. F. Newell,
Applications of Queueing Theory, Chapman & Hall 1971, chapter 2): the queue grows at (a - c) / S requests a second, who
joins waits queue x S / c, and who would have to wait longer than the balancer's queue timeout is turned away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache


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


@lru_cache(maxsize=65536)
def _waits(workers: int, load: float) -> float:
    return erlang_c(workers, load)


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
        came = load * 60.0 / service_seconds
        if came <= 0 and queue <= 0:
            continue
        requests += came
        if load < workers and queue <= 0:
            # Below half the workers nobody waits for a time that could be told.
            if load * 2 < workers and workers >= 8:
                continue
            share = _waits(int(workers), round(min(load, int(workers)), 1 if load < 100 else 0))
            spare = (workers - load) / service_seconds
            delayed += came * share
            waited += came * share / spare
            long += came * share * math.exp(-spare)
            lost += came * share * math.exp(-min(700.0, spare * patience))
            continue
        before = queue
        queue = max(0.0, queue + came - workers * 60.0 / service_seconds)
        room = patience * workers / service_seconds
        if queue > room:
            lost += queue - room
            queue = room
        wait = (before + queue) / 2 * service_seconds / workers if workers > 0 else patience
        waited += came * wait
        delayed += came
        long += came if wait > 1.0 else 0.0
    whole = max(requests, 1e-9)
    return Waiting(requests, min(lost, requests), waited / whole, delayed / whole, long / whole)
