# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""HAProxy's member list, changed on the balancer itself.

A member lives in two places: in the running process (the runtime socket) and in conf.d/web.cfg, which a reload or a
restart reads. Each step changes both, the file first when a member leaves and when it drains, so that a reload in
between never sends requests to it; and after its check has passed when it joins, for the same reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers import haproxy_stats as stats
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import (
    BalancerError,
    BalancerMembers,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Member

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_LINE = re.compile(r"\s*server\s+(\S+)\s+(\S+):(\d+)\s+check\s+maxconn\s+(\d+)\s+weight\s+(\d+)\s*")
_HEAD = "# Written by the module elearning.moodle_fleet.balancer_member: one line for each member.\n"


class StillBusy(BalancerError):
    """The member still has connections, so HAProxy does not let go of it yet."""


@dataclass(frozen=True)
class Line:
    """One member in the file."""

    address: str
    port: int
    capacity: int
    weight: int = stats.FULL_WEIGHT

    def render(self, name: str) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"    server {name} {host}:{self.port} check maxconn {self.capacity} weight {self.weight}\n"


class RuntimeSocket:
    """HAProxy's admin socket: one connection a command, always with a timeout."""

    def __init__(self, path: str = "/run/haproxy/admin.sock", timeout: float = 5.0):
        self.path = path
        self.timeout = timeout

    def ask(self, command: str) -> str:
        """The answer to a command."""
        chunks = []
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self.timeout)
                connection.connect(self.path)
                connection.sendall(command.encode() + b"\n")
                while chunk := connection.recv(65536):
                    chunks.append(chunk)
        except OSError as exc:
            raise BalancerError(
                f"HAProxy did not take '{command}' on its socket {self.path}: {exc or type(exc).__name__}; "
                "check that HAProxy runs there (systemctl status haproxy)"
            ) from exc
        return b"".join(chunks).decode("utf-8", "replace").strip()

    def tell(self, command: str, *accepted: str) -> None:
        """A command that answers nothing, or one of ``accepted``."""
        answer = self.ask(command)
        if answer and not any(text in answer for text in accepted):
            raise BalancerError(f"HAProxy refused '{command}': {answer}")


