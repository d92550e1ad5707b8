# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The scaling policy: its keys, their defaults and limits, and one place that judges them.

``validate_policy`` lists every problem of the ``scaling`` part of a fleet file; ``Policy.from_settings`` builds the
policy from settings without problems. The reasons for the defaults are in docs/scaling.md.
"""

from __future__ import annotations

import datetime
import math
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import ScheduleEntry

Problem = tuple[str, Any, str]


@dataclass(frozen=True)
class Setting:
    """One key of the policy: ``kind`` is ``int``, ``float``, ``zone``, ``choice`` or ``list``; None has no default value.

    ``choices`` are the words that may be given, for a number instead of one.
    """

    kind: str
    default: Any
    low: float | None
    high: float | None
    help: str
    choices: tuple[str, ...] = ()


DAY = 86400.0
# How many windows a node that nobody wants may wait for a good moment to go.
PATIENCE = 3
# Samples and wishes of less say too little to judge a reading by.
LEAST_LOOKBACK = 900.0

POLICY_SCHEMA: dict[str, Setting] = {
    "min_nodes": Setting("int", 2, 1, 10000, "web nodes that always stay in service"),
    "max_nodes": Setting("int", 6, 1, 10000, "web nodes that may exist at the same time"),
    "workers": Setting("int", 4, 1, 10000, "workers of a web node, until its members report their own"),
    "target": Setting("float", 0.7, 0.05, 1.0, "share of the workers that should be busy"),
    "dead_band": Setting("float", 0.1, 0.0, 0.9, "share around the target in which nothing is done"),
    "scale_out_above": Setting("float", None, 0.05, 1.0, "busy share above which nodes are added, instead of dead_band"),
    "scale_in_below": Setting("float", None, 0.0, 1.0, "busy share below which nodes go, instead of dead_band"),
    "scale_in_window": Setting("int", 300, 0, 7 * DAY, "seconds whose highest wish counts before a node goes"),
    "cooldown_out": Setting("int", 15, 0, DAY, "seconds after adding nodes before more are added"),
    "cooldown_in": Setting("int", 300, 0, DAY, "seconds after adding nodes before one goes"),
    "cooldown_between": Setting("int", None, 0, DAY, "seconds after a node went before the next goes, 60 or cooldown_in if that is less"),
    "max_step_out": Setting("float", 3.0, 1.01, 100, "the fleet grows to at most this multiple in one step"),
    "max_step_in": Setting("int", "auto", 1, 1000, "nodes that may go in one step; auto: a quarter of the fleet", ("auto",)),
    "max_draining": Setting("int", "auto", 1, 1000, "nodes that drain at the same time; auto: one step's", ("auto",)),
    "launch_timeout": Setting("int", 900, 10, DAY, "seconds a node may take from launch to service"),
    "sick_grace": Setting("int", 60, 0, DAY, "seconds a member may fail its check before it is replaced"),
    "drain_deadline": Setting("int", 900, 1, DAY, "seconds a node may take to finish its work"),
    "halt_sick_share": Setting("float", 0.45, 0.0, 1.0, "share of sick nodes above which no node goes"),
    "halt_sick_count": Setting("int", 3, 0, 10000, "and only when more nodes than this are sick"),
    "stale_after": Setting("int", 180, 1, DAY, "age in seconds at which the balancer's data count no longer"),
    "max_jump": Setting("float", 20.0, 2.0, 10000, "growth of the load that a second reading has to confirm"),
    "keep_days": Setting("int", 60, 1, 3650, "days the ledger keeps samples and decisions"),
    "trend": Setting(
        "choice", "scale_out", None, None, "whether growth and swing (growth: only growth) of the last minutes may add nodes",
        ("off", "recommend", "growth", "scale_out"),
    ),
    "forecast": Setting(
        "choice", "auto", None, None, "whether the weekly shape of the load may add nodes before they are needed",
        ("auto", "off", "recommend", "scale_out"),
    ),
    "events": Setting(
        "choice", "scale_out", None, None, "whether quizzes, assignments and the calendar may add nodes beforehand",
        ("off", "recommend", "scale_out"),
    ),
    "timezone": Setting("zone", "UTC", None, None, "time zone of the schedule and of the forecast"),
    "schedule": Setting("list", (), None, None, "floors at given local times"),
}

SCHEDULE_KEYS = ("name", "nodes", "from", "until", "days", "timezone")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"(?:(\d{4})-(\d{2})-(\d{2})[ T])?(\d{1,2}):(\d{2})(?::00)?")


def policy_schema() -> dict[str, Setting]:
    """Every key of the policy with its kind, default, limits and meaning."""
    return dict(POLICY_SCHEMA)


@dataclass(frozen=True)
class Policy:
    """A validated policy. Durations are seconds; thresholds are shares of the workers in service."""

    min_nodes: int = 2
    max_nodes: int = 6
    workers: int = 4
    target: float = 0.7
    dead_band: float = 0.1
    scale_out_above: float = 0.77
    scale_in_below: float = 0.63
    scale_in_window: float = 300.0
    cooldown_out: float = 15.0
    cooldown_in: float = 300.0
    cooldown_between: float = 60.0
    max_step_out: float = 3.0
    max_step_in: int | str = "auto"
    max_draining: int | str = "auto"
    launch_timeout: float = 900.0
    sick_grace: float = 60.0
    drain_deadline: float = 900.0
    halt_sick_share: float = 0.45
    halt_sick_count: int = 3
    stale_after: float = 180.0
    max_jump: float = 20.0
    keep_days: int = 60
    trend: str = "scale_out"
    forecast: str = "auto"
    events: str = "scale_out"
    timezone: str = "UTC"
    schedule: tuple[ScheduleEntry, ...] = ()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Policy:
        """Build the policy; settings with problems raise ValueError with the first of them."""
        problems = validate_policy(settings)
        if problems:
            key, value, remedy = problems[0]
            raise ValueError(f"{key}: {value!r}: {remedy}")
        values: dict[str, Any] = {}
        for key, setting in POLICY_SCHEMA.items():
            value = settings.get(key)
            if value is None:
                value = setting.default
            if value is False and setting.kind == "choice":
                value = "off"  # what YAML makes of an unquoted off
            number = setting.kind in ("int", "float") and value is not None and value not in setting.choices
            values[key] = _number(setting.kind, value) if number else value
        if values["cooldown_between"] is None:
            values["cooldown_between"] = min(60.0, values["cooldown_in"])
        out_above, in_below = _thresholds(values)
        values["scale_out_above"], values["scale_in_below"] = out_above, in_below
        values["schedule"] = tuple(
            _entry(index, entry, values["timezone"])[0] for index, entry in enumerate(values["schedule"])
        )
        return cls(**values)

    @property
    def lookback(self) -> float:
        """Seconds of samples and wishes that a decision looks at."""
        return max(self.patience, LEAST_LOOKBACK)

    @property
    def patience(self) -> float:
        """Seconds after which a node that nobody wanted goes at any moment."""
        return PATIENCE * self.scale_in_window

    def step_in(self, size: int) -> int:
        """How many of ``size`` nodes may go in one step."""
        return max(1, size // 4) if isinstance(self.max_step_in, str) else self.max_step_in

    def draining(self, size: int) -> int:
        """How many of ``size`` nodes may drain at the same time."""
        return self.step_in(size) if isinstance(self.max_draining, str) else self.max_draining


def validate_policy(settings: Any) -> list[Problem]:
    """Every problem of the settings as (key path, value, remedy), in the order of the file's keys."""
    if not isinstance(settings, Mapping):
        return [("", settings, "give a mapping of settings, for example min_nodes: 2")]
    problems: list[Problem] = []
    values: dict[str, Any] = {key: setting.default for key, setting in POLICY_SCHEMA.items()}
    for key, value in settings.items():
        path = str(key)
        setting = POLICY_SCHEMA.get(key) if isinstance(key, str) else None
        if setting is None:
            problems.append((path, value, f"remove it or correct its name; known keys: {', '.join(POLICY_SCHEMA)}"))
        elif value is not None:
            found = _judge(path, setting, value)
            problems += found
            if not found:
                values[key] = value
    if not problems:
        problems = _judge_together(values, settings)
    return problems


