# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ledgers of simulated days, as the trigger would have written them: for the report's tests, benchmark and screenshots."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import simulate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulated_world import Model
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import Survey
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Outlook, Plan, Sample

BEGIN = 1794178800.0  # Monday 2026-11-09 00:00 in Bratislava
SETTINGS: dict[str, Any] = {
    "min_nodes": 2, "max_nodes": 14, "workers": 8, "timezone": "Europe/Bratislava", "trend": "scale_out", "max_step_out": 4,
    "schedule": [{"name": "mornings", "nodes": 5, "from": "07:30", "until": "11:30", "days": ["mon", "tue", "wed", "thu", "fri"]}],
}
FLEET = """plugin: elearning.moodle_fleet.fleet
fleet: {name}
state_dir: state
cloud: {{driver: podman}}
costs: {{node_hour: 0.096, currency: EUR}}
scaling:
  min_nodes: 2
  max_nodes: 14
  workers: 8
  timezone: Europe/Bratislava
  trend: scale_out
  max_step_out: 4
  schedule:
    - {{name: mornings, nodes: 5, from: "07:30", until: "11:30", days: [mon, tue, wed, thu, fri]}}
"""


def loads(days: float, seed: int = 1) -> list[float | None]:
    """Minutes of a campus: quiet nights, two hills a day, an exam now and then, an hour without metrics."""
    chance = random.Random(seed)
    found: list[float | None] = []
    for minute in range(int(days * 1440)):
        hour, day = minute / 60 % 24, minute // 1440
        busy = 48 * math.exp(-0.5 * ((hour - 9.5) / 2.2) ** 2) + 32 * math.exp(-0.5 * ((hour - 18.5) / 2.0) ** 2) + 2.5
        busy *= 0.35 if day % 7 in (5, 6) else 1.0
        if day % 3 == 0 and 12.5 <= hour < 14:
            busy += 34 * math.exp(-(hour - 12.5) / 1.2)
        found.append(None if day % 5 == 0 and 3 <= hour < 3.6 else max(0.0, busy + chance.gauss(0, 0.35) * math.sqrt(busy)))
    return found


def build(path: Path, days: float, *, interval: float = 60.0, seed: int = 1, begin: float = BEGIN, node: str = "campus-web") -> int:
    """Write the ledger of a fleet that followed :func:`loads`; returns the number of checks."""
    chance = random.Random(seed)
    policy = Policy.from_settings(SETTINGS)
    number = 0
    with Ledger(path) as ledger:
        ledger._store._db.execute("PRAGMA synchronous=OFF")

        def usual(moment: float) -> float:
            """What a forecast that knows the shape of a day would say."""
            hour = (moment - begin) / 3600 % 24
            return 46 * math.exp(-0.5 * ((hour - 9.5) / 2.2) ** 2) + 30 * math.exp(-0.5 * ((hour - 18.5) / 2.0) ** 2) + 3

        def watch(now: float, taken: Sample, decision: Decision, seen: Survey) -> None:
            nonlocal number
            inputs = {"now": now, "size": seen.size, "sick": seen.sick, "known": True, "launch": 100.0, "phases": seen.counts}
            if now - begin > 21600 and taken.trusted:
                slot = int(now // 300) * 300
                ahead = Outlook(tuple((slot + 300.0 * i, usual(slot + 300.0 * i)) for i in range(3)), 300.0, 3, 21.0, 1.0)
                inputs["outlook"] = ahead.to_data()
            check = ledger.commit(now, "check", taken, decision, Plan(), ledger.mark(), inputs=inputs)
            if decision.direction != "none":
                steps = []
                for _index in range(abs(decision.desired - decision.size)):
                    number += 1
                    steps += _steps(decision.direction, f"{node}-{number:04x}", now, chance)
                ledger.record(check, steps)

        run = simulate(policy, Trace(begin, loads(days, seed)), Model(launch_seconds=95, interval=interval, node_life=400, seed=seed), watch=watch)
        ledger.pause("in", "exam board asked for it", begin + 41400, begin + 48600)
    return run.checks


def _steps(direction: str, name: str, now: float, chance: random.Random) -> list[dict[str, Any]]:
    def step(action: str, begin: float, failed: str = "", **parts: float) -> dict[str, Any]:
        seconds = sum(parts.values())
        return {"action": action, "node": name, "status": "failed" if failed else "done", "started": begin, "finished": begin + seconds,
                "seconds": seconds, "steps": parts, "message": failed}

    if direction == "out":
        lost = "the cloud has no capacity in zone b" if chance.random() < 0.04 else ""
        return [
            step("launch", now, lost, api=chance.uniform(1, 3), boot=chance.uniform(12, 30)),
            *([] if lost else [step("join", now + 33, prepare=chance.uniform(20, 40), verify=chance.uniform(2, 9), warm_up=chance.uniform(6, 18), ramp=10.0)]),
        ]
    return [step("drain", now, requests=chance.uniform(1, 60)), step("retire", now + 61, logs=chance.uniform(1, 5), terminate=chance.uniform(2, 6))]
