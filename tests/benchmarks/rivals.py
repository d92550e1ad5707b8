# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Autoscalers as they are documented, for the policy benchmark: many traces and settings side by side, in steps of 15 s.

All see the load of the current minute without delay and beyond 100 % (as requests for each target would show it), except simple
and step scaling, which go by CPU; their nodes need the same time to launch and to drain as ours. Where the documents leave a choice, it is
made in their favour.

- simple, step: EC2 Auto Scaling, "Step and simple scaling policies": CPU alarms above 75 % and below 25 % for two minutes; simple waits
  300 s after each activity; step adds a percentage of the group, twice as much above 90 %, and what still warms up counts as added.
- target: EC2 Auto Scaling, "Target tracking scaling policies": out after 3 one-minute points above the target, in after 15 below 90 %
  of it and not while nodes warm up, in proportion.
- kubernetes: Horizontal Pod Autoscaling (autoscaling/v2 defaults): every 15 s, tolerance 0.1, pods that are not ready count, up by the larger
  of 4 pods and 100 % in 15 s, down after the highest wish of 300 s.
- nomad: Nomad Autoscaler, strategy target-value: threshold 0.01, query over one minute, cooldown 5 min by default, swept too.
- predictive: EC2 Auto Scaling, "Predictive scaling": a floor for each hour from the same hour of the last two weeks, there before the hour
  begins, together with target tracking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

STEP = 15
MINUTE_STEPS = 4
DRAIN = 40.0  # seconds that a node costs after it left service
TARGETS = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)


