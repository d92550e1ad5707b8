# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Databases and database users of the tenants: observed in a handful of queries, however many there are."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.definition import DEFAULT_SERVER, Tenant

try:
    import pymysql
except ImportError:
    pymysql = None

# Which sites are installed stands beside the sites, not in them: a copy of a site is not an installation.
BOOK = "moodle_fleet"
# Column and type. A book of an earlier version gets what it lacks.
COLUMNS = {
    "state": "VARCHAR(16) CHARACTER SET ascii NOT NULL DEFAULT ''",
    "release_name": "VARCHAR(64) NOT NULL DEFAULT ''",
    "server": "VARCHAR(31) CHARACTER SET ascii NOT NULL DEFAULT 'default'",
    "wwwroot": "VARCHAR(255) NOT NULL DEFAULT ''",
    "held": "VARCHAR(16) CHARACTER SET ascii NOT NULL DEFAULT ''",
}
RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, CREATE TEMPORARY TABLES, DROP, INDEX, ALTER, LOCK TABLES"
)
_RIGHT_COLUMNS = ("Select", "Insert", "Update", "Delete", "Create", "Create_tmp_table", "Drop", "Index", "Alter", "Lock_tables")


class DatabaseError(Exception):
    """The database server refused something or cannot be reached."""


class Entry(NamedTuple):
    """A tenant's line in the book.

    ``state`` is ``installing``, ``cloning``, ``restoring``, ``importing``, ``upgrading``, ``removing`` or ``installed``; ``server`` is where its database is;
    ``wwwroot`` is the address that its content was written with; ``held`` says why the fleet keeps it in maintenance: ``list``
    or ``change``.
    """

    state: str = ""
    release: str = ""
    server: str = DEFAULT_SERVER
    wwwroot: str = ""
    held: str = ""


@dataclass
class Observed:
    """What a server has of our tenants."""

    databases: dict[str, str] = field(default_factory=dict)
    users: dict[tuple[str, str], str] = field(default_factory=dict)
    grants: set[tuple[str, str, str]] = field(default_factory=set)
    book: dict[str, Entry] = field(default_factory=dict)
    has_book: bool = False


