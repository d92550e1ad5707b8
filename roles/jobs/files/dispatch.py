# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs the cron of all active tenants, each once a minute, a bounded number at a time, on one jobs node at a time.

Runs as root with few of root's rights, so that each turn runs as the user of the tenant's PHP: the one that most share, or its own.
`schedule.py` says whose turn it is, `lease.py` whether it is this node's turn at all, and Moodle's own admin/cli/cron.php does the work,
in forks of runner.php. At SIGTERM it gives the lease back, asks the runs under way to end after their current task, and ends with the
last of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import selectors
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lease import Lease, clock
from metrics import Figures
from schedule import DONE, FAILED, RESTING, Limits, Run, Schedule

TENANTS = Path("/etc/moodle-fleet/tenants.php")
# The same of tenants with a Unix user of their own.
OWN = TENANTS.with_name("tenants.own")
LIBRARY = Path(__file__).parent
RUNTIME = Path("/run/moodle-fleet-cron")
# Nobody makes a site for longer (seconds): it was broken off.
MAKING = 1800.0
BEING_MADE = "The site is being made"
# By these Moodle says that the site does not want its cron to run, by the last the dispatcher that there is no site yet.
REST = ("Cron is disabled", "CLI maintenance mode active", "Moodle upgrade pending", BEING_MADE)
KEPT_OUTPUT = 64 << 10


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


