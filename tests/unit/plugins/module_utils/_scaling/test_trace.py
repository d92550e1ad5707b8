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


def test_means_between_moments() -> None:
    trace = Trace(0.0, [1.0, 3.0, None, 5.0])
    assert trace.mean(30, 90) == pytest.approx(2.0)
    assert trace.mean(60, 120) == pytest.approx(3.0)
    assert trace.mean(-30, 0) == pytest.approx(1.0)
    assert trace.mean(240, 300) == pytest.approx(5.0)
    assert [trace.known(moment) for moment in (60, 61, 120, 121, 180, 181)] == [True, True, True, False, False, True]


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
        (["time,load", "0,1", "0,2"], "line 3: time '0' is not after"),
        (["time,load", "0,1", "60"], "line 3: '60' lacks a column"),
        (["time,load", "0,1", "1700000000000,1"], "ten years"),
    ],
)
def test_bad_input_is_named_with_a_remedy(lines: list[str], words: str) -> None:
    with pytest.raises(TraceError) as caught:
        from_csv(lines)
    assert words in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("give", "write", "sort", "begin", "seconds?"))


def test_samples_become_minutes_with_gaps() -> None:
    def sample(taken: float, load: float, trusted: bool = True) -> Sample:
        return Sample(taken, 15, load, 0, 0, 8, 2, 1, trusted)

    trace = from_samples([sample(15 * i, 2.0 + (i > 4)) for i in range(1, 9)] + [sample(240 + 15 * i, 7.0, i != 9) for i in range(1, 5)])
    assert trace.loads == [2.0, 3.0, None, None, 7.0]
    with pytest.raises(TraceError, match="no trusted sample"):
        from_samples([sample(15, 1, False)])
