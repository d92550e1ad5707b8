# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How many web nodes there should be, and why. Pure: the clock is passed in, nothing is read or written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.recommend import (
    RECOMMENDERS,
    Recommender,
    Situation,
    Wish,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.survey import Survey
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    Decision,
    History,
    Outlook,
    Pause,
    Reason,
    Sample,
    counted,
)


def decide(
    policy: Policy,
    sample: Sample,
    survey: Survey,
    history: History,
    now: float,
    *,
    pauses: Sequence[Pause] = (),
    saturated: Mapping[str, str] | None = None,
    manual: int | None = None,
    outlook: Outlook | None = None,
    launch_seconds: float = 0.0,
    events: Foreseen | None = None,
    recommenders: Sequence[Recommender] = RECOMMENDERS,
    told: bool = True,
) -> Decision:
    """The highest wish, then the caps in their order; each that changes something leaves its reason.

    ``pauses`` are those an operator set, ``saturated`` names services that are at their limit and how that shows,
    ``manual`` is a count given by a person: it stands above the recommenders, never above the bounds. ``outlook`` is
    what the weekly shape says of the next minutes, ``launch_seconds`` how long launches took lately, ``events`` what quizzes,
    assignments and the operator's calendar will bring. Unless it is ``told``, the recommenders' reasons are left out: they
    take time, and change nothing.
    """
    size = _size(survey, history)
    chain = _Chain(size)
    floor = 0
    if manual is not None:
        chain.set(manual, "manual", f"{counted(manual)} asked for by hand")
        recommended = manual
    else:
        situation = Situation(policy, sample, history, size, now, outlook, launch_seconds, events)
        wishes = wanted(situation, recommenders)
        floor = max([wish.desired for wish in wishes if wish.floor], default=0)
        recommended = _recommend(chain, wishes, sample, size, told)
        if recommended != size:
            # The caps on a change; who wants none meets none.
            _window(chain, policy, history, now)
            _timing(chain, situation)
            _steps(chain, policy, floor)
            _cooldown(chain, policy, history, now)
    frozen, hold_in = _brakes(chain, policy, sample, survey, now, pauses, saturated or {}, floor, manual is not None)
    _bounds(chain, policy)
    direction = "out" if chain.desired > size else "in" if chain.desired < size else "none"
    return Decision(
        desired=chain.desired,
        direction=direction,
        size=size,
        recommended=recommended,
        trusted=sample.trusted,
        reasons=tuple(chain.reasons),
        frozen=frozen,
        hold_in=hold_in,
    )


def wanted(situation: Situation, recommenders: Sequence[Recommender]) -> list[Wish]:
    """What the recommenders want, in their order."""
    return [wish for wish in [recommend(situation) for recommend in recommenders] if wish is not None]


def highest(wishes: Sequence[Wish], sample: Sample, size: int) -> int:
    """The highest wish that counts, or ``size`` where there is none; without trusted metrics never less than what is there."""
    found = max([wish.desired for wish in wishes if not wish.advice], default=size)
    return found if sample.trusted else max(found, size)


def _size(survey: Survey, history: History) -> int:
    """What counts as present. A node that the cloud will take away counts until it is replaced: the cloud's choice of a
    moment is no reason to shrink. Whether it was replaced shows in the size that was last wanted."""
    last = history.recommended[-1][1] if history.recommended else survey.size
    return max(survey.size, min(survey.size + survey.announced, last))


