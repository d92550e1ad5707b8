# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The judgement of a load test, and the figures of the benchmarks."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


def module(path: str):
    """Load a script that is no part of a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, TESTS / path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


load = module("load/load.py")
measure = module("benchmarks/measure.py")


def seen(**more):
    base = {
        "requests": 9, "failures": [], "lost_sessions": 0, "slowest": ["GET /", 12.4], "sent": {}, "acknowledged": {}, "marks": [],
    }
    return {**base, **more}


def test_all_posts_there_once_is_clean():
    result = load.judge(seen(sent={"1": "a", "2": "b"}, acknowledged={"1": "a", "2": "b"}), {"a": {"1": 1}, "b": {"2": 1}}, {})
    assert (result["posts_lost"], result["posts_doubled"], result["posts_in_the_databases"]) == (0, 0, 2)


def test_an_acknowledged_post_that_is_not_there_is_lost():
    result = load.judge(seen(acknowledged={"1": "a", "2": "a"}), {"a": {"2": 1}}, {})
    assert (result["posts_lost"], result["lost_numbers"]) == (1, [1])


def test_a_post_in_another_tenant_is_lost():
    assert load.judge(seen(acknowledged={"1": "a"}), {"a": {}, "b": {"1": 1}}, {})["posts_lost"] == 1


def test_a_post_that_is_there_twice_is_doubled_even_if_it_was_never_acknowledged():
    result = load.judge(seen(sent={"7": "a"}), {"a": {"7": 2}}, {})
    assert (result["posts_doubled"], result["doubled_numbers"], result["posts_lost"]) == (1, [7], 0)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [({"r-1.": 1, "r-2.": 1}, (2, 0, 0)), ({"r-2.": 2}, (2, 1, 1)), ({}, (2, 2, 0)), (None, (0, 0, 0))],
    ids=["all there once", "one lost, one twice", "all lost", "no log server"],
)
def test_each_answered_request_has_one_log_line(lines, expected):
    result = load.judge(seen(marks=["r-1.", "r-2."]), {}, lines)
    assert (result["log_lines_expected"], result["log_lines_lost"], result["log_lines_doubled"]) == expected


def test_failed_reads_are_told_from_failed_posts():
    result = load.judge(seen(failures=[(1.0, "GET /course", "502"), (2.0, "POST /post", "502")]), {}, None)
    assert (result["failed_requests"], result["failed_reads"]) == (2, 1)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.95, 10), (0.1, 1), (1, 10)])
def test_percentile(share, expected):
    assert measure.percentile(list(range(1, 11)), share) == expected


def test_nothing_measured_is_not_zero():
    assert math.isnan(measure.median([])) and math.isnan(measure.percentile([], 0.5))


@pytest.mark.parametrize(
    ("name", "content"), [("cpuacct.usage", "2500000000\n"), ("cpu.stat", "usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")]
)
def test_cpu_seconds_of_both_versions_of_control_groups(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content)
    cpu = measure.Cpu([])
    cpu.files = {"node": file}
    assert cpu.read() == {"node": 2.5}
    assert cpu.since({"node": 1.0}) == {"node": 1.5}


def test_every_seeded_fault_still_fits_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS / "benchmarks"))
    mutations = module("benchmarks/mutations.py")
    gone = [fault for fault in mutations.FAULTS if fault[1] not in (mutations.ROOT / fault[0]).read_text(encoding="utf-8")]
    assert gone == []
    assert len(mutations.FAULTS) >= 30
