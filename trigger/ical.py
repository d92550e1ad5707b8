# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The operator's calendar: an iCalendar file or address, with time zones, recurrences and whole days."""

from __future__ import annotations

import datetime
import re
import urllib.error
import urllib.request
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of an answer; more is no timetable.
LARGEST = 10 * 1024 * 1024
TIMEOUT = 10.0
MOST = 5000
# "participants: 1 840" or "nodes: 9" in summary or description, or X-MOODLE-FLEET-PARTICIPANTS and -NODES.
_SAYS = re.compile(r"\b(participants|nodes)\s*[:=]\s*(\d{1,3}(?:[., '\u00a0\u202f]\d{3})+(?!\d)|\d+)", re.IGNORECASE)


class CalendarError(Exception):
    """The calendar can't be read. The message says where and what to do."""


@dataclass(frozen=True)
class Entry:
    """One occurrence of an entry: Unix times, and how many people come or how many nodes must be there."""

    name: str
    begin: float
    end: float
    participants: int = 0
    nodes: int = 0


def text(source: str, folder: Path) -> str:
    """The calendar's text; a file's name is relative to the folder.

    :raises CalendarError: when it can't be had.
    """
    try:
        if "://" not in source:
            return (folder / source).expanduser().read_text(encoding="utf-8")
        with urllib.request.urlopen(source, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(LARGEST + 1)
    except (OSError, ValueError, urllib.error.URLError) as exc:
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
        raise CalendarError(f"events.calendar {_shown(source)}: {reason}: give an iCalendar file or its address") from exc
    if len(data) > LARGEST:
        raise CalendarError(f"events.calendar {_shown(source)}: is larger than {LARGEST} bytes: give a calendar of its own")
    return data.decode("utf-8", "replace")


def _shown(source: str) -> str:
    """An address without what may be a secret in it."""
    found = re.match(r"(\w+://)(?:[^/@]*@)?([^/?#]*)", source)
    return f"{found[1]}{found[2]}/…" if found else source


def entries(content: str, begin: float, end: float, timezone: str) -> tuple[list[Entry], list[str]]:
    """The occurrences that touch a span of time, and the names of those that say neither participants nor nodes.

    Whole days and times without a zone are local to ``timezone``. An entry that recurs gives one occurrence each time; one that
    was cancelled gives none.

    :raises CalendarError: when a library is missing or the text is no calendar.
    """
    try:
        import icalendar
        import recurring_ical_events
    except ImportError as exc:
        raise CalendarError(f"{exc}: pip install -r requirements.txt") from exc
    zone = datetime.timezone.utc if timezone == "UTC" else zoneinfo.ZoneInfo(timezone)
    first, last = (datetime.datetime.fromtimestamp(moment, zone) for moment in (begin, end))
    try:
        calendar: Any = icalendar.Calendar.from_ical(content)
        occurrences = recurring_ical_events.of(calendar, skip_bad_series=True).between(first, last)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise CalendarError(f"events.calendar is no iCalendar text ({type(exc).__name__}: {exc}): begin it with BEGIN:VCALENDAR") from exc
    found: list[Entry] = []
    silent: list[str] = []
    for one in occurrences[:MOST]:
        if str(one.get("STATUS", "")).upper() == "CANCELLED":
            continue
        name = " ".join(str(one.get("SUMMARY", "")).split()) or "without a name"
        said = _said(one)
        if not said:
            silent.append(name)
            continue
        start, finish = _moment(one.start, zone), _moment(one.end, zone)
        found.append(Entry(
            _SAYS.sub("", name).strip(" ,;:–-()") or name, start, max(finish, start + 60.0),
            said.get("participants", 0), said.get("nodes", 0),
        ))
    return sorted(found, key=lambda entry: (entry.begin, entry.name)), sorted(set(silent))


def _said(one: Any) -> dict[str, int]:
    """Participants and nodes that an entry states."""
    said = {}
    for part in (str(one.get("DESCRIPTION", "")), str(one.get("SUMMARY", ""))):
        for word, number in _SAYS.findall(part):
            said[word.lower()] = int(re.sub(r"\D", "", number))
    for word in ("participants", "nodes"):
        value = str(one.get(f"X-MOODLE-FLEET-{word.upper()}", "")).strip()
        if value.isdigit():
            said[word] = int(value)
    return {word: number for word, number in said.items() if number > 0}


def _moment(value: datetime.date, zone: datetime.tzinfo) -> float:
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    return (value if value.tzinfo is not None else value.replace(tzinfo=zone)).timestamp()
