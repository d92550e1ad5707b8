# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The values that pass between drivers, the decision and the planner.

Everything here is immutable and free of I/O. Times are Unix seconds (UTC), durations are seconds,
load and capacity are counted in workers (requests being served or waiting).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Node:
    """One server as the cloud driver reports it.

    ``state`` is ``pending``, ``running``, ``stopping`` or ``failed`` (it exists but does not run).
    ``release`` and ``tags`` are what the launch or an operator wrote on the node; treat them as
    untrusted text. ``image`` is what it started from; empty where that was nothing and it has to get the recipe.
    ``id`` is the cloud's own name for it, where that differs. ``notice`` is the time at which
    the cloud has announced to take it away, 0 where it has not.
    """

    name: str
    role: str
    address: str
    zone: str
    state: str
    launched: float
    release: str = ""
    image: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    notice: float = 0.0


@dataclass(frozen=True)
class Member:
    """One web server as the balancer sees it.

    ``state`` is ``up``, ``starting`` (added, its health is not known yet), ``down`` (fails its check),
    ``draining`` (no new sessions) or ``drained`` (draining, nothing in service or waiting).
    ``capacity`` is the member's worker count, ``since`` the seconds it has been in this state, ``ramp`` the
    share of its weight it gets at present (0 to 1), ``lacking`` the number of balancers that answer and do not have it.
    """

    name: str
    address: str
    state: str
    capacity: int
    in_service: int = 0
    waiting: int = 0
    since: float = 0.0
    ramp: float = 1.0
    lacking: int = 0


@dataclass(frozen=True)
class ScheduleEntry:
    """A floor at given local times.

    ``days`` are weekdays (Monday is 0) on which the entry begins, or empty for a one-off entry that begins on
    ``date`` (year, month, day). ``begin`` and ``end`` are minutes after midnight; an end that is not after the
    begin lies on the next day, or on ``end_date`` where that is given.
    """

    name: str
    nodes: int
    timezone: str
    begin: int
    end: int
    days: tuple[int, ...] = ()
    date: tuple[int, int, int] | None = None
    end_date: tuple[int, int, int] | None = None


class Sample(NamedTuple):
    """What the balancer's counters say about one interval.

    ``load`` is the mean number of requests being served or waiting. Only a ``trusted`` sample may shrink the fleet;
    one that is a ``lower_bound`` (part of the traffic is not in it) may still grow it. ``faults`` says why not.
    """

    taken: float
    seconds: float
    load: float
    in_service: int
    waiting: int
    capacity: int
    up: int
    requests: int
    trusted: bool
    lower_bound: bool = False
    faults: tuple[tuple[str, str], ...] = ()


class Reason(NamedTuple):
    """One link of the chain from the load to the decision; ``desired`` is the count after it."""

    code: str
    text: str
    desired: int


@dataclass(frozen=True)
class Pause:
    """A pause set by an operator: ``scope`` is ``all`` or ``in`` (only scaling in); ``until`` 0 has no end."""

    scope: str
    reason: str
    since: float
    until: float = 0.0


@dataclass(frozen=True)
class Intent:
    """A launch that was announced in the ledger before the cloud was asked for it.

    ``seen`` of its nodes appeared, ``gone`` of them were terminated by a plan since. ``asked`` is when the cloud was last
    asked for it, where that was more than once.
    """

    token: str
    count: int
    created: float
    check: int = 0
    image: str = ""
    release: str = ""
    seen: int = 0
    gone: int = 0
    asked: float = 0.0


# (Unix time at which it begins, mean load, samples in it).
Minute = tuple[float, float, int]


class History(NamedTuple):
    """What the decision needs to know of the past, from the ledger.

    ``recommended`` are (time, count) of earlier checks, oldest first; ``samples`` the latest samples, oldest first;
    ``last_out`` and ``last_in`` the times at which nodes were last really added or taken away, 0 for never;
    ``ghosts`` the members without a node at the check before; ``minutes`` the mean load of each of the last minutes, from
    trusted samples, and ``swing`` a minute's standard deviation in square roots of the load, and ``flutter`` that of a
    reading within its minute.
    """

    recommended: tuple[tuple[float, int], ...] = ()
    samples: tuple[Sample, ...] = ()
    last_out: float = 0.0
    last_in: float = 0.0
    ghosts: frozenset[str] = frozenset()
    minutes: tuple[Minute, ...] = ()
    swing: float = 0.0
    flutter: float = 0.0

    def highest(self, since: float, nobody: int = 0) -> int:
        """The highest count recommended since then, or ``nobody`` where there was no check."""
        found = []
        for when, count in reversed(self.recommended):
            if when < since:
                break
            found.append(count)
        return max(found, default=nobody)


