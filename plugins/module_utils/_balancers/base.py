# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The interface between the fleet and its load balancer.

Two halves, because they run in two places: :class:`BalancerReader` observes from the controller, cheaply and often;
:class:`BalancerMembers` changes the member list, where the balancer can be changed (on the HAProxy node itself, or
through a cloud's API).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member


class BalancerError(Exception):
    """The balancer did not answer or refused. The message says what was tried and what to do."""


@dataclass(frozen=True)
class Counters:
    """Monotonic counters and gauges of the web backend, read at one moment.

    Where ``interval`` is 0, ``requests`` counts finished requests since the balancer's start, ``in_service`` and ``waiting`` are the moment's
    values, ``started`` changes when the counters were reset. ``mean_seconds`` is the mean time of a request over the
    last ``mean_window`` requests (1,024 in HAProxy); 0 when it covers exactly the requests since the last reading.

    A balancer that has no counters but means of past minutes gives one of them: ``interval`` seconds which end at
    ``taken``, of which ``requests``, ``in_service`` (rounded up) and ``waiting`` (refused ones, as if they had been
    served) tell; ``mean_seconds`` is that of exactly these requests. Such data are late by nature; the member list with
    ``members_fresh`` is of now all the same. ``faults`` are (code, text) that speak against the reading.
    """

    taken: float
    requests: int
    in_service: int
    waiting: int
    mean_seconds: float | None
    started: float
    members: Sequence[Member] = ()
    mean_window: int = 1024
    interval: float = 0.0
    members_fresh: bool = False
    faults: Sequence[tuple[str, str]] = ()


class BalancerReader(abc.ABC):
    """Reads members and counters."""

    @abc.abstractmethod
    def read(self) -> Counters:
        """One reading of everything, over one connection per balancer.

        :raises BalancerError: when no balancer answered within the timeout; never zeros instead.
        """


class BalancerMembers(abc.ABC):
    """Changes the member list. Every step may be repeated."""

    @abc.abstractmethod
    def members(self) -> list[Member]:
        """The members as this balancer has them, sorted by name."""

    @abc.abstractmethod
    def join(self, name: str, address: str, port: int, capacity: int) -> bool:
        """Add a member or correct an existing one; True when something changed."""

    @abc.abstractmethod
    def ramp(self, name: str, share: float) -> bool:
        """Give the member a share (0 to 1) of its full weight; True when something changed.

        A balancer that starts members slowly by itself has nothing to do here.
        """

    @abc.abstractmethod
    def drain(self, name: str) -> bool:
        """Stop new requests to the member; those under way finish. True when something changed.

        A balancer may forget the member by itself once it has drained.
        """

    @abc.abstractmethod
    def remove(self, name: str) -> bool:
        """Forget the member; True when it was there."""
