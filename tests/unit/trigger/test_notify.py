# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What people are told, when, and that each thing is told once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import FleetFileError, validate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Reason, Sample, Step
from ansible_collections.elearning.moodle_fleet.trigger.notify import Alert, Facts, Message, alerts, due, facts, remembered

FILE = {"plugin": "elearning.moodle_fleet.fleet", "fleet": "test", "cloud": {"driver": "podman"}}
NOW = 100_000.0
ONE = Alert("paused", "Paused", "for long", 1.0, "resume")


def settings(**given: Any) -> dict[str, Any]:
    """The section with every default."""
    return dict(validate({**FILE, "notifications": given}, "moodle_fleet.yml").notifications)


def row(age: float, *codes: str, status: str = "idle", trusted: bool = True, message: str = "") -> dict[str, Any]:
    reasons = [{"code": code, "text": f"because {code}", "desired": 6} for code in codes]
    return {"id": 7, "started": NOW - age, "finished": NOW - age, "status": status, "message": message, "recommended": 9,
            "decision": {"trusted": trusted, "reasons": reasons}}


def told(*checks: dict[str, Any], pauses: Any = (), failures: Any = (), lost: int = 0, **given: Any) -> list[Alert]:
    return alerts(Policy(), settings(**given), Facts(checks or (row(5),), pauses, failures, lost), NOW)


# -- what holds -----------------------------------------------------------------------------------------------------
def test_a_healthy_fleet_tells_nothing() -> None:
    assert told(row(5, "tracking"), row(20, "max_nodes"), row(9000, "saturated", trusted=False)) == []


def test_the_maximum_is_told_when_it_lasts() -> None:
    short = [row(15 * i + 5, "tracking", "max_nodes") for i in range(10)]
    assert told(*short) == []
    found = told(*short, row(301, "max_nodes"), row(320, "tracking"), row(999, "max_nodes"))
    assert [(one.name, one.since, one.text) for one in found] == [
        ("at_maximum", NOW - 301, "9 web nodes are recommended, max_nodes is 6.")]


def test_failed_and_lost_launches_are_told() -> None:
    failed = {"action": "launch", "node": "web-3", "planned": NOW - 50, "message": "no capacity"}
    (found,) = told(failures=[failed], lost=2)
    assert found.name == "launches_failed" and found.since == NOW - 50
    assert found.text == "3 failed within the last hour, the last: launch web-3: no capacity; nodes of 2 orders never appeared."


def test_a_forgotten_pause_is_told() -> None:
    pause = {"scope": "in", "reason": "exams", "since": NOW - 7300, "until": 0.0}
    (found,) = told(pauses=[pause])
    assert found.name == "paused" and found.title == "Scaling in is still paused" and "2.0 h: exams" in found.text
    assert told(pauses=[{**pause, "since": NOW - 7100}]) == []


@pytest.mark.parametrize("checks", [[row(5, "saturated"), row(601, "many_sick")], [row(5, "metrics_zero", trusted=False), row(601, trusted=False)]])
def test_a_brake_is_told_when_it_lasts(checks: list[dict[str, Any]]) -> None:
    (found,) = told(*checks)
    assert found.name == "brakes" and found.since == NOW - 601 and "because" in found.text
    assert told(checks[0], row(301, "saturated")) == []


@pytest.mark.parametrize(
    ("checks", "title"),
    [
        ([row(301)], "No check is made"),
        ([row(5, status="failed", message="x"), row(310, status="failed")], "Checks fail"),
        ([row(5, message="balancer: silent"), row(310, message="balancer: silent")], "Checks fail"),
        ([row(4000, status="planned")], "A check hangs"),
    ],
)
def test_checks_that_fail_or_do_not_come_are_told(checks: list[dict[str, Any]], title: str) -> None:
    assert [one.title for one in told(*checks, on=["checks_failing"])] == [title]


def test_a_run_under_way_is_no_late_check() -> None:
    assert told(row(1800, status="planned")) == []


def test_only_what_is_wanted_is_told() -> None:
    assert told(row(5, "max_nodes"), row(400, "max_nodes"), on=["paused"]) == []


