# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""As which user a tenant's turn runs, while lists, users and the dispatcher each come in their own time."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "roles/jobs/files"))

import dispatch

SETTINGS = {
    "limits": {"interval": 60, "workers": 4, "long_after": 20, "long_runs": 4, "tenant_runs": 3, "slow_for": 900, "backoff_max": 600},
    "database": {}, "user": "daemon", "php": ["php", "-d", "opcache.file_cache=/shared"], "code": "/srv/moodle/current",
    "local": "/var/cache/moodle-fleet", "lanes": "/nonexistent", "releases": "/srv/moodle/releases", "run_limit": 14400,
}
SHARED, OWN = 1, 1_800_000_001


class Runner:
    """Starts nothing; an own one needs its user, as subprocess does."""

    made: set[int] = set()
    runs: list[tuple[str, int, list[str]]] = []

    def __init__(self, php, user, selector, answer, once=False):
        if user not in self.made:
            raise KeyError(f"getpwuid(): uid not found: {user}")
        self.php, self.user, self.once, self.ids = php, user, once, set()
        self.process = type("Process", (), {"poll": staticmethod(lambda: None)})

    def ask(self, number, script, *arguments, **environment):
        self.ids.add(number)
        self.runs.append((environment["MOODLE_TENANT"], self.user, self.php))


@pytest.fixture
def dispatcher(tmp_path, monkeypatch):
    """One that is active, with files of its own and no process."""
    for name in ("TENANTS", "OWN"):
        monkeypatch.setattr(dispatch, name, tmp_path / name)
        (tmp_path / name).touch()
    monkeypatch.setattr(dispatch, "Runner", Runner)
    monkeypatch.setattr(Runner, "made", {SHARED})
    monkeypatch.setattr(Runner, "runs", [])
    monkeypatch.setattr(dispatch.Journal, "write", lambda *_words, **_more: None)
    made = dispatch.Dispatcher(SETTINGS)
    made.user, made.role = SHARED, "active"
    made.asked_for = []
    monkeypatch.setattr(made, "_ask", lambda answer, *words: made.asked_for.append((answer, words)))
    return made


def turn(dispatcher, listed, later=0):
    """A turn of its loop, so much later, in which whatever was asked is answered by this list."""
    dispatcher._refresh()
    while dispatcher.asked_for:
        answer, words = dispatcher.asked_for.pop(0)
        assert words == ("list",)
        answer(0, json.dumps(listed))
    for run in dispatcher.schedule.start(time.time() + later):
        dispatcher._start(run)


def test_a_turn_runs_as_its_tenants_user_and_with_its_compiled_code(dispatcher):
    Runner.made.add(OWN)
    turn(dispatcher, {"acme": None, "globex": OWN})
    assert sorted(Runner.runs) == [
        ("acme", SHARED, ["php", "-d", "opcache.file_cache=/shared"]),
        ("globex", OWN, ["php", "-d", "opcache.file_cache=/var/cache/moodle-fleet/globex/opcache-cli"]),
    ]


def test_a_tenant_whose_user_is_made_after_the_list_is_never_run_as_the_others(dispatcher):
    """Nodes get the list first; what makes users of it comes a moment later."""
    turn(dispatcher, {"acme": None, "globex": OWN})
    assert [(tenant, user) for tenant, user, _php in Runner.runs] == [("acme", SHARED)]
    assert dispatcher.schedule.tenants["globex"].failures == 1

    # No file changes any more: the next turn of that tenant finds its user nevertheless.
    Runner.made.add(OWN)
    Runner.runs.clear()
    turn(dispatcher, {}, later=3600)
    assert ("globex", OWN) in [(tenant, user) for tenant, user, _php in Runner.runs]


def test_a_tenant_goes_back_to_the_user_that_most_share(dispatcher):
    Runner.made.add(OWN)
    turn(dispatcher, {"globex": OWN})
    dispatcher._ended({"id": next(iter(dispatcher.schedule.runs)), "code": 0, "cpu": 0.1}, "")
    dispatcher.seen = ()
    turn(dispatcher, {"globex": None}, later=3600)
    assert [(tenant, user) for tenant, user, _php in Runner.runs] == [("globex", OWN), ("globex", SHARED)]


def test_a_site_that_is_being_made_rests_until_it_is_complete(dispatcher, monkeypatch, tmp_path):
    monkeypatch.setitem(dispatcher.settings, "lanes", str(tmp_path))
    ended = []
    monkeypatch.setattr(dispatcher.figures, "ended", lambda run, outcome, *_more: ended.append((run.tenant, outcome)))
    (tmp_path / "acme").write_text("\n")
    turn(dispatcher, {"acme": None, "globex": None})
    assert ([name for name, _user, _php in Runner.runs], ended) == (["globex"], [("acme", "resting")])
    (tmp_path / "acme").unlink()
    turn(dispatcher, {}, later=70)
    assert "acme" in [name for name, _user, _php in Runner.runs]


def test_a_site_whose_making_was_broken_off_does_not_rest_for_ever(dispatcher, monkeypatch, tmp_path):
    monkeypatch.setitem(dispatcher.settings, "lanes", str(tmp_path))
    (tmp_path / "acme").write_text("\n")
    os.utime(tmp_path / "acme", (time.time() - 2000,) * 2)
    turn(dispatcher, {"acme": None})
    assert [name for name, _user, _php in Runner.runs] == ["acme"]
