# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The durable history of a fleet: samples, decisions, activities, launch intents, pauses.

SQLite in WAL mode: several processes read while one writes, and a process killed at any moment leaves a whole ledger.
Every change is one transaction. Nothing here decides anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import slot_of
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import (
    Decision,
    History,
    Intent,
    Pause,
    Plan,
    Sample,
)

FILE_NAME = "ledger.sqlite"
MEMORY = ":memory:"  # for a look that leaves no trace
DAY = 86400.0

# Each entry brings the schema one version further; entries are never changed, only added.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE checks (
      id INTEGER PRIMARY KEY AUTOINCREMENT, started REAL NOT NULL, finished REAL, origin TEXT NOT NULL,
      status TEXT NOT NULL, size INTEGER, desired INTEGER, recommended INTEGER, direction TEXT, acted TEXT NOT NULL
      DEFAULT '', decision TEXT, plan TEXT, message TEXT NOT NULL DEFAULT '');
    CREATE INDEX checks_started ON checks (started);
    CREATE INDEX checks_acted ON checks (acted, started) WHERE acted <> '';
    CREATE TABLE samples (
      id INTEGER PRIMARY KEY, check_id INTEGER NOT NULL, taken REAL NOT NULL, seconds REAL, load REAL,
      in_service INTEGER, waiting INTEGER, capacity INTEGER, up INTEGER, requests INTEGER, trusted INTEGER,
      lower_bound INTEGER, faults TEXT NOT NULL DEFAULT '[]');
    CREATE INDEX samples_taken ON samples (taken);
    CREATE TABLE activities (
      id INTEGER PRIMARY KEY AUTOINCREMENT, check_id INTEGER NOT NULL, action TEXT NOT NULL, node TEXT NOT NULL,
      status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', planned REAL NOT NULL, started REAL, finished REAL,
      seconds REAL, steps TEXT NOT NULL DEFAULT '{}', message TEXT NOT NULL DEFAULT '');
    CREATE INDEX activities_check ON activities (check_id);
    CREATE INDEX activities_open ON activities (status) WHERE status IN ('planned', 'running');
    CREATE INDEX activities_planned ON activities (planned);
    CREATE TABLE intents (
      token TEXT PRIMARY KEY, check_id INTEGER NOT NULL, count INTEGER NOT NULL, created REAL NOT NULL,
      image TEXT NOT NULL, node_release TEXT NOT NULL, seen INTEGER NOT NULL DEFAULT 0, status TEXT NOT NULL);
    CREATE INDEX intents_open ON intents (status) WHERE status = 'open';
    CREATE INDEX intents_created ON intents (created);
    CREATE TABLE pauses (
      id INTEGER PRIMARY KEY AUTOINCREMENT, scope TEXT NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL,
      until REAL NOT NULL, ended REAL NOT NULL DEFAULT 0);
    CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
    """
    ALTER TABLE activities ADD COLUMN token TEXT NOT NULL DEFAULT '';
    CREATE INDEX activities_token ON activities (token) WHERE token <> '';
    """,
    # The forecast looks at weeks: five minutes a row instead of a sample each, kept up to date by every check. And what a
    # decision was made from besides the sample, so that it can be made again.
    """
    CREATE TABLE slots (begin INTEGER PRIMARY KEY, seconds REAL NOT NULL, load REAL NOT NULL);
    INSERT INTO slots SELECT CAST(taken / 300 AS INTEGER) * 300, sum(seconds), sum(load * seconds) / sum(seconds)
      FROM samples WHERE trusted AND seconds > 0 GROUP BY 1;
    ALTER TABLE checks ADD COLUMN inputs TEXT;
    """,
)


class LedgerError(Exception):
    """The ledger cannot be used. The message names the file and what to do."""


class Superseded(LedgerError):
    """Another check has planned since this one looked."""


