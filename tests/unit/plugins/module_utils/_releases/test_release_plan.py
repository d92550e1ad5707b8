# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tenant's way to a release: killed at any step, with any failure, it arrives or is back, and never meets the wrong code."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._releases.plan import (
    DONE,
    DUMPED,
    FAILED,
    LANES,
    NEXT,
    OLD,
    PREPARE,
    RETURNING,
    UPGRADING,
    Seen,
    StepFailed,
    go_on,
    send_back,
    steps,
)


class Killed(Exception):
    """Whoever worked on the tenant is no more."""


class Model:
    """A tenant: its database, its two balancers, its line in the table; ``faults`` say what goes wrong at which call."""

    def __init__(self, closed: bool, jobs: bool, faults: list[str]) -> None:
        self.database, self.dump = "old", ""
        self.balancers = [OLD, OLD]
        self.closed_before, self.jobs_before = closed, jobs
        self.closed, self.jobs = closed, jobs
        self.phase, self.ours, self.stopped, self.run, self.gave_up = "", False, False, 0, False
        self.faults = faults
        self.done: list[str] = []
        self.restored = 0

    def check(self) -> None:
        """A tenant that is open is led by every balancer to the code that fits its whole database."""
        if not self.closed:
            fits = {"old": OLD, "next": NEXT}.get(self.database)
            assert self.balancers == [fits, fits], (self.database, self.balancers, self.done)

    def see(self) -> Seen:
        lanes = set(self.balancers)
        return Seen(
            phase=self.phase, fits=self.database if self.database in ("old", "next") else "", lane=lanes.pop() if len(lanes) == 1 else "",
            closed=self.closed, ours=self.ours, jobs_off=self.stopped, tried=self.gave_up,
        )

    def fault(self, *allowed: str) -> str:
        fault = self.faults.pop() if self.faults else ""
        return fault if fault in allowed else ""

    def do(self, step: str) -> None:
        fault = self.fault("kill before", "kill after", "fail", "fail after")
        if fault == "kill before":
            raise Killed
        if fault == "fail":
            raise StepFailed(step)
        self.done.append(step)
        getattr(self, "_" + step)()
        self.check()
        if fault == "kill after":
            raise Killed
        if fault == "fail after":
            raise StepFailed(step)

    def note_failure(self, error: str, phase: str) -> None:
        self.gave_up = True
        self.phase = phase or self.phase

    def lead(self, lane: str) -> bool:
        for number in (0, 1):
            if self.fault("kill before", "kill after"):
                raise Killed
            if self.fault("fail"):
                return False
            self.balancers[number] = lane
            self.check()
        return True

    def _refuse(self) -> None:
        raise StepFailed("fits neither")

    def _look(self) -> None:
        assert self.database == "old"

    def _jobs_off(self) -> None:
        if self.jobs:
            self.stopped, self.jobs = True, False

    def _close(self) -> None:
        if not self.closed:
            self.ours = self.closed = True

    def _quiet(self) -> None:
        assert self.closed

    def _dump(self) -> None:
        assert self.closed and self.database == "old"
        self.dump = "old"

    def _begin(self) -> None:
        self.phase = DUMPED

    def _restore(self) -> None:
        assert self.closed and self.dump == "old"
        self.database = "torn"
        if self.fault("kill before", "kill after"):
            raise Killed
        self.database, self.jobs = "old", self.jobs_before and not self.stopped
        self.restored += 1

    def _upgrade(self) -> None:
        assert self.closed and self.database == "old", "an upgrade begins with a whole database"
        self.phase, self.database = UPGRADING, "torn"
        if self.fault("kill before", "kill after"):
            raise Killed
        if self.fault("fail", "fail after"):
            raise StepFailed("an upgrade step threw")
        self.database = "next"

    def _verify(self) -> None:
        assert self.database == "next"

    def _freshen(self) -> None:
        assert self.database == "old" and self.balancers == [OLD, OLD]

    def _settle(self) -> None:
        self.phase = DONE

    def _settle_back(self) -> None:
        self.phase, self.gave_up = FAILED, True

    def _open(self) -> None:
        self.closed = False

    def _ask(self) -> None:
        assert not self.closed

    def _jobs_on(self) -> None:
        if self.stopped:
            self.jobs = True

    def _end(self) -> None:
        self.ours = self.stopped = False


