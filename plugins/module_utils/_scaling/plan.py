# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The steps from what is observed to the decision. Pure; the next check plans anew from what it then observes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import (
    SERVING,
    TAG_LAUNCH,
    Survey,
    View,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    ACTIONS,
    Decision,
    Plan,
    Step,
    counted,
)

# A node that the cloud will take away drains at the latest so many seconds before, replaced or not.
NOTICE_DRAIN = 75.0
# Seconds for which a run waits for a node that takes longer to come: the next check, which may see a need for more, waits for the run.
PATIENCE = 20.0
NOT_YET_MEMBERS = ("launching", "building", "ready")
# After these faults a member may merely be missing from the reading: its node is not taken for one without a member.
DOUBTS = frozenset(f"metrics_{code}" for code in ("first", "gap", "short", "frozen", "reset", "partial"))


def plan(
    policy: Policy,
    decision: Decision,
    survey: Survey,
    now: float,
    *,
    token: str,
    image: str = "",
    release: str = "",
    zones: Sequence[str] = (),
    ghosts: frozenset[str] = frozenset(),
    launch_seconds: float = 0.0,
) -> Plan:
    """Plan what brings the fleet to ``decision.desired``.

    ``token`` names a new launch, if one is needed; ``zones`` are all zones to spread over; ``ghosts`` are the members
    that had no node at the check before; ``launch_seconds`` is what launches took lately, 0 where none was measured. Steps
    come in the order of :data:`ACTIONS`, so that nodes are launched and joined before any goes.
    """
    if decision.frozen:
        return Plan((), ("scaling is paused, nothing is done",))
    if survey.at_rest and decision.desired == survey.size:
        return Plan()
    # Of a step that was cut nobody waits for the nodes, quick as they may be: the next check launches the rest, if there is room for more.
    part = decision.desired < policy.max_nodes and any(reason.code == "step_out" for reason in decision.reasons)
    if survey.serving < policy.min_nodes:
        launch_seconds, part = 0.0, False  # no time to lose: the run joins them at the first moment
    later = bool(image) and (part or launch_seconds > PATIENCE)
    steps = _launches(policy, decision, survey, token, image, release, zones, later)
    notes: list[str] = []
    if survey.members_known:
        doubt = any(reason.code in DOUBTS for reason in decision.reasons)
        going = _victims(policy, decision, survey, doubt)
        steps += _forgets(survey, ghosts, notes)
        steps += _joins(survey, {view.name for view in going}, now, launch_seconds, notes)
        steps += _leaving(policy, survey, now, notes, doubt)
        steps += _announced(policy, decision, survey, now, notes, doubt)
        steps += _sick(policy, decision, survey, now, notes, doubt)
        steps += _go(policy, going, decision, now)
    steps.sort(key=lambda step: ACTIONS.index(step.action))
    asked = {step.token for step in steps}
    notes += [
        f"{counted(missing)} of launch {intent.token}: asked for, not seen yet, counted as present"
        for intent, missing in survey.unseen if intent.token not in asked
    ]
    for view in survey.views:
        if view.held:
            notes.append(f"{view.name} is held and will not be terminated")
        elif view.node is not None and view.phase in ("draining", "drained") and not view.retiring:
            notes.append(f"{view.name} was drained by hand and is left alone")
    return Plan(tuple(steps), tuple(notes))


def idle_until(policy: Policy, survey: Survey, launch_seconds: float) -> float:
    """The moment before which nothing is to be done as long as the number wanted is the present one: infinite at rest; where nodes are only
    being built, that at which a run begins to wait for the first of them; else 0."""
    if not survey.members_known or survey.unseen or survey.serving < policy.min_nodes:
        return 0.0
    moments = [math.inf]
    for view in survey.under_way:
        if view.phase != "building" or view.node is None or not view.node.image or view.retiring or view.held or view.notice:
            return 0.0
        moments.append(view.node.launched + min(launch_seconds - PATIENCE, policy.launch_timeout))
    return min(moments)


