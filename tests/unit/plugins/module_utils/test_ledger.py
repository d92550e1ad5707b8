# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger, LedgerError, Superseded
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Reason, Sample, Step

NOW = 1_000_000.0
SAMPLE = Sample(NOW, 60, 5.5, 4, 1, 8, 2, 300, False, True, (("partial", "one is missing"),))
DECISION = Decision(3, "out", 2, 3, True, (Reason("tracking", "busy", 3),))
LAUNCH = Step("launch", "more", count=2, token="t1", zones=("a", "b"))
DRAIN = Step("drain", "fewer", node="n1", address="10.0.0.1", deadline=NOW + 9)


def commit(ledger: Ledger, plan: Plan = Plan(), at: float = NOW, mark: int | None = None, **more: object) -> int:
    return ledger.commit(at, "test", SAMPLE, DECISION, plan, ledger.mark() if mark is None else mark, **more)


@pytest.fixture(name="ledger")
def _ledger_fixture(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.sqlite")


def test_a_check_is_read_back_as_it_was_written(ledger: Ledger) -> None:
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


def test_files_are_for_their_owner_alone(ledger: Ledger) -> None:
    assert os.stat(ledger.path).st_mode & 0o077 == 0
    assert os.stat(os.path.dirname(ledger.path)).st_mode & 0o077 == 0


def test_history_reaches_one_check_beyond_the_window(ledger: Ledger) -> None:
    for age in (900, 400, 100):
        commit(ledger, at=NOW - age)
    assert [when for when, _count in ledger.history(NOW, 300).recommended] == [NOW - 400, NOW - 100]


def test_only_real_changes_start_a_cooldown(ledger: Ledger) -> None:
    commit(ledger)
    commit(ledger, Plan((Step("join", "", node="n1"),)))
    commit(ledger, Plan((Step("drain", "", node="n1", since=NOW - 5),)))
    assert (ledger.history(NOW, 1).last_out, ledger.history(NOW, 1).last_in) == (0.0, 0.0)
    commit(ledger, Plan((LAUNCH,)), at=NOW + 1)
    commit(ledger, Plan((DRAIN,)), at=NOW + 2)
    assert (ledger.history(NOW, 1).last_out, ledger.history(NOW, 1).last_in) == (NOW + 1, NOW + 2)


def test_intents_stay_open_until_their_nodes_were_seen(ledger: Ledger) -> None:
    commit(ledger, Plan((LAUNCH,)))
    later = NOW + 500
    assert [(i.token, i.count, i.seen) for i in ledger.intents(later)] == [("t1", 2, 0)]
    commit(ledger, seen={"t1": 1})
    commit(ledger, seen={"t1": 0})
    assert [(i.token, i.seen) for i in ledger.intents(later)] == [("t1", 1)]
    commit(ledger, seen={"t1": 2})
    assert ledger.intents(later) == []
    assert [i.token for i in ledger.intents(NOW - 1)] == ["t1"]


def test_an_intent_knows_which_of_its_nodes_were_terminated(ledger: Ledger) -> None:
    commit(ledger, Plan((LAUNCH,)))
    number = commit(ledger, Plan((Step("retire", "sick", node="n1", token="t1"), Step("drain", "fewer", node="n2", token="t1"))))
    ledger.record(number, [{"action": "retire", "node": "n1"}, {"action": "drain", "node": "n2", "status": "running"}])
    assert [i.gone for i in ledger.intents(NOW - 1)] == [1]
    ledger.record(number, [{"action": "drain", "node": "n2", "status": "deadline"}])
    assert [i.gone for i in ledger.intents(NOW - 1)] == [2]


def test_intents_expire(ledger: Ledger) -> None:
    commit(ledger, Plan((LAUNCH,)))
    commit(ledger, expired=["t1"])
    assert ledger.intents(NOW + 1) == []


def test_a_repeated_launch_keeps_the_time_of_its_first(ledger: Ledger) -> None:
    commit(ledger, Plan((LAUNCH,)))
    commit(ledger, Plan((LAUNCH,)), at=NOW + 60)
    assert [i.created for i in ledger.intents(NOW + 999)] == [NOW]


def test_announced_drains_are_binding_until_the_check_ends(ledger: Ledger) -> None:
    number = commit(ledger, Plan((DRAIN,)))
    assert ledger.leaving(NOW - 1) == {"n1": NOW}
    assert ledger.leaving(NOW + 1) == {}
    ledger.finish(number, NOW + 5, "failed", "boom")
    assert ledger.leaving(NOW - 1) == {}
    assert ledger.activities(number)[0]["status"] == "unknown"
    assert (ledger.checks(1)[0]["status"], ledger.checks(1)[0]["message"]) == ("failed", "boom")


def test_a_plan_made_from_an_older_look_is_refused(ledger: Ledger) -> None:
    mark = ledger.mark()
    commit(ledger, Plan((LAUNCH,)))
    with pytest.raises(Superseded):
        commit(ledger, Plan((DRAIN,)), mark=mark)
    assert len(ledger.checks(9)) == 1
    commit(ledger, mark=mark)  # a check without a plan harms nobody


def test_records_are_overwritten_not_doubled(ledger: Ledger) -> None:
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


def test_pauses_end_by_themselves_or_by_resume(ledger: Ledger) -> None:
    ledger.pause("all", "work", NOW, NOW + 10)
    ledger.pause("in", "exams", NOW)
    assert [pause.scope for pause in ledger.pauses(NOW + 9)] == ["all", "in"]
    assert [pause.reason for pause in ledger.pauses(NOW + 10)] == ["exams"]
    ledger.pause("in", "more exams", NOW + 1)
    assert [pause.reason for pause in ledger.pauses(NOW + 11)] == ["more exams"]
    assert ledger.resume(NOW + 11) == 1
    assert ledger.pauses(NOW + 12) == []


def test_old_rows_are_forgotten_at_most_hourly(ledger: Ledger) -> None:
    commit(ledger, Plan((LAUNCH,)), at=NOW - 10 * 86400, expired=())
    commit(ledger)
    ledger.prune(NOW, 5)
    assert len(ledger.checks(9)) == 1
    commit(ledger, at=NOW - 10 * 86400)
    ledger.prune(NOW + 3599, 5)
    assert len(ledger.checks(9)) == 2
    ledger.prune(NOW + 3600, 5)
    assert len(ledger.checks(9)) == 1


def test_an_older_schema_is_migrated_and_a_newer_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        commit(ledger)
    monkeypatch.setattr(_ledger, "MIGRATIONS", (*_ledger.MIGRATIONS, "ALTER TABLE checks ADD COLUMN extra TEXT"))
    with Ledger(path) as ledger:
        assert ledger.checks(1)[0]["extra"] is None
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="upgrade moodle-fleet"):
        Ledger(path)


