# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which pool of nodes a host leads to: HAProxy's map, in its file and in the running process. A host that is not in it leads to the default."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterable

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import RuntimeSocket

DEFAULT = "web"
_HEAD = "# Hosts that do not lead to the backend web. Written by the module balancer_lanes; changes made here are lost.\n"
_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*")


class Lanes:
    """The map of one HAProxy."""

    def __init__(self, runtime: RuntimeSocket, path: str = "/etc/haproxy/lanes.map", lock: str = "/run/lock/moodle-fleet-lanes.lock") -> None:
        self.runtime = runtime
        self.path = path
        self.lock = lock

    def exists(self) -> bool:
        """Whether the file is there."""
        return os.path.exists(self.path)

    def written(self) -> dict[str, str]:
        """The hosts and lanes in the file: what holds after a reload or a restart."""
        try:
            with open(self.path, encoding="utf-8") as stream:
                return _parse(stream.read())
        except FileNotFoundError:
            return {}

    def running(self) -> dict[str, str]:
        """The hosts and lanes in the running process."""
        answer = self.runtime.ask(f"show map {self.path}")
        if "Unknown map" in answer:
            raise BalancerError(f"HAProxy does not know the map {self.path}: apply the role balancer, for example with site.yml")
        # An address of the entry stands before each.
        return _parse("\n".join(line.split(" ", 1)[-1] for line in answer.splitlines()))

    def lead(self, hosts: Iterable[str], lane: str) -> bool:
        """Let hosts lead to a lane, in the file first; True when that changed anything."""
        hosts = list(dict.fromkeys(hosts))
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise BalancerError(f"hosts: {host!r} is no host name in lower case")
        with open(self.lock, "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.written()
            after = {**before, **dict.fromkeys(hosts, lane)}
            after = {host: where for host, where in after.items() if where != DEFAULT}
            if after != before or not self.exists():
                self._write(after)
            if not hosts:
                return after != before
            running = self.running()
            changed = after != before
            for host in hosts:
                wanted = after.get(host)
                if running.get(host) == wanted:
                    continue
                changed = True
                if wanted is None:
                    self.runtime.tell(f"del map {self.path} {host}")
                elif host in running:
                    self.runtime.tell(f"set map {self.path} {host} {wanted}")
                else:
                    self.runtime.tell(f"add map {self.path} {host} {wanted}")
            now = self.running()
            wrong = [host for host in hosts if now.get(host) != after.get(host)]
            if wrong:
                raise BalancerError(f"HAProxy did not take over where {wrong[0]} leads: {now.get(wrong[0], DEFAULT)} instead of {lane}")
            return changed

    def _write(self, hosts: dict[str, str]) -> None:
        handle, fresh = tempfile.mkstemp(prefix=".lanes.", dir=os.path.dirname(self.path))
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(_HEAD + "".join(f"{host} {lane}\n" for host, lane in sorted(hosts.items())))
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(fresh, 0o644)
        os.replace(fresh, self.path)


def _parse(text: str) -> dict[str, str]:
    words = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {line[0]: line[1] for line in words if len(line) == 2}
