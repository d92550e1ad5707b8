# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""HAProxy as the controller reads it: members and counters over its statistics port."""

from __future__ import annotations

import concurrent.futures
import http.client
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers import haproxy_stats as stats
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import (
    BalancerError,
    BalancerReader,
    Counters,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._schema import Field

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node

# Keys of the fleet file's section `balancer`.
SETTINGS = {
    "backend": Field(str, default="web", pattern="[A-Za-z0-9_.-]{1,64}", help="the backend whose members are web nodes"),
    "stats_port": Field(int, default=8404, minimum=1, maximum=65535, help="port of HAProxy's counters"),
    "timeout": Field(float, default=2.0, minimum=0.1, maximum=60, help="seconds that a balancer may take to answer"),
}

_STARTED = re.compile(r"^haproxy_process_start_time_seconds ([0-9.eE+]+)", re.MULTILINE)


def reader(fleet: Fleet, addresses: Sequence[str], _nodes: Sequence[Node] = ()) -> HAProxyReader:
    """The reader of one fleet's balancers."""
    settings = fleet.balancer
    return HAProxyReader(
        addresses, port=settings["stats_port"], backend=settings["backend"], timeout=settings["timeout"]
    )


class HAProxyReader(BalancerReader):
    """Reads all balancers at once and adds them up."""

    def __init__(
        self,
        addresses: Sequence[str],
        port: int = 8404,
        backend: str = "web",
        timeout: float = 2.0,
        clock: Callable[[], float] = time.time,
    ):
        self.addresses = list(addresses)
        self.port = port
        self.backend = backend
        self.timeout = timeout
        self._clock = clock

    def read(self) -> Counters:
        """One reading. A balancer that does not answer is left out as long as another one does."""
        if not self.addresses:
            raise BalancerError("the fleet has no balancer to read: launch its balancer nodes first")
        with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, len(self.addresses))) as pool:
            results = list(pool.map(self._try, self.addresses))
        readings = [one for one in results if isinstance(one, Counters)]
        if not readings:
            raise BalancerError("; ".join(str(one) for one in results))
        return _add(readings)

    def _try(self, address: str) -> Counters | BalancerError:
        try:
            return self._one(address)
        except BalancerError as exc:
            return exc

    def _one(self, address: str) -> Counters:
        """One balancer, over one connection."""
        host, _colon, port = address.partition(":") if address.count(":") == 1 else (address, "", "")
        deadline = time.monotonic() + self.timeout
        connection = http.client.HTTPConnection(host, int(port or self.port), timeout=self.timeout)
        try:
            process = self._get(connection, "/metrics?scope=global", deadline)
            text = self._get(connection, "/stats;csv;norefresh", deadline)
        except (OSError, http.client.HTTPException) as exc:
            raise BalancerError(
                f"balancer {address}: its statistics on port {port or self.port} could not be read within "
                f"{self.timeout:g} s: {exc or type(exc).__name__}; check that HAProxy runs there and that "
                "balancer_stats_allowed contains this machine's network"
            ) from exc
        finally:
            connection.close()
        started = _STARTED.search(process)
        if started is None:
            raise BalancerError(f"balancer {address}: /metrics holds no haproxy_process_start_time_seconds")
        own, servers = stats.parse(text, self.backend)
        members = sorted((stats.member(row) for row in servers), key=lambda one: one.name)
        return Counters(
            taken=self._clock(),
            requests=stats.finished(own),
            in_service=sum(one.in_service for one in members),
            # The backend's queue; requests bound to one server wait at the server.
            waiting=stats.number(own, "qcur") + sum(one.waiting for one in members),
            mean_seconds=stats.number(own, "ttime") / 1000 if own.get("ttime") else None,
            started=float(started.group(1)),
            members=members,
        )

    @staticmethod
    def _get(connection: http.client.HTTPConnection, path: str, deadline: float) -> str:
        if time.monotonic() > deadline:
            raise TimeoutError("too slow")
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace")
        if response.status != 200:
            raise BalancerError(f"{connection.host}: GET {path} was answered with {response.status}, not with 200")
        return body


def _add(readings: Sequence[Counters]) -> Counters:
    requests = sum(one.requests for one in readings)
    timed = [one for one in readings if one.mean_seconds is not None]
    weight = sum(one.requests for one in timed)
    mean = None
    if timed:
        mean = (
            sum(one.mean_seconds * one.requests for one in timed) / weight
            if weight
            else sum(one.mean_seconds for one in timed) / len(timed)
        )
    return Counters(
        taken=min(one.taken for one in readings),
        requests=requests,
        in_service=sum(one.in_service for one in readings),
        waiting=sum(one.waiting for one in readings),
        mean_seconds=mean,
        # A balancer that restarts, goes or comes changes the sum, so the counters count as started anew.
        started=sum(one.started for one in readings),
        members=stats.merge_all(one.members for one in readings),
    )


__all__ = ["SETTINGS", "HAProxyReader", "reader"]