class Lanes:
    """Fleets side by side: one for each trace (rows of ``loads``, minutes), launch time and setting."""

    def __init__(self, loads: np.ndarray, launch: np.ndarray, workers: int, least: int, most: int) -> None:
        self.loads, self.workers, self.least, self.most = np.ascontiguousarray(loads.T), workers, least, most
        self.up = np.clip(np.ceil(loads[:, 0] / (workers * 0.7)), least, most).astype(np.int64)
        self.delay = (launch // STEP).astype(np.int64)
        self.ring = int(self.delay.max()) + 1
        self.coming = np.zeros((self.ring, len(loads)), dtype=np.int64)
        self.pending = np.zeros(len(loads), dtype=np.int64)
        self.seconds = np.zeros(len(loads))
        self.steps = loads.shape[1] * MINUTE_STEPS
        self.supply = np.zeros((self.steps, len(loads)), dtype=np.int16)
        self.lanes = np.arange(len(loads))
        self.now = 0

    def tick(self) -> np.ndarray:
        """One step: launches arrive, nodes cost. Returns the load of this minute."""
        arrived = self.coming[self.now % self.ring]
        self.up += arrived
        self.pending -= arrived
        arrived[:] = 0
        self.supply[self.now] = self.up
        self.seconds += self.up + self.pending
        load = self.loads[self.now // MINUTE_STEPS]
        self.now += 1
        return load

    def want(self, desired: np.ndarray) -> None:
        """Launch what lacks, or take away what serves."""
        change = np.minimum(np.maximum(desired, self.least), self.most).astype(np.int64) - self.up - self.pending
        if not change.any():
            return
        out = np.maximum(change, 0)
        # Seen at the end of a step, so it serves that many steps later.
        self.coming[(self.now + self.delay) % self.ring, self.lanes] += out
        self.pending += out
        gone = np.minimum(np.maximum(-change, 0), np.maximum(self.up - self.least, 0))
        self.up -= gone
        self.seconds += gone * (DRAIN / STEP)


def cpu_alarms(lanes: Lanes, setting: np.ndarray, step: bool) -> None:
    """Simple and step scaling; ``setting`` rows are (adjustment, low threshold)."""
    size = len(lanes.up)
    high, low, rest = np.zeros(size), np.zeros(size), np.zeros(size)
    for now in range(lanes.steps):
        load = lanes.tick()
        rest -= STEP
        if now % MINUTE_STEPS != MINUTE_STEPS - 1:
            continue
        cpu = np.minimum(1.0, load / (lanes.up * lanes.workers))
        high = np.where(cpu > 0.75, high + 1, 0)
        low = np.where(cpu < setting[:, 1], low + 1, 0)
        total = lanes.up + lanes.pending
        if step:
            share = np.where(cpu > 0.9, 2 * setting[:, 0], setting[:, 0])
            wish = lanes.up + np.maximum(1, np.ceil(lanes.up * share - 1e-9))
            out = (high >= 2) & (wish > total)
            less = (low >= 2) & (lanes.pending == 0) & (rest <= 0)
            lanes.want(np.where(out, wish, np.where(less, total - np.maximum(1, total // 10), total)))
            rest = np.where(less, 300, rest)
        else:
            free = rest <= 0
            out, less = (high >= 2) & free, (low >= 2) & free
            lanes.want(np.where(out, total + setting[:, 0], np.where(less, total - 1, total)))
            rest = np.where(out | less, 300, rest)


def target(lanes: Lanes, setting: np.ndarray, floors: np.ndarray | None = None) -> None:
    """Target tracking; with ``floors`` (nodes by minute) also predictive scaling."""
    goal = setting[:, 0]
    high, low = np.zeros(len(lanes.up)), np.zeros(len(lanes.up))
    for now in range(lanes.steps):
        load = lanes.tick()
        if now % MINUTE_STEPS != MINUTE_STEPS - 1:
            continue
        total = lanes.up + lanes.pending
        busy = load / (lanes.up * lanes.workers)
        high = np.where(busy > goal, high + 1, 0)
        low = np.where(busy < 0.9 * goal, low + 1, 0)
        fit = np.ceil(load / (lanes.workers * goal) - 1e-9)
        wish = np.where(high >= 3, np.maximum(fit, total), total)
        wish = np.where((low >= 15) & (lanes.pending == 0), np.minimum(fit, total), wish)
        if floors is not None:
            wish = np.maximum(wish, floors[now // MINUTE_STEPS])
        lanes.want(wish)


def kubernetes(lanes: Lanes, setting: np.ndarray) -> None:
    """The horizontal autoscaler."""
    goal = setting[:, 0]
    recent: list[np.ndarray] = []
    for _now in range(lanes.steps):
        load = lanes.tick()
        total = lanes.up + lanes.pending
        ratio = load / (lanes.up * lanes.workers * goal)
        fit = np.ceil(load / (lanes.workers * goal) - 1e-9)
        wish = np.where(np.abs(ratio - 1) <= 0.1, total, np.where(ratio > 1, np.maximum(fit, total), fit))
        recent = [*recent[-19:], wish]
        wish = np.where(wish < total, np.minimum(total, np.max(recent, axis=0)), wish)
        lanes.want(np.minimum(wish, np.maximum(total + 4, 2 * total)))


def nomad(lanes: Lanes, setting: np.ndarray) -> None:
    """Target-value with a cooldown; ``setting`` rows are (target, cooldown)."""
    rest = np.zeros(len(lanes.up))
    for _now in range(lanes.steps):
        load = lanes.tick()
        rest -= STEP
        total = lanes.up + lanes.pending
        factor = load / (lanes.up * lanes.workers * setting[:, 0])
        wish = np.where(np.abs(factor - 1) > 0.01, np.ceil(lanes.up * factor - 1e-9), total)
        wish = np.clip(np.where((factor > 1) & (wish < total), total, wish), lanes.least, lanes.most)
        acts = (rest <= 0) & (wish != total)
        lanes.want(np.where(acts, wish, total))
        rest = np.where(acts, setting[:, 1], rest)


def hourly_floors(history: np.ndarray, minutes: int, launch: np.ndarray, workers: int, goal: np.ndarray) -> np.ndarray:
    """Nodes by minute, from the highest five minutes of the same hour in the last two weeks, there before the hour begins."""
    week = 7 * 1440
    last = history[:, -2 * week:].reshape(len(history), 2, week // 60, 12, 5).mean(axis=4).max(axis=3).mean(axis=1)
    nodes = np.ceil(last / (workers * goal[:, None]) - 1e-9)
    by_minute = np.repeat(nodes, 60, axis=1)
    present, ahead = np.arange(minutes), -(-launch // 60)
    sooner = np.take_along_axis(by_minute, (present[None, :] + ahead[:, None]) % week, axis=1)
    return np.ascontiguousarray(np.maximum(by_minute[:, present % week], sooner).T)


RIVALS: dict[str, Sequence[tuple[float, ...]]] = {
    "simple": [(a, low) for low in (0.25, 0.45) for a in (1, 2, 3, 5, 8, 12)],
    "step": [(a, low) for low in (0.25, 0.45) for a in (0.1, 0.2, 0.4, 0.7, 1.0, 2.0)],
    "target": [(goal,) for goal in TARGETS],
    "kubernetes": [(goal,) for goal in TARGETS],
    "nomad": [(goal, rest) for rest in (60.0, 300.0) for goal in TARGETS],
    "predictive": [(goal,) for goal in TARGETS],
}


def run(name: str, loads: np.ndarray, history: np.ndarray, launches: Sequence[int], workers: int, least: int, most: int) -> tuple[Any, Any]:
    """(supply by step, node-hours) of a rival, each for (traces, launch times, settings)."""
    settings = RIVALS[name]
    traces, count = len(loads), len(settings)
    setting = np.tile(np.array(settings), (traces * len(launches), 1))
    each = count * len(launches)
    many = np.repeat(loads, each, axis=0)
    launch = np.tile(np.repeat(np.array(launches), count), traces)
    lanes = Lanes(many, launch, workers, least, most)
    if name in ("simple", "step"):
        cpu_alarms(lanes, setting, name == "step")
    elif name == "kubernetes":
        kubernetes(lanes, setting)
    elif name == "nomad":
        nomad(lanes, setting)
    else:
        floors = None
        if name == "predictive":
            past = np.repeat(history, each, axis=0)
            floors = hourly_floors(past, loads.shape[1], launch, workers, setting[:, 0])
        target(lanes, setting, floors)
    shape = traces, len(launches), count
    return lanes.supply.reshape(lanes.steps, *shape), (lanes.seconds * STEP / 3600).reshape(shape)
