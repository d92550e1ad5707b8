# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import (
    Trace,
    TraceError,
    from_csv,
    from_samples,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Sample


def test_minutes_are_kept_and_finer_values_are_averaged() -> None:
    assert from_csv(["time,load", "60,1", "120,2", "180,4"]) == Trace(60.0, [1.0, 2.0, 4.0])
    assert from_csv(["time,load", "0,1", "15,2", "30,3", "45,4", "60,9", "75,9"]).loads == [2.5, 9.0]


def test_times_may_be_iso_and_columns_in_any_order() -> None:
    text = ["\ufeffLoad, time", "3,2026-12-01T07:30:00+01:00", "", "4,2026-12-01 06:31:00Z", "5,2026-12-01T06:32:00"]
    trace = from_csv(text)
    assert (trace.begin, trace.loads) == (1796106600.0, [3.0, 4.0, 5.0])


def test_values_far_apart_are_points_of_a_line() -> None:
    trace = from_csv(["time,load", "0,0", "300,10", "600,0"])
    assert trace.loads[:5] == pytest.approx([1, 3, 5, 7, 9])
    assert trace.loads[5:10] == pytest.approx([9, 7, 5, 3, 1])


@pytest.mark.parametrize("step", [5, 15, 60, 300, 3600])
def test_every_step_length_gives_the_same_minutes(step: int) -> None:
    trace = from_csv(["time,load", *(f"{moment},{moment / 600:.6f}" for moment in range(0, 4 * 3600 + 1, step))])
    # A line stays a line; a value that holds for its step is half a step late at most.
    assert trace.begin == 0 and len(trace.loads) in (240, 241)
    for minute, load in enumerate(trace.loads[:240]):
        assert load == pytest.approx((minute + 0.5) / 10, abs=0.051)


@pytest.mark.parametrize(
    "head",
    ["Time;Load", "timestamp\tvalue", '"time","load"', "\ufefftime,in_service", "DateTime,load,comment", "\n\ntime,load"],
)
def test_heads_as_other_programs_write_them(head: str) -> None:
    mark = ";" if ";" in head else "\t" if "\t" in head else ","
    lines = [*head.splitlines(), mark.join(("60", "1", "x")), "", mark.join(("120", "2", "y")), "", "  ", ""]
    assert from_csv(lines) == Trace(60.0, [1.0, 2.0])


def test_the_order_of_lines_and_repeated_lines_do_not_matter() -> None:
    assert from_csv(["time,load", "180,4", "60,1", "120,2", "60,1"]) == Trace(60.0, [1.0, 2.0, 4.0])


def test_time_zones_may_be_mixed() -> None:
    lines = ["time,load", "2026-10-25T02:30:00+02:00,1", "2026-10-25T02:30:00+01:00,2", "2026-10-25 02:30:00 UTC,3", "2026-10-25T03:30:00,4"]
    trace = from_csv(lines)
    assert trace.begin == 1792888200.0
    assert [trace.loads[60 * hour] for hour in range(4)] == pytest.approx([1, 2, 3, 4], abs=0.02)


def test_long_pauses_in_a_rhythm_are_gaps() -> None:
    minutes = [*range(30), *range(90, 120)]
    assert from_csv(["time,load", *(f"{60 * minute},3" for minute in minutes)]).loads == [3.0] * 30 + [None] * 60 + [3.0] * 30
    # A lost line or two is none, nor is anything among values that come when they like.
    assert None not in from_csv(["time,load", *(f"{60 * minute},3" for minute in minutes if minute % 10)]).loads[:29]
    assert None not in from_csv(["time,load", "0,1", "60,2", "7200,3", "7300,4", "90000,1"]).loads


def test_means_between_moments() -> None:
    trace = Trace(0.0, [1.0, 3.0, None, 5.0])
    assert trace.mean(30, 90) == pytest.approx(2.0)
    assert trace.mean(60, 120) == pytest.approx(3.0)
    assert trace.mean(-30, 0) == pytest.approx(1.0)
    assert trace.mean(240, 300) == pytest.approx(5.0)
    assert [trace.mean(moment - 1, moment) is not None for moment in (60, 61, 120, 121, 180, 181)] == [True, True, True, False, False, True]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "empty"),
        (["a,b", "1,2"], "line 1: 'a,b' has no column 'time'"),
        (["time,load"], "only 0 line"),
        (["time,load", "1,2"], "at least two"),
        (["time,load", "0,1", "noon,2"], "line 3: time 'noon'"),
        (["time,load", "0,1", "60,-2"], "line 3: load '-2'"),
        (["time,load", "0,1", "60,nan"], "line 3: load 'nan'"),
        (["time,load", "0,1", "60,"], "line 3: load ''"),
        (["time,load", "0,1", "inf,2"], "line 3: time 'inf'"),
        (["time,load", "0,1", "0,2"], "time 0 (1970-01-01T00:00:00Z) has two loads, 1 and 2: keep one"),
        (["time,load", "0,1", "60,2e6"], "line 3: load '2e6' is too much"),
        (["", "time,load", "0,1", "", "60,x"], "line 5: load 'x'"),
        (["time,requests", "0,1", "60,1"], "line 1: 'time,requests' has no column 'load'"),
        (["time,load", "0,1", "60"], "line 3: '60' lacks a column"),
        (["time,load", "0,1", "1700000000,1"], "ten years"),
        (["time,load", "1700000000000,1", "1700000060000,1"], "line 2: time '1700000000000' is beyond any date: give seconds, not milli"),
    ],
)
def test_bad_input_is_named_with_a_remedy(lines: list[str], words: str) -> None:
    with pytest.raises(TraceError) as caught:
        from_csv(lines)
    assert words in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("give", "write", "keep", "begin", "seconds?"))


def test_samples_become_minutes_with_gaps() -> None:
    def sample(taken: float, load: float, trusted: bool = True) -> Sample:
        return Sample(taken, 15, load, 0, 0, 8, 2, 1, trusted)

    trace = from_samples([sample(15 * i, 2.0 + (i > 4)) for i in range(1, 9)] + [sample(240 + 15 * i, 7.0, i != 9) for i in range(1, 5)])
    assert trace.loads == [2.0, 3.0, None, None, 7.0]
    with pytest.raises(TraceError, match="no trusted sample"):
        from_samples([sample(15, 1, False)])
