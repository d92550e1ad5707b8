# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A ledger in a file of SQLite: several processes read while one writes, and one killed at any moment leaves it whole."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _ledger_store as store

FILE_NAME = "ledger.sqlite"
MEMORY = ":memory:"  # for a look that leaves no trace


class SQLite(store.Store):
    """The file, made where there is none. ``timeout``: seconds to wait for another process that writes."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 10.0) -> None:
        self.name = os.fspath(path)
        with self._clear_errors():
            folder = os.path.dirname(self.name)
            if folder:
                os.makedirs(folder, mode=0o700, exist_ok=True)
            existed = self.name == MEMORY or os.path.exists(self.name)
            self._db = sqlite3.connect(self.name, timeout=timeout, isolation_level=None)
            if not existed:
                os.chmod(self.name, 0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A launch must be on the disk before the cloud hears of it, even if the machine loses power.
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with self._clear_errors():
            cursor = self._db.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row)) for row in cursor]

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        with self._clear_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def run(self, sql: str, *values: Any) -> store.Done:
        cursor = self._db.execute(sql, values)
        return store.Done(cursor.rowcount, cursor.lastrowid or 0)

    def close(self) -> None:
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
            raise store.LedgerError(f"ledger {self.name}: {text}: {remedy}") from exc
        except OSError as exc:
            raise store.LedgerError(f"ledger {self.name}: {exc.strerror}: check folder, room and permissions") from exc

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self) -> None:
        version = self._version()
        if version > len(store.MIGRATIONS):
            raise store.too_new(self.name, version)
        if version == len(store.MIGRATIONS):
            return
        with self.write():
            # Another process may have migrated while this one waited for the lock.
            for number in range(self._version(), len(store.MIGRATIONS)):
                for statement in store.statements(store.MIGRATIONS[number]):
                    # Elsewhere the two understand each other's types.
                    self.run(statement.replace("BIGINT PRIMARY KEY AUTO_INCREMENT", "INTEGER PRIMARY KEY AUTOINCREMENT"))
                self.run(f"PRAGMA user_version={number + 1}")
