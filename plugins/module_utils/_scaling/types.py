# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The values that pass between drivers, the decision and the planner.

Everything here is immutable and free of I/O. Times are Unix seconds (UTC), durations are seconds,
load and capacity are counted in workers (requests being served or waiting).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """One server as the cloud driver reports it.

    ``state`` is ``pending``, ``running``, ``stopping`` or ``failed`` (it exists but does not run).
    ``release`` and ``tags`` are what the launch or an operator wrote on the node; treat them as
    untrusted text.
    """

    name: str
    role: str
    address: str
    zone: str
    state: str
    launched: float
    release: str = ""
    image: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """One web server as the balancer sees it.

    ``state`` is ``up``, ``starting`` (added, its health is not known yet), ``down`` (fails its check),
    ``draining`` (no new sessions) or ``drained`` (draining, nothing in service or waiting).
    ``capacity`` is the member's worker count, ``since`` the seconds it has been in this state, ``ramp`` the
    share of its weight it gets at present (0 to 1).
    """

    name: str
    address: str
    state: str
    capacity: int
    in_service: int = 0
    waiting: int = 0
    since: float = 0.0
    ramp: float = 1.0
