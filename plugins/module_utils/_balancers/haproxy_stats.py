# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What HAProxy's statistics mean: from CSV to members and counters. Pure, used on both sides."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member

# The weight of a member in full service. A draining member has weight 0, which tells it from a starting one.
FULL_WEIGHT = 100

Row = Mapping[str, str]


def parse(text: str, backend: str) -> tuple[Row, list[Row]]:
    """The backend's own row and its servers' rows.

    :raises BalancerError: when the text is not HAProxy's CSV or the backend is missing.
    """
    start = text.find("# pxname,")
    if start < 0:
        raise BalancerError(f"HAProxy's statistics were expected, but got {text[:80]!r}")
    own: Row | None = None
    servers: list[Row] = []
    for row in csv.DictReader(io.StringIO(text[start + 2 :].strip() + "\n")):
        if row.get("pxname") != backend:
            continue
        if row["svname"] == "BACKEND":
            own = row
        elif row["svname"] != "FRONTEND":
            servers.append(row)
    if own is None:
        raise BalancerError(f"HAProxy knows no backend {backend!r}: compare the setting 'backend' with its configuration")
    return own, servers


def number(row: Row, key: str) -> int:
    """A column as a number; an empty one is 0."""
    value = row.get(key) or "0"
    try:
        return int(value)
    except ValueError as exc:
        raise BalancerError(f"HAProxy's column {key} of {row.get('svname')} holds {value!r}, no number") from exc


def finished(row: Row) -> int:
    """Requests a proxy has answered since its counters started."""
    return sum(number(row, f"hrsp_{kind}") for kind in ("2xx", "3xx", "4xx", "5xx", "other"))


def state(row: Row) -> str:
    """A member's state in the fleet's words, see ``Member``."""
    status = row["status"].split(" ", 1)[0]
    if status == "MAINT" or not number(row, "uweight"):
        return "draining" if number(row, "scur") + number(row, "qcur") else "drained"
    if status == "UP":
        return "up"
    if status == "DOWN":
        return "starting" if row.get("check_status", "").endswith("INI") else "down"
    # DRAIN with a weight: added, its health is not known yet. "no check": checks are not switched on yet.
    return "starting"


def healthy(row: Row, verified: bool = False) -> bool:
    """Whether HAProxy's own check of this server passes, in service or not.

    ``verified`` is for a server just added whose health check the caller has made itself, from the same machine: its
    word holds until HAProxy's first check, which can be a whole interval away.
    """
    check = row.get("check_status", "")
    if verified and (not check or check.endswith("INI")):
        # Its rise and fall are counted from half way: "DRAIN 1/2".
        return row["status"].split(" ", 1)[0] in ("UP", "DRAIN")
    return row["status"] in ("UP", "DRAIN") and check.endswith("L7OK")


def endpoint(row: Row) -> tuple[str, int]:
    """Address and port of a server."""
    address, _colon, port = row.get("addr", "").rpartition(":")
    return address.strip("[]"), int(port) if port.isdigit() else 0


def member(row: Row) -> Member:
    """One row as a member."""
    current = state(row)
    return Member(
        name=row["svname"],
        address=endpoint(row)[0],
        state=current,
        capacity=number(row, "slim"),
        in_service=number(row, "scur"),
        waiting=number(row, "qcur"),
        since=float(number(row, "lastchg")),
        ramp=0.0 if current in ("draining", "drained") else min(1.0, number(row, "uweight") / FULL_WEIGHT),
    )


def merge(seen: Sequence[Member], balancers: int = 1) -> Member:
    """One member as several balancers see it, of ``balancers`` that answered.

    What is under way is added up, and so are the capacities, since each balancer gets its share of them. A member that
    drains anywhere drains; it has drained when it has everywhere; it is up when one balancer sends it requests.
    """
    states = {one.state for one in seen}
    if states & {"draining", "drained"}:
        current = "drained" if states == {"drained"} else "draining"
    else:
        current = next(name for name in ("up", "starting", "down") if name in states)
    return Member(
        name=seen[0].name,
        address=seen[0].address,
        state=current,
        capacity=sum(one.capacity for one in seen),
        in_service=sum(one.in_service for one in seen),
        waiting=sum(one.waiting for one in seen),
        since=min(one.since for one in seen),
        ramp=min(one.ramp for one in seen),
        lacking=max(0, balancers - len(seen)),
    )


def merge_all(readings: Iterable[Sequence[Member]]) -> list[Member]:
    """The members of several balancers, sorted by name."""
    by_name: dict[str, list[Member]] = {}
    balancers = 0
    for members in readings:
        balancers += 1
        for one in members:
            by_name.setdefault(one.name, []).append(one)
    return [merge(by_name[name], balancers) for name in sorted(by_name)]
