# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How near database, caches and shared files are to their limits, from their own figures. Pure; see docs/capacity.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import median

# At these a tier counts as full.
RUNNING_PER_CPU = 2.0
CONNECTIONS = 0.95
LOCKED_PER_CPU = 1.0
REDIS_CPU = 0.9
REDIS_MEMORY = 0.95
FILES_SECONDS = 0.5
MANAGED = 0.9
# What was seen once may be over by now.
STANDING = 20.0
# A reading of this age says nothing of now.
FRESH = 120.0
DATABASE = "database"


@dataclass(frozen=True)
class Tier:
    """How near a tier is to its limit: 1 is there. ``text`` says by what."""

    name: str
    share: float
    text: str


def database(now: Mapping[str, float], before: Mapping[str, float] | None) -> Tier:
    """A database server by its status: running threads, connections, row locks waited for."""
    cpus = max(1.0, now["cpus"])
    found = [
        (now["running"] / (RUNNING_PER_CPU * cpus), f"{now['running']:.0f} threads run on {cpus:.0f} CPUs"),
        (now["connected"] / (CONNECTIONS * max(1.0, now["connections"])),
         f"{now['connected']:.0f} of {now['connections']:.0f} connections"),
    ]
    seconds = _seconds(now, before)
    if before is not None and seconds:
        locked = max(0.0, now["lock_seconds"] - before["lock_seconds"]) / seconds
        found.append((locked / (LOCKED_PER_CPU * max(4.0, cpus)), f"{locked:.1f} transactions wait for row locks"))
    share, text = max(found)
    return Tier(DATABASE, share, text)


def cache(now: Mapping[str, float], before: Mapping[str, float] | None) -> Tier:
    """A Redis by its INFO: the one CPU it uses, and memory where nothing may be evicted."""
    found = [(0.0, "its CPU is not known yet")]
    seconds = _seconds(now, before)
    if before is not None and seconds:
        used = max(0.0, now["cpu"] - before["cpu"]) / seconds
        evicted = max(0.0, now["evicted"] - before["evicted"]) / seconds
        found = [(used / REDIS_CPU, f"{used:.0%} of the one CPU that Redis uses, {evicted:.1f} keys evicted a second, "
                                    f"{now['blocked']:.0f} clients blocked")]
    if now["keeps"] and now["most"]:
        found.append((now["memory"] / (REDIS_MEMORY * now["most"]), f"{now['memory'] / now['most']:.0%} of its memory, and nothing may go"))
    share, text = max(found)
    return Tier("cache", share, text)


def files(seconds: Sequence[float]) -> Tier:
    """The shared files by how long they take to answer, as each web node sees it. The median: one slow node is no slow store."""
    usual = median(seconds)
    return Tier("files", usual / FILES_SECONDS, f"the shared files answer in {usual:.2f} s")


def managed(name: str, minutes: Sequence[float], unit: str) -> Tier:
    """A service that AWS runs, by percentages of its last minutes, of which the lowest counts: one busy minute is no limit."""
    percent = min(minutes)
    return Tier(name, percent / 100 / MANAGED, f"{percent:.0f}% {unit}, says CloudWatch")


def together(own: Iterable[Tier], others: Iterable[Tier]) -> list[Tier]:
    """One tier for each name: the one that is nearer to its limit."""
    found: dict[str, Tier] = {}
    for one in (*own, *others):
        if one.name not in found or one.share > found[one.name].share:
            found[one.name] = one
    return list(found.values())


def _seconds(now: Mapping[str, float], before: Mapping[str, float] | None) -> float:
    """Seconds between two readings of one server; 0 where it was restarted between, or they are of no use together."""
    if before is None or now["up"] < before["up"]:
        return 0.0
    passed = now["taken"] - before["taken"]
    return passed if 1.0 <= passed <= 600.0 else 0.0


def standing(tiers: Iterable[Tier], taken: float, before: Mapping[str, Any] | None) -> dict[str, float]:
    """Since when each tier that is full has been so, with what the reading before said; a gap begins anew."""
    old = before or {}
    since = old.get("full", {}) if 0 <= taken - float(old.get("taken", 0.0)) <= FRESH else {}
    return {one.name: float(since.get(one.name, taken)) for one in tiers if one.share >= 1.0}


def saturated(reading: Mapping[str, Any], now: float) -> dict[str, str]:
    """The tiers that are full at present and how that shows, for the brake. Nothing where the reading is old, odd or the first.

    :raises KeyError, TypeError, ValueError: when the reading is none.
    """
    taken = float(reading["taken"])
    if not -5.0 <= now - taken <= FRESH:
        return {}
    words: dict[str, str] = {}
    servers = full = 0
    for one in reading["tiers"]:
        name, since = str(one["name"]), reading["full"].get(one["name"])
        stands = since is not None and taken - float(since) >= STANDING and one["share"] >= 1.0
        servers += name.startswith(DATABASE)
        if stands:
            full += name.startswith(DATABASE)
            words[name] = str(one["text"])
    if full < servers:
        # Those whose database has room left are served by more nodes all the same.
        words = {name: text for name, text in words.items() if not name.startswith(DATABASE)}
    return words
