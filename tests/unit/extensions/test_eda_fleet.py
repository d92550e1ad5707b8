# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The event source of Event-Driven Ansible: what it makes of readings, and of a command that ends."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.extensions.eda.plugins.event_source.fleet import arguments, events, main

SAMPLE = {"load": 9.0, "waiting": 3, "trusted": True}


def reading(check: int | None) -> dict[str, Any]:
    last = None if check is None else {"id": check, "started": 1.0, "status": "failed", "message": "a message"}
    return {"fleet": "prod", "size": 2, "sample": SAMPLE, "plan": {"steps": []}, "last_check": last}


def test_a_reading_is_an_event_without_the_plan() -> None:
    (event,), seen = events(reading(None), None)
    assert event == {"fleet_status": {"fleet": "prod", "size": 2, "sample": SAMPLE, "last_check": None}}
    assert seen == 0


@pytest.mark.parametrize(("seen", "check", "made"), [(None, 7, 1), (7, 7, 1), (7, 8, 2), (7, 6, 1), (0, 1, 2)])
def test_a_new_check_makes_an_event_once(seen: int | None, check: int, made: int) -> None:
    found, now = events(reading(check), seen)
    assert (len(found), now) == (made, max(check, seen or 0))
    if made == 2:
        assert found[1] == {"fleet_check": {"fleet": "prod", "id": check, "started": 1.0, "status": "failed", "message": "a message"}}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "fleet_file: give"),
        ({"fleet_file": "/f", "command": "moodle-fleet"}, "give a list"),
        ({"fleet_file": "/f", "interval": 0}, "from 0.2 to 3600"),
        ({"fleet_file": "/f", "interval": "often"}, "from 0.2 to 3600"),
    ],
)
def test_options_that_can_not_be_used_are_refused(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        arguments(args)


def test_the_command_follows_the_fleet() -> None:
    assert arguments({"fleet_file": "/f", "interval": 2.5}) == (["moodle-fleet", "--fleet", "/f", "status", "--json", "--watch", "2.5"], 2.5)


def test_a_command_that_ends_is_started_again_and_its_words_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = tmp_path / "command.py"
    # A first run without a cloud, then one that reads.
    script.write_text("""
import json, pathlib, sys, time
mark = pathlib.Path(__file__).with_name("mark")
if not mark.exists():
    mark.touch()
    print(json.dumps({"error": "no cloud", "exit_code": 4}))
    sys.exit("the cloud does not answer")
print(json.dumps({"fleet": "prod", "last_check": None}), flush=True)
time.sleep(30)
""")

    async def first() -> Any:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        source = asyncio.create_task(main(queue, {"fleet_file": "/f", "command": [sys.executable, str(script)], "interval": 0.2}))
        try:
            return await asyncio.wait_for(queue.get(), 20)
        finally:
            source.cancel()
            await asyncio.gather(source, return_exceptions=True)

    assert asyncio.run(first()) == {"fleet_status": {"fleet": "prod", "last_check": None}}
    assert "ended with 1" in caplog.text and "the cloud does not answer" in caplog.text
