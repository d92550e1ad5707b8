# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A ledger in MariaDB, for controllers that keep no disk; and the lock by which one check at a time has the fleet."""

from __future__ import annotations

import contextlib
import functools
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _ledger_store as store
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._lock import Locked

try:
    import pymysql
except ImportError:
    pymysql = None  # type: ignore[assignment, unused-ignore]

# The server ends the connection of a holder of which it has not heard for so long, and gives the lock to the next who asks.
SILENCE, BEAT = 60, 15
# Numbers of MariaDB's errors; 0 is PyMySQL's for a connection that was found lost before.
LOST = (0, 2006, 2013, 1053, 1927)
NO_TABLE, ALREADY_THERE = 1146, (1050, 1060, 1061, 1062)
REMEDIES = {
    (1044, 1045, 1049, 1142, 1698): "run playbooks/site.yml, which makes database and account; the password has to be the one it set",
    (2002, 2003, 2005): "see whether the server runs and this machine may reach it; nothing is done without the ledger",
    LOST: "the connection broke; nothing is done without the ledger, the next check tries again",
    (1205, 1213): "another process holds it for too long; look for a hanging moodle-fleet process",
    (3, 1021, 1114): "the server's disk is full; make room there, nothing was written and nothing is lost",
    (1290, 1792, 1836): "the server takes no changes; let ledger.endpoint name the primary",
    (1040, 1203, 1226): "the server has no connection left; raise its limits or end what holds them",
}


@dataclass(frozen=True)
class Access:
    """Where the ledger is and who comes."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    tls: bool = False

    @property
    def name(self) -> str:
        """What the ledger is called where people read of it."""
        return f"{self.database} at {self.host}:{self.port}"


@contextlib.contextmanager
def _clear_errors(access: Access) -> Iterator[None]:
    """Say in plain words what the server or the network complains of."""
    try:
        yield
    except pymysql.MySQLError as exc:
        code = exc.args[0] if exc.args and isinstance(exc.args[0], int) else -1
        text = str(exc.args[1]) if code > 0 else "is not connected" if code == 0 else str(exc) or type(exc).__name__
        remedy = next((remedy for codes, remedy in REMEDIES.items() if code in codes), "see the message")
        raise store.LedgerError(f"ledger {access.name}: {text}: {remedy}") from exc
    except OSError as exc:
        raise store.LedgerError(f"ledger {access.name}: {exc}: {REMEDIES[LOST]}") from exc


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the system's authorities takes longer than all that a check asks of the ledger."""
    return ssl.create_default_context()


def _connect(access: Access, silence: int) -> Any:
    if pymysql is None:
        raise store.LedgerError(f"ledger {access.name}: the Python library PyMySQL is missing: pip install -r requirements.txt")
    with _clear_errors(access):
        return pymysql.connect(
            host=access.host, port=access.port, user=access.user, password=access.password, database=access.database,
            charset="utf8mb4", autocommit=True, connect_timeout=5, read_timeout=30, write_timeout=30,
            ssl=_tls() if access.tls else None,
            init_command="SET SESSION sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
                         f" innodb_lock_wait_timeout = 10, wait_timeout = {silence}",
        )


