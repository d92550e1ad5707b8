# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads quizzes and assignments from the tenants' databases: one query each, as a user who may read a few columns and no more."""

from __future__ import annotations

import concurrent.futures
import json
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import HABITS, Event

try:
    import pymysql
except ImportError:
    pymysql = None

USER = "fleet_reader"
ACCESS_FILE = "reader.json"
DAY = 86400
# What the query looks at. Quiz, its overrides and enrolment hold passwords in other columns, submissions and attempts grades.
COLUMNS: dict[str, tuple[str, ...]] = {
    "mdl_assign": ("id", "course", "name", "allowsubmissionsfromdate", "duedate"),
    "mdl_assign_overrides": ("assignid", "groupid", "userid", "allowsubmissionsfromdate", "duedate"),
    "mdl_assign_submission": ("assignment", "userid", "timecreated", "timemodified"),
    "mdl_course": ("id", "visible"),
    "mdl_course_modules": ("course", "module", "instance", "visible", "deletioninprogress"),
    "mdl_enrol": ("id", "courseid", "status"),
    "mdl_groups_members": ("groupid", "userid"),
    "mdl_modules": ("id", "name"),
    "mdl_quiz": ("id", "course", "name", "timeopen", "timeclose"),
    "mdl_quiz_attempts": ("quiz", "userid", "preview", "timestart", "timefinish"),
    "mdl_quiz_overrides": ("quiz", "groupid", "userid", "timeopen", "timeclose"),
    "mdl_user_enrolments": ("enrolid", "userid", "status", "timeend"),
}
# The server ends a query that takes longer than this; seconds.
QUERY_SECONDS = 5
PARALLEL = 4
# Of one tenant; more is no timetable, and the nearest come first.
MOST_EVENTS = 2000

# Enrolments, attempts and submissions are reached by Moodle's own indexes, only for what lies within the days asked for.
_ACTIVE = "e.courseid = x.course AND e.status = 0 AND ue.status = 0 AND (ue.timeend = 0 OR ue.timeend > %(now)s)"
_ENROLLED = f"""(SELECT COUNT(DISTINCT ue.userid) FROM {{db}}.mdl_enrol e JOIN {{db}}.mdl_user_enrolments ue ON ue.enrolid = e.id
   WHERE {_ACTIVE})"""
# Those for whom other times hold, by their own override or, without one, by their group's. An override without a time leaves it as it is.
_OTHERS = f"""{{db}}.mdl_{{kind}}_overrides o LEFT JOIN {{db}}.mdl_groups_members gm ON gm.groupid = o.groupid
   STRAIGHT_JOIN {{db}}.mdl_enrol e STRAIGHT_JOIN {{db}}.mdl_user_enrolments ue ON ue.enrolid = e.id AND ue.userid = COALESCE(o.userid, gm.userid)
   WHERE o.{{of}} = x.id AND {_ACTIVE}
   AND (COALESCE(o.{{opens}}, x.{{opens}}) <> x.{{opens}} OR COALESCE(o.{{closes}}, x.{{closes}}) <> x.{{closes}})
   AND (o.userid IS NOT NULL OR NOT EXISTS (SELECT 1 FROM {{db}}.mdl_{{kind}}_overrides own WHERE own.{{of}} = x.id
   AND own.userid = gm.userid AND (own.{{opens}} IS NOT NULL OR own.{{closes}} IS NOT NULL)))"""
_SHOWN = """EXISTS (SELECT 1 FROM {db}.mdl_course_modules cm JOIN {db}.mdl_modules m ON m.id = cm.module
   JOIN {db}.mdl_course c ON c.id = cm.course
   WHERE cm.instance = x.id AND cm.course = x.course AND m.name = '{kind}' AND cm.visible = 1 AND cm.deletioninprogress = 0
   AND c.visible = 1)"""
_ATTEMPTS = """IF({at} > 0 AND {at} + {after} <= %(now)s, (SELECT COUNT(DISTINCT a.userid) FROM {db}.mdl_quiz_attempts a
   WHERE a.quiz = x.id AND a.preview = 0 AND a.{column} >= {at} - {before} AND a.{column} < {at} + {after}), NULL)"""
