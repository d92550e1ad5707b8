# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One check: observe, decide, plan, act, record. The only place that knows both the drivers and the decision."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError, Counters
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._kept import chosen_image
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.decide import decide
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import (
    launch_seconds,
    outlook,
    wanted_slots,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.metrics import sample as judge
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.plan import plan as make_plan
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.recommend import EVENTS_AHEAD
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import (
    TAG_LANE,
    Survey,
    phases,
    survey,
    visible,
    wanting_probe,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    Decision,
    Member,
    Node,
    Outlook,
    Pause,
    Plan,
    Reason,
    Sample,
    counted,
)

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudDriver
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

# Faults that make the member list as doubtful as the counters.
BLIND = frozenset({"missing", "stale", "future", "absurd"})
# Those of them that a balancer's metrics can have without its member list.
LATE = frozenset({"stale", "future"})


def _nothing_saturated() -> Mapping[str, str]:
    return {}


def _nothing_foreseen(_until: float) -> Foreseen | None:
    return None


def _nothing_heard(_nodes: Sequence[Node]) -> None:
    pass


@dataclass(frozen=True)
class Sources:
    """Where a check looks: every access to the outside world, so that tests and the simulator can stand in."""

    nodes: Callable[[], Sequence[Node]]
    read: Callable[[Sequence[Node]], Counters]
    probe: Callable[[Sequence[Node]], Mapping[str, bool]]
    image: Callable[[str], tuple[str, str]]
    clock: Callable[[], float] = time.time
    saturated: Callable[[], Mapping[str, str]] = _nothing_saturated
    events: Callable[[float], Foreseen | None] = _nothing_foreseen
    new_token: Callable[[], str] = lambda: os.urandom(5).hex()
    zones: Sequence[str] = ()
    settle: float = 0.0
    hear: Callable[[Sequence[Node]], None] = _nothing_heard


@dataclass(frozen=True)
class Outcome:
    """What one check saw, decided, planned and, where it acted, what became of it.

    ``status`` is ``idle`` (nothing to do), ``planned``, ``done``, ``failed`` or ``blind`` (the cloud or the balancer
    did not answer and nothing could be planned). ``check`` is 0 where nothing was recorded.
    """

    check: int
    status: str
    decision: Decision
    plan: Plan
    sample: Sample
    phases: Mapping[str, str]
    errors: tuple[str, ...] = ()
    message: str = ""
    activities: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def to_data(self) -> dict[str, Any]:
        """The outcome as plain data, for ``--json`` and the module."""
        return {
            "check_id": self.check,
            "status": self.status,
            "message": self.message,
            "errors": list(self.errors),
            "decision": self.decision.to_data(),
            "plan": self.plan.to_data(),
            "phases": dict(self.phases),
            "sample": sample_data(self.sample),
            "activities": [dict(one) for one in self.activities],
        }


@dataclass(frozen=True)
class RunResult:
    """What the playbook or the AWX job came to; both look the same from here."""

    status: str  # done, failed
    message: str = ""
    activities: Sequence[Mapping[str, Any]] = ()


def sources_of(fleet: Fleet) -> Sources:
    """The real world of a fleet. Drivers are loaded here and not before: most commands need none."""
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import balancer_reader, cloud_driver

    cloud = cloud_driver(fleet)

    def read(nodes: Sequence[Node]) -> Counters:
        addresses = [node.address for node in nodes if node.role == "balancer" and node.state == "running"]
        return balancer_reader(fleet, addresses, nodes).read()

    def image(release: str) -> tuple[str, str]:
        known = [one for one in cloud.images() if one.get("role") == "web" and release in ("", one.get("release", ""))]
        chosen = chosen_image(fleet)
        # Newest first; sorting keeps that order among those that were not chosen.
        for one in sorted(known, key=lambda one: one["id"] != chosen):
            return str(one["id"]), str(one.get("release", ""))
        return "", release

    def events(until: float) -> Foreseen | None:
        return kept.foreseen(fleet, until) if fleet.events else None

    return Sources(
        nodes=lambda: observed_nodes(cloud), read=read, probe=probe_health, image=image, zones=tuple(cloud.zones()),
        settle=cloud.settle, events=events, saturated=lambda: kept.saturated(fleet, time.time()), hear=cloud.hear,
    )


def observed_nodes(cloud: CloudDriver) -> list[Node]:
    """The nodes with what the cloud has announced for them.

    :raises CloudError: when the cloud does not answer.
    """
    found = cloud.nodes()
    notices = cloud.notices(found)
    return [replace(node, notice=notices[node.name]) if node.name in notices else node for node in found]


def probe_health(nodes: Sequence[Node], timeout: float = 1.0) -> dict[str, bool]:
    """Ask nodes that are no members for their health, all at once."""
    if not nodes:
        return {}
    import concurrent.futures
    import http.client

    def ask(node: Node) -> bool:
        connection = http.client.HTTPConnection(node.address, 80, timeout=timeout)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(max_workers=min(32, len(nodes))) as pool:
        return dict(zip([node.name for node in nodes], pool.map(ask, nodes)))


def observed_phases(fleet: Fleet, nodes: Sequence[Node]) -> dict[str, str]:
    """The phase of each web node by name, for the inventory; other tiers have none.

    :raises BalancerError: when no balancer answers.
    """
    sources = sources_of(fleet)
    members = sources.read(nodes).members
    healthy = sources.probe(wanting_probe(nodes, members))
    return phases(Policy.from_settings(fleet.scaling), nodes, members, sources.clock(), healthy)


def check(
    policy: Policy,
    ledger: Ledger,
    sources: Sources,
    *,
    origin: str = "check",
    manual: int | None = None,
    release: str = "",
    record: bool = True,
) -> Outcome:
    """Observe, decide, plan and, with ``record``, write all of it down before anything is done.

    :raises LedgerError: when the ledger cannot be used; nothing may be done then.
    """
    started = sources.clock()
    mark = ledger.mark()
    errors: list[str] = []
    nodes: Sequence[Node] = ()
    try:
        nodes = sources.nodes()
    except CloudError as exc:
        errors.append(f"cloud: {exc}")
    except Exception as exc:  # noqa: BLE001 a driver's own fault must be recorded like an outage, not end the check
        errors.append(f"cloud: {type(exc).__name__}: {exc}")
    cloud_known = not errors
    if record and cloud_known:
        try:
            sources.hear(nodes)
        except Exception as exc:  # noqa: BLE001 what was not heard stops nothing
            errors.append(f"announcements: {exc}")
    current: Counters | None = None
    trouble = ""
    try:
        if cloud_known:
            current = sources.read(nodes)
        else:
            trouble = "the cloud did not name the balancers"
    except BalancerError as exc:
        trouble = str(exc)
        errors.append(f"balancer: {exc}")
    except Exception as exc:  # noqa: BLE001
        trouble = f"{type(exc).__name__}: {exc}"
        errors.append(f"balancer: {trouble}")
    now = sources.clock()
    history = ledger.history(now, policy.lookback)
    leaving = ledger.leaving(now - policy.drain_deadline)
    stored = _with_joined(ledger.state("reading"), ledger.joined(now - policy.stale_after))
    taken = judge(
        policy, _reading(stored), current, now,
        recent=history.samples, nodes=nodes, error=trouble,
    )
    codes = {code for code, _text in taken.faults}
    members: Sequence[Member] | None = None
    if current is not None and not codes & (BLIND - LATE if current.members_fresh else BLIND):
        members = current.members
    if not cloud_known:
        return _blind(ledger, started, origin, taken, history.ghosts, mark, errors, record)

    open_intents = ledger.intents(now - sources.settle)
    expired = [intent.token for intent in open_intents if now - intent.created > policy.launch_timeout]
    intents = [intent for intent in open_intents if intent.token not in expired]
    healthy = sources.probe(wanting_probe(nodes, members)) if members is not None else {}
    seen = survey(
        policy, nodes, members, now, healthy=healthy, intents=intents, leaving=leaving, ghosts=history.ghosts,
        settle=sources.settle,
    )
    saturated = sources.saturated()
    measured = ledger.launch_times()
    lead = launch_seconds(policy, measured)
    ahead = None
    if policy.forecast != "off":
        since, slots = ledger.slots(wanted_slots(now, lead, policy.timezone))
        ahead = outlook(slots, now, lead, policy.timezone, since)
    until = now + lead + EVENTS_AHEAD
    known = sources.events(until) if policy.events != "off" else None
    # Only what can matter now is kept with the decision.
    known = known and known.near(now, until)
    decision = decide(
        policy, taken, seen, history, now, pauses=[*ledger.pauses(now), *_under_way(nodes, now)], saturated=saturated,
        manual=manual, outlook=ahead, launch_seconds=lead, events=known,
    )
    image, image_release = "", release
    if decision.desired > seen.size:
        try:
            image, image_release = sources.image(release)
        except CloudError as exc:
            errors.append(f"images: {exc}")
    steps = make_plan(
        policy, decision, seen, now,
        token=sources.new_token(), image=image, release=image_release, zones=sources.zones, ghosts=history.ghosts,
        launch_seconds=lead if measured else 0.0,
    )
    number = 0
    if record:
        keep = current if current is not None and not codes & BLIND else None
        number = ledger.commit(
            started, origin, taken, decision, steps, mark,
            reading=_reading_data(keep, stored, now - policy.stale_after) if keep is not None else None,
            ghosts=[view.name for view in seen.of("ghost")],
            message="; ".join(errors),
            seen={intent.token: visible(intent, nodes) for intent in open_intents},
            expired=expired,
            inputs=_inputs(now, seen, saturated, manual, ahead, lead, known),
        )
        if not steps:
            ledger.prune(now, policy.keep_days)
    return Outcome(
        number, "planned" if steps else "blind" if errors else "idle", decision, steps, taken, _phases(seen),
        tuple(errors),
    )


def run(
    policy: Policy,
    ledger: Ledger,
    sources: Sources,
    act: Callable[[Outcome], RunResult],
    *,
    origin: str = "check",
    manual: int | None = None,
    release: str = "",
) -> Outcome:
    """A whole check. ``act`` is called only when there is something to do."""
    outcome = check(policy, ledger, sources, origin=origin, manual=manual, release=release)
    if not outcome.plan:
        return outcome
    try:
        result = act(outcome)
    except BaseException as exc:
        ledger.finish(outcome.check, sources.clock(), "failed", f"{type(exc).__name__}: {exc}")
        raise
    if result.activities:
        ledger.record(outcome.check, result.activities)
    ledger.finish(outcome.check, sources.clock(), result.status, result.message)
    done = ledger.activities(outcome.check)
    return Outcome(
        outcome.check, result.status, outcome.decision, outcome.plan, outcome.sample, outcome.phases,
        outcome.errors, result.message, done,
    )


def _blind(
    ledger: Ledger,
    started: float,
    origin: str,
    taken: Sample,
    ghosts: frozenset[str],
    mark: int,
    errors: Sequence[str],
    record: bool,
) -> Outcome:
    """Without the list of nodes nothing can be planned; the size of the last check stands."""
    last = ledger.checks(1)
    size = int(last[0]["size"] or 0) if last else 0
    reason = Reason("no_cloud", f"the cloud did not answer, so nothing is done: {'; '.join(errors)}", size)
    decision = Decision(size, "none", size, size, False, (reason,), frozen=True, hold_in=True)
    number = 0
    if record:
        number = ledger.commit(
            started, origin, taken, decision, Plan(), mark, ghosts=sorted(ghosts), message="; ".join(errors)
        )
    return Outcome(number, "blind", decision, Plan(), taken, {}, tuple(errors))


def _inputs(
    now: float, seen: Survey, saturated: Mapping[str, str], manual: int | None, ahead: Outlook | None, lead: float,
    known: Foreseen | None,
) -> dict[str, Any]:
    """What the decision was made from besides sample, history and pauses; ``simulate`` makes it again."""
    data: dict[str, Any] = {"now": now, "size": seen.size, "sick": seen.sick, "known": seen.members_known, "launch": lead}
    data["phases"] = seen.counts  # for the report alone
    if seen.announced:
        data["announced"] = seen.announced
    if saturated:
        data["saturated"] = dict(saturated)
    if manual is not None:
        data["manual"] = manual
    if ahead is not None:
        data["outlook"] = ahead.to_data()
    if known is not None:
        data["events"] = known.to_data()
    return data


def _under_way(nodes: Sequence[Node], now: float) -> list[Pause]:
    """A release with its two pools of nodes holds scaling: neither pool shrinks, grows with the other's code, or loses nodes."""
    lanes = sorted({node.release for node in nodes if node.role == "web" and node.tags.get(TAG_LANE)})
    return [Pause("all", f"a release is under way ({', '.join(lanes)}): end it with release.yml", now)] if lanes else []


def _phases(seen: Survey) -> dict[str, str]:
    return {view.name: view.phase for view in seen.views}


def sample_data(taken: Sample) -> dict[str, Any]:
    """A sample as plain data."""
    data = taken._asdict()
    data["faults"] = [{"code": code, "text": text} for code, text in taken.faults]
    return data


def _reading_data(reading: Counters, before: Mapping[str, Any] | None, since: float) -> dict[str, Any]:
    """The part of a reading that the next check compares with. Not by ``asdict``: this runs at every check.

    A member that vanished is carried along for a while, so that it is missed for longer than one check.
    """
    members = [(member.name, member.state, reading.taken) for member in reading.members]
    present = {member.name for member in reading.members}
    members += [
        (name, state, seen) for name, state, seen in (before or {}).get("members", ())
        if name not in present and seen >= since
    ]
    return {
        "taken": reading.taken, "requests": reading.requests, "in_service": reading.in_service,
        "waiting": reading.waiting, "mean_seconds": reading.mean_seconds, "started": reading.started,
        "mean_window": reading.mean_window, "interval": reading.interval, "members": members,
    }


def _with_joined(data: Mapping[str, Any] | None, joined: Mapping[str, float]) -> Mapping[str, Any] | None:
    """The last reading with the nodes that joined since: a member is missed even when it was never read before."""
    if not data:
        return data
    present = {name for name, _state, _seen in data["members"]}
    return {**data, "members": [*data["members"], *((name, "up", at) for name, at in joined.items() if name not in present)]}


def _reading(data: Mapping[str, Any] | None) -> Counters | None:
    if not data:
        return None
    members = tuple(Member(str(name), "", str(state), 0) for name, state, _seen in data["members"])
    return Counters(
        float(data["taken"]), int(data["requests"]), int(data["in_service"]), int(data["waiting"]),
        data["mean_seconds"], float(data["started"]), members, int(data["mean_window"]), float(data.get("interval", 0)),
    )


def explain(row: Mapping[str, Any], activities: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """A recorded check in sentences."""
    decision = row.get("decision") or {}
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(row["started"])))
    size, desired = decision.get("size", 0), decision.get("desired", 0)
    verdict = {"out": f"should grow from {size} to {desired}", "in": f"should shrink from {size} to {desired}"}
    lines = [f"Check {row['id']} ({row['origin']}, {when}): the fleet "
             f"{verdict.get(str(decision.get('direction')), f'keeps its size of {size}')} web nodes."]
    lines += [f"  {number}. {reason['text']} → {reason['desired']}"
              for number, reason in enumerate(decision.get("reasons", ()), 1)]
    plan = row.get("plan") or {}
    done = {(one["action"], one["node"]): one for one in activities}
    if not plan.get("steps"):
        lines.append("Nothing had to be done.")
    for step in plan.get("steps", ()):
        target = step.get("node") or step.get("token", "")
        what = counted(step["count"]) if step["action"] == "launch" else target
        became = done.get((step["action"], target))
        result = ""
        if became is not None:
            seconds = became.get("seconds")
            took = f" in {seconds:.1f} s" if isinstance(seconds, (int, float)) else ""
            detail = f": {became['message']}" if became.get("message") else ""
            result = f" [{became['status']}{took}{detail}]"
        lines.append(f"  {step['action']} {what}: {step['reason']}{result}")
    lines += [f"  note: {note}" for note in plan.get("notes", ())]
    if row.get("status") not in ("idle", "done", "planned"):
        lines.append(f"It ended as {row['status']}.")
    if row.get("message"):
        lines.append(f"Message: {row['message']}")
    return lines


def status(policy: Policy, ledger: Ledger, sources: Sources) -> dict[str, Any]:
    """The fleet as it is now, without writing anything."""
    outcome = check(policy, ledger, sources, record=False)
    now = sources.clock()
    last = ledger.checks(1)
    return {
        "now": now,
        "size": outcome.decision.size,
        "desired": outcome.decision.desired,
        "min_nodes": policy.min_nodes,
        "max_nodes": policy.max_nodes,
        "phases": dict(outcome.phases),
        "sample": sample_data(outcome.sample),
        "decision": outcome.decision.to_data(),
        "plan": outcome.plan.to_data(),
        "errors": list(outcome.errors),
        "pauses": [asdict(pause) for pause in ledger.pauses(now)],
        "last_check": {key: last[0][key] for key in ("id", "started", "status", "message")} if last else None,
    }
