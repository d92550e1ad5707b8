# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring all tenants into the wanted state: observe everything once, then act only where something differs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _secrets
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, dumps, render, resp, template
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.definition import DEFAULT_SERVER, Tenant
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.site import SiteError, Sites

ERRORS = (database.DatabaseError, resp.RedisError, SiteError, OSError)
SITE_WORDS = {
    "install": "install the site",
    "again": "remove an unfinished installation and install the site",
    "adopt": "note the site and its address",
    "remove": "remove the site with everything in it",
}


@dataclass(frozen=True)
class DatabaseServer:
    """One of the database servers: the administrator's account, and from where the tenants' users may connect."""

    account: dumps.Account
    user_host: str = "%"

    def connect(self) -> database.Server:
        """Return a connection."""
        one = self.account
        return database.Server(one.host, one.port, one.user, one.password, one.tls)


@dataclass
class Work:
    """What one tenant needs, and what became of it."""

    tenant: Tenant
    entry: database.Entry = field(default_factory=database.Entry)
    home: str = DEFAULT_SERVER
    sql: list[tuple[str, tuple]] = field(default_factory=list)
    redis: list[list[tuple[str, ...]]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    site: str = ""
    move: str = ""
    address: str = ""
    owner: bool = False
    settings: dict[str, str | None] = field(default_factory=dict)
    closing: str = ""
    error: str = ""
    seconds: float = 0.0

    def actions(self) -> list[str]:
        """Return in words what has to be done; never a password."""
        words = [statement.split("%s", maxsplit=1)[0].split("`", maxsplit=1)[0].strip().lower() for statement, values in self.sql]
        # The same words for both instances are one action to a reader.
        words += dict.fromkeys(f"{command[1].lower()} {command[2]}" for commands in self.redis for command in commands)
        words += [f"folder {path}" for path in self.folders]
        words += [SITE_WORDS[self.site]] if self.site else []
        words += [f"move the database from {self.home} to {self.move}"] if self.move else []
        words += [f"replace the address {self.entry.wwwroot} by {self.address}"] if self.address else []
        words += ["give the files to the user that PHP runs as"] if self.owner else []
        words += [f"setting {name}" for name in sorted(self.settings)]
        words += [{"close": "maintenance on", "open": "maintenance off"}[self.closing]] if self.closing else []
        return words

    def result(self) -> dict:
        """Return the tenant's part of the module's result."""
        done = self.actions()
        return {
            "name": self.tenant.name, "changed": bool(done), "actions": done, "error": self.error,
            "seconds": round(self.seconds, 2),
        }


class Applier:
    """Observes, plans and acts for a list of tenants."""

    def __init__(self, servers: Mapping[str, DatabaseServer], redis: Sequence[Callable[[], resp.Connection]], sites: Sites,
                 secret: str, *, shared_user: bool = False, public_port: int = 443, templates: template.Templates | None = None,
                 may_remove: Callable[[Tenant], str] = lambda tenant: "", report: Callable[[str], None] = lambda text: None) -> None:
        self.servers = servers
        self.redis = redis
        self.sites = sites
        self.secret = secret
        self.shared_user = shared_user
        self.public_port = public_port
        self.templates = templates
        self.may_remove = may_remove
        self.report = report
        self.queries = 0

    def password(self, purpose: str, tenant: Tenant) -> str:
        """Return one of a tenant's passwords."""
        generation = 1 if purpose == "admin" else tenant.generation
        return _secrets.derive(self.secret, purpose, tenant.name, generation)

    def wwwroot(self, tenant: Tenant) -> str:
        """Return the site's address."""
        return render.wwwroot(tenant, self.public_port)

    # Observing and planning

    def plan(self, tenants: Iterable[Tenant], prune: bool) -> tuple[list[Work], bool]:
        """Return what each tenant needs, and whether the book has to be made."""
        works = [Work(tenant) for tenant in tenants]
        connections = {DEFAULT_SERVER: self.servers[DEFAULT_SERVER].connect()}
        try:
            observed = {DEFAULT_SERVER: connections[DEFAULT_SERVER].observe()}
            book = observed[DEFAULT_SERVER].book
            for work in works:
                work.entry = book.get(work.tenant.name, database.Entry())
                work.home = work.entry.server if work.entry.state else work.tenant.server
                for name in dict.fromkeys([work.home, work.tenant.server]):
                    if name not in self.servers:
                        work.error = f"database: {name!r} is not one of the servers ({', '.join(self.servers)})"
                    elif name not in connections:
                        connections[name] = self.servers[name].connect()
                        observed[name] = connections[name].observe()
            for work in works:
                if not work.error:
                    try:
                        self._plan(work, connections[work.home], observed[work.home], prune)
                    except database.DatabaseError as exc:
                        work.error = str(exc)
            for name, server in connections.items():
                self._plan_settings(server, [work for work in works if not work.error and work.home == name])
        finally:
            self._close(*connections.values())
        self.plan_redis(works, prune)
        return works, not observed[DEFAULT_SERVER].has_book

    def _plan(self, work: Work, server: database.Server, observed: database.Observed, prune: bool) -> None:
        tenant = work.tenant
        if tenant.state == "absent":
            self._plan_removal(work, observed)
            return
        host = self.servers[work.home].user_host
        work.sql = database.statements(observed, tenant, self.password("db", tenant), host, prune)
        work.folders = self.sites.wrong_folders(tenant.name)
        work.site = self._site(server, observed, work)
        if work.site in ("", "adopt"):
            if self.sites.other_owner(tenant.name):
                # With everything in them, while the site is closed.
                work.owner, work.folders = True, []
            if work.home != tenant.server:
                work.move = tenant.server
            if work.entry.wwwroot and work.entry.wwwroot != self.wwwroot(tenant):
                work.address = self.wwwroot(tenant)
        closed = self.sites.closed(tenant.name)
        if tenant.state == "maintenance" and not closed:
            work.closing = "close"
        elif tenant.state != "maintenance" and closed and work.entry.held == "list" and not (work.move or work.address or work.owner):
            work.closing = "open"

    def _plan_removal(self, work: Work, observed: database.Observed) -> None:
        tenant = work.tenant
        prefix = tenant.database_user().rsplit("_g", 1)[0]
        users = any(user.rsplit("_g", 1)[0] == prefix for user, _host in observed.users)
        there = work.entry.state or tenant.database in observed.databases or users
        if there or os.path.lexists(self.sites.places.folder(tenant.name)):
            work.error = "" if work.entry.state == "removing" else self.may_remove(tenant)
            work.site = "" if work.error else "remove"

    def _site(self, server: database.Server, observed: database.Observed, work: Work) -> str:
        """Return what the tenant's site needs. A database that holds a finished site is never touched."""
        tenant, state = work.tenant, work.entry.state
        exists = tenant.database in observed.databases
        if state == "installed" and exists:
            # A book of an earlier version does not know the address.
            return "" if work.entry.wwwroot else "adopt"
        if state == "installed":
            raise database.DatabaseError(
                f"the site was installed, but its database {tenant.database} is gone: restore it, or, to install an empty"
                f" site, run: DELETE FROM {database.BOOK}.tenants WHERE name = '{tenant.name}'"
            )
        if state == "upgrading":
            raise database.DatabaseError("a release is under way with this site: run release.yml until it has ended")
        if state in ("restoring", "removing", "importing"):
            raise database.DatabaseError(f"{state} this site was broken off: repeat that first")
        content = server.finished(tenant) if exists else "empty"
        if content == "empty":
            return "install"
        if state == "cloning":
            # Complete in itself, but still with what belongs to the template.
            return "again"
        if content == "finished":
            return "adopt"
        if state == "installing":
            return "again"
        raise database.DatabaseError(
            f"the database {tenant.database} holds tables but no finished site, and they are not from an installation"
            " by this module: restore the site, or drop the database"
        )

    def _plan_settings(self, server: database.Server, works: list[Work]) -> None:
        """Find the settings that differ; a site that isn't there yet gets all of them."""
        works = [work for work in works if work.tenant.state != "absent"]
        there = [work for work in works if work.site in ("", "adopt")]
        present = server.settings({work.tenant.database: work.tenant.settings for work in there})
        for work in works:
            now = present.get(work.tenant.database, {})
            work.settings = {
                name: value for name, value in work.tenant.settings.items() if now.get(name) != value
            }

    def plan_redis(self, works: list[Work], prune: bool) -> None:
        """Find what each tenant's Redis users need, on each Redis."""
        kept = [work for work in works if work.tenant.state != "absent"]
        passwords = {work.tenant.name: self.password("redis", work.tenant) for work in kept}
        for connect in self.redis:
            with connect() as connection:
                if self.shared_user:
                    # Nobody can make users there: it only has to answer.
                    connection.call("PING")
                    for work in works:
                        work.redis.append([])
                    continue
                observed = resp.observe(connection)
                commands = resp.differences(observed, [work.tenant for work in kept], passwords, prune)
            for work in works:
                mine = commands.get(work.tenant.name, [])
                if work.site == "remove":
                    prefix = f"t:{work.tenant.name}:g"
                    mine = [("ACL", "DELUSER", user) for user in sorted(observed) if user.startswith(prefix)]
                work.redis.append(mine)

    # Acting

    def act(self, works: list[Work], make_book: bool, parallel: int) -> None:
        """Do what is needed. What fails for one tenant is noted there and doesn't stop the others."""
        todo = [work for work in works if not work.error and work.actions()]
        if not todo and not make_book:
            return
        if make_book:
            server = self.servers[DEFAULT_SERVER].connect()
            try:
                server.make_book()
            finally:
                self._close(server)
        # What a site of the same name left there would be taken for its own.
        fresh = [work.tenant.name for work in todo if work.site in ("install", "again", "remove")]
        for index, connect in enumerate(self.redis):
            commands = [command for work in todo for command in work.redis[index]]
            if commands or fresh:
                with connect() as connection:
                    resp.forget(connection, fresh)
                    connection.pipeline(commands)
                    if commands:
                        resp.save(connection)
        for work in todo:
            if work.site in ("install", "again"):
                # Until its turn comes. What is wrong with the folder, its turn tells.
                with contextlib.suppress(OSError):
                    self.sites.lead_jobs(work.tenant.name, "")
        self._prepare_templates(todo)
        with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
            running = [pool.submit(self._act, work) for work in todo if not work.error]
            for number, future in enumerate(as_completed(running), start=1):
                work = future.result()
                said = work.error or f"done, {len(work.actions())} actions"
                self.report(f"{work.tenant.name}: {said} ({work.seconds:.1f} s, {number} of {len(running)})")

    def _prepare_templates(self, todo: list[Work]) -> None:
        """Make the templates first: so that tenants of one language don't wait for each other, and one failure is told once."""
        if self.templates is None:
            return
        for lang in dict.fromkeys(work.tenant.lang for work in todo if work.site in ("install", "again")):
            try:
                self.templates.copy(lang)
            except ERRORS as exc:
                for work in todo:
                    if work.site in ("install", "again") and work.tenant.lang == lang:
                        work.error = f"the template cannot be made: {exc}"

    def _act(self, work: Work) -> Work:
        began = time.monotonic()
        try:
            book, home = self.servers[DEFAULT_SERVER].connect(), self.servers[work.home].connect()
            try:
                self._claim(book, work)
                if work.site == "remove":
                    self._remove(book, home, work)
                else:
                    self._bring_into_being(book, home, work)
            finally:
                self._close(book, home)
        except ERRORS as exc:
            work.error = str(exc)
        work.seconds = time.monotonic() - began
        return work

    def _claim(self, book: database.Server, work: Work) -> None:
        """Make sure that nobody else works on this tenant, until the connection is closed."""
        claim(book, work.tenant.name)

    def _bring_into_being(self, book: database.Server, home: database.Server, work: Work) -> None:
        tenant, sites = work.tenant, self.sites
        for path in work.folders:
            sites.make_folder(tenant.name, path)
        for statement, values in work.sql:
            home.query(statement, values)
        settings = dict(work.settings)
        if work.site == "adopt":
            if work.entry.state == "installing":
                self._forget_halves(tenant)
                sites.lead_jobs(tenant.name, None)
            book.note(tenant.name, state="installed", release_name=sites.places.release, server=work.home, wwwroot=self.wwwroot(tenant))
        elif work.site:
            self._install(book, home, work)
            if self.templates is not None:
                settings = {}
        if work.move or work.address or work.owner:
            self._change_place(book, home, work)
        if settings:
            sites.change(tenant.name, settings=settings)
        if work.closing == "close":
            sites.close(tenant.name)
            book.note(tenant.name, held="list")
        elif work.closing == "open":
            sites.open(tenant.name)
            book.note(tenant.name, held="")

    def _install(self, book: database.Server, home: database.Server, work: Work) -> None:
        tenant, sites = work.tenant, self.sites
        found = home.finished(tenant)
        if found != "empty" and not (work.site == "again" and (found == "unfinished" or work.entry.state == "cloning")):
            raise SiteError("the site changed while it was looked at; run this again")
        cloning = self.templates is not None
        book.note(
            tenant.name, state="cloning" if cloning else "installing", release_name=sites.places.release, server=work.home,
            wwwroot=self.wwwroot(tenant),
        )
        if work.site == "again":
            home.end_connections(tenant.database_user())
            home.recreate(tenant.database)
        sites.lead_jobs(tenant.name, "")
        password = self.password("admin", tenant)
        if cloning:
            self._clone(work, password)
        else:
            sites.script(
                tenant.name, "admin/cli/install_database.php", "--agree-license", f"--lang={tenant.lang}",
                f"--adminuser={tenant.admin_user}", f"--adminpass={password}", f"--adminemail={tenant.admin_email}",
                f"--fullname={tenant.title}", f"--shortname={tenant.shortname}", hide=[password],
            )
            self._forget_halves(tenant)
        sites.lead_jobs(tenant.name, None)
        book.note(tenant.name, state="installed")

    def _forget_halves(self, tenant: Tenant) -> None:
        """Empty a new site's caches, which an installation passes by: cron rests meanwhile, but one that did not would have left the
        settings of half a site there, such as that there is no cron."""
        self.sites.script(tenant.name, "admin/cli/purge_caches.php")

    def _clone(self, work: Work, password: str) -> None:
        """Copy the template, and make the copy a site of its own."""
        tenant, sites = work.tenant, self.sites
        copy = self.templates.copy(tenant.lang)
        data = os.path.join(sites.places.folder(tenant.name), "data")
        template.unpack(copy.files, data, sites.places.account(tenant.name))
        if tenant.uid:
            sites.change_owner(tenant.name)
            sites.settle(tenant.name)
        dumps.load(self.servers[work.home].account, tenant.database, copy.dump)
        own = {
            "from": f"https://{template.HOST}", "to": self.wwwroot(tenant), "from_email": template.EMAIL,
            "paths": {f"/{template.NAME}/": f"/{tenant.name}/"},
            "admin_user": tenant.admin_user, "admin_password": password, "admin_email": tenant.admin_email,
            "fullname": tenant.title, "shortname": tenant.shortname,
        }
        sites.change(tenant.name, own=own, settings=tenant.settings, hide=[password])

    def _change_place(self, book: database.Server, home: database.Server, work: Work) -> None:
        """Give a site another database server, another address or another Unix user, with nobody in it.

        It stays in maintenance until :meth:`finish`, which is called when every node knows of the change.
        """
        tenant, sites = work.tenant, self.sites
        if not sites.closed(tenant.name):
            book.note(tenant.name, held="change")
            sites.close(tenant.name)
        if work.move:
            self._move(book, home, work)
        if work.address:
            sites.replace_address(tenant.name, work.entry.wwwroot, work.address)
            book.note(tenant.name, wwwroot=work.address)
        if work.owner:
            sites.change_owner(tenant.name)

    def _move(self, book: database.Server, home: database.Server, work: Work) -> None:
        """Copy the database to the other server, compare, and switch. The old one stays, locked, until it is pruned by hand."""
        tenant = work.tenant
        target = self.servers[work.move]
        user = tenant.database_user()
        scratch = os.path.join("/var/tmp", f"moodle-fleet-move-{tenant.name}-{os.getpid()}.sql")
        other = target.connect()
        try:
            if home.identity() == other.identity():
                raise SiteError(f"{work.home} and {work.move} are one server: nothing was moved")
            # Nodes that still know the old server must not write there any more.
            home.query("ALTER USER %s@%s ACCOUNT LOCK", (user, self.servers[work.home].user_host))
            home.end_connections(user)
            other.recreate(tenant.database)
            dumps.dump(self.servers[work.home].account, tenant.database, scratch)
            dumps.load(target.account, tenant.database, scratch)
            before, after = home.checksums(tenant.database), other.checksums(tenant.database)
            if before != after:
                differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
                raise SiteError(f"the copy on {work.move} differs in {', '.join(differing[:5])}; the site stays on {work.home}, locked")
            for statement, values in database.statements(
                other.observe(), tenant, self.password("db", tenant), target.user_host, False
            ):
                other.query(statement, values)
            # It may have lived there before.
            other.query("ALTER USER %s@%s ACCOUNT UNLOCK", (user, target.user_host))
            book.note(tenant.name, server=work.move)
        finally:
            if os.path.exists(scratch):
                os.unlink(scratch)
            self._close(other)

    def _remove(self, book: database.Server, home: database.Server, work: Work) -> None:
        tenant = work.tenant
        book.note(tenant.name, state="removing", server=work.home)
        observed = home.observe()
        prefix = tenant.database_user().rsplit("_g", 1)[0]
        for user, host in sorted(observed.users):
            if user.rsplit("_g", 1)[0] == prefix:
                home.query("DROP USER %s@%s", (user, host))
                home.end_connections(user)
        home.query(f"DROP DATABASE IF EXISTS `{tenant.database}`")
        self.sites.remove_folders(tenant.name)
        book.forget(tenant.name)

    def finish(self, tenants: Iterable[Tenant], check_mode: bool) -> list[Work]:
        """Let tenants serve again that were closed for a change, once every node knows of it."""
        book = self.servers[DEFAULT_SERVER].connect()
        works = []
        try:
            entries = book.observe().book
            for tenant in tenants:
                entry = entries.get(tenant.name, database.Entry())
                done = entry.server == tenant.server and entry.wwwroot == self.wwwroot(tenant)
                if entry.held != "change" or not done or tenant.state == "absent":
                    continue
                work = Work(tenant, entry, closing="open")
                works.append(work)
                if check_mode:
                    continue
                try:
                    self.sites.settle(tenant.name)
                    if tenant.state != "maintenance":
                        self.sites.open(tenant.name)
                    book.note(tenant.name, held="list" if tenant.state == "maintenance" else "")
                except ERRORS as exc:
                    work.error = str(exc)
        finally:
            self._close(book)
        return works

    def _close(self, *servers: database.Server) -> None:
        for server in servers:
            self.queries += server.queries
            server.close()


def claim(book: database.Server, tenant: str) -> None:
    """Take a tenant for oneself, until the connection to the book is closed."""
    if book.query("SELECT GET_LOCK(%s, 0)", (f"{database.BOOK}:{tenant}",)) != [(1,)]:
        raise SiteError("another run works on this tenant; wait until it has ended")
