# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every node's phase, derived from what the cloud and the balancer say. Nothing is remembered."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Intent, Member, Node

# Tags on a node that a drain or an operator leaves there.
TAG_RETIRING = "retiring"  # Unix time at which its drain began
TAG_PROTECTED = "protected"  # never chosen to go when the fleet shrinks; still replaced when sick
TAG_HELD = "held"  # never terminated, kept for a post-mortem
TAG_LANE = "lane"  # its pool while a release is under way: "old" or "next"
TAG_LAUNCH = "launch"  # token of the launch that made it

PHASES = (
    "launching", "building", "ready", "stranded", "joining", "in_service",
    "failing", "sick", "draining", "drained", "stopping", "unknown", "ghost",
)
# Phases that count as present: the node serves, or will.
PRESENT = frozenset({"launching", "building", "ready", "joining", "in_service", "failing", "unknown"})
# Members that passed their check may be forgotten only when their node is missing for a second check.
SERVING = frozenset({"up", "starting", "draining"})


@dataclass(frozen=True)
class View:
    """One node (or member without a node) with its phase and why it has it."""

    name: str
    phase: str
    why: str
    node: Node | None = None
    member: Member | None = None
    retiring: float = 0.0
    protected: bool = False
    held: bool = False
    doubtful: bool = False
    notice: float = 0.0

    @property
    def busy(self) -> int:
        """Requests it holds."""
        return self.member.in_service + self.member.waiting if self.member is not None else 0

    @property
    def counted(self) -> bool:
        """Whether it counts towards the desired number."""
        if self.node is None:
            return self.doubtful
        if self.retiring or self.notice:
            return False
        if self.held:
            return self.phase == "in_service"
        return self.phase in PRESENT


