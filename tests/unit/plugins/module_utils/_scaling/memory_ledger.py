# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A ledger without a file, for very many short histories. The tests run the same histories on the real one too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Superseded, _acted
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import Minutes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    Decision,
    History,
    Intent,
    Pause,
    Plan,
    Sample,
)


class MemoryLedger:
    """The part of the ledger that a check uses."""

    def __init__(self) -> None:
        self._checks: list[tuple[float, int, str, int]] = []
        self._samples: list[Sample] = []
        self._intents: dict[str, tuple[Intent, str]] = {}
        self._open: list[tuple[int, str, str, float]] = []
        self._tokens: dict[str, str] = {}
        self._gone: set[str] = set()
        self._joins: dict[tuple[int, str], tuple[str, float]] = {}
        self._pauses: list[Pause] = []
        self._state: dict[str, Any] = {}
        self._plans = 0

    def mark(self) -> int:
        return self._plans

    def commit(
        self,
        started: float,
        origin: str,
        sample: Sample,
        decision: Decision,
        plan: Plan,
        mark: int,
        *,
        reading: Mapping[str, Any] | None = None,
        ghosts: Sequence[str] = (),
        message: str = "",
        seen: Mapping[str, int] | None = None,
        expired: Sequence[str] = (),
        inputs: Mapping[str, Any] | None = None,
    ) -> int:
        if plan and self._plans != mark:
            raise Superseded("superseded")
        check = len(self._checks) + 1
        self._checks.append((started, decision.recommended, _acted(plan), decision.size))
        self._samples.append(sample)
        for token, number in (seen or {}).items():
            intent, status = self._intents[token]
            intent = replace(intent, seen=max(intent.seen, number))
            self._intents[token] = (intent, "seen" if status == "open" and intent.seen >= intent.count else status)
        for token in expired:
            intent, status = self._intents[token]
            self._intents[token] = (intent, "expired" if status == "open" else status)
        for step in plan.steps:
            if step.action == "launch":
                intent = Intent(step.token, step.count, started, check, step.image, step.release)
                first, status = self._intents.setdefault(step.token, (intent, "open"))
                self._intents[step.token] = (replace(first, asked=started), status)
            elif step.token:
                self._tokens[step.node] = step.token
            self._open.append((check, step.action, step.node, started))
            if step.action == "join":
                self._joins[check, step.node] = (step.node, started)
        if reading is not None:
            self._state["reading"] = reading
        self._state["ghosts"] = list(ghosts)
        self._plans += bool(plan)
        return check

    def finish(self, check: int, now: float, status: str, message: str = "") -> None:
        self._open = [one for one in self._open if one[0] != check]

    def record(self, check: int, activities: Sequence[Mapping[str, Any]]) -> int:
        done = {one["node"] for one in activities if one["action"] in ("drain", "retire") and one["status"] == "done"}
        self._gone |= done
        for one in activities:
            if one["action"] == "join" and one["status"] == "failed":
                self._joins.pop((check, one["node"]), None)
        return len(activities)

    def activities(self, check: int) -> list[dict[str, Any]]:
        return []

    def history(self, now: float, window: float) -> History:
        begin = now - window
        wishes = [(when, wish) for when, wish, _acted, _size in self._checks if when <= now]
        first = max((when for when, _wish in wishes if when <= begin), default=begin)
        minutes = Minutes([s for s in self._samples if s.taken <= now])
        return History(
            recommended=tuple(item for item in wishes if item[0] >= first),
            samples=tuple(s for s in self._samples if begin <= s.taken <= now),
            minutes=minutes.lately(now),
            swing=minutes.swing(now),
            flutter=minutes.flutter(now),
            last_out=max((when for when, _w, acted, _s in self._checks if acted == "out"), default=0.0),
            last_in=max((when for when, _w, acted, _s in self._checks if acted == "in"), default=0.0),
            ghosts=frozenset(self._state.get("ghosts", ())),
        )

    def intents(self, since: float) -> list[Intent]:
        gone = Counter(self._tokens.get(node, "") for node in self._gone)
        found = [i for i, status in self._intents.values() if status == "open" or max(i.created, i.asked) >= since]
        return [replace(i, gone=gone[i.token]) for i in found]

    def leaving(self, since: float) -> dict[str, float]:
        result: dict[str, float] = {}
        for _check, action, node, planned in self._open:
            if action in ("drain", "retire") and planned >= since:
                result[node] = min(planned, result.get(node, planned))
        return result

    def slots(self, ranges: Sequence[tuple[int, int]]) -> tuple[float | None, dict[int, float]]:
        return None, {}

    def launch_times(self) -> list[float]:
        return [180.0]

    def joined(self, since: float) -> dict[str, float]:
        return {node: planned for node, planned in self._joins.values() if planned >= since}

    def state(self, key: str) -> Any:
        return self._state.get(key)

    def pause(self, scope: str, reason: str, now: float, until: float = 0.0) -> None:
        self._pauses = [pause for pause in self._pauses if pause.scope != scope] + [Pause(scope, reason, now, until)]

    def resume(self, now: float) -> int:
        count, self._pauses = len(self._pauses), []
        return count

    def pauses(self, now: float) -> list[Pause]:
        return [pause for pause in self._pauses if not pause.until or pause.until > now]

    def checks(self, limit: int) -> list[dict[str, Any]]:
        return [{"size": self._checks[-1][3]}] if self._checks else []

    def prune(self, now: float, keep_days: float) -> None:
        """Nothing to forget here."""
