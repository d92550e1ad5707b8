# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The queueing model and what it makes of a node's curve: properties that hold for every number, and curves that are found again."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import capacity
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.capacity import Capacity, Curve
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.queueing import erlang_c, waiting
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Sample

SERVERS = st.integers(1, 300)
SHARES = st.floats(0.01, 0.99)
CURVES = st.builds(Curve, st.floats(0.01, 5.0), st.floats(0.0, 0.3), st.floats(0.0, 0.02))


# -- the queueing model --------------------------------------------------------------------------------------------------


def textbook(workers: int, load: float) -> float:
    """Erlang C as it is written down, by logarithms."""
    def term(k: int) -> float:
        return k * math.log(load) - math.lgamma(k + 1)

    top = term(workers) + math.log(workers / (workers - load))
    return 1 / (1 + sum(math.exp(min(700.0, term(k) - top)) for k in range(workers)))


@given(SERVERS, SHARES)
def test_erlang_c_is_the_textbooks(workers: int, share: float) -> None:
    assert erlang_c(workers, share * workers) == pytest.approx(textbook(workers, share * workers), rel=1e-6, abs=1e-12)


@given(SERVERS, SHARES, SHARES)
def test_more_load_waits_more_and_more_workers_less(workers: int, one: float, other: float) -> None:
    low, high = sorted((one * workers, other * workers))
    assert 0 <= erlang_c(workers, low) <= erlang_c(workers, high) + 1e-12 <= 1 + 1e-9
    assert erlang_c(workers + 1, high) <= erlang_c(workers, high) + 1e-12
    # One queue for two nodes beats a queue for each.
    assert erlang_c(2 * workers, 2 * high) <= erlang_c(workers, high) + 1e-12


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(1, 400)), min_size=1, max_size=40), st.floats(0.01, 5), st.floats(0, 120))
@settings(max_examples=200)
def test_waiting_keeps_its_books(minutes: list[tuple[float, float]], service: float, patience: float) -> None:
    found = waiting(minutes, service, patience)
    assert found.requests == pytest.approx(sum(load * 60 / service for load, _workers in minutes), rel=1e-6, abs=1e-6)
    assert 0 <= found.lost <= found.requests
    assert 0 <= found.over_a_second_share <= found.delayed_share + 1e-9 <= 1 + 1e-6
    assert found.mean_seconds >= 0


@given(st.lists(st.tuples(st.integers(2, 400), SHARES), min_size=1, max_size=20), st.floats(0.01, 5), st.floats(0, 120))
@settings(max_examples=100)
def test_below_saturation_more_workers_lose_fewer_requests(minutes: list[tuple[int, float]], service: float, patience: float) -> None:
    found = waiting([(round(share * workers, 1), workers) for workers, share in minutes if share < 0.9], service, patience)
    more = waiting([(round(share * workers, 1), 2 * workers) for workers, share in minutes if share < 0.9], service, patience)
    assert more.lost <= found.lost * (1 + 1e-9)
    assert more.mean_seconds <= found.mean_seconds * (1 + 1e-9)


def absolute(minutes: list[tuple[float, float]], service: float, patience: float) -> tuple[float, float, float]:
    """Seconds waited by all, requests that waited, and those turned away."""
    found = waiting(minutes, service, patience)
    return found.mean_seconds * found.requests, found.delayed_share * found.requests, found.lost


MINUTES = st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1.6)), min_size=1, max_size=12)


@given(MINUTES, st.integers(0, 11), st.floats(0, 30), st.floats(0.02, 3), st.floats(0, 120))
@settings(max_examples=200)
def test_more_load_in_any_minute_waits_more_also_beyond_saturation(
    minutes: list[tuple[int, float]], place: int, more: float, service: float, patience: float
) -> None:
    loads = [(share * workers, float(workers)) for workers, share in minutes]
    higher = list(loads)
    load, workers = loads[place % len(loads)]
    higher[place % len(loads)] = load + more, workers
    for low, high in zip(absolute(loads, service, patience), absolute(higher, service, patience)):
        assert low <= high * (1 + 1e-9) + 1e-9
    # Where nobody gives up: who is turned away early waits less.
    larger = [(load, workers + more) for load, workers in loads]
    for low, high in zip(absolute(larger, service, 1e9), absolute(loads, service, 1e9)):
        assert low <= high * (1 + 1e-9) + 1e-9


