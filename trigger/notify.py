# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``moodle-fleet notify``: tells people what they should know, each thing once.

A process of its own, not a part of the check: no mail server can hold a check up, and a check that never comes is noticed.
What was told to which channel is kept in the ledger; addresses and passwords never are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import counted

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

STATE = "notified"
HOUR = 3600.0
# What begins again sooner than this after its end was told is the same trouble: it is told when it has lasted so long.
QUIET = 600.0
# A channel that fails is tried again after a minute, then after twice as long each time, up to an hour.
FIRST_RETRY, LAST_RETRY = 60.0, HOUR
# A run of the playbook may keep the next check away for as long as this.
LONGEST_RUN = 3700.0
BRAKES = frozenset({"many_sick", "saturated", "untrusted", "no_cloud"})
MOST_CHECKS = 3000


@dataclass(frozen=True)
class Alert:
    """Something a person should know. ``since`` is a Unix time; ``remedy`` is what to look at first."""

    name: str
    title: str
    text: str
    since: float
    remedy: str


@dataclass(frozen=True)
class Facts:
    """What the ledger knows: the latest checks (newest first), pauses, steps and launches that failed within the hour."""

    checks: Sequence[Mapping[str, Any]]
    pauses: Sequence[Mapping[str, Any]]
    failures: Sequence[Mapping[str, Any]]
    lost_launches: int = 0


@dataclass(frozen=True)
class Message:
    """One thing to tell to one channel; ``state`` is ``firing``, ``resolved`` or ``test``."""

    channel: str
    state: str
    alert: Alert


def facts(ledger: Ledger, now: float, window: float) -> Facts:
    """Look into the ledger. ``window`` seconds of checks are enough for every condition."""
    checks = ledger.checks(MOST_CHECKS, since=now - window) or ledger.checks(1)
    return Facts(checks, [asdict(pause) for pause in ledger.pauses(now)], ledger.failures(now - HOUR), ledger.lost_launches(now - HOUR))


def alerts(policy: Policy, settings: Mapping[str, Any], seen: Facts, now: float) -> list[Alert]:
    """What holds at this moment, of what the fleet file wants to be told. Pure."""
    found = [
        _at_maximum(policy, settings, seen, now), _launches_failed(seen), _paused(settings, seen, now), _brakes(settings, seen, now),
        _checks_failing(settings, seen, now),
    ]
    return [one for one in found if one is not None and one.name in settings["on"]]


def _codes(row: Mapping[str, Any]) -> set[str]:
    return {str(reason["code"]) for reason in (row["decision"] or {}).get("reasons", ())}


def _since(seen: Facts, holds: Callable[[Mapping[str, Any]], bool]) -> float | None:
    """Since when each of the latest checks shows something, None where the latest does not."""
    begun = None
    for row in seen.checks:
        if not holds(row):
            break
        begun = float(row["started"])
    return begun


def _at_maximum(policy: Policy, settings: Mapping[str, Any], seen: Facts, now: float) -> Alert | None:
    since = _since(seen, lambda row: "max_nodes" in _codes(row))
    if since is None or now - since < 60 * settings["maximum_minutes"]:
        return None
    wanted = seen.checks[0]["recommended"]
    return Alert("at_maximum", "More nodes are wanted than may exist",
                 f"{wanted} web nodes are recommended, max_nodes is {policy.max_nodes}.", since,
                 "If the load is real, raise scaling.max_nodes; else look at 'moodle-fleet explain'.")


def _launches_failed(seen: Facts) -> Alert | None:
    number = len(seen.failures) + seen.lost_launches
    if not number:
        return None
    parts = []
    if seen.failures:
        last = seen.failures[0]
        parts.append(f"the last: {last['action']} {last['node']}: {last['message'] or 'no message'}")
    if seen.lost_launches:
        parts.append(f"nodes of {counted(seen.lost_launches, 'order')} never appeared")
    since = min([float(one["planned"]) for one in seen.failures], default=0.0)
    return Alert("launches_failed", "Launches fail", f"{number} failed within the last hour, {'; '.join(parts)}.", since,
                 "See 'moodle-fleet history'; quota, capacity of the zone, and the image are the usual causes.")


def _paused(settings: Mapping[str, Any], seen: Facts, now: float) -> Alert | None:
    old = [one for one in seen.pauses if now - one["since"] >= 60 * settings["paused_minutes"]]
    if not old:
        return None
    one = min(old, key=lambda pause: pause["since"])
    what = "Scaling in" if one["scope"] == "in" else "Scaling"
    return Alert("paused", f"{what} is still paused", f"Paused for {(now - one['since']) / HOUR:.1f} h: {one['reason'] or 'no reason given'}.",
                 float(one["since"]), "'moodle-fleet resume' ends it; 'pause --for TIME' ends by itself.")