class MemberFile:
    """conf.d/web.cfg: nothing but the backend's head and its server lines.

    ``check`` runs a command and returns its status and error output.
    """

    def __init__(
        self,
        check: Callable[[Sequence[str]], tuple[int, str]],
        config_dir: str = "/etc/haproxy",
        backend: str = "web",
        lock: str = "/run/lock/moodle-fleet-balancer.lock",
    ):
        self.config_dir = config_dir
        self.backend = backend
        self.path = os.path.join(config_dir, "conf.d", f"{backend}.cfg")
        self.main = os.path.join(config_dir, "haproxy.cfg")
        self.lock = lock
        self._check = check

    def exists(self) -> bool:
        return os.path.exists(self.path)

    def read(self) -> dict[str, Line]:
        """The members by name."""
        try:
            with open(self.path, encoding="utf-8") as handle:
                text = handle.read()
        except FileNotFoundError:
            return {}
        lines = {}
        for raw in text.splitlines():
            found = _LINE.fullmatch(raw)
            if found:
                name, address, port, capacity, weight = found.groups()
                lines[name] = Line(address.strip("[]"), int(port), int(capacity), int(weight))
            elif raw.strip() and not raw.startswith(("#", f"backend {self.backend} from ")):
                raise BalancerError(
                    f"{self.path} holds a line that is not the fleet's: {raw.strip()!r}; move it to another file of conf.d"
                )
        return lines

    def render(self, lines: Mapping[str, Line]) -> str:
        """The file's text."""
        members = "".join(lines[name].render(name) for name in sorted(lines))
        return f"{_HEAD}backend {self.backend} from {self.backend}\n{members}"

    def server_options(self) -> str:
        """The options of ``default-server``: HAProxy does not apply them to servers added at runtime."""
        section = ""
        with contextlib.suppress(FileNotFoundError), open(self.main, encoding="utf-8") as handle:
            for raw in handle:
                words = raw.split()
                if words and not raw[0].isspace() and not raw.startswith("#"):
                    section = " ".join(words[:2])
                elif words[:1] == ["default-server"] and section == f"defaults {self.backend}":
                    return " ".join(words[1:])
        return ""

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Line]]:
        """The members to change in place; what differs afterwards is checked by HAProxy and written atomically."""
        with open(self.lock, "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = self.read()
            before = dict(lines)
            yield lines
            if lines != before or not self.exists():
                self._write(self.render(lines))

    def _write(self, text: str) -> None:
        folder = os.path.dirname(self.path)
        handle, candidate = tempfile.mkstemp(prefix=f".{self.backend}.", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            others = [path for path in sorted(glob.glob(os.path.join(folder, "*.cfg"))) if path != self.path]
            if os.path.exists(self.main):
                files = [word for path in [self.main, *others, candidate] for word in ("-f", path)]
                status, output = self._check(["haproxy", "-c", "-q", *files])
                if status:
                    raise BalancerError(f"HAProxy refuses the new {self.path}, the old one stays: {output.strip()}")
            os.chmod(candidate, 0o644)
            os.replace(candidate, self.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(candidate)


class HAProxyMembers(BalancerMembers):
    """The members of one HAProxy."""

    def __init__(self, runtime: RuntimeSocket, file: MemberFile):
        self.runtime = runtime
        self.file = file
        self.backend = file.backend

    # -- observing ---------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, stats.Row]:
        """The running process's rows by member."""
        _own, servers = stats.parse(self.runtime.ask(f"show stat {self.backend} 6 -1"), self.backend)
        return {row["svname"]: row for row in servers}

    def members(self) -> list[Member]:
        rows = self.rows()
        return [stats.member(rows[name]) for name in sorted(rows)]

    # -- steps -------------------------------------------------------------------------------------------------

    def join(self, name: str, address: str, port: int, capacity: int) -> bool:
        """Add the member without any request yet, or correct it. :meth:`admit` lets requests in, once it is healthy."""
        _check_member(name, address, port, capacity)
        row = self.rows().get(name)
        if row is not None and (stats.endpoint(row) != (address, port) or row["status"].startswith("MAINT")):
            # Another node under the same name, or one left half removed: what its old checks said does not count.
            self.remove(name)
            row = None
        if row is None:
            self.runtime.tell(
                f"add server {self._at(name)} {Line(address, port, capacity).render(name).split()[2]} check "
                f"{self.file.server_options()} weight {stats.FULL_WEIGHT} maxconn {capacity}",
                "New server registered",
            )
            self.runtime.tell(f"enable health {self._at(name)}")
            self.runtime.tell(f"set server {self._at(name)} state drain")
            return True
        changed = False
        if not stats.number(row, "uweight"):
            # Draining until now. The state stays DRAIN; the weight says that it is on its way back.
            self.runtime.tell(f"set server {self._at(name)} state drain")
            self.runtime.tell(f"set server {self._at(name)} weight {stats.FULL_WEIGHT}")
            changed = True
        if stats.number(row, "slim") != capacity:
            self.runtime.tell(f"set maxconn server {self._at(name)} {capacity}")
            changed = True
        return changed

    def admit(self, names: Sequence[str], share: float = 1.0) -> set[str]:
        """Let requests in; returns whom that changed. The caller has seen that the members are healthy.

        One change of the file for all of them: HAProxy reads its whole configuration for each.
        """
        rows = {name: self._row(name) for name in names}
        wanted = {name: Line(*stats.endpoint(row), stats.number(row, "slim")) for name, row in rows.items()}
        changed = set()
        with self.file.change() as lines:
            for name in names:
                if lines.get(name) != wanted[name]:
                    lines[name] = wanted[name]
                    changed.add(name)
        for name in names:
            if rows[name]["status"].startswith("DRAIN"):
                self.ramp(name, share)
                self.runtime.tell(f"set server {self._at(name)} state ready")
                changed.add(name)
        return changed

    def ramp(self, name: str, share: float) -> bool:
        weight = max(1, min(stats.FULL_WEIGHT, round(share * stats.FULL_WEIGHT)))
        if stats.number(self._row(name), "uweight") == weight:
            return False
        self.runtime.tell(f"set server {self._at(name)} weight {weight}")
        return True

    def drain(self, name: str) -> bool:
        return name in self.drain_all([name])

    def drain_all(self, names: Sequence[str]) -> set[str]:
        """Drain several members with one change of the file; returns whom that changed."""
        rows = {name: self._row(name) for name in names}
        changed = set()
        with self.file.change() as lines:
            for name in names:
                if name in lines and lines[name].weight:
                    lines[name] = replace(lines[name], weight=0)
                    changed.add(name)
        for name, row in rows.items():
            if stats.number(row, "uweight") or row["status"].startswith("UP"):
                self.runtime.tell(f"set server {self._at(name)} state drain")
                self.runtime.tell(f"set server {self._at(name)} weight 0")
                changed.add(name)
        return changed

    def unlist(self, names: Sequence[str]) -> set[str]:
        """Take members out of the file; returns who was there. They still run."""
        with self.file.change() as lines:
            return {name for name in names if lines.pop(name, None) is not None}

    def remove(self, name: str) -> bool:
        """:raises StillBusy: while HAProxy still has a connection to the member; try again."""
        changed = bool(self.unlist([name]))
        if name not in self.rows():
            return changed
        self.runtime.tell(f"set server {self._at(name)} state maint")
        answer = self.runtime.ask(f"del server {self._at(name)}")
        if "deleted" in answer or "No such server" in answer:
            return True
        if "connection" in answer or "session" in answer or "stream" in answer:
            raise StillBusy(f"HAProxy keeps {name} for now: {answer}")
        raise BalancerError(f"HAProxy refused to delete {name}: {answer}")

    def cut(self, name: str) -> None:
        """End the requests under way at a member."""
        self.runtime.tell(f"shutdown sessions server {self._at(name)}")

    def _at(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise BalancerError(f"name: {name!r} is no member name: use letters, digits, dots, dashes and underscores")
        return f"{self.backend}/{name}"

    def _row(self, name: str) -> stats.Row:
        row = self.rows().get(name)
        if row is None:
            raise BalancerError(f"HAProxy has no member {name!r} in its backend {self.backend!r}: join it first")
        return row


def _check_member(name: str, address: str, port: int, capacity: int) -> None:
    """Values end up in commands and a configuration file: nothing but what they may be."""
    if not NAME.fullmatch(name):
        raise BalancerError(f"name: {name!r} is no member name: use letters, digits, dots, dashes and underscores")
    if not ADDRESS.fullmatch(address):
        raise BalancerError(f"address: {address!r} of {name}: give an IP address")
    if not 0 < port < 65536:
        raise BalancerError(f"port: {port!r} of {name}: use 1 to 65535")
    if capacity < 1:
        raise BalancerError(f"capacity: {capacity!r} of {name}: use the node's number of workers, at least 1")
