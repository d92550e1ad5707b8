# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One real tenant on its way to a release: what :mod:`plan` observes, and its steps, on a node that has both releases."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._releases import plan, table
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, database, dumps, resp
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.definition import DEFAULT_SERVER, Tenant
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.site import SiteError, Sites

_HASH = re.compile(r"'([0-9a-f]{40})'")


class ReleaseError(Exception):
    """A release cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Release:
    """One release on this node, and the checksum of all versions in it, by which a database tells whose it is."""

    name: str
    code: str
    versions: str


def find_release(name: str, root: str, component_root: str) -> Release:
    """Return a release that is on this node."""
    code = os.path.join(root, "releases", name)
    file = os.path.join(component_root, name, "versions.php")
    try:
        with open(file, encoding="utf-8") as stream:
            found = _HASH.search(stream.read())
    except FileNotFoundError:
        found = None
    if not os.path.isdir(code) or found is None:
        raise ReleaseError(f"the release {name} is not on this node, or not complete: {code}, {file}; run release.yml, which installs it")
    return Release(name, code, found[1])


@dataclass(frozen=True)
class Course:
    """What holds for all tenants of a release: where from, where to, by which run, and how patient."""

    origin: Release
    target: Release
    run: str
    folder: str
    balancers: Sequence[str] = ()
    public_port: int = 443
    jobs_patience: int = 600
    quiet_patience: float = 15.0


class Lane:
    """One tenant. Every step may be repeated."""

    def __init__(self, applier: apply.Applier, course: Course, tenant: Tenant, lane: str, book: database.Server, home: database.Server,
                 clock: Callable[[], float] = time.time) -> None:
        self.applier = applier
        self.course = course
        self.tenant = tenant
        self.lane = lane
        self.book = book
        self.home = home
        self.clock = clock
        self.entry = book.observe().book.get(tenant.name, database.Entry())

    # Observing

    def line(self) -> table.Line:
        """The tenant's line of this release; an empty one before it is begun."""
        return current(table.lines(self.book).get(self.tenant.name), self.course)

    def see(self) -> plan.Seen:
        line = self.line()
        known = self.home.settings({self.tenant.database: {"allversionshash": ""}})[self.tenant.database]
        return observed(self.course, line, known, self.lane, self.sites.closed(self.tenant.name))

    @cached_property
    def old(self) -> Sites:
        """The site, seen by the old code."""
        return self._sites(self.course.origin)

    @cached_property
    def next(self) -> Sites:
        """The site, seen by the new code."""
        return self._sites(self.course.target)

    @property
    def sites(self) -> Sites:
        """The folders, whatever the code."""
        return self.old

    def _sites(self, release: Release) -> Sites:
        return Sites(replace(self.applier.sites.places, code=release.code), self.applier.sites.run)

    @property
    def dump_file(self) -> str:
        """Where the way back lies, for root alone."""
        return os.path.join(self.course.folder, self.course.target.name, f"{self.tenant.name}.sql")

    # Acting

    def do(self, step: str) -> None:
        try:
            getattr(self, f"_{step}")()
        except (*apply.ERRORS, ReleaseError) as exc:
            raise plan.StepFailed(f"{step.replace('_', ' ')}: {exc}") from exc

    def note_failure(self, error: str, phase: str) -> None:
        phases = {"phase": phase} if phase else {}
        held = {"state": "upgrading"} if phase == plan.RETURNING else None
        self._note({**phases, "error": error[:4000], "run": self.course.run}, held)

    def _note(self, values: Mapping[str, object], entry: Mapping[str, str] | None = None) -> None:
        table.note(self.book, self.tenant.name, values, entry)

    def _refuse(self) -> None:
        raise ReleaseError(
            f"its database fits neither {self.course.origin.name} nor {self.course.target.name}: bring it to the release that is"
            f" served first, with admin/cli/upgrade.php, or restore a backup"
        )

    def _look(self) -> None:
        """What the old code finds wrong is not the new code's fault."""
        began = {**table.Line()._asdict(), "target": self.course.target.name, "origin": self.course.origin.name,
                 "run": self.course.run, "began": self.clock(), "jobs": self.line().jobs, "ours": self.line().ours}
        self._note(began)
        self._note({"findings": json.dumps(self._probe(self.old, purge=False))})

    def _probe(self, sites: Sites, purge: bool) -> dict[str, list[str]]:
        answer = sites.ask(self.tenant.name, "probe.php", {"purge": purge})
        try:
            return json.loads([line for line in answer.splitlines() if line.startswith("{")][-1])
        except (ValueError, IndexError) as exc:
            raise SiteError(f"probe.php did not answer: {answer.strip()[-300:]}") from exc

    def _jobs_off(self) -> None:
        known = self.home.settings({self.tenant.database: {"cron_enabled": ""}})[self.tenant.database]
        if known.get("cron_enabled") == "0" and not self.line().jobs:
            # Somebody else stopped them.
            return
        self._note({"jobs": 1})
        self.old.script(self.tenant.name, "admin/cli/cron.php", f"--disable-wait={self.course.jobs_patience}")

    def _jobs_on(self) -> None:
        if not self.line().jobs:
            # Planned before it was known that somebody else had stopped them.
            return
        sites = self.next if self._fits(self.course.target) else self.old
        sites.script(self.tenant.name, "admin/cli/cron.php", "--enable")

    def _fits(self, release: Release) -> bool:
        known = self.home.settings({self.tenant.database: {"allversionshash": ""}})[self.tenant.database]
        return known.get("allversionshash") == release.versions

    def _close(self) -> None:
        if not self.sites.closed(self.tenant.name):
            self._note({"ours": 1, "closed": self.clock(), "opened": 0.0})
            self.sites.close(self.tenant.name)

    def _quiet(self) -> None:
        """Let requests that began before it was closed end, then end those that did not."""
        deadline = time.monotonic() + self.course.quiet_patience
        user = self.tenant.database_user()
        while self.home.query("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = %s", (user,)) != [(0,)]:
            if time.monotonic() > deadline:
                self.home.end_connections(user)
                return
            time.sleep(0.1)

    def _dump(self) -> None:
        os.makedirs(self.course.folder, mode=0o700, exist_ok=True)
        os.chmod(self.course.folder, 0o700)
        os.makedirs(os.path.dirname(self.dump_file), mode=0o700, exist_ok=True)
        fresh = f"{self.dump_file}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        dumps.dump(self._account, self.tenant.database, fresh)
        os.replace(fresh, self.dump_file)

    @property
    def _account(self) -> dumps.Account:
        return self.applier.servers[self.entry.server].account

    def _begin(self) -> None:
        self._note({"phase": plan.DUMPED, "digest": dumps.digest(self.dump_file)}, {"state": "upgrading"})

    def _restore(self) -> None:
        if not os.path.isfile(self.dump_file) or dumps.digest(self.dump_file) != self.line().digest:
            raise SiteError(f"the dump {self.dump_file} is not the one that was made before the upgrade: restore a backup instead")
        self.home.end_connections(self.tenant.database_user())
        self.home.recreate(self.tenant.database)
        dumps.load(self._account, self.tenant.database, self.dump_file)
        self._forget_caches()

    def _forget_caches(self) -> None:
        """What was cached of the database that is no more. Sessions stay: nobody has to log in again."""
        for connect in self.applier.redis:
            with connect() as connection:
                resp.forget(connection, [self.tenant.name], sessions=False)

    def _upgrade(self) -> None:
        self._note({"phase": plan.UPGRADING})
        # A run that died may have left a process behind that outlived it.
        self.home.end_connections(self.tenant.database_user())
        self.next.script(self.tenant.name, "admin/cli/upgrade.php", "--non-interactive")
        if not self._fits(self.course.target):
            raise SiteError("upgrade.php ended well, but the database does not have the versions of this release")

    def _verify(self) -> None:
        """Purge its caches, and compare what the new code finds wrong with what the old one did."""
        before = json.loads(self.line().findings or "{}")
        after = self._probe(self.next, purge=True)
        worse = [f"{kind}: {one}" for kind, found in after.items() for one in found if one not in before.get(kind, [])]
        if worse:
            raise SiteError(f"the new code finds {'; '.join(worse)[:1000]}")

    def _freshen(self) -> None:
        self.old.script(self.tenant.name, "admin/cli/purge_caches.php")

    def _settle(self) -> None:
        self.sites.lead_jobs(self.tenant.name, self.course.target.name)
        self._note({"phase": plan.DONE, "error": ""}, {"state": "installed", "release_name": self.course.target.name})

    def _settle_back(self) -> None:
        self.sites.lead_jobs(self.tenant.name, None)
        self._note({"phase": plan.FAILED, "run": self.course.run}, {"state": "installed", "release_name": self.course.origin.name})

    def _open(self) -> None:
        self.sites.open(self.tenant.name)
        self._note({"opened": self.clock()})

    def _ask(self) -> None:
        """Every balancer shows the login page."""
        if self.tenant.state != "active":
            return
        for balancer in self.course.balancers:
            problem = ""
            for pause in (0.0, 1.0, 3.0):
                time.sleep(pause)
                problem = ask(balancer, self.tenant.hosts[0], self.course.public_port)
                if not problem:
                    break
            if problem:
                raise SiteError(f"/login/index.php through {balancer}: {problem}")

    def _end(self) -> None:
        self._note({"ours": 0, "jobs": 0, "ended": self.clock()})


