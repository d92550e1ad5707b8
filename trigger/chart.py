# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Charts as SVG in one HTML page that needs nothing else: no script from elsewhere, no font, light and dark."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import elasticity
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.simulate import Run
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import Trace

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1200, 280, 56, 12, 12, 28
# More points than this across the page nobody can tell apart; of those that fall together the extremes are drawn.
COLUMNS = 1100
MOST_DECISIONS = 2000

STYLE = """
:root { color-scheme: light dark; --page: #f7f8fa; --card: #fff; --text: #1c2430; --soft: #667085; --line: #e3e7ee;
  --a: #2563eb; --b: #ea580c; --c: #0f9d74; --d: #9333ea; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1319; --card: #181e27; --text: #e6eaf0; --soft: #98a2b3; --line: #2a323e;
  --a: #6ea8ff; --b: #ff9a57; --c: #4fd1a5; --d: #c49bff; } }
* { box-sizing: border-box } body { margin: 0; padding: 28px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; } main { max-width: 1260px; margin: auto } h1 { margin: 0 0 4px; font-size: 26px }
h2 { margin: 0 0 8px; font-size: 17px } p { margin: 0 0 18px; color: var(--soft) }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px; margin: 0 0 18px; overflow-x: auto }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 0 0 18px }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px 16px } .tile b { display: block; font-size: 22px }
.tile span, .key { color: var(--soft); font-size: 13px } .key i { display: inline-block; width: 14px; height: 3px; margin: 0 6px 3px 14px }
svg { width: 100%; min-width: 640px; height: auto; display: block } svg text { fill: var(--soft); font-size: 12px }
.grid { stroke: var(--line) } .a { stroke: var(--a) } .b { stroke: var(--b) } .c { stroke: var(--c) } .d { stroke: var(--d) }
path { fill: none; stroke-width: 1.6; vector-effect: non-scaling-stroke } path.d { stroke-width: 1 }
circle { fill-opacity: .75 } circle.out { fill: var(--b) } circle.in { fill: var(--d) }
table { border-collapse: collapse; width: 100%; font-size: 14px } td, th { text-align: left; padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top } th { color: var(--soft); font-weight: 500 }
"""