def _launches(
    policy: Policy, decision: Decision, survey: Survey, token: str, image: str, release: str, zones: Sequence[str],
    later: bool,
) -> list[Step]:
    steps = []
    seen_size = survey.size - survey.coming
    room = policy.max_nodes - survey.existing
    for intent, missing in survey.unseen:
        # The same token would launch its whole count again: only where none of it has been there.
        asks = intent.seen + missing <= intent.count
        if asks and decision.desired > seen_size and missing <= room + survey.coming:
            # The answer to this launch was lost or is late: the same token asks again and launches nothing twice.
            reason = f"{missing} of {intent.count} nodes of this launch are not seen yet"
            steps.append(
                Step("launch", reason, count=intent.count, token=intent.token, image=intent.image,
                     release=intent.release, zones=_spread(survey, zones, intent.count), later=later)
            )
    count = min(decision.desired - survey.size, room)
    if count > 0:
        replaced = [view.name for view in survey.of("sick", "stranded")]
        replaced += [view.name for view in survey.views if view.notice and not view.retiring and view.name not in replaced]
        reason = f"{counted(decision.desired)} wanted, {survey.size} present"
        if replaced:
            reason += f"; in place of {', '.join(replaced[:5])}"
        steps.append(
            Step("launch", reason, count=count, token=token, image=image, release=release,
                 zones=_spread(survey, zones, count), later=later)
        )
    return steps


def _spread(survey: Survey, zones: Sequence[str], count: int) -> tuple[str, ...]:
    """One zone for each new node: always the one with the fewest."""
    present = Counter(view.node.zone for view in survey.views if view.node is not None and view.counted)
    known = sorted(set(zones) | ({zone for zone in present if zone} if not zones else set()))
    if not known:
        return ()
    chosen = []
    for _index in range(count):
        zone = min(known, key=lambda name: (present[name], name))
        present[zone] += 1
        chosen.append(zone)
    return tuple(chosen)


def _forgets(survey: Survey, ghosts: frozenset[str], notes: list[str]) -> list[Step]:
    """Members without a node. One that still serves is believed only when its node is missing twice."""
    taken = {view.node.address for view in survey.views if view.node is not None}
    steps = []
    for view in survey.of("ghost"):
        member = view.member
        if member is None:
            continue
        if member.state in SERVING and view.name not in ghosts and member.address not in taken:
            notes.append(f"{view.name} serves, but the cloud does not know it; it is forgotten if that stays so")
            continue
        steps.append(Step("forget", view.why, node=view.name, address=member.address))
    return steps


def _soon(view: View, now: float) -> bool:
    """Whether the cloud takes it away before it were of use."""
    return bool(view.notice) and view.notice - now <= 2 * NOTICE_DRAIN


def _left(view: View, now: float, launch_seconds: float) -> float:
    """Seconds until a node that is being built should serve; 0 where it is ready, needs the recipe, or nobody knows."""
    if view.phase != "building" or view.node is None or not view.node.image:
        return 0.0
    return launch_seconds - (now - view.node.launched)


def _joins(survey: Survey, going: set[str], now: float, launch_seconds: float, notes: list[str]) -> list[Step]:
    steps = []
    for view in survey.of("building", "ready", "stranded"):
        runs = view.node is not None and view.node.state == "running"
        if runs and not view.retiring and not view.held and not _soon(view, now) and view.name not in going:
            if view.phase == "stranded" and survey.serving:
                continue
            left = _left(view, now, launch_seconds)
            if left > PATIENCE:
                notes.append(f"{view.name} is expected in {left:.0f} s, and joins as soon as it is healthy")
                continue
            steps.append(Step("join", view.why, node=view.name, address=_address(view)))
    for view in survey.of("in_service"):
        # A balancer that was away while this node joined.
        if view.member is not None and view.member.lacking and not view.retiring and view.name not in going:
            text = f"{counted(view.member.lacking, 'balancer')} without it"
            steps.append(Step("join", text, node=view.name, address=_address(view)))
    return steps


def _missing(view: View) -> bool:
    """Runs, and is no member as far as the reading goes."""
    return view.member is None and view.node is not None and view.node.state == "running"


