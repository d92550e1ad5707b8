# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The story of a fleet between two moments, collected check by check, from a ledger or from a simulated run. No I/O."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import elasticity
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Sample
from ansible_collections.elearning.moodle_fleet.trigger.report.series import Band, Spans, Steps

# The newest of each kind that the page lists; it says when there are more.
MOST_DECISIONS, MOST_ACTIVITIES, MOST_SPANS, MOST_TENANTS = 3000, 2000, 1000, 300
# A silence of this many usual intervals is a gap, which is shown and bridged by nothing.
GAP_INTERVALS, LEAST_GAP = 5, 180.0

# What is drawn as one colour. Phases are those of docs/scaling.md.
GROUPS: dict[str, tuple[str, ...]] = {
    "serving": ("in_service",),
    "coming": ("launching", "building", "ready", "joining", "asked"),
    "trouble": ("failing", "sick", "stranded", "unknown"),
    "leaving": ("draining", "drained", "stopping"),
}
_GROUP_OF = {phase: name for name, phases in GROUPS.items() for phase in phases}
# Reasons that are shown as times in which they held, with the lane they are shown in.
LANES: dict[str, str] = {
    "schedule": "Schedule", "events": "Events", "forecast": "Forecast asks", "trend": "Trend asks",
    "max_nodes": "Capped at the maximum", "many_sick": "Brake: many sick", "saturated": "Brake: saturated",
    "untrusted": "Brake: doubt", "no_cloud": "Cloud silent", "paused": "Paused", "paused_in": "Paused, scaling in",
}
_METRICS = "Metrics doubted"
_SILENT = "No check"
LANE_ORDER = (*dict.fromkeys(LANES.values()), _METRICS, _SILENT)