@given(MINUTES, st.integers(0, 11), st.sampled_from((0.5, 0.999999, 1.0, 1.2)), st.floats(0.02, 3), st.floats(0.1, 120))
@settings(max_examples=200)
def test_waiting_has_no_seam(minutes: list[tuple[int, float]], place: int, share: float, service: float, patience: float) -> None:
    loads = [(part * workers, float(workers)) for workers, part in minutes]
    workers = loads[place % len(loads)][1]
    found = []
    for nearly in (-1e-7, 0.0, 1e-7):
        loads[place % len(loads)] = (share + nearly) * workers, workers
        one = waiting(loads, service, patience)
        found.append((one.mean_seconds, one.delayed_share, one.over_a_second_share, one.lost / max(1.0, one.requests)))
    for before, there, after in zip(*found):
        assert before == pytest.approx(there, rel=1e-3, abs=1e-4)
        assert after == pytest.approx(there, rel=1e-3, abs=1e-4)


def test_as_many_requests_as_workers_wait_longer_with_time() -> None:
    # With rho = 1 a queue grows by the root of time; before, it was infinite just below and nothing just at it.
    found = [waiting([(10.0, 10.0)] * minutes, 0.5, 1e6).mean_seconds for minutes in (1, 4, 16)]
    assert 0.5 < found[0] < found[1] < found[2] < 10
    assert found[2] / found[1] == pytest.approx(2, rel=0.15)


def simulated(workers: int, rate: float, seconds: float, requests: int) -> float:
    """Share of requests that wait, by playing them one after the other."""
    chance = random.Random(7)
    free = [0.0] * workers
    now, waited = 0.0, 0
    for _request in range(requests):
        now += chance.expovariate(rate)
        start = max(now, free[0])
        waited += start > now
        heapq.heapreplace(free, start + chance.expovariate(1 / seconds))
    return waited / requests


@pytest.mark.parametrize(("workers", "share"), [(4, 0.7), (8, 0.85), (30, 0.9)])
def test_erlang_c_is_what_a_queue_does(workers: int, share: float) -> None:
    assert simulated(workers, share * workers / 0.2, 0.2, 60_000) == pytest.approx(erlang_c(workers, share * workers), abs=0.05)


# -- a node's curve ------------------------------------------------------------------------------------------------------


def played(curve: Curve, workers: int, number: int = 2000, noise: float = 0.0, nodes: int = 4, seed: int = 1) -> list[Sample]:
    """Samples as the balancer would give them for a fleet whose nodes have this curve."""
    chance = random.Random(seed)
    found = []
    for index in range(number):
        busy = chance.uniform(0.3, 0.95 * workers)
        time = curve.seconds(busy) * math.exp(chance.gauss(0, noise))
        # The users' rate is given; a slow minute raises the concurrency, not the rate.
        rate = busy / curve.seconds(busy)
        load = rate * time * nodes
        found.append(Sample(1000.0 + 15 * index, 15.0, load, round(load), 0, workers * nodes, nodes, max(1, round(rate * nodes * 15)), True))
    return found


@given(st.floats(0.05, 1.0), st.floats(0.0, 0.2), st.floats(0.0, 0.7), st.integers(4, 32))
@settings(max_examples=40)
@example(0.2, 0.1, 0.0, 8)
@example(0.2, 0.0, 0.0, 8)
def test_a_curve_is_found_again(alone: float, sigma: float, bend: float, workers: int) -> None:
    # A rate that falls again at high concurrency is not to be told from one that has not risen yet: it peaks at all workers.
    curve = Curve(alone, sigma, bend * (1 - sigma) / workers ** 2)
    assert curve.peak >= workers
    found = capacity.fit(played(curve, workers, nodes=20))
    assert found is not None
    for busy in (1.0, workers / 2, 0.9 * workers):
        assert found.seconds(busy) == pytest.approx(curve.seconds(busy), rel=0.12)