def test_the_ledger_gives_the_facts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        step = Step("launch", "busy", count=1, token="t1")
        decision = Decision(3, "out", 2, 3, True, (Reason("tracking", "busy", 3),))
        check = ledger.commit(NOW - 100, "check", Sample(NOW, 15, 9, 8, 0, 8, 2, 9, True), decision, Plan((step,)), 0)
        ledger.record(check, [{"action": "launch", "token": "t1", "status": "failed", "message": "quota"}])
        ledger.finish(check, NOW - 90, "failed", "quota")
        ledger.commit(NOW - 20, "check", Sample(NOW, 15, 9, 8, 0, 8, 2, 9, True), decision, Plan(), 1, expired=["t1"])
        ledger.pause("all", "works", NOW - 9000)
        seen = facts(ledger, NOW, 3600)
    assert [one["id"] for one in seen.checks] == [2, 1] and seen.lost_launches == 1
    assert [one["message"] for one in seen.failures] == ["quota"] and seen.pauses[0]["reason"] == "works"


# -- what is told to whom -------------------------------------------------------------------------------------------
def follow(state: dict[str, Any], holding: list[Alert], now: float, *, works: bool = True, channels: Any = ("chat",)) -> tuple[list[str], dict[str, Any]]:
    messages = due(state, holding, channels, now, 4 * 3600)
    return [f"{one.channel} {one.state} {one.alert.name}" for one in messages], remembered(state, [(one, works) for one in messages], now)


def test_each_thing_is_told_once_again_after_hours_and_once_when_it_is_over() -> None:
    said, state = follow({}, [ONE], 0)
    assert said == ["chat firing paused"]
    for moment in range(60, 4 * 3600, 600):
        said, state = follow(state, [ONE], moment)
        assert said == []
    said, state = follow(state, [ONE], 4 * 3600)
    assert said == ["chat firing paused"]
    said, state = follow(state, [], 4 * 3600 + 60)
    assert said == ["chat resolved paused"]
    assert follow(state, [], 4 * 3600 + 120)[0] == []
    assert follow(state, [ONE], 4 * 3600 + 120)[0] == [], "flapping"
    assert follow(state, [ONE], 5 * 3600)[0] == ["chat firing paused"]


def test_a_channel_that_fails_is_tried_again_ever_more_seldom_and_holds_no_other_up() -> None:
    state: dict[str, Any] = {}
    tries = []
    for moment in range(0, 7200, 60):
        messages = due(state, [ONE], ("chat", "mail"), moment, 1e9)
        tries += [moment for one in messages if one.channel == "mail"]
        state = remembered(state, [(one, one.channel == "chat") for one in messages], moment)
    assert tries == [0, 60, 180, 420, 900, 1860, 3780]
    assert state["chat"]["paused"]["at"] == 0
    assert follow(state, [], 9000, channels=("chat", "mail"))[0] == ["chat resolved paused"], "mail never heard of it"


def test_what_is_over_is_forgotten_after_a_day() -> None:
    _said, state = follow({}, [ONE], 0)
    _said, state = follow(state, [], 60)
    assert remembered(state, [], 90_000) == {"chat": {}}


def test_an_end_that_was_not_delivered_is_told_later() -> None:
    _said, state = follow({}, [ONE], 0)
    said, state = follow(state, [], 60, works=False)
    assert said == ["chat resolved paused"]
    assert follow(state, [], 70)[0] == []
    assert follow(state, [], 130)[0] == ["chat resolved paused"]


def test_a_message_is_a_message() -> None:
    assert due({}, [ONE], ("mail",), 0, 1) == [Message("mail", "firing", ONE)]


# -- the fleet file -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"webhook": {}}, "give either url_env"),
        ({"chat": {"url_env": "A", "url_file": "/b"}}, "give either url_env"),
        ({"chat": {"url": "https://hooks.example/secret"}}, "unknown key"),
        ({"on": ["fire"]}, "use one of: at_maximum"),
        ({"mail": {"server": "mx.example.org", "from": "a@b", "to": ["c@d"]}}, "host:port"),
        ({"mail": {"server": "mx.example.org:25", "from": "a@b\nBcc: x@y", "to": ["c@d"]}}, "must match"),
        ({"mail": {"server": "mx.example.org:25", "from": "a@b", "to": ["c@d"], "user": "u"}}, "give either password_env"),
        ({"mail": {"server": "mx.example.org:25", "from": "a@b", "to": ["c@d"], "user": "u", "password_env": "P", "tls": "none"}}, "needs tls"),
        ({"mail": {"server": "mx.example.org:25", "from": "a@b", "to": []}}, "at least one address"),
        ({"repeat_hours": 0}, "at least 0.1"),
    ],
)
def test_a_mistake_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(FleetFileError, match="notifications") as caught:
        settings(**given)
    assert words in str(caught.value)