class Story:
    """Collects checks in the order of their times; :meth:`to_data` is what the page is drawn from."""

    def __init__(self, policy: Policy, begin: float, end: float, interval: float = 15.0) -> None:
        self.policy, self.begin, self.end = policy, begin, max(end, begin + 60)
        self.gap = max(LEAST_GAP, GAP_INTERVALS * interval)
        self.checks = self.untrusted = 0
        self.longest_silence = 0.0
        self.last: float | None = None
        self.load = Band(self.begin, self.end)
        self.capacity, self.up, self.desired, self.floor = Steps(), Steps(), Steps(), Steps()
        self.expected = Steps()
        self.phases: dict[str, Steps] = {}
        self.groups = {name: Steps() for name in GROUPS}
        self.existing = Steps()
        self.lanes: dict[str, Spans] = {}
        self.decisions: list[dict[str, Any]] = []
        self.more_decisions = 0
        self.activities: list[dict[str, Any]] = []
        self.more_activities = 0

    # -- taking in -------------------------------------------------------------------------------------------------

    def check(
        self, moment: float, sample: Sample, decision: Mapping[str, Any] | None, phases: Mapping[str, int] | None,
        expected: Sequence[float] | None = None,
    ) -> None:
        """Take a check: its sample, decision (as data), nodes by phase, and the loads that the forecast expected."""
        self._silence(moment)
        self.checks += 1
        self.last = moment
        if sample.trusted and sample.seconds > 0:
            self.load.add(sample.taken, sample.load, min(sample.seconds, self.gap))
            self.capacity.add(moment, sample.capacity)
            self.up.add(moment, sample.up)
        else:
            self.untrusted += 1
        if decision is None:
            return
        if phases is None:
            # Ledgers of before phases were recorded.
            up = min(sample.up, decision["size"]) if sample.trusted else decision["size"]
            phases = {"in_service": up, "asked": decision["size"] - up}
        self._phases(moment, phases)
        self.desired.add(moment, decision["desired"])
        self.expected.add(moment, [round(min(expected), 1), round(max(expected), 1)] if expected else None)
        self._reasons(moment, decision)

    def _phases(self, moment: float, phases: Mapping[str, int]) -> None:
        sums = dict.fromkeys(GROUPS, 0)
        for phase, count in phases.items():
            if phase in _GROUP_OF:
                sums[_GROUP_OF[phase]] += count
        for phase in {*phases, *self.phases}:
            self.phases.setdefault(phase, Steps()).add(moment, phases.get(phase, 0))
        for name, count in sums.items():
            self.groups[name].add(moment, count)
        self.existing.add(moment, sum(sums.values()))

    def _reasons(self, moment: float, decision: Mapping[str, Any]) -> None:
        reasons = decision.get("reasons", ())
        floors = []
        for reason in reasons:
            code = reason["code"]
            if code in ("schedule", "events"):
                floors.append(reason["desired"])
            lane = LANES.get(code) or (_METRICS if code.startswith("metrics_") else "")
            # A recommender is only shown where it asked for more than there was.
            if lane and (code not in ("forecast", "trend") or reason["desired"] > decision["size"]):
                self._lane(lane).add(moment, moment, reason["text"])
        self.floor.add(moment, max(floors) if floors else None)
        if decision["direction"] == "none":
            return
        if len(self.decisions) >= MOST_DECISIONS:
            del self.decisions[0]
            self.more_decisions += 1
        self.decisions.append({
            "at": int(moment - self.begin), "size": decision["size"], "desired": decision["desired"],
            "why": [[reason["text"], reason["desired"]] for reason in reasons],
        })

    def _lane(self, name: str) -> Spans:
        return self.lanes.setdefault(name, Spans(self.gap))

    def _silence(self, moment: float) -> None:
        """Nothing is known of a time without checks: curves end there."""
        before = self.begin if self.last is None else self.last
        if self.last is not None:
            self.longest_silence = max(self.longest_silence, moment - before)
        if moment - before <= self.gap:
            return
        if self.last is not None:
            self._lane(_SILENT).add(before, moment, f"no check for {moment - before:.0f} s")
        for steps in (self.capacity, self.up, self.desired, self.floor, self.expected, self.existing,
                      *self.phases.values(), *self.groups.values()):
            if steps.points:
                steps.add(before + self.gap, None)

    def forecast(self, expected: Sequence[tuple[float, float]]) -> None:
        """Take what a simulated run's forecast expected at the most, instead of that of each check."""
        self.expected = Steps()
        for moment, load in expected:
            self.expected.add(moment, [round(load, 1)] * 2)

    def pause(self, scope: str, begin: float, end: float, reason: str) -> None:
        """Take a pause that an operator set."""
        lane = LANES["paused_in" if scope == "in" else "paused"]
        self._lane(lane).add(max(begin, self.begin), min(end, self.end), reason or "no reason given")

    def activity(self, row: Mapping[str, Any]) -> None:
        """Take a step and what became of it, as the ledger has it; oldest first."""
        if len(self.activities) >= MOST_ACTIVITIES:
            del self.activities[0]
            self.more_activities += 1
        begun = row["started"] or row["planned"]
        seconds = row["seconds"] if row["seconds"] is not None else max(0.0, (row["finished"] or begun) - begun)
        self.activities.append({
            "at": int(begun - self.begin), "action": row["action"], "node": row["node"], "status": row["status"],
            "seconds": round(seconds, 1), "reason": row["reason"], "message": row["message"],
            "steps": [[str(name), round(float(took), 1)] for name, took in row["steps"].items()
                      if isinstance(took, (int, float)) and took > 0],
        })

    # -- giving out ------------------------------------------------------------------------------------------------

    def needed(self) -> Steps:
        """Nodes that the load needed, as ``moodle-fleet simulate`` counts them; unknown without load."""
        steps = Steps()
        means = self.load.means()
        for index, count in enumerate(elasticity.needed(means, self.policy.workers, self.policy.min_nodes)):
            steps.add(self.begin + index * self.load.width, count)
        return steps

    def to_data(self) -> dict[str, Any]:
        """Everything the page shows, as plain data."""
        begin, end = self.begin, self.end

        def drawn(steps: Steps) -> list[list[Any]]:
            return steps.to_data(begin, end)

        return {
            "begin": int(begin), "end": int(end), "timezone": self.policy.timezone, "checks": self.checks,
            "untrusted": self.untrusted, "longest_silence": round(self.longest_silence), "gap": self.gap,
            "policy": {"min_nodes": self.policy.min_nodes, "max_nodes": self.policy.max_nodes, "workers": self.policy.workers,
                       "target": self.policy.target},
            "load": self.load.to_data(),
            "capacity": drawn(self.capacity), "up": drawn(self.up), "desired": drawn(self.desired), "floor": drawn(self.floor),
            "needed": drawn(self.needed()), "existing": drawn(self.existing),
            "expected": [[int(moment - begin), *(value or (None, None))] for moment, value in self._expected()],
            "groups": {name: drawn(steps) for name, steps in self.groups.items()},
            "phases": {name: drawn(steps) for name, steps in self.phases.items()},
            "lanes": [[name, self.lanes[name].to_data(begin, MOST_SPANS)] for name in LANE_ORDER if name in self.lanes],
            "decisions": self.decisions, "more_decisions": self.more_decisions,
            "activities": self.activities, "more_activities": self.more_activities,
        }

    def _expected(self) -> list[tuple[float, list[float] | None]]:
        """The forecast, at most one value a bucket: within one the last says it best."""
        points = self.expected.points
        moments = [moment for moment, _value in points]
        kept: list[tuple[float, list[float] | None]] = []
        for index in range(len(self.load.low)):
            place = bisect.bisect_left(moments, self.begin + (index + 1) * self.load.width) - 1
            if place >= 0 and (not kept or kept[-1] is not points[place]):
                kept.append(points[place])
        return kept