def _leaving(policy: Policy, survey: Survey, now: float, notes: list[str], doubt: bool) -> list[Step]:
    """Go on with what was begun."""
    steps = []
    for view in survey.views:
        if not view.retiring or view.node is None or view.held or view.phase == "stopping":
            continue
        if doubt and _missing(view):
            continue
        begun = view.retiring
        if view.phase == "in_service":
            # Marked, and still serving: nothing was cut short yet, so its time begins when it drains.
            if survey.serving < policy.min_nodes and not _last_chance(view, survey, now):
                notes.append(f"{view.name} is to go, but serves until {policy.min_nodes} others do")
                continue
            begun = now
        elif view.member is not None and view.phase in ("draining", "drained"):
            begun = max(begun, now - view.member.since)
        deadline = _deadline(policy, view, begun)
        if view.phase in ("drained", "sick", "stranded", *NOT_YET_MEMBERS) and not view.busy:
            steps.append(_step("retire", view, f"on its way out: {view.why}", begun, deadline, now >= deadline))
        elif now >= deadline:
            text = f"its deadline has passed with {view.busy} requests left"
            steps.append(_step("retire", view, text, begun, deadline, True))
        else:
            steps.append(_step("drain", view, f"drains since {now - begun:.0f} s", begun, deadline))
    return steps


def _announced(
    policy: Policy, decision: Decision, survey: Survey, now: float, notes: list[str], doubt: bool
) -> list[Step]:
    """Nodes that the cloud will take away: each goes once the others suffice, and in any case before its time."""
    steps = []
    spare = survey.serving - max(policy.min_nodes, decision.desired)
    # Without room for a replacement, one that the others can do without makes some.
    served = sum(view.phase == "in_service" and not view.retiring and not view.held for view in survey.views)
    leaves = min(1, served - max(policy.min_nodes, decision.desired)) if survey.existing >= policy.max_nodes else 0
    for view in sorted(survey.views, key=lambda one: one.notice):
        if not view.notice or view.retiring or view.held or view.node is None or (doubt and _missing(view)):
            continue
        text = f"the cloud takes it away in {max(0.0, view.notice - now):.0f} s"
        # A healthy one may be a member by now, unseen by this reading: it joins first, and then goes like the others.
        if view.phase in ("launching", "building") or view.phase == "ready" and _last_chance(view, survey, now):
            steps.append(_step("retire", view, text, 0.0, _deadline(policy, view, now)))
        elif view.phase in ("in_service", "joining", "failing", "draining", "drained"):
            # What serves beyond need was replaced already; several of them leave together.
            if spare >= 0 or leaves > 0 or _last_chance(view, survey, now):
                leaves -= 1
                steps.append(_step("drain", view, text, 0.0, _deadline(policy, view, now)))
            else:
                notes.append(f"{view.name}: {text}; it serves until its replacement does")
    return steps


def _last_chance(view: View, survey: Survey, now: float) -> bool:
    """Whether it must drain now to end in peace, and somebody else serves."""
    return bool(view.notice) and view.notice - now <= NOTICE_DRAIN and survey.serving > 0


def _deadline(policy: Policy, view: View, begun: float) -> float:
    """When a drain that began then has to be over."""
    deadline = begun + policy.drain_deadline
    return min(deadline, view.notice) if view.notice else deadline


