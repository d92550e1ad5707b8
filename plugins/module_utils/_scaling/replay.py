# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The decisions of a ledger, made again from what it recorded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.decide import decide
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.memory import Memory
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import Survey
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    Decision,
    Outlook,
    Pause,
    Sample,
)


@dataclass(frozen=True)
class Replay:
    """How many recorded decisions came out the same when made again; ``differences`` are (check, recorded, now)."""

    checks: int
    identical: int
    skipped: int
    differences: Sequence[tuple[int, Decision, Decision]]


def replay(
    policy: Policy, recorded: Iterable[tuple[Mapping[str, Any], Sample]], pauses: Sequence[tuple[Pause, float]] = ()
) -> Replay:
    """Make the decisions of a ledger again from what it recorded, by today's code and this policy.

    ``recorded`` are checks with their samples, oldest first; ``pauses`` with the time at which each was ended by hand.
    Checks without a decision of their own (the cloud did not answer) are skipped.
    """
    memory = Memory(policy.lookback)
    checks = identical = skipped = 0
    differences: list[tuple[int, Decision, Decision]] = []
    for row, taken in recorded:
        was = Decision.from_data(row["decision"])
        inputs = row.get("inputs")
        if inputs is None:
            skipped += 1
        else:
            now = float(inputs["now"])
            force = tuple(
                pause for pause, ended in pauses
                if pause.since <= now and (not ended or ended > now) and (not pause.until or pause.until > now)
            )
            ahead, known = inputs.get("outlook"), inputs.get("events")
            again = decide(
                policy, taken, _Recorded(inputs), memory.history(now), now,
                pauses=force, saturated=inputs.get("saturated"), manual=inputs.get("manual"),
                outlook=Outlook.from_data(ahead) if ahead else None, launch_seconds=float(inputs["launch"]),
                events=Foreseen.from_data(known) if known else None,
            )
            checks += 1
            if again == was:
                identical += 1
            else:
                differences.append((int(row["id"]), was, again))
        memory.add(float(row["started"]), was.recommended, taken, str(row["acted"]))
    return Replay(checks, identical, skipped, differences)


class _Recorded(Survey):
    """A survey of which only the numbers were kept that a decision looks at."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        super().__init__((), (), bool(inputs["known"]))
        self.__dict__.update({name: int(inputs.get(name, 0)) for name in ("size", "sick", "announced")})