@dataclass(frozen=True)
class Outlook:
    """What the weekly shape says of the time that a launch takes: pure data, so that a decision can be repeated.

    ``points`` are (Unix time at which it begins, expected load) of consecutive slots of ``seconds``; ``weeks`` the number
    of earlier weeks that agree on them, ``days`` how long the ledger goes back, ``factor`` how busy the last hour was
    compared with the usual, and ``hour`` its median load (0 where too little of it is known).
    """

    points: tuple[tuple[float, float], ...]
    seconds: float
    weeks: int
    days: float
    factor: float
    hour: float = 0.0

    def to_data(self) -> dict[str, Any]:
        """The outlook as plain data."""
        return {"points": [list(point) for point in self.points], "seconds": self.seconds, "weeks": self.weeks,
                "days": self.days, "factor": self.factor, "hour": self.hour}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Outlook:
        """The outlook back from :meth:`to_data`."""
        points = tuple((float(begin), float(load)) for begin, load in data["points"])
        return cls(points, float(data["seconds"]), int(data["weeks"]), float(data["days"]), float(data["factor"]), float(data.get("hour", 0.0)))


class Decision(NamedTuple):
    """How many web nodes there should be, and why.

    ``size`` is what counts as present (in service or on the way), ``recommended`` what the recommenders wanted before
    any cap, ``direction`` ``out``, ``in`` or ``none``.
    """

    desired: int
    direction: str
    size: int
    recommended: int
    trusted: bool
    reasons: tuple[Reason, ...] = ()
    frozen: bool = False
    hold_in: bool = False

    def to_data(self) -> dict[str, Any]:
        """The decision as plain data."""
        return {
            "desired": self.desired,
            "direction": self.direction,
            "size": self.size,
            "recommended": self.recommended,
            "trusted": self.trusted,
            "frozen": self.frozen,
            "hold_in": self.hold_in,
            "reasons": [{"code": r.code, "text": r.text, "desired": r.desired} for r in self.reasons],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Decision:
        """The decision back from :meth:`to_data`."""
        reasons = tuple(Reason(str(r["code"]), str(r["text"]), int(r["desired"])) for r in data.get("reasons", ()))
        return cls(
            desired=int(data["desired"]),
            direction=str(data["direction"]),
            size=int(data["size"]),
            recommended=int(data["recommended"]),
            trusted=bool(data["trusted"]),
            reasons=reasons,
            frozen=bool(data.get("frozen", False)),
            hold_in=bool(data.get("hold_in", False)),
        )


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    ``action`` is ``launch`` (``count`` nodes under ``token``, one in each of ``zones``), ``join`` (prepare what the
    image lacks, verify, add to the balancer), ``drain`` (begin or go on; ``deadline`` ends it), ``retire`` (flush the
    logs, then terminate; ``forced`` when nothing more can be waited for) or ``forget`` (a member without a node).
    ``since`` is when a drain began, 0 if it begins now. With a node, ``token`` is the launch that made it. Of a launch that is ``later``
    nobody waits for the nodes: a later check lets them join.
    """

    action: str
    reason: str
    node: str = ""
    address: str = ""
    count: int = 0
    token: str = ""
    image: str = ""
    release: str = ""
    zones: tuple[str, ...] = ()
    since: float = 0.0
    deadline: float = 0.0
    forced: bool = False
    later: bool = False

    def to_data(self) -> dict[str, Any]:
        """The step as plain data; fields that say nothing are left out.

        A launch brings the tags its nodes must carry, by which later checks recognise them.
        """
        data: dict[str, Any] = {"action": self.action, "reason": self.reason}
        for key in ("node", "address", "count", "token", "image", "release", "since", "deadline", "forced", "later"):
            value = getattr(self, key)
            if value:
                data[key] = value
        if self.zones:
            data["zones"] = list(self.zones)
        if self.action == "launch":
            data["tags"] = {"launch": self.token}
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Step:
        """The step back from :meth:`to_data`; unknown actions are refused."""
        action = str(data.get("action", ""))
        if action not in ACTIONS:
            raise ValueError(f"unknown action {action!r} in a plan; known are {', '.join(ACTIONS)}")
        return cls(
            action=action,
            reason=str(data.get("reason", "")),
            node=str(data.get("node", "")),
            address=str(data.get("address", "")),
            count=int(data.get("count", 0)),
            token=str(data.get("token", "")),
            image=str(data.get("image", "")),
            release=str(data.get("release", "")),
            zones=tuple(str(zone) for zone in data.get("zones", ())),
            since=float(data.get("since", 0.0)),
            deadline=float(data.get("deadline", 0.0)),
            forced=bool(data.get("forced", False)),
            later=bool(data.get("later", False)),
        )


ACTIONS = ("forget", "launch", "join", "drain", "retire")


@dataclass(frozen=True)
class Plan:
    """The steps from what was observed to the decision, in the order in which they are to be taken."""

    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def to_data(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {"steps": [step.to_data() for step in self.steps], "notes": list(self.notes)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Plan:
        """The plan back from :meth:`to_data`, or from a bare list of steps."""
        if isinstance(data, Mapping):
            return cls(tuple(Step.from_data(s) for s in data.get("steps", ())), tuple(data.get("notes", ())))
        return cls(tuple(Step.from_data(s) for s in data))


def counted(number: int, noun: str = "node") -> str:
    """A number of things in words: ``1 node``, ``3 nodes``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