_SUBMISSIONS = """IF({at} > 0 AND {at} + {after} <= %(now)s, (SELECT COUNT(DISTINCT s.userid) FROM {db}.mdl_assign_submission s
   WHERE s.assignment = x.id AND s.{column} >= {at} - {before} AND s.{column} < {at} + {after}), NULL)"""
_BETWEEN = "({opens} BETWEEN %(since)s AND %(until)s OR {closes} BETWEEN %(since)s AND %(until)s)"


class ReadError(Exception):
    """A tenant, or all, can't be read. The message says what to do."""


@dataclass(frozen=True)
class Access:
    """Where the tenants' databases are and who may read them; written by the playbooks, see the role ``tenants``.

    ``servers`` are host, port and tls by name, ``tenants`` are name, database and server.
    """

    password: str
    servers: Mapping[str, Mapping[str, Any]]
    tenants: Sequence[Mapping[str, str]]
    caches: Sequence[Mapping[str, Any]] = ()


def access(folder: Path) -> Access:
    """Read the access file of a fleet's state folder.

    :raises ReadError: when there is none, or not a whole one.
    """
    path = folder / ACCESS_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Access(str(data["password"]), dict(data["servers"]), list(data["tenants"]), list(data.get("caches", ())))
    except OSError as exc:
        raise ReadError(f"{path}: {exc.strerror}: playbooks/tenants.yml or site.yml writes it; run it as the user of the check") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ReadError(f"{path}: is damaged ({type(exc).__name__}: {exc}): run playbooks/tenants.yml, which writes it anew") from exc


def query(database: str) -> str:
    """The one query of a tenant."""
    def part(kind: str, of: str, opens: str, closes: str, first: str, last: str) -> str:
        usual, other = (f"x.{opens}", f"x.{closes}"), (f"COALESCE(o.{opens}, x.{opens})", f"COALESCE(o.{closes}, x.{closes})")
        # One line for all with the usual times, and one for all who share other ones.
        text = (
            f"SELECT '{kind}', x.name, {', '.join(usual)}, {_ENROLLED} - (SELECT COUNT(DISTINCT ue.userid) FROM {_OTHERS}), {first}, {last}"
            f" FROM {{db}}.mdl_{kind} x WHERE {_BETWEEN.format(opens=usual[0], closes=usual[1])} AND {_SHOWN}"
            f" UNION ALL SELECT '{kind}', x.name, {', '.join(other)}, COUNT(DISTINCT ue.userid), NULL, NULL"
            f" FROM {{db}}.mdl_{kind} x STRAIGHT_JOIN {_OTHERS} AND {_BETWEEN.format(opens=other[0], closes=other[1])} AND {_SHOWN}"
            f" GROUP BY x.id, x.name, {', '.join(other)}"
        )
        for place, value in {"{kind}": kind, "{of}": of, "{opens}": opens, "{closes}": closes}.items():
            text = text.replace(place, value)
        return text

    def came(template: str, at: str, column: str, habit: str) -> str:
        how = HABITS[habit]
        places = {"{at}": at, "{column}": column, "{before}": f"{how.before:.0f}", "{after}": f"{how.after:.0f}"}
        for place, value in places.items():
            template = template.replace(place, value)
        return template

    quizzes = part("quiz", "quiz", "timeopen", "timeclose", came(_ATTEMPTS, "x.timeopen", "timestart", "exam_start"),
                   came(_ATTEMPTS, "x.timeclose", "timefinish", "exam_end"))
    assignments = part("assign", "assignid", "allowsubmissionsfromdate", "duedate",
                       came(_SUBMISSIONS, "x.allowsubmissionsfromdate", "timecreated", "assignment_start"),
                       came(_SUBMISSIONS, "x.duedate", "timemodified", "assignment_end"))
    text = f"SET STATEMENT max_statement_time={QUERY_SECONDS} FOR {quizzes} UNION ALL {assignments} ORDER BY 3 DESC LIMIT {MOST_EVENTS}"
    return text.replace("{db}", "`" + database.replace("`", "``") + "`")


