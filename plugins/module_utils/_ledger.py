# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The durable history of a fleet: samples, decisions, activities, launch intents, pauses.

In a file, or in the fleet's own MariaDB where a controller keeps no disk. Every change is one transaction. Nothing here
decides anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_reader import LedgerReader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_sqlite import FILE_NAME, MEMORY, SQLite
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_store import LedgerError, Store, Superseded
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._lock import Locked, hold_file
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.forecast import slot_of
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Sample

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_mariadb import Access

DAY = 86400.0
PASSWORD_VARIABLE = "MOODLE_FLEET_LEDGER_PASSWORD"


class Ledger(LedgerReader):
    """One fleet's ledger. Use as a context manager, or close it.

    ``where`` is the file of a ledger in SQLite, or what another is kept in.
    """

    def __init__(self, where: str | os.PathLike[str] | Store) -> None:
        super().__init__(where if isinstance(where, Store) else SQLite(where))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._store.close()

    @property
    def name(self) -> str:
        """What it is called where people read of it."""
        return self._store.name

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
        store = self._store
        with store.write():
            plans = self.mark()
            if plan and plans != mark:
                raise Superseded("another check has planned meanwhile; this one leaves the fleet to it")
            check = store.run(
                "INSERT INTO checks (started, finished, origin, status, size, desired, recommended, direction, acted,"
                " decision, plan, message, inputs) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                started, None if plan else started, origin, "planned" if plan else "idle", decision.size, decision.desired,
                decision.recommended, decision.direction, _acted(plan), _json(decision.to_data()),
                _json(plan.to_data()) if plan or plan.notes else None, message,
                _json(inputs) if inputs is not None else None,
            ).number
            store.run(
                'INSERT INTO samples (check_id, taken, seconds, "load", in_service, waiting, capacity, up, requests,'
                " trusted, lower_bound, faults) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                check, sample.taken, sample.seconds, sample.load, sample.in_service, sample.waiting, sample.capacity, sample.up,
                sample.requests, sample.trusted, sample.lower_bound, _json(sample.faults),
            )
            if sample.trusted and sample.seconds > 0:
                self._count_slot(slot_of(sample.taken), sample.seconds, sample.load)
            for token, number in (seen or {}).items():
                store.run("UPDATE intents SET seen = ? WHERE token = ? AND seen < ?", number, token, number)
            store.run("UPDATE intents SET status = 'seen' WHERE status = 'open' AND seen >= count")
            for token in expired:
                store.run("UPDATE intents SET status = 'expired' WHERE token = ? AND status = 'open'", token)
            for step in plan.steps:
                if step.action == "launch" and not store.rows("SELECT token FROM intents WHERE token = ?", step.token):
                    store.run(
                        "INSERT INTO intents (token, check_id, count, created, image, node_release, seen, status)"
                        " VALUES (?,?,?,?,?,?,0,'open')",
                        step.token, check, step.count, started, step.image, step.release,
                    )
                store.run(
                    "INSERT INTO activities (check_id, action, node, status, reason, planned, token) VALUES (?,?,?,'planned',?,?,?)",
                    check, step.action, step.node or step.token, step.reason, started, step.token,
                )
            if reading is not None:
                self._put("reading", reading)
            self._put("ghosts", list(ghosts))
            if plan:
                self._put("plans", plans + 1)
        return check

    def _count_slot(self, begin: int, seconds: float, load: float) -> None:
        # The load first: MariaDB carries the new value of a column into what stands to the right of it.
        known = self._store.run(
            'UPDATE slots SET "load" = ("load" * seconds + ? * ?) / (seconds + ?), seconds = seconds + ? WHERE begin = ?',
            load, seconds, seconds, seconds, begin,
        ).rows
        if not known:
            self._store.run('INSERT INTO slots (begin, seconds, "load") VALUES (?,?,?)', begin, seconds, load)

    def finish(self, check: int, now: float, status: str, message: str = "") -> None:
        """Close a check: ``done``, ``failed`` or ``refused``. What it planned and did not record is ``unknown``."""
        with self._store.write():
            self._store.run("UPDATE checks SET finished = ?, status = ?, message = ? WHERE id = ?", now, status, message, check)
            self._store.run(
                "UPDATE activities SET status = 'unknown', finished = ? WHERE check_id = ? AND status IN ('planned', 'running')",
                now, check,
            )

    def record(self, check: int, activities: Sequence[Mapping[str, Any]]) -> int:
        """Write what became of a check's steps; a step recorded twice is overwritten. Returns how many changed."""
        changed = 0
        with self._store.write():
            for given in activities:
                action, node = str(given["action"]), str(given.get("node") or given.get("token") or "")
                values = {
                    "status": str(given.get("status", "done")), "started": given.get("started"), "finished": given.get("finished"),
                    "seconds": given.get("seconds"), "steps": _json(given.get("steps") or {}), "message": str(given.get("message", "")),
                }
                found = self._store.rows(
                    "SELECT id, status, started, finished, seconds, steps, message FROM activities"
                    " WHERE check_id = ? AND action = ? AND node = ? ORDER BY id DESC LIMIT 1",
                    check, action, node,
                )
                if not found:
                    self._store.run(
                        "INSERT INTO activities (status, started, finished, seconds, steps, message, check_id, action, node, planned)"
                        " VALUES (?,?,?,?,?,?,?,?,?,?)",
                        *values.values(), check, action, node, given.get("started") or given.get("finished") or 0.0,
                    )
                    changed += 1
                elif found[0] != {"id": found[0]["id"], **values}:
                    self._store.run(
                        "UPDATE activities SET status=?, started=?, finished=?, seconds=?, steps=?, message=? WHERE id=?",
                        *values.values(), found[0]["id"],
                    )
                    changed += 1
        return changed

    def pause(self, scope: str, reason: str, now: float, until: float = 0.0) -> None:
        """Pause everything (``all``) or scaling in (``in``); a newer pause of the same scope replaces the older."""
        with self._store.write():
            self._store.run("UPDATE pauses SET ended = ? WHERE ended = 0 AND scope = ?", now, scope)
            self._store.run("INSERT INTO pauses (scope, reason, since, until) VALUES (?,?,?,?)", scope, reason, now, until)

    def resume(self, now: float) -> int:
        """End every pause; returns how many were in force."""
        with self._store.write():
            return self._store.run("UPDATE pauses SET ended = ? WHERE ended = 0 AND (until = 0 OR until > ?)", now, now).rows

    def remember(self, key: str, value: Any) -> None:
        """Keep one value for :meth:`state`."""
        with self._store.write():
            self._put(key, value)

    def prune(self, now: float, keep_days: float) -> None:
        """Forget what is older; at most once an hour, in small parts, so that no check waits long for it."""
        last = self.state("pruned") or 0.0
        if now - last < 3600:
            return
        before = now - keep_days * DAY
        with self._store.write():
            for table, column in (("samples", "taken"), ("activities", "planned"), ("checks", "started")):
                # Within a table of its own: MariaDB limits no list that is looked into.
                old = f"SELECT id FROM (SELECT id FROM {table} WHERE {column} < ? LIMIT 5000) AS old"
                self._store.run(f"DELETE FROM {table} WHERE id IN ({old})", before)
            self._store.run("DELETE FROM slots WHERE begin < ?", before)
            self._store.run("DELETE FROM intents WHERE created < ? AND status <> 'open'", before)
            self._store.run("DELETE FROM pauses WHERE ended > 0 AND ended < ?", before)
            self._put("pruned", now)

    def _put(self, key: str, value: Any) -> None:
        self._store.run('REPLACE INTO state ("key", value) VALUES (?,?)', key, _json(value))


