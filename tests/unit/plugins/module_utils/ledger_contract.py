# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every ledger does, whatever it is kept in."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _ledger_mariadb, _ledger_store
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger, LedgerError, Superseded
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._lock import Locked, hold_file
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import USUAL_SWING
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Reason, Sample, Step

NOW = 1_000_000.0
SAMPLE = Sample(NOW, 60, 5.5, 4, 1, 8, 2, 300, False, True, (("partial", "one is missing"),))
DECISION = Decision(3, "out", 2, 3, True, (Reason("tracking", "busy", 3),))
LAUNCH = Step("launch", "more", count=2, token="t1", zones=("a", "b"))
DRAIN = Step("drain", "fewer", node="n1", address="10.0.0.1", deadline=NOW + 9)


def opened(place: str) -> Ledger:
    """The ledger in a file, or in a database whose access is given as JSON; other processes can be told."""
    return Ledger(_ledger_mariadb.MariaDB(_ledger_mariadb.Access(**json.loads(place))) if place.startswith("{") else place)


def held(place: str, wait: float = 0.0) -> AbstractContextManager[int]:
    """The lock beside a ledger."""
    if place.startswith("{"):
        return _ledger_mariadb.hold(_ledger_mariadb.Access(**json.loads(place)), "check", wait)
    return hold_file(Path(place).with_name("check.lock"), wait)


def commit(ledger: Ledger, plan: Plan = Plan(), at: float = NOW, mark: int | None = None, **more: object) -> int:
    return ledger.commit(at, "test", SAMPLE, DECISION, plan, ledger.mark() if mark is None else mark, **more)


def write_many(place: str) -> None:
    with opened(place) as ledger:
        for _index in range(50):
            commit(ledger)


def plan_once(place: str, start: Any, results: Any) -> None:
    with opened(place) as ledger:
        mark = ledger.mark()
        start.wait()
        try:
            commit(ledger, Plan((DRAIN,)), mark=mark)
            results.put("planned")
        except Superseded:
            results.put("superseded")


WRITER = """
import sys
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Sample, Step
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils.ledger_contract import opened
with opened(sys.argv[1]) as ledger:
    for number in range(100000):
        plan = Plan((Step("launch", "", count=1, token=str(number)),))
        ledger.commit(float(number), "t", Sample(0,0,0,0,0,0,0,0,True), Decision(1,"out",0,1,True), plan, ledger.mark())
        print(number, flush=True)
"""


HOLDER = """
import subprocess, sys, time
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils.ledger_contract import held
with held(sys.argv[1]) as handle:
    if len(sys.argv) > 2:
        subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=(handle,))
    print("held", flush=True)
    time.sleep(60)
"""