def test_a_failed_migration_leaves_the_old_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    broken = (*_ledger.MIGRATIONS, "ALTER TABLE checks ADD COLUMN extra TEXT; NONSENSE")
    monkeypatch.setattr(_ledger, "MIGRATIONS", broken)
    with pytest.raises(LedgerError):
        Ledger(path)
    monkeypatch.undo()
    with Ledger(path) as ledger:
        assert commit(ledger)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is no ledger" * 999)
    with pytest.raises(LedgerError, match="ledger.sqlite.*move it away"):
        Ledger(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="check folder"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_full_disk_is_said_in_plain_words_and_loses_nothing(ledger: Ledger) -> None:
    commit(ledger)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(LedgerError, match="the disk is full; make room"):
        for _index in range(2000):
            commit(ledger)
    count = len(ledger.checks(9999))
    ledger._db.execute("PRAGMA max_page_count=100000")
    commit(ledger)
    assert len(ledger.checks(9999)) == count + 1


def test_a_lock_held_for_too_long_is_said(ledger: Ledger) -> None:
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Ledger(ledger.path, timeout=0.1) as second, pytest.raises(LedgerError, match="another process"):
        commit(second)


def write_many(path: str) -> None:
    with Ledger(path) as ledger:
        for _index in range(50):
            commit(ledger)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.sqlite")
    workers = [multiprocessing.get_context("spawn").Process(target=write_many, args=(path,)) for _index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    with Ledger(path) as ledger:
        assert len(ledger.checks(999)) == 100


WRITER = """
import sys
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Sample, Step
with Ledger(sys.argv[1]) as ledger:
    for number in range(100000):
        plan = Plan((Step("launch", "", count=1, token=str(number)),))
        ledger.commit(float(number), "t", Sample(0,0,0,0,0,0,0,0,True), Decision(1,"out",0,1,True), plan, ledger.mark())
        print(number, flush=True)
"""


def test_kill_9_loses_nothing_that_was_announced(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    announced = [int(process.stdout.readline()) for _index in range(20)]
    process.send_signal(signal.SIGKILL)
    announced += [int(line) for line in process.stdout.read().split()]
    process.wait()
    with Ledger(path) as ledger:
        rows = ledger.checks(1_000_000)
        assert len(announced) <= len(rows) <= len(announced) + 1
        assert len(ledger.intents(1e12)) == len(rows) == ledger.mark()


def hour(ledger: Ledger, begin: float, loads: list[float], seconds: float = 60.0, trusted: bool = True) -> None:
    for index, load in enumerate(loads, 1):
        taken = Sample(begin + seconds * index, seconds, load, 0, 0, 8, 2, 300, trusted)
        ledger.commit(taken.taken, "test", taken, DECISION, Plan(), 0)


def test_slots_are_means_of_five_trusted_minutes(ledger: Ledger) -> None:
    begin = 999_900.0  # the begin of a slot
    hour(ledger, begin - 1, [1.0, 2.0, 3.0, 4.0, 5.0, 10.0])
    hour(ledger, begin + 30, [900.0], trusted=False)
    hour(ledger, begin + 300, [20.0], seconds=180.0)
    since, slots = ledger.slots([(999_900, 1_000_200), (0, 300)])
    assert since == begin
    assert slots == {999_900: 3.0, 1_000_200: pytest.approx((10 * 60 + 20 * 180) / 240)}
    assert ledger.slots([(1_000_200, 1_000_200)])[1].keys() == {1_000_200}
    assert ledger.slots([])[1] == {}


def test_slots_go_with_the_samples(ledger: Ledger) -> None:
    hour(ledger, 999_900.0, [1.0] * 30)
    ledger.prune(1_000_200.0 + 86400, 1)
    assert ledger.slots([(0, 2_000_000)]) == (1_000_200, {1_000_200: 1.0, 1_000_500: 1.0, 1_000_800: 1.0, 1_001_100: 1.0, 1_001_400: 1.0, 1_001_700: 1.0})


def test_an_older_ledger_is_brought_up_with_its_weeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    hour(Ledger(path), 999_899.0, [1.0, 2.0, 3.0, 4.0, 5.0, 10.0])
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE slots")
        db.execute("ALTER TABLE checks DROP COLUMN inputs")
        db.execute("PRAGMA user_version = 2")
    with Ledger(path) as ledger:
        assert ledger.slots([(0, 2_000_000)]) == (999_900, {999_900: 3.0, 1_000_200: 10.0})
        assert [row["inputs"] for row, _sample in ledger.recorded()] == [None] * 6


def test_launch_times_are_from_plan_to_first_join(ledger: Ledger) -> None:
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


def test_checks_are_read_in_order_with_their_samples_and_inputs(ledger: Ledger) -> None:
    numbers = [commit(ledger, at=NOW + index, inputs={"now": index}) for index in range(5)]
    rows = list(ledger.recorded(batch=2))
    assert [row["id"] for row, _sample in rows] == numbers
    assert [row["inputs"]["now"] for row, _sample in rows] == [0, 1, 2, 3, 4]
    assert all(sample == SAMPLE for _row, sample in rows)
    ledger.pause("in", "", NOW, NOW + 60)
    ledger.resume(NOW + 9)
    assert [(pause.scope, ended) for pause, ended in ledger.all_pauses()] == [("in", NOW + 9)]


def test_a_name_that_is_used_again_is_another_launch(ledger: Ledger) -> None:
    for begin, seconds in ((NOW, 70.0), (NOW + 20_000, 50.0)):
        number = commit(ledger, Plan((Step("launch", "", count=1, token=f"t{begin}"),)), at=begin)
        ledger.record(number, [
            {"action": "launch", "node": f"t{begin}", "status": "done", "finished": begin + seconds, "message": "web-1"},
            {"action": "join", "node": "web-1", "status": "done", "started": begin, "finished": begin + seconds},
        ])
    assert ledger.launch_times() == [50.0, 70.0]