class MariaDB(store.Store):
    """The ledger's database. Without ``make`` an empty one stays so, and ``made`` is false."""

    def __init__(self, access: Access, *, make: bool = True) -> None:
        self.name = access.name
        self._access = access
        self._writing = False
        self._db = _connect(access, 8 * 3600)
        try:
            with _clear_errors(access):
                self.made = bool(self._migrate(make))
        except BaseException:
            self.close()
            raise

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with _clear_errors(self._access):
            try:
                return self._query(sql, values)
            except pymysql.MySQLError as exc:
                # A run can take longer than a server keeps a silent connection, or than it takes to restart.
                if self._writing or exc.args[0] not in LOST:
                    raise
            self._again()
            return self._query(sql, values)

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        with _clear_errors(self._access):
            try:
                self._begin()
            except pymysql.MySQLError as exc:
                if exc.args[0] not in LOST:
                    raise
                self._again()
                self._begin()
            self._writing = True
            try:
                yield
                self._db.commit()
            except BaseException:
                with contextlib.suppress(pymysql.MySQLError, OSError):
                    self._db.rollback()
                raise
            finally:
                self._writing = False

    def run(self, sql: str, *values: Any) -> store.Done:
        with self._db.cursor() as cursor:
            cursor.execute(sql.replace("?", "%s"), values)
            return store.Done(cursor.rowcount, cursor.lastrowid or 0)

    def close(self) -> None:
        with contextlib.suppress(pymysql.MySQLError, OSError):
            self._db.close()

    def _query(self, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        with self._db.cursor() as cursor:
            cursor.execute(sql.replace("?", "%s"), values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row)) for row in cursor.fetchall()]

    def _begin(self) -> None:
        self._db.begin()
        # Whoever writes holds this row, so that nobody else does: what is read now stays true until the end.
        self._query("SELECT version FROM ledger_version FOR UPDATE", ())

    def _again(self) -> None:
        self.close()
        self._db = _connect(self._access, 8 * 3600)

    def _version(self) -> int:
        try:
            found = self._query("SELECT version FROM ledger_version", ())
        except pymysql.ProgrammingError as exc:
            if exc.args[0] != NO_TABLE:
                raise
            return 0
        return int(found[0]["version"]) if found else 0

    def _migrate(self, make: bool) -> int:
        version = self._version()
        if version > len(store.MIGRATIONS):
            raise store.too_new(self.name, version)
        if version == len(store.MIGRATIONS) or not version and not make:
            return version
        lock = f"{self._access.database}.schema"
        if not self._query("SELECT GET_LOCK(?, 20) AS got", (lock,))[0]["got"]:
            raise store.LedgerError(f"ledger {self.name}: another process has been changing its schema for 20 seconds: look what hangs")
        try:
            # Another process may have migrated while this one waited for the lock.
            version = self._version()
            if not version:
                self.run("CREATE TABLE IF NOT EXISTS ledger_version (only_row BIGINT PRIMARY KEY, version BIGINT NOT NULL) ENGINE=InnoDB")
                self.run("INSERT IGNORE INTO ledger_version VALUES (1, 0)")
            for number in range(version, len(store.MIGRATIONS)):
                for statement in store.statements(store.MIGRATIONS[number]):
                    self._define(statement)
                self.run("UPDATE ledger_version SET version = ?", number + 1)
        finally:
            self._query("SELECT RELEASE_LOCK(?)", (lock,))
        return len(store.MIGRATIONS)

    def _define(self, statement: str) -> None:
        """One statement of a migration. The server commits each by itself, so an interrupted migration goes on where it stopped."""
        if statement.startswith("CREATE INDEX"):
            statement = statement.partition(" WHERE ")[0]  # MariaDB has no index of a part of the rows
        elif statement.startswith("CREATE TABLE"):
            # Names are compared as they are, as in SQLite.
            statement += " ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
        try:
            self.run(statement)
        except pymysql.MySQLError as exc:
            if exc.args[0] not in ALREADY_THERE:
                raise


@contextlib.contextmanager
def hold(access: Access, name: str, wait: float = 0.0) -> Iterator[int]:
    """Hold a lock of this name on the server; yields the descriptor of its connection.

    The server frees it when the connection ends: with the process, or the last one that inherited the descriptor, or once it
    has not heard of it for :data:`SILENCE` seconds, when its machine has vanished.

    :raises Locked: naming the holder, when another has it after ``wait`` seconds.
    :raises LedgerError: when the server can't be asked.
    """
    full = f"{access.database}.{name}"
    connection = _connect(access, SILENCE)
    done = threading.Event()

    def ask(sql: str, *values: Any) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            return (cursor.fetchone() or (None,))[0]

    def beat() -> None:
        while not done.wait(BEAT):
            try:
                ask("SELECT 1")
            except (pymysql.MySQLError, OSError):
                return  # what the check has announced in the ledger still binds the others

    try:
        with _clear_errors(access):
            if ask("SELECT GET_LOCK(%s, %s)", full, wait) != 1:
                holder = ask("SELECT HOST FROM information_schema.PROCESSLIST WHERE ID = IS_USED_LOCK(%s)", full)
                raise Locked(f"another check is under way (from {str(holder).rpartition(':')[0] or 'elsewhere'})")
        threading.Thread(target=beat, daemon=True).start()
        yield connection._sock.fileno()
    finally:
        done.set()
        with contextlib.suppress(pymysql.MySQLError, OSError):
            connection.close()