class _Chain:
    """The count on its way through the caps, with the reasons so far."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.desired = size
        self.reasons: list[Reason] = []

    def set(self, desired: int, code: str, text: str) -> None:
        """Take a new count and say why."""
        self.desired = desired
        self.reasons.append(Reason(code, text, desired))


def _recommend(chain: _Chain, wishes: Sequence[Wish], sample: Sample, size: int, told: bool) -> int:
    """Take the highest wish."""
    if told:
        chain.reasons += [Reason(wish.source, wish.text, wish.desired) for wish in wishes]
    for code, text in sample.faults:
        chain.reasons.append(Reason(f"metrics_{code}", text, size))
    chain.desired = highest(wishes, sample, size)
    if all(wish.advice for wish in wishes):
        chain.set(size, "no_recommendation", "nothing could be recommended, so the size stays")
    return chain.desired


def _window(chain: _Chain, policy: Policy, history: History, now: float) -> None:
    """A node goes only when nobody wanted it during the whole window."""
    if chain.desired >= chain.size or policy.scale_in_window <= 0:
        return
    seconds = f"{policy.scale_in_window:.0f} s"
    if not history.recommended or history.recommended[0][0] > now - policy.scale_in_window:
        chain.set(chain.size, "window_short", f"less than {seconds} of history, too little to take a node away")
        return
    highest = history.highest(now - policy.scale_in_window, chain.size)
    if highest > chain.desired:
        kept = min(chain.size, highest)
        chain.set(kept, "window", f"{counted(highest)} wanted within the last {seconds}")


def _timing(chain: _Chain, situation: Situation) -> None:
    """Few nodes too many go at a moment at which the need falls: who shrinks while it rises soon has to grow again. Many go at
    once, and so does what nobody wanted for long."""
    policy, history, now = situation.policy, situation.history, situation.now
    minutes = situation.minutes
    if not 0 < chain.size - chain.desired <= max(1, chain.size // 4) or not situation.sample.trusted or len(minutes) < 2:
        return
    before, present = [max(policy.min_nodes, situation.at_limit(load)) for _begin, load, _samples in minutes[-2:]]
    if present < before:
        return
    if history.highest(now - policy.patience) >= chain.size:
        late = f"{policy.patience:.0f} s"
        chain.set(chain.size, "timing", f"too many, but the need does not fall just now: fewer once it does, or once nobody wanted them for {late}")


def _steps(chain: _Chain, policy: Policy, floor: int) -> None:
    """No step larger than the policy allows. A floor was known before: no wrong reading is behind it, and it must come in time."""
    most = max(chain.size + 1, math.floor(chain.size * policy.max_step_out), floor)
    least = chain.size - policy.step_in(chain.size)
    if chain.desired > most:
        chain.set(most, "step_out", f"one step grows the fleet to at most {policy.max_step_out:g} times its size")
    elif chain.desired < least:
        chain.set(least, "step_in", f"one step takes away at most {counted(policy.step_in(chain.size))}")


def _cooldown(chain: _Chain, policy: Policy, history: History, now: float) -> None:
    """Let the last change show its effect first. A time in the future is a wrong clock and counts as now."""
    if chain.desired > chain.size and history.last_out > 0:
        passed = max(0.0, now - history.last_out)
        if passed < policy.cooldown_out:
            left = policy.cooldown_out - passed
            chain.set(chain.size, "cooldown_out", f"nodes were added {passed:.0f} s ago, more in {left:.0f} s")
    elif chain.desired < chain.size:
        changes = (("nodes were added", history.last_out, policy.cooldown_in), ("a node went", history.last_in, policy.cooldown_between))
        held = [(rest - max(0.0, now - when), what, max(0.0, now - when)) for what, when, rest in changes if when > 0]
        left, what, passed = max(held, default=(0.0, "", 0.0))
        if left > 0:
            chain.set(chain.size, "cooldown_in", f"{what} {passed:.0f} s ago, a node may go in {left:.0f} s")


def _brakes(
    chain: _Chain,
    policy: Policy,
    sample: Sample,
    survey: Survey,
    now: float,
    pauses: Sequence[Pause],
    saturated: Mapping[str, str],
    floor: int,
    manual: bool,
) -> tuple[bool, bool]:
    """Reasons to do less. Returns (nothing may be done, no node may go)."""
    current = {pause.scope: pause for pause in reversed(pauses) if not pause.until or pause.until > now}
    frozen = current.get("all")
    if frozen is not None:
        chain.set(chain.size, "paused", f"scaling is paused: {frozen.reason or 'no reason given'}")
        return True, True
    hold_in = False
    held = current.get("in")
    if held is not None:
        hold_in = True
        if chain.desired < chain.size:
            chain.set(chain.size, "paused_in", f"scaling in is paused: {held.reason or 'no reason given'}")
    if not survey.members_known:
        hold_in = True
        if chain.desired < chain.size:
            chain.set(chain.size, "untrusted", "the balancer's members are unknown, so no node goes")
    if not sample.trusted and not manual:
        hold_in = True
        if chain.desired < chain.size:
            chain.set(chain.size, "untrusted", "the metrics are not trusted, so no node goes")
    sick, present = survey.sick, chain.size + survey.sick
    if sick > policy.halt_sick_count and sick > policy.halt_sick_share * present:
        hold_in = True
        text = f"{sick} of {present} nodes are sick: more likely one common cause, so none is taken away"
        chain.set(max(chain.desired, chain.size), "many_sick", text)
    if saturated and not manual and chain.desired > max(chain.size, floor):
        what = "; ".join(f"{name}: {how}" for name, how in sorted(saturated.items()))
        chain.set(max(chain.size, floor), "saturated", f"more web nodes would not help ({what})")
    return False, hold_in


def _bounds(chain: _Chain, policy: Policy) -> None:
    """The limits of the policy hold whatever was decided before, paused scaling excepted only by the planner."""
    if chain.desired < policy.min_nodes:
        chain.set(policy.min_nodes, "min_nodes", f"never fewer than {counted(policy.min_nodes)}")
    elif chain.desired > policy.max_nodes:
        chain.set(policy.max_nodes, "max_nodes", f"never more than {counted(policy.max_nodes)}")