def attempt(model: Model) -> None:
    """One run of the release: it calls again after each change of the lane, and ends when nothing is wanted or it is killed."""
    model.gave_up = False
    try:
        while lane := go_on(model):
            if not model.lead(lane):
                if lane == OLD:
                    return
                send_back(model, "a balancer did not answer")
    except Killed:
        return


FAULTS = st.sampled_from(["", "", "", "kill before", "kill after", "fail", "fail after"])


@settings(max_examples=1500)
@example(False, False, ["fail", "", "fail", *[""] * 11], 1)  # at the second try nothing changes the lane, so all is one plan
@given(st.booleans(), st.booleans(), st.lists(FAULTS, max_size=40), st.integers(1, 12))
def test_whatever_happens_a_tenant_arrives_and_never_meets_the_wrong_code(closed: bool, jobs: bool, faults: list[str], runs: int) -> None:
    model = Model(closed, jobs, faults)
    for _number in range(runs):
        attempt(model)
        model.check()
    model.faults = []
    # Nothing goes wrong any more: at most, the way back is ended first and the next run begins anew.
    attempt(model)
    attempt(model)
    assert (model.database, model.phase) == ("next", DONE), model.done
    assert (model.closed, model.jobs, model.ours) == (closed, jobs, False), model.done
    before = list(model.done)
    attempt(model)
    assert model.done == before, "a run with nothing to do does nothing"


@settings(max_examples=500)
@given(st.booleans(), st.booleans(), st.integers(0, 12))
def test_a_tenant_whose_upgrade_always_fails_is_back_as_it_was(closed: bool, jobs: bool, kill: int) -> None:
    class Broken(Model):
        def _upgrade(self) -> None:
            self.phase, self.database = UPGRADING, "torn"
            raise StepFailed("an upgrade step threw")

    model = Broken(closed, jobs, ["kill after", *[""] * kill])
    for _number in range(3):
        attempt(model)
    assert (model.database, model.balancers, model.phase) == ("old", [OLD, OLD], FAILED)
    assert (model.closed, model.jobs) == (closed, jobs)
    assert model.gave_up and model.restored >= 1


def test_what_its_dump_says_of_its_jobs_does_not_count_when_the_first_page_fails() -> None:
    model = Model(False, True, [])
    attempts = iter(["fail"])

    def ask() -> None:
        if next(attempts, ""):
            raise StepFailed("answered with 500")

    model._ask = ask
    attempt(model)
    assert (model.phase, model.database, model.closed, model.jobs, model.restored) == (FAILED, "old", False, True, 1)


def test_what_failed_before_the_dump_is_undone_without_loading_it() -> None:
    model = Model(False, True, [])
    model.faults = ["fail", "", "", ""]  # look, jobs_off, close, then quiet
    attempt(model)
    assert (model.phase, model.closed, model.jobs, model.restored) == (FAILED, False, True, 0)


def test_a_page_that_fails_long_after_the_site_was_opened_costs_nobody_their_work() -> None:
    model = Model(False, True, [])
    model.database, model.balancers, model.phase, model.ours, model.stopped = "next", [NEXT, NEXT], DONE, True, True
    model.faults = ["fail"]
    attempt(model)
    assert (model.database, model.closed, model.restored, model.gave_up) == ("next", False, 0, True)


def test_the_order_is_the_one_that_the_recipe_promises() -> None:
    assert steps(Seen(lane=OLD)) == (*PREPARE, "close", NEXT, "upgrade", "verify", "settle", "open", "jobs_on", "ask", "end")
    assert steps(Seen(phase=DONE, fits="next", lane=NEXT)) == ()


@pytest.mark.parametrize("phase", ["", DONE, FAILED])
def test_a_database_that_fits_no_release_is_left_alone(phase: str) -> None:
    assert steps(Seen(phase=phase, fits="", lane=OLD)) == ("refuse",)


def test_the_way_back_leads_away_before_it_loads_the_dump() -> None:
    way = steps(Seen(phase=RETURNING, fits="", lane=NEXT, closed=True, ours=True))
    assert way.index("close") < way.index(OLD) < way.index("restore") < way.index("open")
    assert set(way) & set(LANES) == {OLD}
