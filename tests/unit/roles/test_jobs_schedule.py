# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whose cron runs when: every tenant every minute, none starved, failing ones back off, nothing is dispatched twice."""

from __future__ import annotations

import collections
import heapq
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[3] / "roles/jobs/files"))

from schedule import DONE, FAILED, RESTING, Limits, Schedule

LIMITS = Limits(interval=60, workers=2, long_after=20, long_runs=4, tenant_runs=3, slow_for=900, backoff_max=600)


class World:
    """A schedule, a clock, and runs that take as long as they are told; it watches what must always hold."""

    def __init__(self, limits, take, outcome=lambda name: DONE, names=()):
        self.schedule, self.limits = Schedule(limits), limits
        self.take, self.outcome = take, outcome
        self.now, self.ends = 0.0, []
        self.starts = collections.defaultdict(list)
        self.late = collections.defaultdict(list)
        self.schedule.serve(names, self.now)

    def until(self, end):
        """Let time pass."""
        while self.now < end:
            for run in self.schedule.start(self.now):
                assert run.due <= self.now == run.started
                self.starts[run.tenant].append(self.now)
                self.late[run.tenant].append(self.now - run.due)
                heapq.heappush(self.ends, (self.now + self.take(run.tenant, self.now), run.number))
            self.check()
            pause = self.schedule.wait(self.now)
            soon = min([end, self.now + max(pause, 0.05), *(moment for moment, _number in self.ends[:1])])
            self.now = max(soon, self.now)
            while self.ends and self.ends[0][0] <= self.now:
                run = self.schedule.runs[self.ends[0][1]]
                self.schedule.end(heapq.heappop(self.ends)[1], self.outcome(run.tenant), self.now)

    def check(self):
        """Never more than so many at a time, and never two short ones of a tenant."""
        runs = list(self.schedule.runs.values())
        long = [run for run in runs if self.now - run.started >= self.limits.long_after]
        assert len(runs) - min(len(long), self.limits.long_runs) <= self.limits.workers
        assert len(runs) <= self.limits.workers + self.limits.long_runs
        for count in collections.Counter(run.tenant for run in runs if run not in long).values():
            assert count == 1
        assert max(collections.Counter(run.tenant for run in runs).values(), default=0) <= self.limits.tenant_runs


@given(
    count=st.integers(1, 40),
    seconds=st.dictionaries(st.integers(0, 39), st.sampled_from([0.1, 1, 19, 25, 90, 700]), max_size=12),
    bad=st.sets(st.integers(0, 39), max_size=10),
    limits=st.builds(Limits, workers=st.integers(1, 4), long_runs=st.integers(0, 6), tenant_runs=st.integers(1, 3)),
)
@settings(max_examples=60)
def test_the_bounds_hold_and_everybody_gets_a_turn(count, seconds, bad, limits):
    def take(name, _now):
        return seconds.get(int(name[1:]), 0.3)

    world = World(limits, take, lambda name: FAILED if int(name[1:]) in bad else DONE, [f"t{number}" for number in range(count)])
    world.until(1800)
    # Even when every worker is taken again and again: whoever waits the longest is next, so all have run.
    longest = max([0.3, *(value for key, value in seconds.items() if key < count)])
    if longest < limits.long_after:
        assert set(world.starts) == {f"t{number}" for number in range(count)}


@given(st.integers(1, 60), st.floats(0.05, 0.8))
@settings(max_examples=40)
def test_every_tenant_has_its_minute(count, busy):
    """While the work fits the workers, each starts about once a minute, at its own second."""
    take = busy * LIMITS.workers * 60 / count
    if take >= LIMITS.long_after:
        return
    world = World(LIMITS, lambda name, now: take, names=[f"t{number}" for number in range(count)])
    world.until(600)
    for name, moments in world.starts.items():
        assert 7 <= sum(1 for moment in moments if moment >= 120) <= 9
        assert max(world.late[name]) < 60


