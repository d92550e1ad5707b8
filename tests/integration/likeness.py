# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What two sites have in common that no two sites should: found by comparing copies with sites installed in full.

Two full installations differ in whatever an installation draws by lot or takes from its tenant. So two copies must differ there
as well, and hold nothing of the template they were made from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# Settings by their name, other rows by their number.
NAMED = {"config": ("name",), "config_plugins": ("plugin", "name"), "task_scheduled": ("classname",)}
# Where a difference is a moment, a lot that was drawn for the load's sake (and may fall alike), or the account of a process.
MOMENTS = re.compile(
    r"time|next(run|cron)|last|rev$|^(minute|hour|day|month|dayofweek)$|duration|^(pid|hostname|cputime)$|purged$|^scheduledtaskreset$|backupversion"
)
# Rows of work under way: one site may have done what the other has not.
PASSING = re.compile(r"^(cache_|log|logstore_|sessions?$|task_(log|adhoc)|upgrade_log|config_log|lock_db|stats_|event)")

Cells = dict[tuple[str, ...], str]


def cells(query, database: str) -> Cells:
    """Every cell of a site's database by table, row and column. ``query`` runs a statement and gives dictionaries."""
    found: Cells = {}
    tables = query(f"SELECT TABLE_NAME AS t FROM information_schema.TABLES WHERE TABLE_SCHEMA = '{database}'")
    for table in sorted(row["t"] for row in tables):
        name = table.removeprefix("mdl_")
        if PASSING.match(name):
            continue
        for number, row in enumerate(query(f"SELECT * FROM `{database}`.`{table}`")):
            key = tuple(str(row[part]) for part in NAMED.get(name, ())) or (str(row.get("id", number)),)
            for column, value in row.items():
                if column != "id":
                    found[(name, *key, column)] = "" if value is None else str(value)
    return found


def moment(place: tuple[str, ...]) -> bool:
    """Whether a cell holds a moment, by its column, or for settings by its name. An analytics model's version is one, too."""
    if (place[0], place[-1]) == ("analytics_models", "version"):
        return True
    return any(MOMENTS.search(word) for word in (place[-1], place[-2] if place[0].startswith("config") else ""))


def shared(first: Cells, second: Cells, full: tuple[Cells, Cells]) -> dict[tuple[str, ...], str]:
    """Cells that are alike in two copies though they differ between two full installations; values that are long enough."""
    own = {
        place for place in full[0].keys() & full[1].keys()
        if full[0][place] != full[1][place] and not moment(place)
    }
    return {place: first[place] for place in sorted(own) if place in first and first[place] == second.get(place)}


def unexplained(copy: Cells, full: Cells) -> set[tuple[str, ...]]:
    """Settings that a copy has and a full installation has not, or the other way."""
    places = {place for place in copy.keys() ^ full.keys() if place[0].startswith("config")}
    return {place for place in places if not moment(place)}


def traces(copy: Cells, words: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """Cells of a copy that hold one of these words, such as the template's host."""
    return {place: value for place, value in copy.items() if any(word in value for word in words)}


def differing(cells_of: Mapping[str, Cells], first: str, second: str) -> list[tuple[str, ...]]:
    """Cells in which two sites differ, moments aside."""
    one, two = cells_of[first], cells_of[second]
    return sorted(place for place in one.keys() & two.keys() if one[place] != two[place] and not moment(place))