class Server:
    """One connection to the server, as its administrator."""

    def __init__(self, host: str, port: int, user: str, password: str, tls: bool = False) -> None:
        if pymysql is None:
            raise DatabaseError("the Python library PyMySQL is missing: install the package python3-pymysql")
        try:
            self._connection = pymysql.connect(
                host=host, port=port, user=user, password=password, charset="utf8mb4", autocommit=True,
                connect_timeout=10, read_timeout=300, write_timeout=300,
                ssl=ssl.create_default_context() if tls else None,
            )
        except pymysql.MySQLError as exc:
            raise DatabaseError(f"cannot connect to the database server at {host}:{port}: {_text(exc)}") from exc
        self.queries = 0

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def query(self, statement: str, values: Iterable[object] = ()) -> list[tuple]:
        """Run one statement and return its rows."""
        self.queries += 1
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(statement, tuple(values))
                return [tuple(_plain(value) for value in row) for row in cursor.fetchall()]
        except pymysql.MySQLError as exc:
            raise DatabaseError(_text(exc)) from exc

    def observe(self) -> Observed:
        """Return everything there is of our tenants, in five queries."""
        found = Observed()
        pattern = "moodle\\_%"
        for name, collation in self.query(
            "SELECT SCHEMA_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE %s", (pattern,)
        ):
            found.databases[name] = collation
        for user, host, checksum in self.query(
            "SELECT User, Host, authentication_string FROM mysql.user WHERE User LIKE %s", (pattern,)
        ):
            found.users[(user, host)] = checksum or ""
        columns = " AND ".join(f"{column}_priv = 'Y'" for column in _RIGHT_COLUMNS)
        for user, host, name in self.query(f"SELECT User, Host, Db FROM mysql.db WHERE User LIKE %s AND {columns}", (pattern,)):
            found.grants.add((user, host, name))
        known = {
            name for (name,) in self.query(
                "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = 'tenants'", (BOOK,)
            )
        }
        found.has_book = known.issuperset(COLUMNS)
        if known:
            fields = [column for column in COLUMNS if column in known]
            names = [{"release_name": "release"}.get(column, column) for column in fields]
            for name, *values in self.query(f"SELECT name, {', '.join(fields)} FROM {BOOK}.tenants"):
                found.book[name] = Entry(**dict(zip(names, values)))
        return found

    def make_book(self) -> None:
        """Make the table that says which sites are installed, or bring it up to date."""
        self.query(f"CREATE DATABASE IF NOT EXISTS {BOOK} CHARACTER SET utf8mb4")
        self.query(
            f"CREATE TABLE IF NOT EXISTS {BOOK}.tenants (name VARCHAR(31) CHARACTER SET ascii NOT NULL PRIMARY KEY,"
            " changed TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP) ENGINE=InnoDB"
        )
        for column, kind in COLUMNS.items():
            self.query(f"ALTER TABLE {BOOK}.tenants ADD COLUMN IF NOT EXISTS {column} {kind}")
        self.query(f"ALTER TABLE {BOOK}.tenants MODIFY state {COLUMNS['state']}")

    def note(self, name: str, **values: str) -> None:
        """Write down what changed about a tenant: columns of the book and their values."""
        if set(values) - set(COLUMNS):
            raise ValueError(f"the book has no {sorted(set(values) - set(COLUMNS))}")
        fields = ", ".join(values)
        marks = ", ".join(["%s"] * len(values))
        updates = ", ".join(f"{column} = VALUES({column})" for column in values)
        self.query(
            f"INSERT INTO {BOOK}.tenants (name, {fields}) VALUES (%s, {marks}) ON DUPLICATE KEY UPDATE {updates}",
            (name, *values.values()),
        )

    def forget(self, name: str) -> None:
        """Take a tenant out of the book."""
        self.query(f"DELETE FROM {BOOK}.tenants WHERE name = %s", (name,))

    def recreate(self, name: str) -> None:
        """Make an empty database in the place of whatever is there."""
        self.query(f"DROP DATABASE IF EXISTS `{name}`")
        self.query(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")

    def end_connections(self, user: str) -> None:
        """End what a database user has under way, such as a script that outlived the run that started it."""
        for (process,) in self.query("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s", (user,)):
            for statement in ("KILL %s", "CALL mysql.rds_kill(%s)"):
                try:
                    self.query(statement, (process,))
                except DatabaseError as exc:
                    if "Unknown thread" in str(exc):
                        break
                    # RDS gives its administrator a procedure in the place of this right.
                    if "not owner of thread" not in str(exc):
                        raise
                else:
                    break

    def identity(self) -> tuple:
        """Return what tells one server from another, by whatever name it is reached."""
        return self.query("SELECT @@hostname, @@port, @@datadir, @@server_id")[0]

    def checksums(self, name: str) -> dict[str, int | None]:
        """Return the checksum of each table's content."""
        tables = [table for (table,) in self.query(
            "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s ORDER BY TABLE_NAME", (name,)
        )]
        if not tables:
            return {}
        listed = ", ".join(f"`{name}`.`{table}`" for table in tables)
        return {table.split(".", 1)[1]: value for table, value in self.query(f"CHECKSUM TABLE {listed} EXTENDED")}

    def finished(self, tenant: Tenant) -> str:
        """Return ``empty``, ``finished`` or ``unfinished`` for what is in a tenant's database."""
        tables = self.query("SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s", (tenant.database,))
        if not tables:
            return "empty"
        if ("mdl_config",) not in tables:
            return "unfinished"
        rows = self.query(
            f"SELECT name, value FROM `{tenant.database}`.mdl_config WHERE name IN ('rolesactive', 'registrationpending')"
        )
        values = dict(rows)
        if values.get("rolesactive") != "1":
            return "unfinished"
        # Moodle sets this last, and removes it when an administrator has registered the site or said no.
        if "registrationpending" in values:
            return "finished"
        used = self.query(f"SELECT COUNT(*) FROM `{tenant.database}`.mdl_user WHERE lastaccess > 0 OR lastlogin > 0 OR id > 2")
        return "finished" if used[0][0] else "unfinished"

    def settings(self, wanted: Mapping[str, Mapping[str, str | None]]) -> dict[str, dict[str, str]]:
        """Return the present values of the settings asked for, per database, in one query per 200 databases."""
        present: dict[str, dict[str, str]] = {name: {} for name in wanted}
        names = sorted(name for name, settings in wanted.items() if settings)
        for start in range(0, len(names), 200):
            parts, values = [], []
            for name in names[start:start + 200]:
                core = [key for key in wanted[name] if "/" not in key]
                plugins = [key for key in wanted[name] if "/" in key]
                if core:
                    marks = ", ".join(["%s"] * len(core))
                    parts.append(f"SELECT %s, name, value FROM `{name}`.mdl_config WHERE name IN ({marks})")
                    values += [name, *core]
                if plugins:
                    marks = ", ".join(["(%s, %s)"] * len(plugins))
                    parts.append(
                        f"SELECT %s, CONCAT(plugin, '/', name), value FROM `{name}`.mdl_config_plugins"
                        f" WHERE (plugin, name) IN ({marks})"
                    )
                    values.append(name)
                    for key in plugins:
                        values += key.split("/", 1)
            for name, key, value in self.query(" UNION ALL ".join(parts), values):
                present[name][key] = value
        return present


def checksum(password: str) -> str:
    """Return the checksum the server keeps of a password (mysql_native_password)."""
    inner = hashlib.sha1(password.encode()).digest()  # noqa: S324 the server's choice
    return "*" + hashlib.sha1(inner).hexdigest().upper()  # noqa: S324


def pattern_of(database: str) -> str:
    """Return a database's name for GRANT, where _ and % would stand for other characters."""
    return re.sub(r"([_%\\])", r"\\\1", database)


def statements(
    observed: Observed, tenant: Tenant, password: str, host: str, prune: bool
) -> list[tuple[str, tuple]]:
    """Return the statements a tenant's database and user need; none when they are as they should be."""
    needed: list[tuple[str, tuple]] = []
    user = tenant.database_user()
    if tenant.database not in observed.databases:
        needed.append((f"CREATE DATABASE `{tenant.database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci", ()))
    elif not observed.databases[tenant.database].startswith("utf8mb4_"):
        needed.append((f"ALTER DATABASE `{tenant.database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci", ()))
    known = observed.users.get((user, host))
    if known is None:
        needed.append(("CREATE USER %s@%s IDENTIFIED BY %s", (user, host, password)))
    elif known.upper() != checksum(password):
        needed.append(("ALTER USER %s@%s IDENTIFIED BY %s", (user, host, password)))
    if (user, host, pattern_of(tenant.database)) not in observed.grants:
        needed.append((f"GRANT {RIGHTS} ON `{pattern_of(tenant.database)}`.* TO %s@%s", (user, host)))
    if prune:
        prefix = tenant.database_user().rsplit("_g", 1)[0]
        for name, where in sorted(observed.users):
            if re.fullmatch(re.escape(prefix) + r"_g[0-9]+", name) and (name, where) != (user, host):
                needed.append(("DROP USER %s@%s", (name, where)))
    return needed


def _plain(value: object) -> object:
    return value.decode() if isinstance(value, (bytes, bytearray)) else value


def _text(exc: Exception) -> str:
    return str(exc.args[1]) if len(exc.args) > 1 else str(exc)
