# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From two readings of the balancer's counters to one sample, and whether it may be trusted.

A snapshot alone is a poor measure: it sees one instant of a minute. Little's law gives the mean: requests finished in
the interval, times their mean time, divided by the interval. A balancer's mean time usually covers the last thousand
requests and so lingers long after the load has gone; the share of the older requests is therefore taken out again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member, Node, Sample

# Clocks of controller and balancer may differ by this many seconds.
CLOCK_SLACK = 5.0
# An interval below this many seconds says nothing about a mean.
SHORTEST = 1.0
# A backend that served this many requests a second does not fall silent from one moment to the next.
BUSY_RATE = 1.0
# Faults after which the rest of the reading still shows at least part of the traffic.
LOWER_BOUND = frozenset({"first", "gap", "short", "reset", "partial", "frozen", "fail_open"})


class Reading(Protocol):
    """What a balancer driver reads; see ``Counters`` in ``_balancers/base.py``."""

    @property
    def taken(self) -> float: ...

    @property
    def requests(self) -> int: ...

    @property
    def in_service(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def mean_seconds(self) -> float | None: ...

    @property
    def started(self) -> float: ...

    @property
    def members(self) -> Sequence[Member]: ...

    @property
    def mean_window(self) -> int: ...

    @property
    def interval(self) -> float: ...

    @property
    def faults(self) -> Sequence[tuple[str, str]]: ...


def sample(
    policy: Policy,
    previous: Reading | None,
    current: Reading | None,
    now: float,
    *,
    recent: Sequence[Sample] = (),
    nodes: Sequence[Node] = (),
    error: str = "",
) -> Sample:
    """Judge the current reading against the one before it.

    ``recent`` are earlier samples, oldest first; ``nodes`` tell which members ought to be there; ``error`` is why there is no reading.
    """
    if current is None:
        text = "the balancer could not be read" + (f": {error}" if error else "")
        return Sample(now, 0.0, 0.0, 0, 0, 0, 0, 0, False, False, (("missing", text),))
    absurd = _absurd(current)
    if absurd:
        return Sample(now, 0.0, 0.0, 0, 0, 0, 0, 0, False, False, (("absurd", absurd),))
    faults = _age_faults(policy, current, now)
    if current.interval > 0:
        return _past_minute(policy, previous, current, now, recent, nodes, faults)
    usable = not faults
    interval = current.taken - previous.taken if previous is not None else 0.0
    faults += _interval_faults(policy, previous, current, interval)
    partial = _partial(previous, current, nodes)
    if partial:
        faults.append(("partial", partial))
    codes = {code for code, _text in faults}
    whole = not codes & {"first", "gap", "short", "reset", "frozen", "stale", "future"}
    requests = max(0, current.requests - previous.requests) if previous is not None and whole else 0
    load = _load(previous if whole else None, current, interval, requests)
    if whole:
        faults += _silence(policy, current, requests, recent, now)
        faults += _jump(policy, load, current, recent)
    codes = {code for code, _text in faults}
    up = [member for member in current.members if member.state == "up"]
    return Sample(
        taken=current.taken,
        seconds=interval if whole else 0.0,
        load=load,
        in_service=current.in_service,
        waiting=current.waiting,
        capacity=sum(member.capacity for member in up),
        up=len(up),
        requests=requests,
        trusted=not faults,
        lower_bound=usable and bool(faults) and codes <= LOWER_BOUND,
        faults=tuple(faults),
    )


def _past_minute(
    policy: Policy,
    previous: Reading | None,
    current: Reading,
    now: float,
    recent: Sequence[Sample],
    nodes: Sequence[Node],
    faults: list[tuple[str, str]],
) -> Sample:
    """A sample of a reading that is a mean itself. The same minute read again is as true as before, until it is stale."""
    stale = bool(faults)
    faults += list(current.faults)
    partial = _partial(previous, current, nodes)
    if partial:
        faults.append(("partial", partial))
    load = 0.0
    if not stale:
        load = current.requests * (current.mean_seconds or 0.0) / current.interval + current.waiting
        earlier = [one for one in recent if one.taken < current.taken]
        faults += _silence(policy, current, current.requests, earlier, now)
        faults += _jump(policy, load, current, earlier)
    up = [member for member in current.members if member.state == "up"]
    return Sample(
        taken=current.taken,
        seconds=0.0 if stale else current.interval,
        load=load,
        in_service=current.in_service,
        waiting=current.waiting,
        capacity=sum(member.capacity for member in up),
        up=len(up),
        requests=current.requests,
        trusted=not faults,
        lower_bound=bool(faults) and {code for code, _text in faults} <= LOWER_BOUND,
        faults=tuple(faults),
    )


def _absurd(current: Reading) -> str:
    """What no balancer can have meant, or nothing."""
    named: list[tuple[str, float]] = [
        ("time", current.taken),
        ("requests", current.requests),
        ("requests in service", current.in_service),
        ("requests waiting", current.waiting),
        ("start time", current.started),
        ("interval", current.interval),
    ]
    if current.mean_seconds is not None:
        named.append(("mean time", current.mean_seconds))
    for member in current.members:
        named += [
            (f"capacity of {member.name}", member.capacity),
            (f"requests in service at {member.name}", member.in_service),
            (f"requests waiting at {member.name}", member.waiting),
        ]
    for name, value in named:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"the {name} is no number"
        if not math.isfinite(value) or value < 0:
            return f"the {name} is {value}"
    return ""


def _age_faults(policy: Policy, current: Reading, now: float) -> list[tuple[str, str]]:
    """Data from another time."""
    age = now - current.taken
    if age > policy.stale_after:
        return [("stale", f"the balancer's data are {age:.0f} s old, more than {policy.stale_after:.0f} s")]
    if age < -CLOCK_SLACK:
        return [("future", f"the balancer's data are {-age:.0f} s ahead of this clock")]
    return []


def _interval_faults(
    policy: Policy, previous: Reading | None, current: Reading, interval: float
) -> list[tuple[str, str]]:
    """Why no mean over the interval can be had."""
    if previous is None:
        return [("first", "there is no earlier reading to compare with")]
    if current.started != previous.started or current.requests < previous.requests:
        return [("reset", "the balancer's counters were reset")]
    if interval <= 0:
        return [("frozen", "the balancer gave the same reading again")]
    if interval < SHORTEST:
        return [("short", f"only {interval:.2f} s have passed since the last reading")]
    if interval > 4 * policy.stale_after:
        return [("gap", f"the last reading is {interval:.0f} s old")]
    still = current.requests == previous.requests and current.in_service == previous.in_service
    if still and current.in_service > 0 and current.waiting == previous.waiting:
        return [("frozen", f"no request finished in {interval:.0f} s with {current.in_service} in service")]
    return []


def _partial(previous: Reading | None, current: Reading, nodes: Sequence[Node]) -> str:
    """Members that vanished from the reading while their nodes still run."""
    if previous is None:
        return ""
    running = {node.name for node in nodes if node.state == "running"}
    before = {member.name for member in previous.members if member.state in ("up", "down", "starting")}
    missing = sorted((before & running) - {member.name for member in current.members})
    if not missing:
        return ""
    names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return f"the balancer no longer reports {names}, still running"


def _load(previous: Reading | None, current: Reading, interval: float, requests: int) -> float:
    """Requests being served or waiting: the interval's mean, or more where the snapshots show more."""
    # What a member that is not yet in service holds is its own warm-up, not learners' load.
    warming = sum(m.in_service + m.waiting for m in current.members if m.state == "starting")
    present = float(max(0, current.in_service + current.waiting - warming))
    if previous is None:
        return present
    flow = requests * _mean_of_interval(previous, current, requests) / interval
    # Nobody can be in service for more than the whole interval.
    flow = min(flow, float(requests) + present)
    sustained = min(present, float(previous.in_service + previous.waiting))
    # Waiting requests are a hard sign of too little capacity, so the moment counts in full.
    return max(flow, sustained, present if current.waiting > 0 else 0.0)


def _mean_of_interval(previous: Reading, current: Reading, requests: int) -> float:
    """The mean time of this interval's own requests, taken out of a sliding mean."""
    mean = current.mean_seconds
    if mean is None or requests <= 0:
        return 0.0
    window = current.mean_window
    if window <= 0 or previous.mean_seconds is None:
        return mean
    if previous.requests >= window:
        kept = (1.0 - 1.0 / window) ** requests
    else:
        kept = previous.requests / (previous.requests + requests)
    if kept > 0.999999:
        return 0.0
    return max(0.0, (mean - previous.mean_seconds * kept) / (1.0 - kept))


def _silence(
    policy: Policy, current: Reading, requests: int, recent: Sequence[Sample], now: float
) -> list[tuple[str, str]]:
    """Zeros where there was traffic a moment ago, or where the members still show some."""
    held = sum(member.in_service + member.waiting for member in current.members if member.state != "starting")
    if current.in_service + current.waiting == 0 and held > 0:
        return [("zero", f"the balancer reports nothing in service while its members serve {held} requests")]
    if requests > 0 or current.in_service + current.waiting > 0:
        return []
    for earlier in reversed(recent):
        if now - earlier.taken > policy.scale_in_window:
            break
        if earlier.seconds > 0 and earlier.requests / earlier.seconds >= BUSY_RATE:
            rate = earlier.requests / earlier.seconds
            return [("zero", f"no request at all, after {rate:.1f} a second {now - earlier.taken:.0f} s ago")]
    return []


def _jump(policy: Policy, load: float, current: Reading, recent: Sequence[Sample]) -> list[tuple[str, str]]:
    """A growth that one reading alone does not prove."""
    capacity = sum(member.capacity for member in current.members)
    last = recent[-1] if recent else None
    believed = next((s.load for s in reversed(recent) if s.trusted), 0.0)
    limit = policy.max_jump * max(believed, float(capacity), float(policy.workers))
    if load <= limit:
        return []
    if last is not None and any(code == "jump" for code, _text in last.faults) and load >= last.load / 2:
        return []
    return [("jump", f"the load rose from {believed:.0f} to {load:.0f} at once; a second reading must confirm it")]