def test_slow_minutes_are_no_contention() -> None:
    """Times that vary by themselves raise concurrency with them; only what comes with more requests is contention."""
    for seed in range(5):
        found = capacity.fit(played(Curve(0.2), 8, noise=0.3, seed=seed))
        assert found is not None and found.seconds(7.0) == pytest.approx(0.2, rel=0.1)
    shared = capacity.fit(played(Curve(0.2, 0.1), 8, noise=0.3))
    assert shared is not None and shared.seconds(7.0) == pytest.approx(0.32, rel=0.12)


def test_times_that_fall_with_the_load_are_no_negative_contention() -> None:
    """Long reports at night, short pages by day."""
    night = [Sample(1000.0 + t, 15.0, 4.0 + t % 40, 3, 0, 64, 8, round(15 * (4.0 + t % 40) / (0.5 - 0.008 * (t % 40))), True) for t in range(800)]
    found = capacity.fit(night)
    assert found is not None and (found.sigma, found.kappa) == (0.0, 0.0) and 0.18 < found.alone < 0.5


def test_what_cannot_be_told_is_not_told() -> None:
    assert capacity.fit([]) is None
    assert capacity.fit(played(Curve(0.2), 8, number=20)) is None
    always = [Sample(t, 15.0, 8.0, 8, 0, 32, 4, 600, True) for t in range(100)]
    found = capacity.fit(always)
    assert found is not None and (found.alone, found.sigma, found.kappa) == (0.2, 0.0, 0.0)
    bad = [Sample(t, 15.0, 30.0 * t, 8, 3, 32, 4, 600, True) for t in range(100)]
    bad += [Sample(t, 15.0, 30.0 * t, 8, 0, 32, 4, 600, False) for t in range(100)]
    assert capacity.fit([*always, *bad]) == found


@given(CURVES, st.integers(1, 64), st.integers(1, 40), st.floats(0.0, 5.0))
@settings(max_examples=80)
def test_the_wanted_wait_is_kept_and_nothing_is_given_away(curve: Curve, workers: int, nodes: int, wait: float) -> None:
    best = capacity.capacity(curve, workers, nodes, wait)
    assert 0 < best.busy <= workers and best.rate == pytest.approx(best.busy / curve.seconds(best.busy))

    def late(busy: float) -> float:
        spare = (workers - busy) * nodes / curve.seconds(busy)
        return erlang_c(workers * nodes, busy * nodes) * math.exp(-min(700.0, spare * wait))

    assert late(best.busy) <= 0.05 + 1e-6
    more = min(workers * 0.999999, best.busy * 1.03)
    assert late(more) > 0.05 or curve.rate(more) <= best.rate * (1 + 1e-9)
    patient = capacity.capacity(curve, workers, nodes, wait + 1.0)
    assert patient.rate >= best.rate * (1 - 1e-6)
    assert capacity.capacity(curve, workers, nodes + 1, wait).rate >= best.rate * (1 - 1e-6)


def test_a_known_case() -> None:
    # Eight workers of 0.2 s without contention serve 40 requests a second at most. With W = 0.1 s and 95 %, a = 6.0: C(8, a) = 0.357.
    best = capacity.capacity(Curve(0.2), 8, 1, 0.1)
    assert best.rate == pytest.approx(best.busy / 0.2)
    assert erlang_c(8, best.busy) * math.exp(-(8 - best.busy) * 0.1 / 0.2) == pytest.approx(0.05, abs=1e-4)
    # Who gets an answer in 0.2 s and thinks for 9.8 s asks every ten seconds.
    assert capacity.learners(Capacity(30.0, 6.0, 0.2, 0.0), 9.8) == pytest.approx(300.0)
