# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Our policy where the tenants' databases told of the exams before, for a table of its own beside that of ``policies``.

Nor does ours know all: some exams are no quiz of Moodle, and to the others more or fewer come than were to be expected. Its habits are those that are
assumed before anything is learnt, also where they are dear: a closing brings half of what the opening does, in these traces less than a fifth.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from curves import OURS, at_most_half, averages, lacks, least
from exam import quiz
from traces import Exam, Shape, generate

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import events

# The shape that has exams, and what ours is called where it knows of them.
EXAMS, KNOWING = "exam storm", f"{OURS} that knows"
# The standard deviation of those who come, as a share of those who were expected, and the share of exams of which nobody was told.
ERROR, UNTOLD = 0.15, 0.2


def told(trace: Shape, seed: int) -> list[Exam]:
    """The exams of a trace that are known, each with the people who are expected."""
    # Chances of its own: the loads stay those that all the others get.
    chance = random.Random(f"told {trace.name}-{seed}")
    drawn = [(exam, chance.random() >= UNTOLD, chance.gauss(1.0, ERROR)) for exam in trace.exams]
    return [replace(exam, people=exam.people / come) for exam, known, come in drawn if known]


def foreseen(exams: Sequence[Exam], begin: float, slots: Mapping[int, float]) -> events.Foreseen:
    """What the reader leaves for the checks of the day; ``slots`` is what the ledger kept of the weeks before."""
    learnt = events.Learnt()
    quizzes = [quiz(f"Exam {number}", begin + 60 * one.start, one.minutes, one.people, learnt) for number, one in enumerate(exams, 1)]
    hours = {int(at // 3600) for one in quizzes for _kind, at, _came in one.moments()}
    usual = {hour: events.usual_load(events.usual_ranges(hour, "UTC"), slots) for hour in hours}
    return events.Foreseen(tuple(events.coming(quizzes, learnt, begin, usual)), begin)


def compare(rows: Iterable[Mapping[str, Any]], seeds: int) -> tuple[list[dict[str, Any]], str]:
    """For each launch time ours without and with known exams, beside the best other at as many node-hours; and the sum in a sentence.

    ``rows`` are those of all policies, and ours once more as :data:`KNOWING`.
    """
    average = averages(rows)
    table, before, after = [], [], []
    traces = [generate(EXAMS, seed) for seed in range(seeds)]
    percent = len(traces[0].loads) * 0.6
    for (name, launch, policy, setting), (hours, under, _unstable) in sorted(average.items()):
        if policy != KNOWING:
            continue
        best_hours = average[name, launch, "oracle", ""][0]
        without = average[name, launch, OURS, setting]
        rival, lack = least(lacks(average, name, launch, hours))
        before.append(without[1])
        after.append(under)
        table.append({
            "launch s": launch, "of oracle": without[0] / best_hours, "under %": without[1] / percent, "of oracle, known": hours / best_hours,
            "under %, known": under / percent, "best other": rival, "its under % at these hours": lack / percent,
            "half": "yes" if at_most_half(under, lack) else "NO",
        })
    exams, known = sum(len(trace.exams) for trace in traces), sum(len(told(trace, seed)) for seed, trace in enumerate(traces))
    return table, (
        f"With {known} of {exams} exams known, at equal node-hours at most half the best other's under-provisioned time: "
        f"{sum(row['half'] == 'yes' for row in table)} of {len(table)} launch times; {sum(after) / len(after):.0f} s against "
        f"{sum(before) / len(before):.0f} s where nobody knows, mean per trace."
    )
