# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What our policy knows of the exams of a trace, and that nobody else does."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import SLOT

Load = Callable[[str], ModuleType]
BEGIN = 2000 * 7 * 86400.0


@pytest.fixture(name="load")
def _load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


def test_exams_are_where_the_load_leaps(load: Load) -> None:
    traces = load("traces")
    for seed in range(3):
        trace = traces.generate("exam storm", seed)
        assert 2 <= len(trace.exams) <= 4
        for exam in trace.exams:
            leap = trace.loads[exam.start + 1] - trace.loads[exam.start - 1]
            assert leap == pytest.approx(exam.people, rel=0.2)
    assert not traces.generate("flash crowd", 0).exams


def test_telling_of_exams_changes_no_load(load: Load) -> None:
    # As they were before anybody was told: figures were published of these.
    traces = load("traces")
    for seed, whole in enumerate((52569.0, 52398.83, 57778.88)):
        trace = traces.generate("exam storm", seed)
        load("known_exams").told(trace, seed)
        assert math.fsum(trace.loads) == pytest.approx(whole, abs=0.01)


def test_what_is_known_of_exams_is_not_all_and_not_exact(load: Load) -> None:
    traces, known = load("traces"), load("known_exams")
    exams = [traces.Exam(start, 100.0, 60) for start in (500, 600, 700)]
    days = [known.told(traces.Shape("exam storm", [], [], False, exams), seed) for seed in range(400)]
    found = [exam for day in days for exam in day]
    assert 1 - len(found) / 1200 == pytest.approx(known.UNTOLD, abs=0.03)
    come = [100.0 / exam.people for exam in found]
    assert (statistics.mean(come), statistics.stdev(come)) == pytest.approx((1.0, known.ERROR), abs=0.02)
    assert {(exam.start, exam.minutes) for exam in found} == {(500, 60), (600, 60), (700, 60)}
    assert days[7] == known.told(traces.Shape("exam storm", [], [], False, exams), 7)


def test_known_exams_are_read_as_quizzes(load: Load) -> None:
    exam = load("traces").Exam(600, 90.0, 45)
    slots = {int(BEGIN) - back: 20.0 for back in range(SLOT, 8 * 86400, SLOT)}
    seen = load("known_exams").foreseen([exam], BEGIN, slots)
    opens, closes = seen.moments
    assert (opens.kind, opens.at, opens.load, opens.base) == ("exam_start", BEGIN + 36000, pytest.approx(90, rel=0.001), 20.0)
    assert (closes.kind, closes.at, closes.base) == ("exam_end", BEGIN + 38700, 20.0)


def test_what_ours_knows_stands_beside_the_rest(load: Load) -> None:
    known, rivals, minutes = load("known_exams"), load("rivals"), 1440

    def row(policy: str, hours: float, percent: float, setting: str = "") -> dict[str, object]:
        return {"shape": "exam storm", "launch": 60, "seed": 0, "policy": policy, "setting": setting, "hours": hours,
                "under": percent * minutes * 0.6, "instability": 0.0}

    rows = [row("oracle", 100, 0.0), row("moodle-fleet", 120, 1.0, "0.7"), row("static", 150, 0.0, "1")]
    rows += [row(rival, 110 + 20 * place, 2.0 - place, f"{place}") for rival in rivals.RIVALS for place in (0, 1)]
    for percent, verdict in ((0.75, "yes"), (0.76, "NO")):
        (line,), summary = known.compare([*rows, row(known.KNOWING, 120, percent, "0.7")], 1)
        assert line["under %"] == pytest.approx(1.0) and line["under %, known"] == pytest.approx(percent)
        assert (line["its under % at these hours"], line["half"]) == (pytest.approx(1.5), verdict)
        assert f"{percent * 864:.0f} s against 864 s" in summary


def test_whoever_knows_lacks_less(load: Load) -> None:
    policies = load("policies")
    job = ("exam storm", 0, 300, [0.7], {})
    (without,), (knowing,) = policies.ours(job), policies.ours(job, knowing=True)
    assert (without["policy"], knowing["policy"]) == ("moodle-fleet", "moodle-fleet that knows")
    assert knowing["under"] < without["under"] / 2
    assert knowing["hours"] > without["hours"]
