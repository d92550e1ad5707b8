# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""moodle-fleet events: the calendar in all its forms, what is kept when something can't be read, and what a check makes of it."""

from __future__ import annotations

import datetime
import http.server
import json
import threading
import time
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import kept, reader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Event
from ansible_collections.elearning.moodle_fleet.trigger import cli, events, ical

ZONE = "Europe/Bratislava"
CALENDAR = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//test//test//EN
BEGIN:VTIMEZONE
TZID:Institute
BEGIN:STANDARD
DTSTART:20201025T030000
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
END:STANDARD
END:VTIMEZONE
%s
END:VCALENDAR
"""


def vevent(*lines: str) -> str:
    return "\r\n".join(["BEGIN:VEVENT", f"UID:{hash(lines)}", *lines, "END:VEVENT"])


def read(*given: str, begin: str = "2026-12-01", end: str = "2027-01-01") -> tuple[list[ical.Entry], list[str]]:
    first, last = (at(f"{day}T00:00:00") for day in (begin, end))
    return ical.entries(CALENDAR % "\r\n".join(given), first, last, ZONE)


def at(text: str, zone: str = ZONE) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone)).timestamp()


def test_times_with_a_zone_without_one_and_in_utc() -> None:
    found, silent = read(
        vevent("SUMMARY:One", "DESCRIPTION:participants: 1 840", "DTSTART;TZID=America/New_York:20261215T030000", "DURATION:PT90M"),
        vevent("SUMMARY:Two", "DESCRIPTION:Participants = 50\\nand more", "DTSTART:20261215T090000", "DTEND:20261215T103000"),
        vevent("SUMMARY:Three (nodes: 7)", "DTSTART:20261215T080000Z", "DTEND:20261215T093000Z"),
        vevent("SUMMARY:Four", "X-MOODLE-FLEET-PARTICIPANTS:20", "DTSTART;TZID=Institute:20261215T090000", "DTEND:20261215T100000"),
        vevent("SUMMARY:Lunch", "DTSTART:20261215T120000Z", "DTEND:20261215T130000Z"),
    )
    assert [(one.name, one.begin, one.participants, one.nodes) for one in found] == [
        ("Four", at("2026-12-15T09:00:00"), 20, 0), ("One", at("2026-12-15T09:00:00"), 1840, 0),
        ("Three", at("2026-12-15T09:00:00"), 0, 7), ("Two", at("2026-12-15T09:00:00"), 50, 0),
    ]
    assert found[1].end - found[1].begin == 5400
    assert silent == ["Lunch"]


def test_whole_days_are_local() -> None:
    found = read(vevent("SUMMARY:Open day", "DESCRIPTION:nodes: 5", "DTSTART;VALUE=DATE:20261220", "DTEND;VALUE=DATE:20261222"))[0]
    assert [(one.begin, one.end, one.nodes) for one in found] == [(at("2026-12-20T00:00:00"), at("2026-12-22T00:00:00"), 5)]


def test_recurrences_with_exceptions_moves_and_summer_time() -> None:
    weekly = vevent(
        "SUMMARY:Test", "DESCRIPTION:participants: 300", "DTSTART;TZID=Europe/Bratislava:20261012T080000", "DURATION:PT1H",
        "RRULE:FREQ=WEEKLY;BYDAY=MO;COUNT=4", "EXDATE;TZID=Europe/Bratislava:20261019T080000",
    ).replace("UID:", "UID:same")
    uid = next(line for line in weekly.splitlines() if line.startswith("UID:"))
    moved = "\r\n".join([
        "BEGIN:VEVENT", uid, "RECURRENCE-ID;TZID=Europe/Bratislava:20261102T080000", "SUMMARY:Test", "DESCRIPTION:participants: 310",
        "DTSTART;TZID=Europe/Bratislava:20261103T100000", "DURATION:PT1H", "END:VEVENT",
    ])
    found = read(weekly, moved, begin="2026-10-01")[0]
    # Eight o'clock local time on both sides of the end of summer time.
    assert [(one.begin, one.participants) for one in found] == [
        (at("2026-10-12T08:00:00"), 300), (at("2026-10-26T08:00:00"), 300), (at("2026-11-03T10:00:00"), 310),
    ]


def test_cancelled_entries_count_nothing() -> None:
    assert read(vevent("SUMMARY:No", "STATUS:CANCELLED", "DESCRIPTION:nodes: 5", "DTSTART:20261215T080000Z", "DTEND:20261215T090000Z"))[0] == []


@pytest.mark.parametrize("text", ["", "hello", "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:nonsense\nEND:VCALENDAR"])
def test_what_is_no_calendar_is_said(text: str) -> None:
    with pytest.raises(ical.CalendarError, match="BEGIN:VCALENDAR"):
        ical.entries(text, 0, 86400, "UTC")


def test_a_calendar_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ical.CalendarError, match="exams.ics.*give an iCalendar file"):
        ical.text("exams.ics", tmp_path)
    with pytest.raises(ical.CalendarError) as caught:
        ical.text("http://127.0.0.1:9/private-key/basic.ics", tmp_path)
    assert "private-key" not in str(caught.value) and "127.0.0.1:9" in str(caught.value)


@pytest.fixture(name="served")
def _served() -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write((CALENDAR % soon("Served", "nodes: 4")).encode())

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/exams.ics"
        server.shutdown()
        thread.join()


def soon(name: str, text: str, seconds: float = 7200) -> str:
    begin = datetime.datetime.fromtimestamp(time.time() + seconds, datetime.timezone.utc)
    return vevent(f"SUMMARY:{name}", f"DESCRIPTION:{text}", f"DTSTART:{begin:%Y%m%dT%H%M%SZ}", "DURATION:PT1H")


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    access = {"password": "x", "servers": {}, "tenants": [{"name": name, "database": name, "server": "default"} for name in ("acme", "globex")]}
    (tmp_path / "state" / "reader.json").write_text(json.dumps(access))
    return fleet_file(tmp_path, "events: {calendar: exams.ics}")


def fleet_file(folder: Path, more: str) -> Path:
    path = folder / "moodle_fleet.yml"
    path.write_text(f"plugin: elearning.moodle_fleet.fleet\nfleet: sim\nstate_dir: state\ncloud: {{driver: podman}}\n{more}\n")
    return path


def test_the_command_keeps_what_it_knew_of_those_it_cannot_read(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opens = time.time() + 3600
    answers = {name: Event(name, "quiz", "Final exam", opens, opens + 3600, 500) for name in ("acme", "globex")}
    lost: dict[str, str] = {}
    monkeypatch.setattr(reader, "read", lambda *_given, **_more: ([one for name, one in answers.items() if name not in lost], dict(lost)))
    (fleet.parent / "exams.ics").write_text(CALENDAR % soon("Open day", "nodes: 4"))
    assert cli.main(["events", "--fleet", str(fleet)]) == 0
    text = capsys.readouterr().out
    assert "Read 2 tenants; 5 moments ahead" in text and "calendar: 'Open day' begins: 4 nodes" in text
    first = kept.foreseen(load(fleet))
    assert (fleet.parent / "state" / kept.EVENTS).stat().st_mode & 0o777 == 0o600

    lost["globex"] = "does not answer"
    (fleet.parent / "exams.ics").unlink()
    assert cli.main(["events", "--fleet", str(fleet), "--json"]) == 4
    data = json.loads(capsys.readouterr().out)
    assert data["failures"]["globex"] == "does not answer" and "exams.ics" in data["failures"]["calendar"]
    assert kept.foreseen(load(fleet)).moments == first.moments

    answers["acme"] = Event("acme", "quiz", "Moved", opens + 60, opens + 3600, 500)
    assert cli.main(["events", "--fleet", str(fleet)]) == 4
    assert "Not read: globex: does not answer" in capsys.readouterr().out
    assert {one.name for one in kept.foreseen(load(fleet)).moments} == {"Moved", "Final exam", "Open day"}


def test_a_calendar_from_an_address(tmp_path: Path, served: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    assert cli.main(["events", "--fleet", str(fleet_file(tmp_path, f"events: {{tenants: false, calendar: '{served}'}}"))]) == 0
    assert "calendar: 'Served' begins: 4 nodes" in capsys.readouterr().out


def test_without_access_file_or_section_the_remedy_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    assert cli.main(["events", "--fleet", str(fleet_file(tmp_path, ""))]) == 3
    assert "events: is missing: say" in capsys.readouterr().err
    assert cli.main(["events", "--fleet", str(fleet_file(tmp_path, "events: {tenants: true}"))]) == 4
    assert "playbooks/tenants.yml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "key"),
    [("{calender: x}", "events.calender"), ("{calendar: 'ftp://x/y'}", "events.calendar"), ("{tenants: 3}", "events.tenants"), ("7", "events")],
)
def test_mistakes_in_the_fleet_file_are_named(tmp_path: Path, section: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["events", "--fleet", str(fleet_file(tmp_path, f"events: {section}"))]) == 3
    assert f"{key}: " in capsys.readouterr().err


def test_a_damaged_file_is_nothing_known(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"moments": [{"name": 1}], "read": 1}', '{"moments": 3, "read": 1}'):
        (tmp_path / kept.EVENTS).write_text(text)
        assert kept.foreseen(SimpleNamespace(state_dir=tmp_path, ledger={})) == events.events.Foreseen()


def test_a_simulated_fleet_knows_the_calendar_too(fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = at("2026-12-15T00:00:00", "UTC")
    rows = [f"{begin + 60 * minute},{4 + 36 * (540 <= minute < 600)}" for minute in range(720)]
    (tmp_path / "trace.csv").write_text("\n".join(["time,load", *rows]))
    (tmp_path / "known.ics").write_text(CALENDAR % vevent("SUMMARY:Exam", "DESCRIPTION:nodes: 12", "DTSTART:20261215T090000Z", "DURATION:PT1H"))
    fleet_file(tmp_path, "scaling: {max_nodes: 20}")
    lack = []
    for more in ([], ["--events", str(tmp_path / "known.ics")]):
        command = ["simulate", "--fleet", str(fleet), "--trace", str(tmp_path / "trace.csv"), "--launch-seconds", "300", "--json", *more]
        assert cli.main(command) == 0
        lack.append(json.loads(capsys.readouterr().out)["under_provisioned_seconds"])
    assert lack[0] > 0 and lack[1] == 0
    (tmp_path / "known.ics").write_text("{}")
    assert cli.main([*command[:-2], "--events", str(tmp_path / "known.ics")]) == 2
    assert "--events:" in capsys.readouterr().err
