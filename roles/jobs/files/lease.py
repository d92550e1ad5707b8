# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which of the jobs nodes dispatches: a row in the fleet's database that its holder renews.

One clock counts, the database's. The holder believes in its lease for a second less than the database does, counted from before
it asked, on a clock that goes on while the machine sleeps: it stops before anybody else may start.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Mapping

import pymysql

# A renewal may fail twice before the lease is lost.
TTL, BEAT = 15, 3
MARGIN = 1


def clock() -> float:
    """Seconds since the machine booted, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease(threading.Thread):
    """Takes and renews the lease in the background.

    `holder` is who holds it as far as is known; `fence` has the addresses of nodes that lost it without giving it back, until
    `fenced` is called; `lost` tells that another node took it from this one; `problem` says why it can't be had. The dispatcher keeps
    setting `pulse` to the time of now: one that hangs does not keep its lease.
    """

    def __init__(self, database: Mapping[str, object], node: str) -> None:
        super().__init__(daemon=True)
        self.node, self.holder, self.problem = node, "", ""
        self.epoch = 0
        self.pulse = clock()
        self.fence: tuple[str, ...] = ()
        self.lost = False
        self._database = database
        self._connection: pymysql.Connection | None = None
        self._until = 0.0
        self._leaving = threading.Event()
        self._fenced = threading.Event()

    def held(self) -> bool:
        """Whether this node may dispatch now."""
        return clock() < self._until

    def fenced(self) -> None:
        """What the former holders had under way has been ended."""
        self.fence = ()
        self._fenced.set()

    def stop(self) -> None:
        """Give the lease back, so that another node goes on at once."""
        self._leaving.set()
        self._until = 0.0
        self.join(timeout=10)

    def run(self) -> None:
        while True:
            leaving = self._leaving.is_set()
            try:
                if leaving:
                    self._give_back()
                elif clock() - self.pulse > TTL:
                    raise TimeoutError("the dispatcher hangs")
                else:
                    self._beat()
                self.problem = ""
            except (pymysql.MySQLError, OSError, ValueError) as exc:
                self.problem = " ".join(str(exc).split())
                self._close()
            if leaving:
                self._close()
                return
            self._leaving.wait(BEAT)

    def _execute(self, statement: str, *values: object) -> tuple:
        if self._connection is None:
            given = self._database
            self._connection = pymysql.connect(
                host=given["host"], port=given["port"], user=given["user"], password=given["password"], database="moodle_fleet",
                charset="utf8mb4", autocommit=True, connect_timeout=5, read_timeout=5, write_timeout=5,
                ssl=ssl.create_default_context() if given["tls"] else None,
            )
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchone() or ()

    def _beat(self) -> None:
        asked, fenced = clock(), self._fenced.is_set()
        # One statement, so that a node which stops in the middle leaves no lock behind. Its assignments happen from left to right.
        self._execute(
            "UPDATE jobs_lease SET"
            " fence = IF(holder IN ('', %s), IF(%s, '', fence), CONCAT_WS(',', NULLIF(fence, ''), address)),"
            " epoch = epoch + (holder <> %s), address = SUBSTRING_INDEX(USER(), '@', -1),"
            " until = UTC_TIMESTAMP(3) + INTERVAL %s SECOND, holder = %s"
            " WHERE name = 'cron' AND (holder IN ('', %s) OR until <= UTC_TIMESTAMP(3))",
            self.node, fenced, self.node, TTL, self.node, self.node,
        )
        self.holder, self.epoch, fence = self._execute("SELECT holder, epoch, fence FROM jobs_lease WHERE name = 'cron'")
        if fenced or self.holder != self.node:
            self._fenced.clear()
        if self.holder == self.node:
            self.fence = tuple(one for one in fence.split(",") if one)
            self._until = asked + TTL - MARGIN
        else:
            self.lost = self.lost or self._until > 0
            self.fence, self._until = (), 0.0

    def _give_back(self) -> None:
        self._execute("UPDATE jobs_lease SET holder = '' WHERE name = 'cron' AND holder = %s", self.node)

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(pymysql.MySQLError, OSError):
                self._connection.close()
            self._connection = None
