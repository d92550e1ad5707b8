# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What one tenant still needs to get to a release, from what is observed of it. Pure.

A tenant is open only while the lane that its hosts lead to has the code that fits its database. So it is closed, then changes
its lane and its database in whatever order, and is opened when both fit again. Whoever is killed in between leaves it closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

# The two pools of web nodes, by the name of their backend at the balancer.
OLD, NEXT = "web", "web_next"
LANES = (OLD, NEXT)

# Phases of a tenant's line in the table of a release. Before DUMPED and after DONE or FAILED its database is whole and fits
# one of the two releases; between them only the dump is sure.
DUMPED, UPGRADING, RETURNING, DONE, FAILED = "dumped", "upgrading", "returning", "done", "failed"

# Until the dump is written down nothing was done to the database: what fails here is undone by opening the site again.
PREPARE = ("look", "jobs_off", "close", "quiet", "dump", "begin")
# What fails here sends the tenant back: its dump is loaded and its hosts lead to the old pool again.
UPGRADE = ("restore", "upgrade", "verify", "settle", "open", "ask")


@dataclass(frozen=True)
class Seen:
    """What is observed of one tenant.

    ``phase`` is what its line says of this release, ``fits`` whose code fits its database (``old``, ``next`` or neither),
    ``lane`` where all balancers lead all its hosts (empty: not known, or not all to the same).
    """

    phase: str = ""
    fits: str = "old"
    lane: str = ""
    closed: bool = False
    # The release closed it, so the release opens it. A site that was closed before stays closed.
    ours: bool = False
    # The release stopped its jobs, so it starts them: again, should its dump be loaded, in which they rest.
    jobs_off: bool = False
    # Given up in this very run, which does not try again.
    tried: bool = False


def steps(seen: Seen) -> tuple[str, ...]:
    """Return what is still to be done, in this order; nothing for a tenant that has arrived.

    A lane's name stands for leading the tenant's hosts there.
    """
    if seen.phase in (DUMPED, UPGRADING, RETURNING):
        # Closed by whoever begins here, if not already.
        seen = replace(seen, ours=seen.ours or not seen.closed, closed=True)
    end = ("open",) if seen.ours and seen.closed else ()
    end += ("jobs_on",) if seen.jobs_off else ()
    if seen.phase == RETURNING:
        return ("close", *_lead(seen, OLD), "restore", "freshen", "settle_back", *end, "end")
    if seen.phase == FAILED and seen.tried:
        todo = (*_lead(seen, OLD), *end)
        return (*todo, "end") if todo or seen.ours else ()
    end += ("ask",) if seen.ours else ()
    if seen.phase in (DUMPED, UPGRADING):
        again = ("restore",) if seen.phase == UPGRADING else ()
        return ("close", *_lead(seen, NEXT), *again, "upgrade", "verify", "settle", *end, "end")
    if seen.fits == "next":
        todo = (*_lead(seen, NEXT), *(() if seen.phase == DONE else ("settle",)), *end)
        return (*todo, "end") if todo else ()
    if seen.fits != "old":
        return ("refuse",)
    return (*PREPARE, *steps(replace(seen, phase=DUMPED, jobs_off=True)))


def _lead(seen: Seen, lane: str) -> tuple[str, ...]:
    return () if seen.lane == lane else (lane,)


class StepFailed(Exception):
    """A step failed; the text says why. Anything else that is raised is an interruption: nothing is known then."""


class World(Protocol):
    """One tenant as it is, and what can be done to it. Each step may be repeated."""

    def see(self) -> Seen:
        """Observe the tenant."""

    def do(self, step: str) -> None:
        """Carry out a step.

        :raises StepFailed: when it did not succeed.
        """

    def note_failure(self, error: str, phase: str) -> None:
        """Write down that the tenant was given up in this run, and its phase from now on; an empty phase leaves it."""


def go_on(world: World, lead: Callable[[str], bool] = lambda lane: False) -> str:
    """Do for a tenant what is still needed, also the way back when something fails.

    Returns the lane to which ``lead`` could not lead its hosts, for the caller to do that and call again; else nothing.
    """
    while True:
        seen = world.see()
        opened = False
        for step in steps(seen):
            if step in LANES:
                if not lead(step):
                    return step
                continue
            try:
                world.do(step)
                opened = opened or step == "open"
            except StepFailed as exc:
                if not _give_up(world, seen, step, opened, str(exc)):
                    return ""
                break
        else:
            return ""


def _give_up(world: World, seen: Seen, step: str, opened: bool, error: str) -> bool:
    """Note a failure; returns whether something can be done about it."""
    if seen.phase == RETURNING or (seen.phase == FAILED and seen.tried):
        # Not even the way back succeeds: it stays as it is, and the next run tries again.
        world.note_failure(error, "")
        return False
    if step in PREPARE:
        world.note_failure(error, FAILED)
        return True
    # Visitors may have written since it was opened in an earlier run: their work is worth more than the way back.
    if step in UPGRADE and (step != "ask" or opened):
        try:
            # First: what is written from here on would be lost.
            world.do("close")
        except StepFailed as exc:
            world.note_failure(f"{error}; then: {exc}", "")
            return False
        world.note_failure(error, RETURNING)
        return True
    world.note_failure(error, "")
    return False


def send_back(world: World, error: str) -> None:
    """Give a tenant up whose hosts could not be led to the new pool; :func:`go_on` then does what is due."""
    seen = world.see()
    if seen.phase in (DUMPED, UPGRADING):
        world.note_failure(error, RETURNING)
    else:
        world.note_failure(error, "")