class Chart:
    """One chart over time; ``begin`` and ``end`` are Unix seconds, values go from 0 to ``top``."""

    def __init__(self, begin: float, end: float, top: float) -> None:
        self.begin, self.span, self.top = begin, max(1.0, end - begin), max(top, 1e-9) * 1.05
        self.parts: list[str] = [self._axes()]

    def x(self, moment: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (moment - self.begin) / self.span

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(value, self.top) / self.top)

    def _axes(self) -> str:
        parts = []
        step = _nice(self.top / 5)
        for index in range(int(self.top / step) + 1):
            place = self.y(index * step)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
                         f'<text x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{index * step:g}</text>')
        steps = (3600, 3 * 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 91 * 86400)
        apart = next((one for one in steps if self.span / one <= 12), steps[-1])
        moment = (self.begin // apart + 1) * apart
        while moment < self.begin + self.span:
            shape = "%a %d %b" if apart >= 86400 else "%H:%M"
            parts.append(f'<text x="{self.x(moment):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{time.strftime(shape, time.gmtime(moment))}</text>')
            moment += apart
        return "".join(parts)

    def curve(self, points: Sequence[tuple[float, float | None]], look: str, *, steps: bool = False) -> None:
        """A line; None is a gap. With ``steps`` a value holds until the next one."""
        drawn, pen, last = [], "M", None
        for moment, value in thinned(points):
            if value is None:
                pen, last = "M", None
                continue
            if steps and last is not None:
                drawn.append(f"H{self.x(moment):.1f}V{self.y(value):.1f}")
            else:
                drawn.append(f"{pen}{self.x(moment):.1f} {self.y(value):.1f}")
            pen, last = "L", value
        if steps and last is not None:
            drawn.append(f"H{WIDTH - RIGHT}")
        self.parts.append(f'<path class="{look}" d="{"".join(drawn)}"/>')

    def dot(self, moment: float, value: float, look: str, told: str, size: float = 4) -> None:
        """A point with a text on hover."""
        self.parts.append(f'<circle class="{look}" r="{size:g}" cx="{self.x(moment):.1f}" cy="{self.y(value):.1f}"><title>{html.escape(told)}</title></circle>')

    def svg(self, label: str) -> str:
        """The chart."""
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label, quote=True)}">'
                + "".join(self.parts) + "</svg>")


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most about two points for each column of the page: the least and the greatest of those that fall together."""
    size = max(1, len(points) // COLUMNS)
    if size < 3:
        return list(points)
    result: list[tuple[float, float | None]] = []
    for first in range(0, len(points), size):
        known = [(value, moment) for moment, value in points[first:first + size] if value is not None]
        if not known:
            result.append((points[first][0], None))
            continue
        ends = sorted({min(known), max(known)}, key=lambda one: one[1])
        result += [(moment, value) for value, moment in ends]
    return result


def _nice(step: float) -> float:
    power = 10.0 ** len(str(int(step))) / 10 if step >= 1 else 0.1
    return float(next((power * factor for factor in (1, 2, 5, 10) if power * factor >= step), power * 10))


def page(title: str, subtitle: str, tiles: Sequence[tuple[str, str]], sections: Sequence[str]) -> str:
    """A whole page from escaped sections."""
    boxes = "".join(f"<div class=tile><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in tiles)
    return (f"<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>"
            f"<p>{html.escape(subtitle)}</p><div class=tiles>{boxes}</div>{''.join(sections)}</main></body></html>\n")


def section(title: str, keys: Sequence[tuple[str, str]], body: str) -> str:
    """One card with a legend."""
    legend = "".join(f'<i style="background:var(--{look})"></i>{html.escape(name)}' for look, name in keys)
    return f"<section><h2>{html.escape(title)}</h2><div class=key>{legend}</div>{body}</section>"


def simulation_page(name: str, policy: Policy, trace: Trace, run: Run, data: Mapping[str, Any]) -> str:
    """The page of ``moodle-fleet simulate --plot``."""
    minutes = [trace.begin + 60 * index for index in range(len(trace.loads))]
    demand = elasticity.needed(trace.loads, policy.workers, policy.min_nodes)
    supply = [(moment, float(count)) for moment, count in run.supply]
    top = max([float(one) for one in demand if one is not None] + [count for _moment, count in supply])
    nodes = Chart(trace.begin, trace.end, top)
    nodes.curve(supply, "a", steps=True)
    nodes.curve([(moment, None if one is None else float(one)) for moment, one in zip(minutes, demand)], "c", steps=True)
    small = 4 if len(run.decisions) < 200 else 2
    for one in run.decisions[-MOST_DECISIONS:]:
        why = "\n".join(f"{reason.text} → {reason.desired}" for reason in one.decision.reasons)
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.time))
        nodes.dot(one.time, one.decision.desired, one.decision.direction, f"{when}: {one.decision.size} → {one.decision.desired}\n{why}",
                  small)
    load = Chart(trace.begin, trace.end, max([one for one in trace.loads if one is not None] + [one for _moment, one in run.outlooks]))
    load.curve(list(zip(minutes, trace.loads)), "a")
    load.curve(list(run.outlooks), "d")
    rows = "".join(
        f"<tr><td>{html.escape(key.replace('_', ' '))}<td>{html.escape(json.dumps(value))}" for key, value in data.items()
        if isinstance(value, (int, float))
    )
    tiles = [
        ("of the time under-provisioned", f"{data['under_provisioned_share']:.3%}"),
        ("node-hours", f"{data['node_hours']:.0f}"),
        ("of the oracle's node-hours", f"{data['node_hours'] / max(data['oracle_node_hours'], 1e-9):.2f} ×"),
        ("of those of a fleet that is never too small", f"{data['node_hours'] / max(data['static_peak_node_hours'], 1e-9):.0%}"),
        ("requests turned away", f"{data['waiting']['lost']:.0f}"),
        ("instability", f"{data['instability']:.1%}"),
    ]
    return page(
        f"Fleet {name}: simulation", f"{len(trace.loads) / 1440:.1f} days, times in UTC; decisions tell their reasons on hover", tiles,
        [section("Nodes", [("c", "needed"), ("a", "in service"), ("b", "decision to grow"), ("d", "decision to shrink")],
                 nodes.svg("Nodes needed and in service")),
         section("Load", [("a", "requests in service"), ("d", "expected by the weekly shape")], load.svg("Load and forecast")),
         f"<section><h2>Numbers</h2><table>{rows}</table></section>"],
    )
