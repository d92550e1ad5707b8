# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of a release beside the tenants' book: a line for each tenant that a release has begun with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import BOOK, COLUMNS, Server

NAME = f"{BOOK}.upgrades"


class Line(NamedTuple):
    """What is known of a tenant's way to a release. Times are seconds since 1970.

    ``phase`` is one of :mod:`plan`'s; ``ours`` says that the release closed the site, ``jobs`` that it stopped its jobs; ``run`` is
    the run that worked on it last, ``error`` why that gave it up; ``findings`` is what the old code found wrong, as JSON.
    """

    target: str = ""
    origin: str = ""
    run: str = ""
    phase: str = ""
    ours: int = 0
    jobs: int = 0
    digest: str = ""
    error: str = ""
    findings: str = ""
    began: float = 0.0
    closed: float = 0.0
    opened: float = 0.0
    ended: float = 0.0

    @property
    def unfinished(self) -> bool:
        """Whether the tenant's database is between two releases."""
        return self.phase in ("dumped", "upgrading", "returning")

    @property
    def downtime(self) -> float:
        """Seconds for which visitors saw the page of maintenance; 0 where that is not over, or was not the release's."""
        return max(0.0, self.opened - self.closed) if self.closed and self.opened else 0.0


def make(book: Server) -> None:
    """Make the table, unless it is there."""
    kinds = {str: "VARCHAR(255) NOT NULL DEFAULT ''", int: "TINYINT NOT NULL DEFAULT 0", float: "DOUBLE NOT NULL DEFAULT 0"}
    columns = {name: kinds[type(value)] for name, value in Line()._asdict().items()}
    columns |= {"error": "TEXT NOT NULL DEFAULT ''", "findings": "MEDIUMTEXT NOT NULL DEFAULT ''"}
    listed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    book.query(
        f"CREATE TABLE IF NOT EXISTS {NAME} (tenant VARCHAR(31) CHARACTER SET ascii NOT NULL PRIMARY KEY, {listed})"
        " ENGINE=InnoDB CHARACTER SET utf8mb4"
    )


def lines(book: Server) -> dict[str, Line]:
    """Return all lines by tenant; none where no release was ever made."""
    there = book.query("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = 'upgrades'", (BOOK,))
    if not there:
        return {}
    return {name: Line(*values) for name, *values in book.query(f"SELECT tenant, {', '.join(Line._fields)} FROM {NAME}")}


def note(book: Server, tenant: str, values: Mapping[str, object], entry: Mapping[str, str] | None = None) -> None:
    """Change a tenant's line and, in the same transaction, its entry in the book."""
    if set(values) - set(Line._fields) or set(entry or {}) - set(COLUMNS):
        raise ValueError(f"there are no such columns: {sorted({*values, *(entry or {})})}")
    book.query("START TRANSACTION")
    try:
        _write(book, NAME, "tenant", tenant, values)
        if entry:
            _write(book, f"{BOOK}.tenants", "name", tenant, entry)
        book.query("COMMIT")
    except BaseException:
        book.query("ROLLBACK")
        raise


def _write(book: Server, table: str, key: str, tenant: str, values: Mapping[str, object]) -> None:
    updates = ", ".join(f"{column} = VALUES({column})" for column in values)
    marks = ", ".join(["%s"] * len(values))
    book.query(
        f"INSERT INTO {table} ({key}, {', '.join(values)}) VALUES (%s, {marks}) ON DUPLICATE KEY UPDATE {updates}",
        (tenant, *values.values()),
    )
