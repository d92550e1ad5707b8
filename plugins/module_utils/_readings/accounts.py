# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The account with which events and the tiers' state are read: a few columns in each database, and Redis' own figures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings.reader import COLUMNS, USER
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import checksum

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import Server
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.resp import Connection

Statement = tuple[str, tuple[str, ...]]
WANTED = {table: frozenset(columns) for table, columns in COLUMNS.items()}


def database_statements(server: Server, databases: Iterable[str], password: str, host: str) -> list[Statement]:
    """What the reader's account on a server lacks, and what it must no longer have. None where all is as it should be.

    :raises DatabaseError: when the server refuses to tell.
    """
    known = {where: kept or "" for where, kept in server.query(
        "SELECT Host, authentication_string FROM mysql.user WHERE User = %s", (USER,)
    )}
    found: dict[tuple[str, str], set[str]] = {}
    for database, table, column in server.query(
        "SELECT Db, Table_name, Column_name FROM mysql.columns_priv WHERE User = %s AND Host = %s", (USER, host)
    ):
        found.setdefault((database, table), set()).add(column)
    needed: list[Statement] = [("DROP USER %s@%s", (USER, other)) for other in sorted(known) if other != host]
    if host not in known:
        needed.append(("CREATE USER %s@%s IDENTIFIED BY %s", (USER, host, password)))
    elif known[host].upper() != checksum(password):
        needed.append(("ALTER USER %s@%s IDENTIFIED BY %s", (USER, host, password)))
    kept = set(databases)
    lacking = sorted(name for name in kept if any(found.get((name, table)) != columns for table, columns in WANTED.items()))
    present: dict[tuple[str, str], set[str]] = {}
    for name in lacking:
        marks = ", ".join(["%s"] * len(COLUMNS))
        for table, column in server.query(
            "SELECT TABLE_NAME, COLUMN_NAME FROM information_schema.COLUMNS"
            f" WHERE TABLE_SCHEMA = %s AND TABLE_NAME IN ({marks})", (name, *COLUMNS),
        ):
            present.setdefault((name, table), set()).add(column)
    return needed + rights(found, kept, present, host)


def rights(
    found: Mapping[tuple[str, str], set[str]], databases: Iterable[str], present: Mapping[tuple[str, str], set[str]], host: str
) -> list[Statement]:
    """The grants that are missing, of columns that exist, and the revocations of what nobody needs any more."""
    needed: list[Statement] = []
    kept = set(databases)
    for database, table in sorted(found):
        surplus = found[database, table] - (WANTED.get(table, frozenset()) if database in kept else frozenset())
        if surplus:
            needed.append((f"REVOKE SELECT ({', '.join(sorted(surplus))}) ON `{database}`.`{table}` FROM %s@%s", (USER, host)))
    for database, table in sorted(present):
        known = found.get((database, table), set())
        missing = [column for column in COLUMNS[table] if column in present[database, table] - known]
        if missing:
            needed.append((f"GRANT SELECT ({', '.join(missing)}) ON `{database}`.`{table}` TO %s@%s", (USER, host)))
    return needed


def redis_commands(connection: Connection, password: str) -> list[tuple[str, ...]]:
    """What makes the reader's Redis user as it should be: it may ask for INFO, and reach no key.

    :raises RedisError: when Redis refuses to tell.
    """
    wanted = ["on", f"#{hashlib.sha256(password.encode()).hexdigest()}"]
    lines = connection.call("ACL", "LIST")
    for line in lines if isinstance(lines, list) else ():
        words = str(line).split()
        # Redis tells commands in an order of its own.
        if words[1] == USER and {word for word in words[2:] if word == "on" or word[0] in "#~&%+"} == {*wanted, "+info", "+ping"}:
            return []
    return [("ACL", "SETUSER", USER, "reset", *wanted, "-@all", "+info", "+ping")]
