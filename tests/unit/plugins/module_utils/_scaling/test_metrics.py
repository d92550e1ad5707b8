# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import dataclasses

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import Counters
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.metrics import sample
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member, Node, Sample

NOW = 1000.0
POLICY = Policy()
MEMBERS = tuple(Member(f"n{i}", f"10.0.0.{i}", "up", 4, 2, 0) for i in range(3))
NODES = tuple(Node(f"n{i}", "web", f"10.0.0.{i}", "a", "running", 0.0) for i in range(3))


def reading(**values: object) -> Counters:
    return dataclasses.replace(Counters(NOW, 6000, 6, 0, 0.1, 1.0, MEMBERS), **values)


BEFORE = reading(taken=NOW - 60, requests=3000)


def judged(current: Counters | None, previous: Counters | None = BEFORE, **more: object) -> Sample:
    return sample(POLICY, previous, current, NOW, nodes=NODES, **more)


def codes(taken: Sample) -> list[str]:
    return [code for code, _text in taken.faults]


def test_load_is_requests_times_mean_time_over_the_interval() -> None:
    taken = judged(reading(mean_seconds=0.2, mean_window=0, in_service=1), dataclasses.replace(BEFORE, in_service=1))
    assert taken.trusted
    assert taken.load == pytest.approx(3000 * 0.2 / 60)
    assert (taken.capacity, taken.up, taken.requests, taken.seconds) == (12, 3, 3000, 60.0)


def test_a_mean_that_lingers_from_earlier_requests_does_not_count() -> None:
    # 1024 slow requests came before; the ten of this interval were fast, so the sliding mean has hardly moved.
    kept = (1 - 1 / 1024) ** 10
    mean = 5.0 * kept + 0.05 * (1 - kept)
    before = reading(taken=NOW - 60, requests=5990, mean_seconds=5.0, in_service=0)
    taken = judged(reading(mean_seconds=mean, in_service=0), before)
    assert taken.load == pytest.approx(10 * 0.05 / 60, abs=0.01)


def test_a_young_balancer_averages_over_all_its_requests() -> None:
    before = reading(taken=NOW - 60, requests=100, mean_seconds=1.0, in_service=0)
    taken = judged(reading(requests=400, mean_seconds=0.4, in_service=0), before)
    assert taken.load == pytest.approx(300 * 0.2 / 60)


def test_long_requests_that_do_not_finish_count_by_what_is_in_service() -> None:
    assert judged(reading(requests=3001, in_service=9), dataclasses.replace(BEFORE, in_service=8)).load == 8


def test_waiting_requests_count_in_full() -> None:
    assert judged(reading(in_service=12, waiting=30)).load == 42


def test_a_warming_members_own_load_does_not_count() -> None:
    members = (*MEMBERS, Member("n9", "10.0.0.9", "starting", 4, 4, 0))
    assert judged(reading(in_service=10, members=members), None).load == 6


@pytest.mark.parametrize(
    ("current", "previous", "expected"),
    [
        (None, BEFORE, "missing"),
        (reading(), None, "first"),
        (reading(taken=NOW - 181), BEFORE, "stale"),
        (reading(taken=NOW + 6), BEFORE, "future"),
        (reading(mean_seconds=float("nan")), BEFORE, "absurd"),
        (reading(mean_seconds=float("inf")), BEFORE, "absurd"),
        (reading(in_service=-1), BEFORE, "absurd"),
        (reading(members=(dataclasses.replace(MEMBERS[0], capacity=-4),)), BEFORE, "absurd"),
        (reading(waiting=None), BEFORE, "absurd"),
        (reading(started=2.0), BEFORE, "reset"),
        (reading(requests=2999), BEFORE, "reset"),
        (reading(taken=NOW - 60), BEFORE, "frozen"),
        (reading(requests=3000), BEFORE, "frozen"),
        (reading(), dataclasses.replace(BEFORE, taken=NOW - 0.5), "short"),
        (reading(), dataclasses.replace(BEFORE, taken=NOW - 721), "gap"),
        (reading(members=MEMBERS[:2]), BEFORE, "partial"),
        (reading(in_service=0), BEFORE, "zero"),
        (reading(waiting=100_000), BEFORE, "jump"),
    ],
)
def test_every_fault_is_seen_and_not_trusted(current: Counters, previous: Counters, expected: str) -> None:
    taken = judged(current, previous)
    assert expected in codes(taken)
    assert not taken.trusted
    assert taken.lower_bound == (expected in {"first", "gap", "short", "reset", "partial", "frozen"})


def test_silence_after_traffic_is_not_trusted_until_the_window_has_passed() -> None:
    quiet = tuple(dataclasses.replace(member, in_service=0) for member in MEMBERS)
    silent = reading(requests=3000, in_service=0, members=quiet)
    busy = Sample(NOW - 60, 60, 5, 5, 0, 12, 3, 300, True)
    assert codes(judged(silent, recent=[busy])) == ["zero"]
    assert judged(silent, recent=[busy._replace(taken=NOW - 301)]).trusted
    assert judged(silent, recent=[busy._replace(requests=5)]).trusted


def test_a_jump_is_believed_when_a_second_reading_confirms_it() -> None:
    first = judged(reading(waiting=100_000))
    assert judged(reading(waiting=90_000), recent=[first]).trusted
    assert not judged(reading(waiting=90_000), recent=[first._replace(load=999_999)]).trusted


def test_a_member_that_leaves_or_whose_node_is_gone_is_not_missed() -> None:
    fewer = reading(members=MEMBERS[:2])
    drained = (*MEMBERS[:2], dataclasses.replace(MEMBERS[2], state="drained"))
    assert judged(fewer, dataclasses.replace(BEFORE, members=drained)).trusted
    assert sample(POLICY, BEFORE, fewer, NOW, nodes=NODES[:2]).trusted
