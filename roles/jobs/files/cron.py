# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs the background tasks of all tenants, each once a minute, a bounded number at a time.

Runs as PHP's user. A tenant has its own second of the minute, so that they don't all start at once;
a run that takes longer than a minute delays its own tenant alone. Ends at SIGTERM when the runs
under way have ended.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import signal
import socket
import subprocess
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

TENANTS = "/etc/moodle-fleet/tenants.php"
LIST = (
    "$all = (require $argv[1])['tenants'];"
    "echo json_encode(array_keys(array_filter($all, fn($one) => $one['state'] === 'active')));"
)


class Journal:
    """Sends entries to the journal, with the tenant as a field of its own."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def write(self, text: str, tenant: str = "", priority: int = 6) -> None:
        """Write one line."""
        fields = {"MESSAGE": f"{tenant}: {text}" if tenant else text, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "moodle-cron"}
        if tenant:
            fields["MOODLE_TENANT"] = tenant
        raw = "".join(f"{key}={' '.join(value.split(chr(10)))}\n" for key, value in fields.items())
        try:
            self._socket.sendto(raw.encode(), "/run/systemd/journal/socket")
        except OSError:
            print(fields["MESSAGE"], flush=True)


class Dispatcher:
    """Starts each active tenant's run when it is due."""

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.journal = Journal()
        self.stopping = threading.Event()
        self.running: set[str] = set()
        self.seen = 0.0
        self.due: list[tuple[float, str]] = []
        self.active: set[str] = set()

    def php(self, *words: str) -> list[str]:
        """Return the command that runs PHP."""
        return [*self.settings["php"], *words]

    def refresh(self) -> None:
        """Read the list of tenants again if it changed."""
        changed = os.stat(TENANTS).st_mtime
        if changed == self.seen:
            return
        done = subprocess.run(self.php("-r", LIST, TENANTS), capture_output=True, text=True, timeout=60, check=True)
        active = set(json.loads(done.stdout))
        interval, now = self.settings["interval"], time.time()
        for tenant in active - self.active:
            offset = zlib.crc32(tenant.encode()) % (interval * 10) / 10
            heapq.heappush(self.due, (now - now % interval + offset + (interval if now % interval > offset else 0), tenant))
        self.active, self.seen = active, changed
        self.journal.write(f"{len(active)} active tenants, {self.settings['parallel']} at a time")

    def run(self) -> None:
        """Dispatch until told to stop."""
        with ThreadPoolExecutor(max_workers=self.settings["parallel"]) as pool:
            while not self.stopping.is_set():
                try:
                    self.refresh()
                except (OSError, ValueError, subprocess.SubprocessError) as exc:
                    self.journal.write(f"cannot read the list of tenants: {exc}", priority=3)
                while self.due and self.due[0][0] <= time.time():
                    when, tenant = heapq.heappop(self.due)
                    if tenant not in self.active:
                        continue
                    late = max(0, (time.time() - when) // self.settings["interval"])
                    heapq.heappush(self.due, (when + (late + 1) * self.settings["interval"], tenant))
                    if tenant not in self.running:
                        self.running.add(tenant)
                        pool.submit(self.tenant, tenant)
                self.stopping.wait(min(1.0, max(0.05, self.due[0][0] - time.time())) if self.due else 1.0)

    def tenant(self, tenant: str) -> None:
        """Run one tenant's tasks, unless they run already."""
        try:
            if self.stopping.is_set():
                return
            with open(os.path.join(self.settings["locks"], tenant), "w", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.cron(tenant)
        except BlockingIOError:
            self.journal.write("skipped, its tasks run already", tenant)
        except OSError as exc:
            self.journal.write(f"cannot run: {exc}", tenant, priority=3)
        finally:
            self.running.discard(tenant)

    def code(self, tenant: str) -> str:
        """Return the code that fits the tenant's database: while a release is under way, not all tenants have the same."""
        try:
            with open(os.path.join(self.settings["lanes"], tenant), encoding="ascii") as stream:
                return os.path.join(self.settings["releases"], os.path.basename(stream.read().strip()))
        except FileNotFoundError:
            return self.settings["code"]

    def cron(self, tenant: str) -> None:
        """Run Moodle's cron script; say how long it took, and all it said when something failed."""
        code = os.path.realpath(self.code(tenant))
        script = next(
            path for path in (f"{code}/admin/cli/cron.php", f"{code}/public/admin/cli/cron.php") if os.path.exists(path)
        )
        began = time.monotonic()
        done = subprocess.run(
            self.php(script, "--keep-alive=0"), env={**os.environ, "MOODLE_TENANT": tenant}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )
        took = time.monotonic() - began
        failed = done.returncode != 0 or " failed: " in done.stdout
        if failed:
            for line in done.stdout.splitlines()[-200:]:
                self.journal.write(line, tenant, priority=4)
        self.journal.write(f"cron ended with {done.returncode} after {took:.1f} s", tenant, priority=4 if failed else 6)


def main() -> None:
    """Read the settings and dispatch."""
    with open("/etc/moodle-fleet/cron.json", encoding="utf-8") as stream:
        dispatcher = Dispatcher(json.load(stream))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *unused: dispatcher.stopping.set())
    dispatcher.run()


if __name__ == "__main__":
    main()