def _sick(
    policy: Policy, decision: Decision, survey: Survey, now: float, notes: list[str], doubt: bool
) -> list[Step]:
    """Take away what no longer serves, once its replacement serves."""
    bad = [view for view in survey.of("sick", "stranded") if not view.retiring and not view.held]
    if doubt:
        bad = [view for view in bad if not _missing(view)]
    needed = max(policy.min_nodes, decision.desired)
    if any(reason.code == "many_sick" for reason in decision.reasons):
        # A common cause would have hit the replacements too: once enough nodes serve, these go one by one; and where there
        # is no room for a replacement, as below.
        gone = [view for view in bad if view.node is not None and view.node.state == "failed"]
        if gone or survey.serving >= needed:
            bad = gone or bad[:1]
        elif survey.existing < policy.max_nodes:
            bad = []
    if not bad:
        return []
    if survey.serving < needed:
        if survey.existing < policy.max_nodes:
            notes.append(f"{', '.join(view.name for view in bad[:5])}: kept until the replacement serves")
            return []
        # There is no room for a replacement, and this one serves nobody.
        idle = [view for view in bad if not view.busy]
        bad = idle[:1]
    steps = []
    for view in bad:
        deadline = now + policy.drain_deadline
        dead = view.node is not None and view.node.state == "failed"
        if view.busy and not dead:
            steps.append(_step("drain", view, f"replaced: {view.why}", 0.0, deadline))
        else:
            steps.append(_step("retire", view, f"replaced: {view.why}", 0.0, deadline, dead))
    return steps


def _victims(policy: Policy, decision: Decision, survey: Survey, doubt: bool) -> list[View]:
    """Which nodes go when the fleet shrinks.

    Nodes that serve nobody yet come first; then the oldest release, the fullest zone, the least busy, the longest
    lived. Nodes that serve go only while at least the minimum and the desired number serve without them.
    """
    surplus = min(survey.size - decision.desired, policy.step_in(survey.size)) - survey.coming
    if surplus <= 0 or decision.direction != "in":
        return []
    free = [view for view in survey.views if view.counted and not view.protected and not view.held]
    # A healthy one may have joined just now, unseen by this reading: it joins first and then goes like the others.
    waiting = [
        view for view in free if view.phase in ("launching", "building") and not (doubt and _missing(view))
    ]
    victims = sorted(waiting, key=lambda view: (-_launched(view), view.name))[:surplus]
    under_way = sum(
        bool(view.retiring or view.notice) and not view.held
        and view.phase not in NOT_YET_MEMBERS and view.phase != "stopping"
        for view in survey.views
    )
    allowed = min(
        surplus - len(victims),
        policy.draining(survey.size) - under_way,
        survey.serving - max(policy.min_nodes, decision.desired),
    )
    candidates = [view for view in free if view.phase == "in_service"]
    ages = _release_ages(survey)
    for _index in range(max(0, allowed)):
        if not candidates:
            break
        zones = Counter(view.node.zone for view in candidates if view.node is not None)
        chosen = min(candidates, key=lambda view: _order(view, ages, zones))
        candidates.remove(chosen)
        victims.append(chosen)
    return victims


def _order(view: View, ages: dict[str, float], zones: Counter[str]) -> tuple[float, int, int, float, str]:
    node = view.node
    if node is None:
        return (0.0, 0, 0, 0.0, view.name)
    return (ages.get(node.release, 0.0), -zones[node.zone], view.busy, node.launched, view.name)


def _release_ages(survey: Survey) -> dict[str, float]:
    """When each release first appeared among the nodes: the names of releases do not tell which is older."""
    ages: dict[str, float] = {}
    for view in survey.views:
        if view.node is not None:
            ages[view.node.release] = min(ages.get(view.node.release, view.node.launched), view.node.launched)
    return ages


def _go(policy: Policy, victims: Sequence[View], decision: Decision, now: float) -> list[Step]:
    steps = []
    for view in victims:
        text = f"{counted(decision.desired)} wanted, {decision.size} present"
        action = "retire" if view.phase in NOT_YET_MEMBERS else "drain"
        steps.append(_step(action, view, text, 0.0, now + policy.drain_deadline))
    return steps


def _step(
    action: str, view: View, reason: str, since: float, deadline: float, forced: bool = False
) -> Step:
    token = view.node.tags.get(TAG_LAUNCH, "") if view.node is not None else ""
    return Step(
        action, reason, node=view.name, address=_address(view), token=token, since=since, deadline=deadline,
        forced=forced,
    )


def _address(view: View) -> str:
    return view.node.address if view.node is not None else ""


def _launched(view: View) -> float:
    return view.node.launched if view.node is not None else 0.0
