# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which tenants are busiest and slowest, from the central logs (nginx's JSON lines) or from HAProxy's log."""

from __future__ import annotations

import datetime
import gzip
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Response times are counted in classes each a quarter wider than the one before, so that memory does not grow with them.
_GROWTH = math.log(1.25)
_SHORTEST = 0.001
# [26/Nov/2026:18:00:01.123] frontend backend/server TR/Tw/Tc/Tr/Ta status bytes - - ---- 1/1/1/1/0 0/0 id host "request"
_HAPROXY = re.compile(
    r"\[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d)\.\d+\] \S+ \S+ [-\d]+/[-\d]+/[-\d]+/[-\d]+/\+?(\d+) (-?\d+) \S+ \S+ \S+ \S+ \S+ \S+ \S+ (\S+) \""
)


class Tenant:
    """The requests of one tenant."""

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.seconds = 0.0
        self.classes: dict[int, int] = {}

    def add(self, seconds: float, status: int) -> None:
        """Count a request."""
        self.requests += 1
        self.errors += status >= 500
        self.seconds += seconds
        index = max(0, math.ceil(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _GROWTH))
        self.classes[index] = self.classes.get(index, 0) + 1

    def percentile(self, share: float) -> float:
        """Upper bound (at most a quarter too high) of the seconds that this share of the requests does not exceed."""
        left = share * self.requests
        for index in sorted(self.classes):
            left -= self.classes[index]
            if left <= 1e-9:
                return _SHORTEST * math.exp(index * _GROWTH)
        return 0.0


class LogError(Exception):
    """The logs cannot be read. The message names the path and what to do."""


def collect(paths: Sequence[Path], begin: float, end: float) -> tuple[list[dict[str, Any]], int]:
    """The tenants between two moments, busiest (in seconds of workers) first, and how many lines were of no use.

    A folder stands for all files below it. Files that were last written before ``begin`` are not opened.

    :raises LogError: when a path is not there or cannot be read.
    """
    found: dict[str, Tenant] = {}
    useless = 0
    for line in _lines(paths, begin):
        told = _request(line)
        if told is None:
            useless += 1
            continue
        moment, name, seconds, status = told
        if begin <= moment <= end and name:
            found.setdefault(name, Tenant()).add(seconds, status)
    rows = [
        {"tenant": name, "requests": one.requests, "errors": one.errors, "busy": round(one.seconds, 1),
         "mean": round(one.seconds / one.requests, 4), "p95": round(one.percentile(0.95), 3)}
        for name, one in found.items()
    ]
    return sorted(rows, key=lambda row: (-float(row["busy"]), str(row["tenant"]))), useless


def _lines(paths: Sequence[Path], begin: float) -> Iterator[str]:
    for path in paths:
        if not path.exists():
            raise LogError(f"--logs {path}: does not exist: give a log file, or a folder such as /var/log/moodle-fleet/tenants")
        files: Iterable[Path] = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in files:
            try:
                if file.stat().st_mtime < begin:
                    continue
                opened = gzip.open if file.suffix == ".gz" else open
                with opened(file, "rt", encoding="utf-8", errors="replace") as text:
                    yield from text
            except (OSError, EOFError) as exc:
                raise LogError(f"--logs {file}: can't be read: {getattr(exc, 'strerror', None) or exc}: "
                               "run this where the logs are readable (group adm)") from exc


def _request(line: str) -> tuple[float, str, float, int] | None:
    """(Unix time, tenant or host, seconds, status) of a line, or None."""
    place = line.find('{"time":')
    try:
        if place >= 0:
            data = json.loads(line[place:])
            return (datetime.datetime.fromisoformat(data["time"]).timestamp(), str(data["tenant"]), float(data["seconds"]),
                    int(data["status"]))
        found = _HAPROXY.search(line)
        if found is None:
            return None
        # HAProxy's time is the machine's local time, without a zone.
        moment = datetime.datetime.strptime(found[1], "%d/%b/%Y:%H:%M:%S").astimezone().timestamp()
        host = found[4].rsplit(":", 1)[0]
        return moment, "" if host == "-" else host, int(found[2]) / 1000, int(found[3])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