@dataclass(frozen=True)
class Survey:
    """All views, and the numbers the decision and the planner share."""

    views: tuple[View, ...]
    unseen: tuple[tuple[Intent, int], ...] = ()
    members_known: bool = True

    def of(self, *phases: str) -> list[View]:
        """Views in any of the phases, in order of their names."""
        return [view for view in self.views if view.phase in phases]

    @cached_property
    def coming(self) -> int:
        """Nodes that were asked for and are not seen yet."""
        return sum(missing for _intent, missing in self.unseen)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many nodes are in each phase; ``asked``: not seen yet. Members without a node are not among them."""
        found: dict[str, int] = {"asked": self.coming} if self.coming else {}
        for view in self.views:
            if view.node is not None or view.doubtful:
                found[view.phase] = found.get(view.phase, 0) + 1
        return found

    @cached_property
    def size(self) -> int:
        """What counts as present: in service or on the way, and not leaving."""
        return sum(view.counted for view in self.views) + self.coming

    @cached_property
    def existing(self) -> int:
        """Servers that exist or were asked for, whatever their phase."""
        return sum(view.node is not None or view.doubtful for view in self.views) + self.coming

    @cached_property
    def serving(self) -> int:
        """Nodes in service that are not leaving, and that the cloud leaves to us."""
        return sum(view.counted and view.phase == "in_service" for view in self.views)

    @cached_property
    def announced(self) -> int:
        """Nodes that would count, had the cloud not announced to take them away."""
        return sum(
            bool(view.notice) and not view.retiring and not view.held and view.phase in PRESENT for view in self.views
        )

    @cached_property
    def sick(self) -> int:
        """Nodes that are sick and not on their way out."""
        return sum(view.phase in ("sick", "stranded") and not view.retiring for view in self.views)

    @cached_property
    def under_way(self) -> list[View]:
        """All but the nodes that serve as plain members of every balancer."""
        return [
            view for view in self.views
            if view.phase != "in_service" or view.node is None or view.retiring or view.held or view.notice
            or view.member is not None and view.member.lacking
        ]

    @cached_property
    def at_rest(self) -> bool:
        """Every node serves, as a plain member of every balancer, and nothing is under way."""
        return self.members_known and not self.unseen and not self.under_way


def survey(
    policy: Policy,
    nodes: Sequence[Node],
    members: Sequence[Member] | None,
    now: float,
    *,
    healthy: Mapping[str, bool] | None = None,
    intents: Sequence[Intent] = (),
    leaving: Mapping[str, float] | None = None,
    ghosts: Collection[str] = (),
    settle: float = 0.0,
    role: str = "web",
) -> Survey:
    """Classify the nodes of one role.

    ``members`` None means that the balancer could not be read. ``healthy`` tells of nodes without a member whether
    they answer their health check, where that was asked. ``intents`` are the open launches, ``leaving`` the nodes a
    plan under way drains, with the time it began. ``ghosts`` were without a node at the check before already: a member
    that serves and whose node is missing for the first time is more likely an outdated answer of the cloud. For
    ``settle`` seconds after a launch the cloud's list may lack nodes that it showed before.
    """
    by_name = {member.name: member for member in members or ()}
    ours = [node for node in nodes if node.role == role]
    views = [
        _view(policy, node, by_name.get(node.name), members is not None, now, healthy or {}, leaving or {})
        for node in sorted(ours, key=lambda n: n.name)
    ]
    known = {node.name for node in ours}
    addresses = {node.address for node in ours}
    views += [
        View(name, "ghost", "the balancer knows it, the cloud does not", None, by_name[name],
             doubtful=by_name[name].state == "up" and name not in ghosts and by_name[name].address not in addresses)
        for name in sorted(set(by_name) - known)
    ]
    return Survey(tuple(views), _unseen(intents, ours, now - settle), members is not None)


def phases(
    policy: Policy,
    nodes: Sequence[Node],
    members: Sequence[Member] | None,
    now: float,
    healthy: Mapping[str, bool] | None = None,
) -> dict[str, str]:
    """The phase of each web node by name; members without a node are left out."""
    found = survey(policy, nodes, members, now, healthy=healthy)
    return {view.name: view.phase for view in found.views if view.node is not None}


def _view(
    policy: Policy,
    node: Node,
    member: Member | None,
    members_known: bool,
    now: float,
    healthy: Mapping[str, bool],
    leaving: Mapping[str, float],
) -> View:
    phase, why = _phase(policy, node, member, members_known, now, healthy)
    # A plan under way is as binding as the tag it is about to write.
    retiring = _time(node.tags.get(TAG_RETIRING)) or leaving.get(node.name, 0.0)
    return View(
        node.name,
        phase,
        why,
        node,
        member,
        retiring=retiring,
        protected=_set(node.tags.get(TAG_PROTECTED)),
        held=_set(node.tags.get(TAG_HELD)),
        notice=node.notice,
    )


def _phase(
    policy: Policy, node: Node, member: Member | None, members_known: bool, now: float, healthy: Mapping[str, bool]
) -> tuple[str, str]:
    """(phase, why) by the table in docs/scaling.md."""
    age = now - node.launched
    if node.state == "stopping":
        return "stopping", "it is being terminated"
    if member is None:
        if node.state == "failed":
            return "stranded", "it exists but does not run"
        if not members_known:
            return ("launching", "it starts") if node.state == "pending" else ("unknown", "the balancer was not read")
        if healthy.get(node.name) is True:
            return "ready", "it answers its health check and is no member yet"
        if age > policy.launch_timeout:
            return "stranded", f"not in service {age:.0f} s after its launch"
        return ("launching", "it starts") if node.state == "pending" else ("building", "it is being prepared")
    if member.state in ("draining", "drained"):
        return member.state, f"{member.in_service + member.waiting} requests left"
    if node.state == "failed":
        return "sick", "it exists but does not run"
    if member.state == "up":
        return "in_service", "its health check passes"
    if member.state == "starting":
        if member.since > policy.launch_timeout:
            return "sick", f"joined {member.since:.0f} s ago and never healthy"
        return "joining", "joined, its health is not known yet"
    if member.since > policy.sick_grace:
        return "sick", f"fails its health check for {member.since:.0f} s"
    return "failing", f"fails its health check for {member.since:.0f} s, not yet {policy.sick_grace:.0f} s"


def _unseen(intents: Sequence[Intent], nodes: Sequence[Node], settled: float) -> tuple[tuple[Intent, int], ...]:
    """Open launches with the number of nodes the cloud does not show yet, or for the moment no longer."""
    result = []
    for intent in intents:
        seen = visible(intent, nodes) + intent.gone
        if max(intent.created, intent.asked) < settled:
            seen = max(intent.seen, seen)
        if seen < intent.count:
            result.append((intent, intent.count - seen))
    return tuple(result)


def visible(intent: Intent, nodes: Sequence[Node]) -> int:
    """How many nodes of this launch the cloud shows."""
    return sum(node.tags.get(TAG_LAUNCH) == intent.token for node in nodes)


def wanting_probe(nodes: Collection[Node], members: Collection[Member], role: str = "web") -> list[Node]:
    """Running nodes that are no members: only of these is it worth asking whether they are healthy."""
    known = {member.name for member in members}
    return [node for node in nodes if node.role == role and node.state == "running" and node.name not in known]


def _time(value: str | None) -> float:
    """A tag's time; a tag without a readable time counts as begun long ago, so that it cannot last for ever."""
    if not value:
        return 0.0
    try:
        return max(1.0, float(value))
    except ValueError:
        return 1.0


def _set(value: str | None) -> bool:
    return value is not None and value.strip().lower() not in ("", "false", "no", "0")