def _judge(path: str, setting: Setting, value: Any) -> list[Problem]:
    """Problems of one value by itself."""
    if setting.kind == "choice":
        if value is not False and value not in setting.choices:
            return [(path, value, f"use one of: {', '.join(setting.choices)}")]
        return []
    if setting.kind == "zone":
        if not isinstance(value, str) or not _zone_known(value):
            return [(path, value, "give the name of a time zone, for example Europe/Bratislava")]
        return []
    if setting.kind == "list":
        if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
            return [(path, value, "give a list of entries, each with nodes, from and until")]
        return []
    if isinstance(value, str) and value in setting.choices:
        return []
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        kind = "whole number" if setting.kind == "int" else "number"
        kind = " or ".join([*setting.choices, f"a {kind}"])
        return [(path, value, f"give {kind} from {_show(setting.low)} to {_show(setting.high)}: {setting.help}")]
    if setting.kind == "int" and value != int(value):
        return [(path, value, f"give a whole number: {setting.help}")]
    if (setting.low is not None and value < setting.low) or (setting.high is not None and value > setting.high):
        return [(path, value, f"give a value from {_show(setting.low)} to {_show(setting.high)}: {setting.help}")]
    return []


def _judge_together(values: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Problem]:
    """Problems of values that do not fit each other."""
    problems: list[Problem] = []
    low, high = values["min_nodes"], values["max_nodes"]
    if low > high:
        key = "min_nodes" if settings.get("min_nodes") is not None else "max_nodes"
        problems.append((key, values[key], f"min_nodes ({low}) must not be above max_nodes ({high})"))
    out_above, in_below = _thresholds(values)
    if in_below >= out_above:
        key = "scale_in_below" if values["scale_in_below"] is not None else "dead_band"
        if values["scale_in_below"] is None and values["scale_out_above"] is not None:
            key = "scale_out_above"
        problems.append((
            key,
            values[key],
            f"the thresholds overlap: nodes would go below {in_below:g} and come above {out_above:g}; "
            "lower scale_in_below, raise scale_out_above, or give a dead_band above 0",
        ))
    elif not in_below <= values["target"] <= out_above:
        problems.append((
            "target",
            values["target"],
            f"the target must lie between scale_in_below ({in_below:g}) and scale_out_above ({out_above:g})",
        ))
    for index, entry in enumerate(values["schedule"]):
        found = _entry(index, entry, values["timezone"])[1]
        problems += found
        if not found and entry["nodes"] > high:
            path = f"schedule[{index}].nodes"
            problems.append((path, entry["nodes"], f"must not be above max_nodes ({high})"))
    return problems


