# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a ledger is kept in: the schema, and what SQLite and MariaDB each have to do with it.

All statements of a ledger are SQL that both understand, with ``?`` for values and names such as "load" in double quotes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

# Each entry brings the schema one version further; entries are never changed, only added. A statement that was already
# carried out must harm nothing, or fail: MariaDB can't take back what an interrupted migration has made.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE checks (
      id BIGINT PRIMARY KEY AUTO_INCREMENT, started DOUBLE NOT NULL, finished DOUBLE, origin LONGTEXT NOT NULL,
      status VARCHAR(32) NOT NULL, size BIGINT, desired BIGINT, recommended BIGINT, direction VARCHAR(32),
      acted VARCHAR(32) NOT NULL DEFAULT '', decision LONGTEXT, plan LONGTEXT, message LONGTEXT NOT NULL DEFAULT '');
    CREATE INDEX checks_started ON checks (started);
    CREATE INDEX checks_acted ON checks (acted, started) WHERE acted <> '';
    CREATE TABLE samples (
      id BIGINT PRIMARY KEY AUTO_INCREMENT, check_id BIGINT NOT NULL, taken DOUBLE NOT NULL, seconds DOUBLE, "load" DOUBLE,
      in_service BIGINT, waiting BIGINT, capacity BIGINT, up BIGINT, requests BIGINT, trusted BIGINT,
      lower_bound BIGINT, faults LONGTEXT NOT NULL DEFAULT '[]');
    CREATE INDEX samples_taken ON samples (taken);
    CREATE TABLE activities (
      id BIGINT PRIMARY KEY AUTO_INCREMENT, check_id BIGINT NOT NULL, action VARCHAR(32) NOT NULL, node VARCHAR(255) NOT NULL,
      status VARCHAR(32) NOT NULL, reason LONGTEXT NOT NULL DEFAULT '', planned DOUBLE NOT NULL, started DOUBLE, finished DOUBLE,
      seconds DOUBLE, steps LONGTEXT NOT NULL DEFAULT '{}', message LONGTEXT NOT NULL DEFAULT '');
    CREATE INDEX activities_check ON activities (check_id);
    CREATE INDEX activities_open ON activities (status) WHERE status IN ('planned', 'running');
    CREATE INDEX activities_planned ON activities (planned);
    CREATE TABLE intents (
      token VARCHAR(255) PRIMARY KEY, check_id BIGINT NOT NULL, count BIGINT NOT NULL, created DOUBLE NOT NULL,
      image LONGTEXT NOT NULL, node_release LONGTEXT NOT NULL, seen BIGINT NOT NULL DEFAULT 0, status VARCHAR(32) NOT NULL);
    CREATE INDEX intents_open ON intents (status) WHERE status = 'open';
    CREATE INDEX intents_created ON intents (created);
    CREATE TABLE pauses (
      id BIGINT PRIMARY KEY AUTO_INCREMENT, scope VARCHAR(32) NOT NULL, reason LONGTEXT NOT NULL, since DOUBLE NOT NULL,
      until DOUBLE NOT NULL, ended DOUBLE NOT NULL DEFAULT 0);
    CREATE TABLE state ("key" VARCHAR(255) PRIMARY KEY, value LONGTEXT NOT NULL);
    """,
    """
    ALTER TABLE activities ADD COLUMN token VARCHAR(255) NOT NULL DEFAULT '';
    CREATE INDEX activities_token ON activities (token) WHERE token <> '';
    """,
    # The forecast looks at weeks: five minutes a row instead of a sample each, kept up to date by every check. And what a
    # decision was made from besides the sample, so that it can be made again.
    """
    CREATE TABLE slots (begin BIGINT PRIMARY KEY, seconds DOUBLE NOT NULL, "load" DOUBLE NOT NULL);
    INSERT INTO slots SELECT CAST(taken / 300 AS INTEGER) * 300, sum(seconds), sum("load" * seconds) / sum(seconds)
      FROM samples WHERE trusted AND seconds > 0 GROUP BY 1;
    ALTER TABLE checks ADD COLUMN inputs LONGTEXT;
    """,
)


class LedgerError(Exception):
    """The ledger cannot be used. The message names it and says what to do."""


class Superseded(LedgerError):
    """Another check has planned since this one looked."""


class Done(NamedTuple):
    """What a statement changed: the number of rows, and the number that the last new row was given."""

    rows: int
    number: int


class Store(ABC):
    """A connection to what a ledger is kept in, with today's schema. Every failure is a :class:`LedgerError`."""

    name: str

    @abstractmethod
    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """The rows that a statement finds."""

    @abstractmethod
    def write(self) -> AbstractContextManager[None]:
        """A block whose statements happen all together, or not at all when it is left by an exception. Nobody else writes meanwhile."""

    @abstractmethod
    def run(self, sql: str, *values: Any) -> Done:
        """Change something, within :meth:`write`."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""


def statements(migration: str) -> Sequence[str]:
    """The statements of one entry of :data:`MIGRATIONS`."""
    return [one.strip() for one in migration.split(";") if one.strip()]


def too_new(name: str, version: int) -> LedgerError:
    """The error of a ledger whose schema this version does not know."""
    return LedgerError(
        f"ledger {name}: written by a newer version ({version}, this one knows {len(MIGRATIONS)}): upgrade moodle-fleet on this machine"
    )