class Runner:
    """One runner.php: the parent of runs that share compiled code, all as one user. With ``once`` it ends with its first run."""

    def __init__(self, php: list[str], user: int, selector: selectors.BaseSelector, answer: Callable[[dict, str], None],
                 once: bool = False) -> None:
        self.ids: set[int] = set()
        self.once = once
        self._answer, self._selector = answer, selector
        self._output: dict[int, bytearray] = {}
        self._pids: dict[int, int] = {}
        self._partial = b""
        group = pwd.getpwuid(user).pw_gid
        path = RUNTIME / f"runner-{time.monotonic_ns()}.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            os.chown(path, user, group)
            listener.listen(1)
            listener.settimeout(0.2)
            self._printed, theirs = socket.socketpair()
            # The kernel says with everything that is printed which process printed it.
            self._printed.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._printed.setblocking(False)
            with theirs:
                self.process = subprocess.Popen(
                    [*php, str(LIBRARY / "runner.php"), str(path)], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
                    user=user, group=group, extra_groups=[],
                )
            try:
                self._control = self._accept(listener, time.monotonic() + 30)
            finally:
                path.unlink()
        selector.register(self._control, selectors.EVENT_READ, self._told)
        selector.register(self._printed, selectors.EVENT_READ, self._read)

    def _accept(self, listener: socket.socket, end: float) -> socket.socket:
        """Wait until PHP is there, and no longer if it does not come."""
        while True:
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self.process.poll() is None and time.monotonic() < end:
                    continue
            self.process.kill()
            raise ChildProcessError(f"PHP did not start, it ended with {self.process.wait()}")

    def ask(self, number: int, script: Path | str, *arguments: str, **environment: str) -> None:
        """Start a run; its answers come back with its number."""
        self.ids.add(number)
        self._send({"id": number, "script": str(script), "args": arguments, "env": environment})

    def signal(self, number: int, which: signal.Signals) -> None:
        """Send a run a signal, if it is still there."""
        self._send({"id": number, "signal": int(which)})

    def slow_down(self, number: int) -> None:
        """Let all other runs go before this one."""
        for pid, owner in self._pids.items():
            if owner == number:
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PGRP, pid, 15)

    def finish(self) -> None:
        """No more runs come; it ends after those under way."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def _send(self, what: dict) -> None:
        # If it is gone, _told sees that too.
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(what).encode() + b"\n")

    def _read(self) -> None:
        try:
            while True:
                text, extra, _flags, _address = self._printed.recvmsg(65536, socket.CMSG_SPACE(12))
                if not text:
                    # _told may have been here first.
                    if self._printed in self._selector.get_map():
                        self._selector.unregister(self._printed)
                    return
                pid = struct.unpack("3i", extra[0][2][:12])[0] if extra else 0
                if pid == self.process.pid:
                    print(text.decode(errors="replace"), flush=True)
                    continue
                if len(self._output) > 1000:
                    # Of programs that runs started; nobody asks for it.
                    self._output = {one: kept for one, kept in self._output.items() if one in self._pids}
                kept = self._output.setdefault(pid, bytearray())
                kept += text
                if len(kept) > 2 * KEPT_OUTPUT:
                    del kept[:-KEPT_OUTPUT]
        except BlockingIOError:
            pass

    def _told(self) -> None:
        try:
            text = self._control.recv(1 << 20)
        except OSError:
            text = b""
        self._read()
        *lines, self._partial = (self._partial + text).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "pid" in told:
                self._pids[told["pid"]] = told["id"]
                continue
            self._end(told)
        if not text:
            self._selector.unregister(self._control)
            self.process.wait()
            # If it died, its forks have nobody who would tell of their end.
            for pid in self._pids:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            for number in list(self.ids):
                self._end({"id": number, "code": 70, "cpu": 0.0})

    def _end(self, told: dict) -> None:
        pids = [pid for pid, owner in self._pids.items() if owner == told["id"]]
        printed = b"".join(self._output.pop(pid, b"") for pid in pids)
        for pid in pids:
            del self._pids[pid]
        self.ids.discard(told["id"])
        if self.once:
            self.finish()
        self._answer(told, printed.decode(errors="replace"))


class Dispatcher:
    """Joins schedule, lease and runner."""

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.limits = Limits(**settings["limits"])
        self.schedule = Schedule(self.limits)
        self.journal = Journal()
        self.node = socket.gethostname()
        self.lease = Lease(settings["database"], self.node)
        self.figures = Figures(self.node)
        self.selector = selectors.DefaultSelector()
        self.runners: list[Runner] = []
        self.code = ""
        self.role = ""
        self.stop_asked = self.stopping = False
        self.seen: tuple[float, ...] = ()
        # Of those that have one of their own.
        self.users: dict[str, int] = {}
        self.user = pwd.getpwnam(settings["user"]).pw_uid
        self.listed = True
        # What is asked of tenants.php, by the number of its run; negative, so that they differ from those of the schedule.
        self.asked: dict[int, Callable[[int, str], None]] = {}
        self.long: set[int] = set()
        self.warned: dict[int, float] = {}
        self._next_report = self._next_backlog = 0.0
        self._wake, self._waker = socket.socketpair()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Dispatch until told to stop, and until what was started has ended."""
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno())
        self.selector.register(self._wake, selectors.EVENT_READ, lambda: self._wake.recv(4096))
        self.lease.start()
        try:
            while not (self.stopping and not self.schedule.runs):
                self._turn()
        finally:
            # Nothing is left for systemd to kill, also when this ends by a fault.
            for number in self.schedule.runs:
                self._signal(number, signal.SIGKILL)
            for runner in self.runners:
                runner.finish()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    runner.process.wait(timeout=10)
            self.journal.write("stopped")

    def _turn(self) -> None:
        """Do what is due, then wait for what comes, a second at most."""
        now = time.time()
        self.lease.pulse = clock()
        if self.stop_asked and not self.stopping:
            self._stop()
        self._look()
        if self.role == "active":
            self._refresh()
            for run in self.schedule.start(now):
                self._start(run)
        self._watch(now)
        self._report(now)
        wait = self.schedule.wait(now) if self.role == "active" else 1.0
        for key, _events in self.selector.select(min(1.0, max(0.02, wait))):
            key.data()

    def _stop(self) -> None:
        """Take nothing new; let what is under way come to an end."""
        self.stopping = True
        self.lease.stop()
        self._become("draining")
        for number in self.schedule.runs:
            self._signal(number, signal.SIGTERM)

    def _look(self) -> None:
        """Find out whether this node dispatches."""
        if self.stopping:
            return
        if self.lease.lost:
            # Its connections to the databases were ended by whoever took over.
            self.lease.lost = False
            self.journal.write(f"{self.lease.holder} has taken over: {len(self.schedule.runs)} runs are ended here", priority=4)
            for number in self.schedule.runs:
                self._signal(number, signal.SIGKILL)
        if not self.lease.held():
            self._become("standby")
        elif self.role != "active" and not self.asked:
            if self.lease.fence:
                self.journal.write(f"taking over from {', '.join(self.lease.fence)}: ending its connections", priority=4)
                self._ask(self._fenced, "fence", *self.lease.fence)
            else:
                # With the list of now; and no failure counts, for perhaps the database had one.
                self.schedule.serve((), time.time())
                self.seen = ()
                self._become("active")

    def _become(self, role: str) -> None:
        if role != self.role:
            self.role = role
            why = f", the database can't be asked: {self.lease.problem}" if self.lease.problem else ""
            holder = f", {self.lease.holder} is active" if role == "standby" and self.lease.holder not in ("", self.node) else ""
            self.journal.write(f"{role}{holder}{why}", priority=4 if why else 5)

    def _fenced(self, code: int, text: str) -> None:
        found = json.loads(text) if code == 0 else {"tenants.php": {"error": text[-500:]}}
        ended = sum(one.get("ended", 0) for one in found.values())
        failed = [f"{name}: {one['error']}" for name, one in found.items() if "error" in one]
        self.journal.write("; ".join([f"{ended} connections ended", *failed[:3]]), priority=4)
        self.lease.fenced()

    def _refresh(self) -> None:
        """Follow changes of the list of tenants and of the release."""
        code = os.path.realpath(self.settings["code"])
        if code != self.code:
            # Compiled code of an earlier release goes with its runner.
            for runner in self.runners:
                runner.finish()
            self._shared_runner(anew=True)
            self.code = code
            self.journal.write(f"runs the code in {code}")
        changed = tuple(path.stat().st_mtime for path in (TENANTS, OWN) if path.exists())
        if changed != self.seen:
            self.seen = changed
            self._ask(self._listed, "list")

    def _new_runner(self, php: list[str], user: int, once: bool) -> Runner:
        self.runners = [runner for runner in self.runners if runner.ids or runner.process.poll() is None]
        self.runners.append(Runner(php, user, self.selector, self._ended, once))
        return self.runners[-1]

    def _shared_runner(self, anew: bool = False) -> Runner:
        """The runner of the tenants that share a user."""
        shared = [runner for runner in self.runners if not runner.once]
        if anew or not shared or shared[-1].process.poll() is not None:
            return self._new_runner(self.settings["php"], self.user, once=False)
        return shared[-1]

    def _own_runner(self, tenant: str, user: int) -> Runner:
        """A runner for one turn of a tenant with a user of its own, which can share no memory, nor compiled code, with others."""
        change = {"opcache.file_cache": os.path.join(self.settings["local"], tenant, "opcache-cli"), "opcache.file_cache_only": "1"}
        words = (word.partition("=") for word in self.settings["php"])
        return self._new_runner([f"{key}{equals}{change.get(key, value)}" for key, equals, value in words], user, once=True)

    def _listed(self, code: int, text: str) -> None:
        if code:
            # Those known so far are served on. The next report asks again.
            self.listed = False
            self.journal.write(f"cannot read the list of tenants: {text[-500:]}", priority=3)
            return
        self.listed = True
        names = json.loads(text)
        # From the list itself: one whose user is yet to be made is never run as somebody else's.
        self.users = {name: number for name, number in names.items() if number is not None}
        self.schedule.serve(names, time.time())
        self.figures.keep(names)
        self.journal.write(f"{len(names)} active tenants, {self.limits.workers} at a time")

    # -- runs -------------------------------------------------------------------------------------------------------

    def _start(self, run: Run) -> None:
        """Have Moodle's own cron run for a tenant."""
        code = self._code_of(run.tenant)
        if not code:
            # It would put half of a site's settings into the caches.
            self.figures.started(run)
            self._ended({"id": run.number, "code": 1, "cpu": 0.0}, BEING_MADE)
            return
        script = next((path for path in (f"{code}/admin/cli/cron.php", f"{code}/public/admin/cli/cron.php")
                       if os.path.exists(path)), f"{code}/admin/cli/cron.php")
        self.figures.started(run)
        user = self.users.get(run.tenant)
        try:
            runner = self._shared_runner() if user is None else self._own_runner(run.tenant, user)
        except (OSError, KeyError) as exc:
            if user is None:
                raise
            # Its user or folder may be missing: its own trouble alone.
            self._ended({"id": run.number, "code": 70, "cpu": 0.0}, f"cannot run as user {user}: {exc}")
            return
        runner.ask(run.number, script, "--keep-alive=0", MOODLE_TENANT=run.tenant)

    def _code_of(self, tenant: str) -> str:
        """The code that fits the tenant's database: while a release is under way, not all tenants have the same. Empty while its site is
        being made."""
        lane = Path(self.settings["lanes"], tenant)
        try:
            release = lane.read_text(encoding="ascii").strip()
            being_made = not release and time.time() - lane.stat().st_mtime < MAKING
        except FileNotFoundError:
            return self.code
        if being_made:
            return ""
        return os.path.join(self.settings["releases"], os.path.basename(release)) if release else self.code

    def _ask(self, answer: Callable[[int, str], None], *words: str) -> None:
        number = -1 - max((-one for one in self.asked), default=0)
        self.asked[number] = answer
        # As root, who alone knows all accounts, and with nothing that others compiled.
        self._new_runner(["php"], 0, once=True).ask(number, LIBRARY / "tenants.php", *words)

    def _signal(self, number: int, which: signal.Signals) -> None:
        for runner in self.runners:
            if number in runner.ids:
                runner.signal(number, which)

    def _ended(self, told: dict, printed: str) -> None:
        """A run has ended: remember it, and say what a person should know."""
        number, code = told["id"], told["code"]
        if number in self.asked:
            self.asked.pop(number)(code, printed)
            return
        resting = code == 1 and next((words for words in REST if words in printed), "")
        outcome = DONE if code == 0 else RESTING if resting else FAILED
        now = time.time()
        run = self.schedule.end(number, outcome, now)
        took = now - run.started
        was_long = number in self.long
        self.long.discard(number)
        self.warned.pop(number, None)
        failed_tasks = printed.count(" task failed: ")
        self.figures.ended(run, outcome, now, told["cpu"], failed_tasks, resting or "")
        if outcome == FAILED or failed_tasks:
            for line in printed.splitlines()[-200:]:
                self.journal.write(line, run.tenant, priority=4)
        if outcome == FAILED or failed_tasks or was_long:
            text = f"cron ended with {code} after {took:.1f} s" + (f", {failed_tasks} tasks failed" if failed_tasks else "")
            self.journal.write(text, run.tenant, priority=6 if was_long and outcome == DONE and not failed_tasks else 4)

    def _watch(self, now: float) -> None:
        """Long runs go on beside the others; none lasts for ever."""
        for number, run in self.schedule.runs.items():
            if number not in self.long and self.schedule.is_long(run, now):
                self.long.add(number)
                self.journal.write(f"cron runs for {now - run.started:.0f} s, and goes on beside the others", run.tenant)
                for runner in self.runners:
                    runner.slow_down(number)
            over = now - run.started - self.settings["run_limit"]
            # First asked to end after its task, then made to.
            if over > 0 and number not in self.warned:
                self.warned[number] = now
                self.journal.write(f"cron runs for {now - run.started:.0f} s: it is asked to end", run.tenant, priority=4)
                self._signal(number, signal.SIGTERM)
            elif number in self.warned and now - self.warned[number] > 60:
                self._signal(number, signal.SIGKILL)

    # -- figures ----------------------------------------------------------------------------------------------------

    def _report(self, now: float) -> None:
        if self.role == "active" and now >= self._next_backlog and self.schedule.tenants and not self.asked:
            self._next_backlog = now + self.limits.interval
            self._ask(self._counted, "backlog", json.dumps(self.figures.complete_since()))
        if now < self._next_report:
            return
        self._next_report = now + 15
        if not self.listed:
            self.seen = ()
        holder = self.lease.holder if self.lease.holder != self.node else ""
        self.figures.write(RUNTIME, {
            "role": self.role, "holder": holder, "epoch": self.lease.epoch, "problem": self.lease.problem,
            "late": max(0.0, self.schedule.lateness(now)) if self.role == "active" else 0.0,
            "running": [asdict(run) | {"long": run.number in self.long} for run in self.schedule.runs.values()],
            "failures": {name: tenant.failures for name, tenant in self.schedule.tenants.items() if tenant.failures},
        }, now)

    def _counted(self, code: int, text: str) -> None:
        if code == 0:
            self.figures.backlog = json.loads(text)


def main() -> None:
    """Read the settings and dispatch."""
    with open("/etc/moodle-fleet/cron.json", encoding="utf-8") as stream:
        dispatcher = Dispatcher(json.load(stream))

    def stop(*_signal: object) -> None:
        dispatcher.stop_asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    dispatcher.run()


if __name__ == "__main__":
    main()