@given(st.integers(1, 5), st.integers(2, 4))
@settings(max_examples=8)
def test_ten_minute_tasks_starve_nobody(heavy, workers):
    """As many neighbours with ten-minute tasks as there is room for, and one more: the others hardly notice."""
    limits = Limits(workers=workers, long_runs=4)
    names = [f"t{number}" for number in range(60)] + [f"heavy{number}" for number in range(heavy)]
    world = World(limits, lambda name, now: 600 if name.startswith("heavy") else 0.3, names=names)
    world.until(1800)
    for name in names[:60]:
        late = [late for moment, late in zip(world.starts[name], world.late[name]) if moment > 120]
        assert len(late) >= 27
        # All workers were taken by surprise at first; afterwards it is known who is slow.
        assert max(late) <= 2
    assert all(len(world.starts[f"heavy{number}"]) > 1 for number in range(heavy))


def test_a_long_task_does_not_stop_its_own_tenants_other_tasks():
    world = World(LIMITS, lambda name, now: 600 if now < 1 else 0.3, names=["one"])
    world.until(300)
    assert len(world.starts["one"]) >= 5


def test_slow_tenants_leave_the_last_worker_to_the_others():
    """Once known to be slow, they wait when there is no room beside the workers."""
    limits = Limits(workers=2, long_runs=1, slow_for=10_000)
    names = ["slow0", "slow1", "slow2", "slow3", "quick"]
    world = World(limits, lambda name, now: 300 if name.startswith("slow") else 0.3, names=names)
    world.until(1500)
    learnt = len(world.late["quick"])
    world.until(6000)
    assert max(world.late["quick"][learnt:]) < 1
    assert all(len(world.starts[name]) > 2 for name in names)


def test_failing_tenants_back_off_and_come_back():
    bad = {"bad"}
    world = World(LIMITS, lambda name, now: 0.3, lambda name: FAILED if name in bad else DONE, ["bad", "good"])
    world.until(7200)
    pauses = [later - earlier for earlier, later in zip(world.starts["bad"], world.starts["bad"][1:])]
    assert pauses[2] < pauses[4] <= LIMITS.backoff_max + 60 and max(pauses) <= LIMITS.backoff_max + 60
    assert len(world.starts["bad"]) < 20 and len(world.starts["good"]) >= 119
    bad.clear()
    world.until(8000)
    before = len(world.starts["bad"])
    world.until(8600)
    assert len(world.starts["bad"]) - before >= 9


def test_a_tenant_that_rests_is_asked_each_minute():
    world = World(LIMITS, lambda name, now: 0.1, lambda name: RESTING, ["closed"])
    world.until(600)
    assert len(world.starts["closed"]) >= 10


def test_tenants_that_come_and_go():
    schedule = Schedule(LIMITS)
    schedule.serve(["one", "two"], 0)
    runs = schedule.start(0)
    assert [run.tenant for run in runs] == ["one", "two"]
    schedule.serve(["two", "three"], 1)
    # A run of a tenant that left goes on, and ends without trace; its tenant may come back meanwhile.
    schedule.serve(["one", "two", "three"], 2)
    schedule.end(runs[1].number, DONE, 3)
    assert [run.tenant for run in schedule.start(3)] == ["three"]
    schedule.end(runs[0].number, FAILED, 3.5)
    assert schedule.tenants["one"].failures == 1
    schedule.serve([], 4)
    assert schedule.start(500) == [] and schedule.lateness(500) == 0.0


@pytest.mark.parametrize("missed", [61, 200, 100_000])
def test_minutes_that_nobody_served_are_not_made_up_for(missed):
    schedule = Schedule(LIMITS)
    schedule.serve(["one"], 0)
    [run] = schedule.start(0)
    schedule.end(run.number, DONE, 1)
    assert len(schedule.start(missed)) == 1
    assert schedule.tenants["one"].due > missed