class Ledger:
    """One fleet's ledger. Use as a context manager, or close it."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 10.0) -> None:
        self.path = os.fspath(path)
        with self._clear_errors():
            folder = os.path.dirname(self.path)
            if folder:
                os.makedirs(folder, mode=0o700, exist_ok=True)
            existed = self.path == MEMORY or os.path.exists(self.path)
            self._db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            if not existed:
                os.chmod(self.path, 0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A launch must be on the disk before the cloud hears of it, even if the machine loses power.
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Say in plain words what SQLite or the disk complains of."""
        try:
            yield
        except sqlite3.Error as exc:
            text = str(exc)
            if "full" in text:
                remedy = "the disk is full; make room there, nothing was written and nothing is lost"
            elif "locked" in text or "busy" in text:
                remedy = "another process holds it for too long; look for a hanging moodle-fleet process"
            elif "malformed" in text or "not a database" in text:
                remedy = "the file is damaged; move it away, the fleet goes on with a new one (pauses are lost)"
            elif "readonly" in text or "unable to open" in text or "disk I/O" in text:
                remedy = "check that the folder exists, has room and is writable for this user"
            else:
                remedy = "see the message"
            raise LedgerError(f"ledger {self.path}: {text}: {remedy}") from exc
        except OSError as exc:
            raise LedgerError(f"ledger {self.path}: {exc.strerror}: check folder, room and permissions") from exc

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that either happens wholly or not at all."""
        with self._clear_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._clear_errors():
            return self._db.execute(sql, values).fetchall()

    def _migrate(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise LedgerError(
                f"ledger {self.path}: written by a newer version ({version}, this one knows {len(MIGRATIONS)}): "
                "upgrade moodle-fleet on this machine"
            )
        if version == len(MIGRATIONS):
            return
        with self._write() as db:
            # Another process may have migrated while this one waited for the lock.
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            for number in range(version, len(MIGRATIONS)):
                for statement in MIGRATIONS[number].split(";"):
                    if statement.strip():
                        db.execute(statement)
                db.execute(f"PRAGMA user_version={number + 1}")

    # -- a check's life --------------------------------------------------------------------------------------------

    def mark(self) -> int:
        """The number of plans made so far; given back to :meth:`commit`, it shows whether another check planned."""
        rows = self._rows("SELECT value FROM state WHERE key = 'plans'")
        return int(rows[0]["value"]) if rows else 0

    def commit(
        self,
        started: float,
        origin: str,
        sample: Sample,
        decision: Decision,
        plan: Plan,
        mark: int,
        *,
        reading: Mapping[str, Any] | None = None,
        ghosts: Sequence[str] = (),
        message: str = "",
        seen: Mapping[str, int] | None = None,
        expired: Sequence[str] = (),
        inputs: Mapping[str, Any] | None = None,
    ) -> int:
        """Write a check with everything it is about to do, before it does it; returns the check's number.

        ``inputs`` is what the decision was made from besides sample, history and pauses.

        :raises Superseded: when another check wrote a plan since :meth:`mark`.
        """
        with self._write() as db:
            row = db.execute("SELECT value FROM state WHERE key = 'plans'").fetchone()
            plans = int(row["value"]) if row else 0
            if plan and plans != mark:
                raise Superseded("another check has planned meanwhile; this one leaves the fleet to it")
            status = "planned" if plan else "idle"
            cursor = db.execute(
                "INSERT INTO checks (started, finished, origin, status, size, desired, recommended, direction, acted,"
                " decision, plan, message, inputs) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (started, None if plan else started, origin, status, decision.size, decision.desired,
                 decision.recommended, decision.direction, _acted(plan), _json(decision.to_data()),
                 _json(plan.to_data()) if plan or plan.notes else None, message,
                 _json(inputs) if inputs is not None else None),
            )
            check = int(cursor.lastrowid or 0)
            db.execute(
                "INSERT INTO samples (check_id, taken, seconds, load, in_service, waiting, capacity, up, requests,"
                " trusted, lower_bound, faults) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                (check, sample.taken, sample.seconds, sample.load, sample.in_service, sample.waiting,
                 sample.capacity, sample.up, sample.requests, sample.trusted, sample.lower_bound,
                 _json(sample.faults)),
            )
            if sample.trusted and sample.seconds > 0:
                db.execute(
                    "INSERT INTO slots VALUES (?,?,?) ON CONFLICT (begin) DO UPDATE SET seconds = seconds + excluded.seconds,"
                    " load = (load * seconds + excluded.load * excluded.seconds) / (seconds + excluded.seconds)",
                    (slot_of(sample.taken), sample.seconds, sample.load),
                )
            for token, number in (seen or {}).items():
                db.execute("UPDATE intents SET seen = max(seen, ?) WHERE token = ?", (number, token))
            db.execute("UPDATE intents SET status = 'seen' WHERE status = 'open' AND seen >= count")
            for token in expired:
                db.execute("UPDATE intents SET status = 'expired' WHERE token = ? AND status = 'open'", (token,))
            for step in plan.steps:
                if step.action == "launch":
                    db.execute(
                        "INSERT OR IGNORE INTO intents VALUES (?,?,?,?,?,?,0,'open')",
                        (step.token, check, step.count, started, step.image, step.release),
                    )
                db.execute(
                    "INSERT INTO activities (check_id, action, node, status, reason, planned, token)"
                    " VALUES (?,?,?,?,?,?,?)",
                    (check, step.action, step.node or step.token, "planned", step.reason, started, step.token),
                )
            if reading is not None:
                _put(db, "reading", reading)
            _put(db, "ghosts", list(ghosts))
            if plan:
                _put(db, "plans", plans + 1)
        return check

    def finish(self, check: int, now: float, status: str, message: str = "") -> None:
        """Close a check: ``done``, ``failed`` or ``refused``. What it planned and did not record is ``unknown``."""
        with self._write() as db:
            db.execute(
                "UPDATE checks SET finished = ?, status = ?, message = ? WHERE id = ?", (now, status, message, check)
            )
            db.execute(
                "UPDATE activities SET status = 'unknown', finished = ? WHERE check_id = ? AND"
                " status IN ('planned', 'running')",
                (now, check),
            )

    def record(self, check: int, activities: Sequence[Mapping[str, Any]]) -> int:
        """Write what became of a check's steps; a step recorded twice is overwritten. Returns how many changed."""
        changed = 0
        with self._write() as db:
            for given in activities:
                action, node = str(given["action"]), str(given.get("node") or given.get("token") or "")
                values = (
                    str(given.get("status", "done")), given.get("started"), given.get("finished"),
                    given.get("seconds"), _json(given.get("steps") or {}), str(given.get("message", "")),
                )
                row = db.execute(
                    "SELECT id, status, started, finished, seconds, steps, message FROM activities"
                    " WHERE check_id = ? AND action = ? AND node = ? ORDER BY id DESC LIMIT 1",
                    (check, action, node),
                ).fetchone()
                if row is None:
                    db.execute(
                        "INSERT INTO activities (status, started, finished, seconds, steps, message, check_id,"
                        " action, node, planned) VALUES (?,?,?,?,?,?,?,?,?,?)",
                        (*values, check, action, node, given.get("started") or given.get("finished") or 0.0),
                    )
                    changed += 1
                elif tuple(row)[1:] != values:
                    db.execute(
                        "UPDATE activities SET status=?, started=?, finished=?, seconds=?, steps=?, message=?"
                        " WHERE id=?",
                        (*values, row["id"]),
                    )
                    changed += 1
        return changed

    # -- what the next check needs ---------------------------------------------------------------------------------

    def history(self, now: float, window: float, lookback: float = 0.0) -> History:
        """Wishes of the window (with the last one before it), samples of it or of ``lookback``, the last real changes of size."""
        begin = now - window
        first = self._rows("SELECT max(started) AS at FROM checks WHERE started <= ?", begin)[0]["at"]
        rows = self._rows(
            "SELECT started, recommended FROM checks WHERE started >= ? AND started <= ? AND recommended IS NOT NULL"
            " ORDER BY started",
            begin if first is None else first, now,
        )
        samples = self._rows("SELECT * FROM samples WHERE taken >= ? AND taken <= ? ORDER BY taken",
                             min(begin, now - lookback), now)
        return History(
            recommended=tuple((float(row["started"]), int(row["recommended"])) for row in rows),
            samples=tuple(_sample(row) for row in samples),
            last_out=self._last("out"),
            last_in=self._last("in"),
            ghosts=frozenset(str(name) for name in self.state("ghosts") or ()),
        )

    def _last(self, direction: str) -> float:
        row = self._rows("SELECT max(started) AS at FROM checks WHERE acted = ?", direction)[0]
        return float(row["at"] or 0.0)

    def intents(self, since: float) -> list[Intent]:
        """Launches whose nodes were not all seen, and those that the cloud was asked for lately."""
        return [
            Intent(row["token"], row["count"], row["created"], row["check_id"], row["image"], row["node_release"],
                   row["seen"], row["gone"], row["asked"] or 0.0)
            for row in self._rows(
                "SELECT *, (SELECT count(DISTINCT node) FROM activities WHERE activities.token = intents.token"
                " AND activities.status IN ('done', 'deadline') AND action IN ('drain', 'retire')) AS gone,"
                " (SELECT max(planned) FROM activities WHERE activities.token = intents.token AND action = 'launch') AS asked"
                " FROM intents WHERE status = 'open' OR created >= ? OR token IN"
                " (SELECT token FROM activities WHERE action = 'launch' AND planned >= ?) ORDER BY created, token",
                since, since,
            )
        ]

    def leaving(self, since: float) -> dict[str, float]:
        """Nodes that an unfinished plan is about to drain, with the time of that plan."""
        rows = self._rows(
            "SELECT node, min(planned) AS at FROM activities WHERE status IN ('planned', 'running') AND planned >= ?"
            " AND action IN ('drain', 'retire') GROUP BY node",
            since,
        )
        return {str(row["node"]): float(row["at"]) for row in rows}

    def slots(self, ranges: Sequence[tuple[int, int]]) -> tuple[float | None, dict[int, float]]:
        """The begin of the oldest slot, and the mean loads of the slots in these ranges (both ends included)."""
        since = self._rows("SELECT min(begin) AS at FROM slots")[0]["at"]
        found: dict[int, float] = {}
        for first, last in ranges:
            rows = self._rows("SELECT begin, load FROM slots WHERE begin BETWEEN ? AND ?", first, last)
            found.update((int(row["begin"]), float(row["load"])) for row in rows)
        return since, found

    def samples(self, begin: float, end: float) -> list[Sample]:
        """The samples between two times, oldest first."""
        rows = self._rows("SELECT * FROM samples WHERE taken >= ? AND taken <= ? ORDER BY taken", begin, end)
        return [_sample(row) for row in rows]

    def launch_times(self, limit: int = 100) -> list[float]:
        """Seconds from the plan of a launch to the end of its nodes' first join, newest first, from the latest activities."""
        rows = self._rows(
            "SELECT action, node, planned, finished, message FROM activities WHERE action IN ('launch', 'join')"
            " AND status = 'done' ORDER BY planned DESC, id DESC LIMIT ?", limit,
        )
        joins = [(str(row["node"]), float(row["finished"])) for row in rows if row["action"] == "join" and row["finished"]]
        found = []
        for row in rows:
            if row["action"] == "launch":
                for name in str(row["message"]).split(", "):
                    ends = [end - row["planned"] for joined, end in joins if joined == name and end > row["planned"]]
                    found += [min(ends)] if ends else []
        return found

    def joined(self, since: float) -> dict[str, float]:
        """Nodes that joined, or may have: their plan did not end, or nobody knows how; with the time of the latest such plan."""
        rows = self._rows(
            "SELECT node, max(planned) AS at FROM activities WHERE status <> 'failed' AND planned >= ?"
            " AND action = 'join' GROUP BY node",
            since,
        )
        return {str(row["node"]): float(row["at"]) for row in rows}

    def state(self, key: str) -> Any:
        """One remembered value, or None."""
        rows = self._rows("SELECT value FROM state WHERE key = ?", key)
        return json.loads(rows[0]["value"]) if rows else None

    # -- pauses ----------------------------------------------------------------------------------------------------

    def pause(self, scope: str, reason: str, now: float, until: float = 0.0) -> None:
        """Pause everything (``all``) or scaling in (``in``); a newer pause of the same scope replaces the older."""
        with self._write() as db:
            db.execute("UPDATE pauses SET ended = ? WHERE ended = 0 AND scope = ?", (now, scope))
            db.execute(
                "INSERT INTO pauses (scope, reason, since, until) VALUES (?,?,?,?)", (scope, reason, now, until)
            )

    def resume(self, now: float) -> int:
        """End every pause; returns how many were in force."""
        with self._write() as db:
            return db.execute(
                "UPDATE pauses SET ended = ? WHERE ended = 0 AND (until = 0 OR until > ?)", (now, now)
            ).rowcount

    def pauses(self, now: float) -> list[Pause]:
        """Pauses in force."""
        rows = self._rows(
            "SELECT * FROM pauses WHERE ended = 0 AND (until = 0 OR until > ?) ORDER BY since", now
        )
        return [Pause(row["scope"], row["reason"], row["since"], row["until"]) for row in rows]

    # -- for people ------------------------------------------------------------------------------------------------

    def checks(
        self, limit: int = 20, *, acted_only: bool = False, check: int | None = None, since: float = 0.0
    ) -> list[dict[str, Any]]:
        """The latest checks, newest first, with their decisions and plans as data."""
        where = "WHERE id = ?" if check is not None else "WHERE status <> 'idle'" if acted_only else "WHERE started >= ?"
        values: tuple[Any, ...] = (check, limit) if check is not None else (limit,) if acted_only else (since, limit)
        result = []
        for row in self._rows(f"SELECT * FROM checks {where} ORDER BY id DESC LIMIT ?", *values):
            item = dict(row)
            item["decision"] = json.loads(row["decision"]) if row["decision"] else None
            item["inputs"] = json.loads(row["inputs"]) if row["inputs"] else None
            item["plan"] = json.loads(row["plan"]) if row["plan"] else {"steps": [], "notes": []}
            result.append(item)
        return result

    def activities(self, check: int) -> list[dict[str, Any]]:
        """What became of each step of a check, in its order."""
        rows = self._rows("SELECT * FROM activities WHERE check_id = ? ORDER BY id", check)
        return [{**dict(row), "steps": json.loads(row["steps"])} for row in rows]

    def recorded(
        self, batch: int = 1000, *, since: float = 0.0, until: float = 1e12
    ) -> Iterator[tuple[dict[str, Any], Sample]]:
        """Every check that began within the time, with its sample, oldest first, a part at a time."""
        first = self._rows("SELECT min(id) AS id FROM checks WHERE started >= ?", since)[0]["id"] if since else 1
        if first is None:
            return
        last = int(first) - 1
        while True:
            rows = self._rows(
                "SELECT checks.id AS number, started, acted, decision, inputs, samples.* FROM checks JOIN samples ON"
                " samples.check_id = checks.id WHERE checks.id > ? AND started >= ? AND started <= ? ORDER BY checks.id LIMIT ?",
                last, since, until, batch,
            )
            for row in rows:
                item = {"id": row["number"], "started": row["started"], "acted": row["acted"]}
                for key in ("decision", "inputs"):
                    item[key] = json.loads(row[key]) if row[key] else None
                yield item, _sample(row)
            if len(rows) < batch:
                return
            last = int(rows[-1]["number"])

    def span(self) -> tuple[float, float] | None:
        """When the first and the last check of the ledger began, or None where there is none."""
        row = self._rows("SELECT min(started) AS first, max(started) AS last FROM checks")[0]
        return None if row["first"] is None else (float(row["first"]), float(row["last"]))

    def usual_interval(self, since: float, until: float) -> float:
        """Median seconds between the latest checks of a time; 15 where there are none."""
        rows = self._rows("SELECT started FROM checks WHERE started BETWEEN ? AND ? ORDER BY started DESC LIMIT 500", since, until)
        apart = sorted(float(later["started"]) - float(sooner["started"]) for later, sooner in zip(rows, rows[1:]))
        return apart[len(apart) // 2] if apart else 15.0

    def tallies(self, since: float) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
        """How many checks began since then by status, and how many steps were planned since then by action and result."""
        checks = self._rows("SELECT status, count(*) AS number FROM checks WHERE started >= ? GROUP BY status", since)
        steps = self._rows(
            "SELECT action, status, count(*) AS number FROM activities WHERE planned >= ? AND status NOT IN ('planned', 'running')"
            " GROUP BY action, status", since,
        )
        return ({row["status"]: row["number"] for row in checks},
                {(row["action"], row["status"]): row["number"] for row in steps})

    def failures(self, since: float) -> list[dict[str, Any]]:
        """Launches and joins planned since then that failed, newest first."""
        rows = self._rows("SELECT action, node, planned, message FROM activities WHERE planned >= ? AND status = 'failed'"
                          " AND action IN ('launch', 'join') ORDER BY planned DESC, id DESC", since)
        return [dict(row) for row in rows]

    def lost_launches(self, since: float) -> int:
        """Launches announced since then whose nodes did not all appear in time."""
        return int(self._rows("SELECT count(*) AS number FROM intents WHERE status = 'expired' AND created >= ?", since)[0]["number"])

    def remember(self, key: str, value: Any) -> None:
        """Keep one value for :meth:`state`."""
        with self._write() as db:
            _put(db, key, value)

    def activities_between(self, since: float, until: float) -> Iterator[dict[str, Any]]:
        """What became of every step planned within the time, oldest first."""
        for row in self._rows("SELECT * FROM activities WHERE planned BETWEEN ? AND ? ORDER BY planned, id", since, until):
            yield {**dict(row), "steps": json.loads(row["steps"])}

    def all_pauses(self) -> list[tuple[Pause, float]]:
        """Every pause that is remembered, with the time at which it was ended by hand, 0 for never."""
        return [
            (Pause(row["scope"], row["reason"], row["since"], row["until"]), float(row["ended"]))
            for row in self._rows("SELECT * FROM pauses ORDER BY since")
        ]

    def last_sample(self) -> Sample | None:
        """The latest sample."""
        rows = self._rows("SELECT * FROM samples ORDER BY id DESC LIMIT 1")
        return _sample(rows[0]) if rows else None

    def prune(self, now: float, keep_days: float) -> None:
        """Forget what is older; at most once an hour, in small parts, so that no check waits long for it."""
        last = self.state("pruned") or 0.0
        if now - last < 3600:
            return
        before = now - keep_days * DAY
        with self._write() as db:
            db.execute("DELETE FROM samples WHERE id IN (SELECT id FROM samples WHERE taken < ? LIMIT 5000)", (before,))
            db.execute(
                "DELETE FROM activities WHERE id IN (SELECT id FROM activities WHERE planned < ? LIMIT 5000)",
                (before,),
            )
            db.execute(
                "DELETE FROM checks WHERE id IN (SELECT id FROM checks WHERE started < ? LIMIT 5000)", (before,)
            )
            db.execute("DELETE FROM slots WHERE begin < ?", (before,))
            db.execute("DELETE FROM intents WHERE created < ? AND status <> 'open'", (before,))
            db.execute("DELETE FROM pauses WHERE ended > 0 AND ended < ?", (before,))
            _put(db, "pruned", now)


def _acted(plan: Plan) -> str:
    """``out`` or ``in`` when the plan changes the size by itself: repairs and a no-op start no cooldown."""
    actions = {step.action for step in plan.steps}
    if "launch" in actions:
        return "out"
    begins = any(step.action == "drain" and not step.since for step in plan.steps)
    return "in" if begins else "begun" if actions else ""


def _put(db: sqlite3.Connection, key: str, value: Any) -> None:
    db.execute("INSERT OR REPLACE INTO state VALUES (?,?)", (key, _json(value)))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


_SAMPLE_KEYS = tuple(field.name for field in fields(Sample))


def _sample(row: sqlite3.Row) -> Sample:
    values = {key: row[key] for key in _SAMPLE_KEYS}
    values["trusted"], values["lower_bound"] = bool(row["trusted"]), bool(row["lower_bound"])
    values["faults"] = tuple((str(code), str(text)) for code, text in json.loads(row["faults"]))
    return Sample(**values)
