# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The gate before every balancer: a node says itself which release and tenants it has, before it gets a request."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Wanted:
    """A member as the caller asks for it. ``capacity`` None: what the node's health check says.

    ``release`` is what the health check has to name; empty for the one that holds for all members of the call.
    """

    name: str
    address: str = ""
    port: int = 80
    capacity: int | None = None
    release: str = ""


@dataclass
class Outcome:
    """What became of one member."""

    name: str
    changed: bool = False
    state: str = ""
    error: str = ""
    in_service: int = 0
    waiting: int = 0
    ended_by_deadline: bool = False
    stale: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in vars(self).items()}


def node_health(address: str, port: int, path: str, timeout: float = 2.0) -> tuple[dict[str, Any] | None, str]:
    """The node's own health answer, or None and why there is none."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Host": "balancer"})
        response = connection.getresponse()
        body = response.read(65536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as exc:
        return None, f"GET {path} at {address}:{port} failed: {exc or type(exc).__name__}"
    finally:
        connection.close()
    if response.status != 200:
        return None, f"GET {path} at {address}:{port} was answered with {response.status}: {body.strip()[:200]}"
    try:
        data = json.loads(body)
    except ValueError:
        data = {}
    return (data if isinstance(data, dict) else {}), ""


def verdict(wanted: Wanted, answer: Mapping[str, Any], release: str, tenants: str) -> tuple[int, str, bool]:
    """The node's workers, why it must not join (or nothing), and whether waiting would not change that."""
    asked = wanted.release or release
    if asked and answer.get("release") != asked:
        return 0, f"the node runs release {answer.get('release')!r}, wanted is {asked!r}", False
    if tenants and answer.get("tenants") != tenants:
        return 0, "the node knows other tenants than the fleet has now", True
    workers = wanted.capacity or answer.get("workers")
    if not isinstance(workers, int) or workers < 1:
        return 0, "the node's health check names no workers; give the member's capacity", False
    return workers, "", False


class Steps:
    """Carries out one state for a list of members, against one deadline: what every balancer's steps share."""

    def __init__(
        self,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        health: Callable[[str, int, str], tuple[dict[str, Any] | None, str]] = node_health,
    ):
        self.timeout = timeout
        self._clock = clock
        self._sleep = sleep
        self._health = health
        self._began = clock()

    def ask(
        self, wanted: Iterable[Wanted], outcomes: Mapping[str, Outcome], path: str, release: str, tenants: str
    ) -> dict[str, int]:
        """Ask nodes side by side: the workers of those that may join; of the others their outcome says why not."""
        asked = list(wanted)
        if not asked:
            return {}
        found = {}
        with concurrent.futures.ThreadPoolExecutor(max_workers=min(16, len(asked))) as pool:
            answers = pool.map(lambda one: self._health(one.address, one.port, path), asked)
            for one, (answer, why) in zip(asked, answers):
                outcome = outcomes[one.name]
                outcome.error = why
                if answer is None:
                    continue
                workers, outcome.error, outcome.stale = verdict(one, answer, release, tenants)
                if not outcome.error:
                    found[one.name] = workers
        return found

    @property
    def elapsed(self) -> float:
        """Seconds since these steps began."""
        return self._clock() - self._began

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return self.elapsed >= self.timeout