def _brakes(settings: Mapping[str, Any], seen: Facts, now: float) -> Alert | None:
    since = _since(seen, lambda row: bool(_codes(row) & BRAKES) or not (row["decision"] or {}).get("trusted", True))
    if since is None or now - since < 60 * settings["brakes_minutes"]:
        return None
    said = [reason["text"] for reason in seen.checks[0]["decision"]["reasons"]
            if reason["code"] in BRAKES or str(reason["code"]).startswith("metrics_")]
    return Alert("brakes", "A brake holds the fleet", f"{'; '.join(said) or 'the metrics are not trusted'}.", since,
                 "See 'moodle-fleet status'; the brake lets go by itself once its cause is gone.")


def _checks_failing(settings: Mapping[str, Any], seen: Facts, now: float) -> Alert | None:
    limit = 60 * settings["failing_minutes"]
    remedy = "See 'journalctl -t moodle-fleet' and 'systemctl status moodle-fleet-check.timer'."
    if not seen.checks:
        return None  # a fleet that was never checked
    last = seen.checks[0]
    begun = float(last["started"])
    if last["status"] == "planned":
        if now - begun <= max(limit, LONGEST_RUN):
            return None
        return Alert("checks_failing", "A check hangs", f"Check {last['id']} has been at work for {(now - begun) / 60:.0f} min.", begun, remedy)
    ended = float(last["finished"] or begun)
    if now - ended > max(limit, 60.0):
        return Alert("checks_failing", "No check is made", f"The last one ended {(now - ended) / 60:.0f} min ago.", ended, remedy)
    since = _since(seen, lambda row: row["status"] == "failed" or "no_cloud" in _codes(row) or (row["status"] == "idle" and bool(row["message"])))
    if since is None or now - since < limit:
        return None
    return Alert("checks_failing", "Checks fail", f"{last['message'] or 'the last check ended as ' + str(last['status'])}.", since, remedy)


# -- what to tell whom ----------------------------------------------------------------------------------------------
def due(state: Mapping[str, Any], holding: Sequence[Alert], channels: Sequence[str], now: float, repeat: float) -> list[Message]:
    """What each channel is to be told now. ``state`` is what :func:`remembered` made. Pure."""
    found = []
    names = {one.name for one in holding}
    for channel in channels:
        told = state.get(channel, {})
        for one in holding:
            last = told.get(one.name, {})
            if now < last.get("retry", 0.0):
                continue
            age = now - last.get("at", 0.0)
            if not last.get("state") or (last["state"] == "firing" and age >= repeat) or (last["state"] == "resolved" and age >= QUIET):
                found.append(Message(channel, "firing", one))
        for name, last in told.items():
            if name not in names and last.get("state") == "firing" and now >= last.get("retry", 0.0):
                found.append(Message(channel, "resolved", Alert(**last["alert"])))
    return found


def remembered(state: Mapping[str, Any], results: Sequence[tuple[Message, bool]], now: float) -> dict[str, Any]:
    """The state after these messages were delivered, or not. Pure."""
    new: dict[str, Any] = {channel: dict(told) for channel, told in state.items()}
    for message, delivered in results:
        told = new.setdefault(message.channel, {})
        before = told.get(message.alert.name, {})
        if delivered:
            told[message.alert.name] = {"state": message.state, "at": now, "alert": asdict(message.alert)}
        else:
            failed = before.get("failed", 0) + 1
            told[message.alert.name] = {**before, "failed": failed, "retry": now + min(LAST_RETRY, FIRST_RETRY * 2 ** min(failed - 1, 10))}
    for told in new.values():
        for name in [name for name, last in told.items() if last.get("state") != "firing" and now - last.get("at", last.get("retry", 0)) > 24 * HOUR]:
            del told[name]
    return new


def run(
    fleet: Fleet, policy: Policy, ledger: Ledger, now: float, *, dry_run: bool = False, test: bool = False
) -> tuple[list[str], list[str]]:
    """Tell what is due; returns lines of what was told, and of what could not be."""
    from ansible_collections.elearning.moodle_fleet.trigger import channels

    settings = fleet.notifications or {}
    known = channels.configured(settings)
    if not known:
        return [], ["the fleet file names no channel: give notifications.webhook, .chat or .mail"] if test else []
    if test:
        alert = Alert("test", "A test", "If you can read this, notifications reach you.", now, "Nothing is to be done.")
        messages = [Message(name, "test", alert) for name in known]
    else:
        window = 60 * max(settings["maximum_minutes"], settings["brakes_minutes"], settings["failing_minutes"]) + HOUR
        holding = alerts(policy, settings, facts(ledger, now, window), now)
        state = ledger.state(STATE) or {}
        messages = due(state, holding, list(known), now, settings["repeat_hours"] * HOUR)
    told, failed, results = [], [], []
    for message in messages:
        line = f"{message.channel}: {message.state}: {message.alert.title}: {message.alert.text}"
        problem = "" if dry_run else channels.send(known[message.channel], fleet.name, message.state, message.alert, now)
        results.append((message, not problem))
        if problem:
            failed.append(f"{message.channel}: {message.alert.name} could not be told: {problem}")
        else:
            told.append(line)
    if results and not dry_run and not test:
        ledger.remember(STATE, remembered(state, results, now))
    return told, failed