def holder(place: str, *more: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, place, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def hour(ledger: Ledger, begin: float, loads: list[float], seconds: float = 60.0, trusted: bool = True) -> None:
    for index, load in enumerate(loads, 1):
        taken = Sample(begin + seconds * index, seconds, load, 0, 0, 8, 2, 300, trusted)
        ledger.commit(taken.taken, "test", taken, DECISION, Plan(), 0)


class LedgerContract:
    """The tests; a subclass gives the fixtures ``place`` and ``ledger``, or its module does."""

    def test_a_check_is_read_back_as_it_was_written(self, ledger: Ledger) -> None:
        number = commit(ledger, Plan((LAUNCH, DRAIN), ("a note",)), reading={"taken": 1.0}, ghosts=["g"])
        row = ledger.checks(1)[0]
        assert (row["id"], row["status"], row["size"], row["desired"]) == (number, "planned", 2, 3)
        assert Decision.from_data(row["decision"]) == DECISION
        assert Plan.from_data(row["plan"]) == Plan((LAUNCH, DRAIN), ("a note",))
        assert ledger.last_sample() == SAMPLE
        assert ledger.state("reading") == {"taken": 1.0}
        assert [(one["action"], one["node"], one["status"]) for one in ledger.activities(number)] == [
            ("launch", "t1", "planned"), ("drain", "n1", "planned"),
        ]
        history = ledger.history(NOW, 300)
        assert (history.recommended, history.samples, history.ghosts) == (((NOW, 3),), (SAMPLE,), frozenset({"g"}))

    def test_history_reaches_one_check_beyond_the_window(self, ledger: Ledger) -> None:
        for age in (900, 400, 100):
            commit(ledger, at=NOW - age)
        assert [when for when, _count in ledger.history(NOW, 300).recommended] == [NOW - 400, NOW - 100]

    def test_history_has_the_last_minutes_and_the_swing_of_hours(self, ledger: Ledger) -> None:
        minute = NOW // 60 * 60
        for taken, load in ((minute - 600, 4.0), (minute - 585, 6.0), (minute - 525, 8.0), (minute - 1200, 1.0)):
            known = SAMPLE._replace(taken=taken, seconds=15.0, load=load, trusted=True)
            ledger.commit(taken, "test", known, DECISION, Plan(), ledger.mark())
        ledger.commit(minute, "test", SAMPLE._replace(taken=minute, load=99.0), DECISION, Plan(), ledger.mark())
        history = ledger.history(NOW, 300)
        assert history.minutes == ((minute - 660, 4.0, 1), (minute - 600, 6.0, 1), (minute - 540, 8.0, 1))
        assert ([one.load for one in history.samples], history.swing) == ([99.0], USUAL_SWING)
        for back in range(100, 20, -1):
            known = SAMPLE._replace(taken=minute - 60 * back, load=50.0 + back % 3, trusted=True)
            ledger.commit(known.taken, "test", known, DECISION, Plan(), ledger.mark())
        assert ledger.history(NOW, 300).swing < USUAL_SWING

    def test_only_real_changes_start_a_cooldown(self, ledger: Ledger) -> None:
        commit(ledger)
        commit(ledger, Plan((Step("join", "", node="n1"),)))
        commit(ledger, Plan((Step("drain", "", node="n1", since=NOW - 5),)))
        assert (ledger.history(NOW, 1).last_out, ledger.history(NOW, 1).last_in) == (0.0, 0.0)
        commit(ledger, Plan((LAUNCH,)), at=NOW + 1)
        commit(ledger, Plan((DRAIN,)), at=NOW + 2)
        assert (ledger.history(NOW, 1).last_out, ledger.history(NOW, 1).last_in) == (NOW + 1, NOW + 2)

    def test_intents_stay_open_until_their_nodes_were_seen(self, ledger: Ledger) -> None:
        commit(ledger, Plan((LAUNCH,)))
        later = NOW + 500
        assert [(i.token, i.count, i.seen) for i in ledger.intents(later)] == [("t1", 2, 0)]
        commit(ledger, seen={"t1": 1})
        commit(ledger, seen={"t1": 0})
        assert [(i.token, i.seen) for i in ledger.intents(later)] == [("t1", 1)]
        commit(ledger, seen={"t1": 2})
        assert ledger.intents(later) == []
        assert [i.token for i in ledger.intents(NOW - 1)] == ["t1"]

    def test_an_intent_knows_which_of_its_nodes_were_terminated(self, ledger: Ledger) -> None:
        commit(ledger, Plan((LAUNCH,)))
        number = commit(ledger, Plan((Step("retire", "sick", node="n1", token="t1"), Step("drain", "fewer", node="n2", token="t1"))))
        ledger.record(number, [{"action": "retire", "node": "n1"}, {"action": "drain", "node": "n2", "status": "running"}])
        assert [i.gone for i in ledger.intents(NOW - 1)] == [1]
        ledger.record(number, [{"action": "drain", "node": "n2", "status": "deadline"}])
        assert [i.gone for i in ledger.intents(NOW - 1)] == [2]

    def test_intents_expire(self, ledger: Ledger) -> None:
        commit(ledger, Plan((LAUNCH,)))
        commit(ledger, expired=["t1"])
        assert ledger.intents(NOW + 1) == []

    def test_a_repeated_launch_keeps_the_time_of_its_first(self, ledger: Ledger) -> None:
        commit(ledger, Plan((LAUNCH,)))
        commit(ledger, Plan((LAUNCH,)), at=NOW + 60)
        assert [i.created for i in ledger.intents(NOW + 999)] == [NOW]

    def test_announced_drains_are_binding_until_the_check_ends(self, ledger: Ledger) -> None:
        number = commit(ledger, Plan((DRAIN,)))
        assert ledger.leaving(NOW - 1) == {"n1": NOW}
        assert ledger.leaving(NOW + 1) == {}
        ledger.finish(number, NOW + 5, "failed", "boom")
        assert ledger.leaving(NOW - 1) == {}
        assert ledger.activities(number)[0]["status"] == "unknown"
        assert (ledger.checks(1)[0]["status"], ledger.checks(1)[0]["message"]) == ("failed", "boom")

    def test_a_plan_made_from_an_older_look_is_refused(self, ledger: Ledger) -> None:
        mark = ledger.mark()
        commit(ledger, Plan((LAUNCH,)))
        with pytest.raises(Superseded):
            commit(ledger, Plan((DRAIN,)), mark=mark)
        assert len(ledger.checks(9)) == 1
        commit(ledger, mark=mark)  # a check without a plan harms nobody

    def test_records_are_overwritten_not_doubled(self, ledger: Ledger) -> None:
        number = commit(ledger, Plan((DRAIN,)))
        one = {"action": "drain", "node": "n1", "status": "done", "seconds": 2.5, "steps": {"wait": 2.0}, "message": "x"}
        assert ledger.record(number, [one]) == 1
        assert ledger.record(number, [one]) == 0
        assert ledger.record(number, [{**one, "status": "deadline"}, {"action": "retire", "node": "n1"}]) == 2
        found = ledger.activities(number)
        assert [(a["action"], a["status"], a["steps"]) for a in found] == [
            ("drain", "deadline", {"wait": 2.0}), ("retire", "done", {}),
        ]
        ledger.finish(number, NOW, "done")
        assert ledger.activities(number)[0]["status"] == "deadline"

    def test_pauses_end_by_themselves_or_by_resume(self, ledger: Ledger) -> None:
        ledger.pause("all", "work", NOW, NOW + 10)
        ledger.pause("in", "exams", NOW)
        assert [pause.scope for pause in ledger.pauses(NOW + 9)] == ["all", "in"]
        assert [pause.reason for pause in ledger.pauses(NOW + 10)] == ["exams"]
        ledger.pause("in", "more exams", NOW + 1)
        assert [pause.reason for pause in ledger.pauses(NOW + 11)] == ["more exams"]
        assert ledger.resume(NOW + 11) == 1
        assert ledger.pauses(NOW + 12) == []

    def test_old_rows_are_forgotten_at_most_hourly(self, ledger: Ledger) -> None:
        commit(ledger, Plan((LAUNCH,)), at=NOW - 10 * 86400, expired=())
        commit(ledger)
        ledger.prune(NOW, 5)
        assert len(ledger.checks(9)) == 1
        commit(ledger, at=NOW - 10 * 86400)
        ledger.prune(NOW + 3599, 5)
        assert len(ledger.checks(9)) == 2
        ledger.prune(NOW + 3600, 5)
        assert len(ledger.checks(9)) == 1

    def test_two_processes_write_at_once(self, place: str) -> None:
        workers = [multiprocessing.get_context("spawn").Process(target=write_many, args=(place,)) for _index in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0]
        with opened(place) as ledger:
            assert len(ledger.checks(999)) == 100

    def test_of_two_that_plan_from_the_same_look_one_is_refused(self, place: str) -> None:
        context = multiprocessing.get_context("spawn")
        start, results = context.Barrier(2), context.Queue()
        workers = [context.Process(target=plan_once, args=(place, start, results)) for _index in range(2)]
        for worker in workers:
            worker.start()
        assert sorted(results.get(timeout=60) for _index in range(2)) == ["planned", "superseded"]
        for worker in workers:
            worker.join(60)

    def test_kill_9_loses_nothing_that_was_announced(self, place: str) -> None:
        process = subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE)
        assert process.stdout is not None
        announced = [int(process.stdout.readline()) for _index in range(20)]
        process.send_signal(signal.SIGKILL)
        announced += [int(line) for line in process.stdout.read().split()]
        process.wait()
        with opened(place) as ledger:
            # Whoever was killed in the middle holds nobody up.
            commit(ledger)
            rows = ledger.checks(1_000_000)
            assert len(announced) <= len(rows) - 1 <= len(announced) + 1
            assert len(ledger.intents(1e12)) == len(rows) - 1 == ledger.mark()

    def test_one_at_a_time_has_the_lock_and_a_dead_holder_keeps_none(self, place: str) -> None:
        process = holder(place)
        with pytest.raises(Locked, match="another check is under way"), held(place):
            pass
        process.kill()
        with held(place, wait=10):
            pass
        process.communicate()

    def test_a_run_that_outlives_its_trigger_keeps_the_lock(self, place: str) -> None:
        process = holder(place, "with a run")
        process.kill()
        process.wait()
        with pytest.raises(Locked), held(place, wait=0.5):
            pass
        process.communicate(b"\n")
        with held(place, wait=10):
            pass

    def test_the_lock_waits_for_who_is_about_to_end(self, place: str) -> None:
        process = holder(place)
        threading.Timer(0.5, process.kill).start()
        with held(place, wait=10):
            pass
        process.communicate()

    def test_an_older_schema_is_migrated_and_a_newer_one_refused(self, ledger: Ledger, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        commit(ledger)
        monkeypatch.setattr(_ledger_store, "MIGRATIONS", (*_ledger_store.MIGRATIONS, "ALTER TABLE checks ADD COLUMN extra TEXT"))
        with opened(place) as migrated:
            assert migrated.checks(1)[0]["extra"] is None
            # An older version at work meanwhile goes on.
            commit(ledger)
        monkeypatch.undo()
        with pytest.raises(LedgerError, match="upgrade moodle-fleet"):
            opened(place)

    def test_a_migration_that_failed_or_was_cut_off_leaves_a_ledger_and_is_gone_on_with(
        self, ledger: Ledger, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = commit(ledger)
        more = "ALTER TABLE checks ADD COLUMN extra TEXT; CREATE INDEX checks_size ON checks (size); "
        monkeypatch.setattr(_ledger_store, "MIGRATIONS", (*_ledger_store.MIGRATIONS, more + "NONSENSE"))
        with pytest.raises(LedgerError):
            opened(place)
        monkeypatch.undo()
        with opened(place) as old:
            assert commit(old) > first
        monkeypatch.setattr(_ledger_store, "MIGRATIONS", (*_ledger_store.MIGRATIONS, more))
        with opened(place) as migrated:
            assert [row["extra"] for row in migrated.checks(9)] == [None, None]

    @settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(
        number=st.floats(min_value=-1e15, max_value=1e15, allow_subnormal=False),
        text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    )
    def test_numbers_and_texts_come_back_as_they_were(self, ledger: Ledger, number: float, text: str) -> None:
        check = ledger.commit(number, text, SAMPLE._replace(load=number), DECISION, Plan(), 0, message=text, inputs={text: number})
        row = ledger.checks(1, check=check)[0]
        assert (row["started"], row["origin"], row["message"], row["inputs"]) == (number, text, text, {text: number})
        assert ledger.last_sample() == SAMPLE._replace(load=number)

    def test_names_are_told_apart_by_every_letter(self, ledger: Ledger) -> None:
        for token in ("t", "T", "t ", "é", "e"):
            commit(ledger, Plan((Step("launch", "", count=1, token=token),)))
        assert {one.token for one in ledger.intents(NOW + 1)} == {"t", "T", "t ", "é", "e"}

    def test_long_texts_are_kept_whole(self, ledger: Ledger) -> None:
        long = "ü" * 200_000
        commit(ledger, message=long, inputs={"long": long})
        assert (ledger.checks(1)[0]["message"], ledger.checks(1)[0]["inputs"]) == (long, {"long": long})

    def test_what_the_report_and_the_metrics_ask(self, ledger: Ledger) -> None:
        assert ledger.span() is None and ledger.usual_interval(0, NOW) == 15.0
        number = commit(ledger, Plan((LAUNCH, DRAIN)))
        commit(ledger, at=NOW + 20)
        commit(ledger, at=NOW + 40, expired=["t1"])
        ledger.record(number, [{"action": "launch", "node": "t1", "status": "failed", "message": "no room"}, {"action": "drain", "node": "n1"}])
        ledger.finish(number, NOW + 9, "failed")
        assert ledger.span() == (NOW, NOW + 40) and ledger.usual_interval(0, NOW + 99) == 20.0
        assert ledger.tallies(NOW) == ({"failed": 1, "idle": 2}, {("launch", "failed"): 1, ("drain", "done"): 1})
        assert ledger.tallies(NOW + 1) == ({"idle": 2}, {})
        assert [(one["node"], one["message"]) for one in ledger.failures(NOW)] == [("t1", "no room")]
        assert (ledger.lost_launches(NOW), ledger.lost_launches(NOW + 1)) == (1, 0)
        assert [one["action"] for one in ledger.activities_between(NOW, NOW + 1)] == ["launch", "drain"]
        assert [row["started"] for row, _sample in ledger.recorded(since=NOW + 1, until=NOW + 30)] == [NOW + 20]
        assert len(ledger.samples(NOW, NOW)) == 3
        assert [row["started"] for row in ledger.checks(9, since=NOW + 1)] == [NOW + 40, NOW + 20]
        assert [row["id"] for row in ledger.checks(9, acted_only=True)] == [number]

    def test_nodes_that_joined_or_may_have_are_known(self, ledger: Ledger) -> None:
        number = commit(ledger, Plan(tuple(Step("join", "", node=f"n{index}") for index in range(3))))
        ledger.record(number, [{"action": "join", "node": "n1", "status": "failed"}])
        assert ledger.joined(NOW) == {"n0": NOW, "n2": NOW}
        assert ledger.joined(NOW + 1) == {}

    def test_a_value_is_remembered_until_it_is_replaced(self, ledger: Ledger) -> None:
        assert ledger.state("image") is None
        ledger.remember("image", "ami-1")
        ledger.remember("image", {"id": "ami-2"})
        assert ledger.state("image") == {"id": "ami-2"}

    def test_slots_are_means_of_five_trusted_minutes(self, ledger: Ledger) -> None:
        begin = 999_900.0  # the begin of a slot
        hour(ledger, begin - 1, [1.0, 2.0, 3.0, 4.0, 5.0, 10.0])
        hour(ledger, begin + 30, [900.0], trusted=False)
        hour(ledger, begin + 300, [20.0], seconds=180.0)
        since, slots = ledger.slots([(999_900, 1_000_200), (0, 300)])
        assert since == begin
        assert slots == {999_900: 3.0, 1_000_200: pytest.approx((10 * 60 + 20 * 180) / 240)}
        assert ledger.slots([(1_000_200, 1_000_200)])[1].keys() == {1_000_200}
        assert ledger.slots([])[1] == {}

    def test_slots_go_with_the_samples(self, ledger: Ledger) -> None:
        hour(ledger, 999_900.0, [1.0] * 30)
        ledger.prune(1_000_200.0 + 86400, 1)
        assert ledger.slots([(0, 2_000_000)]) == (1_000_200, {1_000_200: 1.0, 1_000_500: 1.0, 1_000_800: 1.0, 1_001_100: 1.0, 1_001_400: 1.0, 1_001_700: 1.0})

    def test_launch_times_are_from_plan_to_first_join(self, ledger: Ledger) -> None:
        assert ledger.launch_times() == []
        first = commit(ledger, Plan((LAUNCH,)), at=NOW)
        ledger.record(first, [
            {"action": "launch", "node": "t1", "status": "done", "started": NOW + 1, "finished": NOW + 70, "message": "web-1, web-2"},
            {"action": "join", "node": "web-1", "status": "done", "started": NOW + 1, "finished": NOW + 70},
            {"action": "join", "node": "web-2", "status": "failed", "started": NOW + 1, "finished": NOW + 70},
        ])
        assert ledger.launch_times() == [70.0]
        later = commit(ledger, Plan((Step("join", "ready", node="web-2"),)), at=NOW + 90)
        ledger.record(later, [{"action": "join", "node": "web-2", "status": "done", "started": NOW + 90, "finished": NOW + 130}])
        assert sorted(ledger.launch_times()) == [70.0, 130.0]
        # Joining again, at a balancer that was away, is no launch.
        again = commit(ledger, Plan((Step("join", "away", node="web-1"),)), at=NOW + 9000)
        ledger.record(again, [{"action": "join", "node": "web-1", "status": "done", "started": NOW + 9000, "finished": NOW + 9010}])
        assert sorted(ledger.launch_times()) == [70.0, 130.0]
        failed = commit(ledger, Plan((Step("launch", "", count=1, token="t2"),)), at=NOW + 9100)
        ledger.record(failed, [{"action": "launch", "node": "t2", "status": "failed", "finished": NOW + 9200, "message": "no capacity"}])
        assert sorted(ledger.launch_times()) == [70.0, 130.0]

    def test_checks_are_read_in_order_with_their_samples_and_inputs(self, ledger: Ledger) -> None:
        numbers = [commit(ledger, at=NOW + index, inputs={"now": index}) for index in range(5)]
        rows = list(ledger.recorded(batch=2))
        assert [row["id"] for row, _sample in rows] == numbers
        assert [row["inputs"]["now"] for row, _sample in rows] == [0, 1, 2, 3, 4]
        assert all(sample == SAMPLE for _row, sample in rows)
        ledger.pause("in", "", NOW, NOW + 60)
        ledger.resume(NOW + 9)
        assert [(pause.scope, ended) for pause, ended in ledger.all_pauses()] == [("in", NOW + 9)]

    def test_a_name_that_is_used_again_is_another_launch(self, ledger: Ledger) -> None:
        for begin, seconds in ((NOW, 70.0), (NOW + 20_000, 50.0)):
            number = commit(ledger, Plan((Step("launch", "", count=1, token=f"t{begin}"),)), at=begin)
            ledger.record(number, [
                {"action": "launch", "node": f"t{begin}", "status": "done", "finished": begin + seconds, "message": "web-1"},
                {"action": "join", "node": "web-1", "status": "done", "started": begin, "finished": begin + seconds},
            ])
        assert ledger.launch_times() == [50.0, 70.0]