def open_ledger(fleet: Fleet, *, trace: bool = True) -> Ledger:
    """The fleet's ledger; without ``trace`` a ledger that does not exist yet is not made.

    :raises LedgerError: when it cannot be used; nothing may be done then.
    """
    if fleet.ledger.get("driver") != "mariadb":
        path = fleet.state_dir / FILE_NAME
        return Ledger(path if trace or path.exists() else MEMORY)
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_mariadb import MariaDB

    store = MariaDB(access(fleet), make=trace)
    if store.made:
        return Ledger(store)
    store.close()
    return Ledger(MEMORY)


def single_flight(fleet: Fleet, name: str, wait: float = 0.0) -> AbstractContextManager[int]:
    """The fleet's lock of this name, where its ledger is; gives a descriptor that keeps it as long as anybody has it.

    :raises Locked: when another process has it after ``wait`` seconds.
    """
    if fleet.ledger.get("driver") != "mariadb":
        return hold_file(fleet.state_dir / f"{name}.lock", wait)
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_mariadb import hold

    return hold(access(fleet), name, wait)


def password_file(fleet: Fleet) -> Path:
    """Where the password of a ledger in MariaDB is looked for, and where site.yml writes it."""
    given = fleet.ledger["password_file"]
    return fleet.path.parent / Path(given).expanduser() if given else fleet.state_dir / "ledger.password"


def access(fleet: Fleet) -> Access:
    """Where a ledger in MariaDB is, with the password.

    :raises LedgerError: when nobody gave the password.
    """
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_mariadb import Access

    given, path = fleet.ledger, password_file(fleet)
    password = fleet.ledger_password or os.environ.get(PASSWORD_VARIABLE, "")
    if not password:
        try:
            password = path.read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise LedgerError(
                f"ledger {given['database']} at {given['endpoint']}: no password: set {PASSWORD_VARIABLE}, or run playbooks/site.yml, "
                f"which writes {path} ({exc.strerror})"
            ) from exc
    host, _colon, port = given["endpoint"].rpartition(":")
    return Access(host, int(port), given["database"], given["user"], password, given["tls"])


def _acted(plan: Plan) -> str:
    """``out`` or ``in`` when the plan changes the size by itself: repairs and a no-op start no cooldown."""
    actions = {step.action for step in plan.steps}
    if "launch" in actions:
        return "out"
    begins = any(step.action == "drain" and not step.since for step in plan.steps)
    return "in" if begins else "begun" if actions else ""


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


__all__ = [
    "FILE_NAME", "MEMORY", "PASSWORD_VARIABLE", "Ledger", "LedgerError", "Locked", "Superseded", "access", "open_ledger",
    "password_file", "single_flight",
]