def current(line: table.Line | None, course: Course) -> table.Line:
    """Return a tenant's line of this release.

    :raises ReleaseError: when another release was broken off with the tenant.
    """
    if line is None or line.target == course.target.name:
        return line or table.Line()
    if line.unfinished or line.ours:
        raise ReleaseError(f"the release {line.target} was broken off: end that one first, by release.yml with its version")
    return table.Line()


def observed(course: Course, line: table.Line, settings: Mapping[str, str], lane: str, closed: bool) -> plan.Seen:
    """Put together what was observed of a tenant."""
    versions = settings.get("allversionshash", "")
    return plan.Seen(
        phase=line.phase, fits="next" if versions == course.target.versions else "old" if versions == course.origin.versions else "",
        lane=lane, closed=closed, ours=bool(line.ours), jobs_off=bool(line.jobs),
        tried=line.run == course.run and bool(line.error),
    )


def lane_of(tenant: Tenant, routes: Sequence[Mapping[str, str]]) -> str:
    """Return the lane in which every balancer has all of a tenant's hosts; empty where they differ."""
    lanes = {route.get(host, plan.OLD) for route in routes for host in tenant.hosts}
    return lanes.pop() if len(lanes) == 1 else ""


def ask(balancer: str, host: str, port: int) -> str:
    """Get a site's login page through one balancer; returns what is wrong, or nothing."""
    # Whether the certificate is good is not what is asked here, and nothing secret is sent.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = _Named(balancer, host, context)
    name = host if port == 443 else f"{host}:{port}"
    try:
        connection.request("GET", "/login/index.php", headers={"Host": name})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as exc:
        return str(exc) or type(exc).__name__
    finally:
        connection.close()
    return "" if response.status in (200, 302, 303) else f"answered with {response.status}"


class _Named(http.client.HTTPSConnection):
    """A connection to an address that asks for the certificate of a host."""

    def __init__(self, address: str, host: str, context: ssl.SSLContext) -> None:
        super().__init__(address, timeout=60, context=context)
        self._name = host
        self._tls = context

    def connect(self) -> None:
        """Connect, and say whose site is meant."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def homes(applier: apply.Applier, book: Mapping[str, database.Entry]) -> list[str]:
    """Return the names of the servers that hold any site, the fleet's own first."""
    return list(dict.fromkeys([DEFAULT_SERVER, *(entry.server for entry in book.values())]))