def _thresholds(values: Mapping[str, Any]) -> tuple[float, float]:
    """(scale out above, scale in below), given or derived from the target and the dead band."""
    target, band = float(values["target"]), float(values["dead_band"])
    out_above = values["scale_out_above"]
    in_below = values["scale_in_below"]
    return (
        round(target * (1 + band), 6) if out_above is None else float(out_above),
        round(target * (1 - band), 6) if in_below is None else float(in_below),
    )


def _entry(index: int, entry: Any, default_zone: str) -> tuple[ScheduleEntry, list[Problem]]:
    """One schedule entry as data, with its problems."""
    empty = ScheduleEntry("", 0, "UTC", 0, 0)
    path = f"schedule[{index}]"
    if not isinstance(entry, Mapping):
        return empty, [(path, entry, "give a mapping with nodes, from and until")]
    problems: list[Problem] = [
        (f"{path}.{key}", entry[key], f"remove it or correct its name; known keys: {', '.join(SCHEDULE_KEYS)}")
        for key in entry
        if key not in SCHEDULE_KEYS
    ]
    nodes = entry.get("nodes")
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        problems.append((f"{path}.nodes", nodes, "give the number of nodes that must be there, 1 or more"))
    zone = entry.get("timezone", default_zone)
    if not isinstance(zone, str) or not _zone_known(zone):
        problems.append((f"{path}.timezone", zone, "give the name of a time zone, for example Europe/Bratislava"))
    begin, end = _moment(entry.get("from")), _moment(entry.get("until"))
    for key, moment in (("from", begin), ("until", end)):
        if moment is None:
            remedy = 'give a local time as "07:30" or, for one day, "2026-12-01 07:30" (in quotes)'
            problems.append((f"{path}.{key}", entry.get(key), remedy))
    days, day_problems = _days(f"{path}.days", entry.get("days"))
    problems += day_problems
    if problems or begin is None or end is None:
        return empty, problems
    if begin[0] is None:
        days = days or tuple(range(7))
        if end[0] is not None:
            problems.append((f"{path}.until", entry.get("until"), "give a date in both from and until, or in neither"))
    elif days:
        problems.append((f"{path}.days", entry.get("days"), "remove it: an entry with dates happens once"))
    elif end[0] is not None and (end[0], end[1]) <= (begin[0], begin[1]):
        problems.append((f"{path}.until", entry.get("until"), "must be after from"))
    if begin[0] is None and begin[1] == end[1]:
        problems.append((f"{path}.until", entry.get("until"), "must differ from from; for all day give 00:00 and 23:59"))
    name = str(entry.get("name") or f"schedule {index + 1}")
    result = ScheduleEntry(name, int(nodes or 0), str(zone), begin[1], end[1], days, begin[0], end[0])
    return result, problems


def _days(path: str, value: Any) -> tuple[tuple[int, ...], list[Problem]]:
    """Weekday numbers of a list of names."""
    if value is None:
        return (), []
    known = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not known or any(str(day).lower()[:3] not in WEEKDAYS for day in value):
        return (), [(path, value, f"give a list of days: {', '.join(WEEKDAYS)}")]
    return tuple(sorted({WEEKDAYS.index(str(day).lower()[:3]) for day in value})), []


def _moment(value: Any) -> tuple[tuple[int, int, int] | None, int] | None:
    """(date or None, minutes after midnight) of a text such as 07:30; None when it is no time."""
    if isinstance(value, datetime.datetime):
        # YAML turns an unquoted full time stamp into one.
        return (value.year, value.month, value.day), value.hour * 60 + value.minute
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
        # YAML 1.1 reads an unquoted 13:30 as a number in base 60.
        return None, value
    found = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    minutes = int(found[4]) * 60 + int(found[5])
    if int(found[5]) > 59 or minutes >= 24 * 60:
        return None
    if found[1] is None:
        return None, minutes
    try:
        day = datetime.date(int(found[1]), int(found[2]), int(found[3]))
    except ValueError:
        return None
    return (day.year, day.month, day.day), minutes


def _zone_known(name: str) -> bool:
    """Whether the machine's time zone data know the name."""
    if name == "UTC":
        return True
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _number(kind: str, value: Any) -> int | float:
    return int(value) if kind == "int" else float(value)


def _show(limit: float | None) -> str:
    return "any" if limit is None else f"{limit:g}"
