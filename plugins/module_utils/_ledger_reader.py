# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a ledger can be asked: by the next check, by the report, and by people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_store import Store
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.growth import LOOKBACK, Minutes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import History, Intent, Pause, Sample


class LedgerReader:
    """The questions; nothing here changes the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mark(self) -> int:
        """The number of plans made so far; given back to :meth:`commit`, it shows whether another check planned."""
        rows = self._store.rows('SELECT value FROM state WHERE "key" = ?', "plans")
        return int(rows[0]["value"]) if rows else 0

    def history(self, now: float, window: float) -> History:
        """Wishes of the window (with the last one before it) and its samples, the minutes of a longer time, the last real changes of size."""
        begin, long_ago = now - window, now - LOOKBACK
        first = self._store.rows("SELECT max(started) AS at FROM checks WHERE started <= ?", begin)[0]["at"]
        rows = self._store.rows(
            "SELECT started, recommended FROM checks WHERE started >= ? AND started <= ? AND recommended IS NOT NULL"
            " ORDER BY started",
            begin if first is None else first, now,
        )
        samples = [
            _sample(row) for row in self._store.rows(
                "SELECT * FROM samples WHERE taken >= ? AND taken <= ? ORDER BY taken", min(begin, long_ago), now
            )
        ]
        minutes = Minutes(samples)
        return History(
            recommended=tuple((float(row["started"]), int(row["recommended"])) for row in rows),
            samples=tuple(one for one in samples if one.taken >= begin),
            last_out=self._last("out"),
            last_in=self._last("in"),
            ghosts=frozenset(str(name) for name in self.state("ghosts") or ()),
            minutes=minutes.lately(now),
            swing=minutes.swing(now),
            flutter=minutes.flutter(now),
        )

    def _last(self, direction: str) -> float:
        row = self._store.rows("SELECT max(started) AS at FROM checks WHERE acted = ?", direction)[0]
        return float(row["at"] or 0.0)

    def intents(self, since: float) -> list[Intent]:
        """Launches whose nodes were not all seen, and those that the cloud was asked for lately."""
        return [
            Intent(row["token"], row["count"], row["created"], row["check_id"], row["image"], row["node_release"],
                   row["seen"], row["gone"], row["asked"] or 0.0)
            for row in self._store.rows(
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
        rows = self._store.rows(
            "SELECT node, min(planned) AS at FROM activities WHERE status IN ('planned', 'running') AND planned >= ?"
            " AND action IN ('drain', 'retire') GROUP BY node",
            since,
        )
        return {str(row["node"]): float(row["at"]) for row in rows}

    def slots(self, ranges: Sequence[tuple[int, int]]) -> tuple[float | None, dict[int, float]]:
        """The begin of the oldest slot, and the mean loads of the slots in these ranges (both ends included)."""
        since = self._store.rows("SELECT min(begin) AS at FROM slots")[0]["at"]
        found: dict[int, float] = {}
        for first, last in ranges:
            rows = self._store.rows('SELECT begin, "load" FROM slots WHERE begin BETWEEN ? AND ?', first, last)
            found.update((int(row["begin"]), float(row["load"])) for row in rows)
        return since, found

    def samples(self, begin: float, end: float) -> list[Sample]:
        """The samples between two times, oldest first."""
        rows = self._store.rows("SELECT * FROM samples WHERE taken >= ? AND taken <= ? ORDER BY taken", begin, end)
        return [_sample(row) for row in rows]

    def launch_times(self, limit: int = 100) -> list[float]:
        """Seconds from the plan of a launch to the end of its nodes' first join, newest first, from the latest activities."""
        rows = self._store.rows(
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
        rows = self._store.rows(
            "SELECT node, max(planned) AS at FROM activities WHERE status <> 'failed' AND planned >= ?"
            " AND action = 'join' GROUP BY node",
            since,
        )
        return {str(row["node"]): float(row["at"]) for row in rows}

    def state(self, key: str) -> Any:
        """One remembered value, or None."""
        rows = self._store.rows('SELECT value FROM state WHERE "key" = ?', key)
        return json.loads(rows[0]["value"]) if rows else None

    def pauses(self, now: float) -> list[Pause]:
        """Pauses in force."""
        rows = self._store.rows(
            "SELECT * FROM pauses WHERE ended = 0 AND (until = 0 OR until > ?) ORDER BY since", now
        )
        return [Pause(row["scope"], row["reason"], row["since"], row["until"]) for row in rows]

    def checks(
        self, limit: int = 20, *, acted_only: bool = False, check: int | None = None, since: float = 0.0
    ) -> list[dict[str, Any]]:
        """The latest checks, newest first, with their decisions and plans as data."""
        where = "WHERE id = ?" if check is not None else "WHERE status <> 'idle'" if acted_only else "WHERE started >= ?"
        values: tuple[Any, ...] = (check, limit) if check is not None else (limit,) if acted_only else (since, limit)
        result = []
        for row in self._store.rows(f"SELECT * FROM checks {where} ORDER BY id DESC LIMIT ?", *values):
            item = dict(row)
            item["decision"] = json.loads(row["decision"]) if row["decision"] else None
            item["inputs"] = json.loads(row["inputs"]) if row["inputs"] else None
            item["plan"] = json.loads(row["plan"]) if row["plan"] else {"steps": [], "notes": []}
            result.append(item)
        return result

    def activities(self, check: int) -> list[dict[str, Any]]:
        """What became of each step of a check, in its order."""
        rows = self._store.rows("SELECT * FROM activities WHERE check_id = ? ORDER BY id", check)
        return [{**dict(row), "steps": json.loads(row["steps"])} for row in rows]

    def recorded(
        self, batch: int = 1000, *, since: float = 0.0, until: float = 1e12
    ) -> Iterator[tuple[dict[str, Any], Sample]]:
        """Every check that began within the time, with its sample, oldest first, a part at a time."""
        first = self._store.rows("SELECT min(id) AS id FROM checks WHERE started >= ?", since)[0]["id"] if since else 1
        if first is None:
            return
        last = int(first) - 1
        while True:
            rows = self._store.rows(
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
        row = self._store.rows("SELECT min(started) AS first, max(started) AS last FROM checks")[0]
        return None if row["first"] is None else (float(row["first"]), float(row["last"]))

    def usual_interval(self, since: float, until: float) -> float:
        """Median seconds between the latest checks of a time; 15 where there are none."""
        rows = self._store.rows("SELECT started FROM checks WHERE started BETWEEN ? AND ? ORDER BY started DESC LIMIT 500", since, until)
        apart = sorted(float(later["started"]) - float(sooner["started"]) for later, sooner in zip(rows, rows[1:]))
        return apart[len(apart) // 2] if apart else 15.0

    def tallies(self, since: float) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
        """How many checks began since then by status, and how many steps were planned since then by action and result."""
        checks = self._store.rows("SELECT status, count(*) AS number FROM checks WHERE started >= ? GROUP BY status", since)
        steps = self._store.rows(
            "SELECT action, status, count(*) AS number FROM activities WHERE planned >= ? AND status NOT IN ('planned', 'running')"
            " GROUP BY action, status", since,
        )
        return ({row["status"]: row["number"] for row in checks},
                {(row["action"], row["status"]): row["number"] for row in steps})

    def failures(self, since: float) -> list[dict[str, Any]]:
        """Launches and joins planned since then that failed, newest first."""
        return self._store.rows(
            "SELECT action, node, planned, message FROM activities WHERE planned >= ? AND status = 'failed'"
            " AND action IN ('launch', 'join') ORDER BY planned DESC, id DESC", since,
        )

    def lost_launches(self, since: float) -> int:
        """Launches announced since then whose nodes did not all appear in time."""
        return int(self._store.rows("SELECT count(*) AS number FROM intents WHERE status = 'expired' AND created >= ?", since)[0]["number"])

    def activities_between(self, since: float, until: float) -> Iterator[dict[str, Any]]:
        """What became of every step planned within the time, oldest first."""
        for row in self._store.rows("SELECT * FROM activities WHERE planned BETWEEN ? AND ? ORDER BY planned, id", since, until):
            yield {**dict(row), "steps": json.loads(row["steps"])}

    def all_pauses(self) -> list[tuple[Pause, float]]:
        """Every pause that is remembered, with the time at which it was ended by hand, 0 for never."""
        return [
            (Pause(row["scope"], row["reason"], row["since"], row["until"]), float(row["ended"]))
            for row in self._store.rows("SELECT * FROM pauses ORDER BY since")
        ]

    def last_sample(self) -> Sample | None:
        """The latest sample."""
        rows = self._store.rows("SELECT * FROM samples ORDER BY id DESC LIMIT 1")
        return _sample(rows[0]) if rows else None


_SAMPLE_KEYS = Sample._fields


def _sample(row: Mapping[str, Any]) -> Sample:
    values = {key: row[key] for key in _SAMPLE_KEYS}
    values["trusted"], values["lower_bound"] = bool(row["trusted"]), bool(row["lower_bound"])
    values["faults"] = tuple((str(code), str(text)) for code, text in json.loads(row["faults"]))
    return Sample(**values)