def read(
    given: Access, now: float, *, past_days: float = 60, ahead_days: float = 14, parallel: int = PARALLEL
) -> tuple[list[Event], dict[str, str]]:
    """Quizzes and assignments of all tenants within these days, and what went wrong by tenant.

    One tenant's failure does not stop the others; a server that can't be reached is tried once.

    :raises ReadError: when PyMySQL is missing.
    """
    if pymysql is None:
        raise ReadError("the Python library PyMySQL is missing: pip install -r requirements.txt")
    values = {"now": int(now), "since": int(now - past_days * DAY), "until": int(now + ahead_days * DAY)}
    pool = _Connections(given)
    failures: dict[str, str] = {}
    events: list[Event] = []

    def one(tenant: Mapping[str, str]) -> list[Event]:
        with pool.use(tenant["server"]) as connection, connection.cursor() as cursor:
            cursor.execute(query(tenant["database"]), values)
            return [_event(tenant["name"], row) for row in cursor.fetchall()]

    try:
        with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, parallel)) as workers:
            running = {tenant["name"]: workers.submit(one, tenant) for tenant in given.tenants}
            for name, future in running.items():
                try:
                    events += future.result()
                except ReadError as exc:
                    failures[name] = str(exc)
                except (pymysql.MySQLError, OSError, ValueError, TypeError) as exc:
                    failures[name] = _reason(exc)
    finally:
        pool.close()
    return events, failures


def _event(tenant: str, row: Sequence[Any]) -> Event:
    kind, name, opens, closes, enrolled, came, handed = row
    kind = kind.decode() if isinstance(kind, bytes) else kind
    return Event(
        tenant, {"assign": "assignment"}.get(kind, kind), str(name), float(opens), float(closes), int(enrolled),
        None if came is None else int(came), None if handed is None else int(handed),
    )


def _reason(exc: Exception) -> str:
    code = exc.args[0] if exc.args and isinstance(exc.args[0], int) else 0
    text = str(exc.args[1]) if len(exc.args) > 1 else str(exc)
    if code in (1044, 1054, 1142, 1143, 1146):
        return f"{text}: run playbooks/tenants.yml, which lets {USER} read; a site without quizzes or assignments can't be read"
    if code == 1969:
        return f"the query took longer than {QUERY_SECONDS} s and was ended"
    return text


class _Connections:
    """Connections that threads take in turns, by server."""

    def __init__(self, given: Access) -> None:
        self._given = given
        self._free: dict[str, list[Any]] = {}
        self._dead: dict[str, str] = {}
        self._lock = threading.Lock()

    @contextmanager
    def use(self, server: str) -> Iterator[Any]:
        """A connection to a server; one that failed is not used again."""
        with self._lock:
            if server in self._dead:
                raise ReadError(self._dead[server])
            free = self._free.setdefault(server, [])
            connection = free.pop() if free else None
        if connection is None:
            connection = self._connect(server)
        try:
            yield connection
        except pymysql.err.OperationalError:
            connection.close()
            raise
        except BaseException:
            self._give(server, connection)
            raise
        self._give(server, connection)

    def _give(self, server: str, connection: Any) -> None:
        with self._lock:
            self._free[server].append(connection)

    def _connect(self, server: str) -> Any:
        try:
            return connect(self._given, server)
        except ReadError as exc:
            with self._lock:
                self._dead[server] = str(exc)
            raise

    def close(self) -> None:
        """End all connections."""
        for connection in (one for free in self._free.values() for one in free):
            connection.close()


def connect(given: Access, server: str, timeout: float = 5.0) -> Any:
    """A connection to one of the servers as the reader.

    :raises ReadError: when it can't be made.
    """
    one = given.servers.get(server)
    if pymysql is None or one is None:
        raise ReadError(f"{server!r} is not one of the servers ({', '.join(given.servers)})" if one is None else "PyMySQL is missing")
    try:
        return pymysql.connect(
            host=one["host"], port=int(one["port"]), user=USER, password=given.password, charset="utf8mb4", autocommit=True,
            connect_timeout=timeout, read_timeout=2 * QUERY_SECONDS, write_timeout=timeout,
            ssl=ssl.create_default_context() if one.get("tls") else None,
        )
    except (pymysql.MySQLError, OSError) as exc:
        text = exc.args[1] if len(exc.args) > 1 else exc
        raise ReadError(f"cannot connect to {one['host']}:{one['port']} as {USER}: {text}") from exc
