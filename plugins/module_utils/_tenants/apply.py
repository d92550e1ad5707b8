# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring all tenants into being: observe everything once, then act only where something differs."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _secrets
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, resp
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.definition import Tenant

FOLDERS = ("data", "cache", "temp", "backup")
FOLDER_MODE = 0o750

Run = Callable[..., tuple[int, str, str]]


@dataclass
class Work:
    """What one tenant needs, and what became of it."""

    tenant: Tenant
    sql: list[tuple[str, tuple]] = field(default_factory=list)
    redis: list[list[tuple[str, ...]]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    site: str = ""
    settings: dict[str, str | None] = field(default_factory=dict)
    error: str = ""

    def actions(self) -> list[str]:
        """Return in words what has to be done; never a password."""
        words = [statement.split("%s", maxsplit=1)[0].split("`", maxsplit=1)[0].strip().lower() for statement, values in self.sql]
        # The same words for both instances are one action to a reader.
        words += dict.fromkeys(f"{command[1].lower()} {command[2]}" for commands in self.redis for command in commands)
        words += [f"folder {path}" for path in self.folders]
        words += [{"install": "install the site", "again": "remove an unfinished installation and install the site",
                   "adopt": "note that the site is installed"}[self.site]] if self.site else []
        words += [f"setting {name}" for name in sorted(self.settings)]
        return words

    def result(self) -> dict:
        """Return the tenant's part of the module's result."""
        done = self.actions()
        return {"name": self.tenant.name, "changed": bool(done), "actions": done, "error": self.error}


@dataclass
class Places:
    """Where things are on this node."""

    code: str
    shared_root: str
    owner: str
    cli: str
    php: list[str]


class Applier:
    """Observes, plans and acts for a list of tenants."""

    def __init__(self, server: Callable[[], database.Server], redis: Sequence[Callable[[], resp.Connection]], places: Places,
                 secret: str, user_host: str, run: Run, shared_user: bool = False) -> None:
        self.connect = server
        self.redis = redis
        self.places = places
        self.secret = secret
        self.user_host = user_host
        self.run = run
        self.shared_user = shared_user

    def password(self, purpose: str, tenant: Tenant) -> str:
        """Return one of a tenant's passwords."""
        generation = 1 if purpose == "admin" else tenant.generation
        return _secrets.derive(self.secret, purpose, tenant.name, generation)

    def plan(self, tenants: Iterable[Tenant], prune: bool) -> tuple[list[Work], bool]:
        """Return what each tenant needs, and whether the book has to be made."""
        works = [Work(tenant) for tenant in tenants]
        server = self.connect()
        try:
            observed = server.observe()
            for work in works:
                work.sql = database.statements(
                    observed, work.tenant, self.password("db", work.tenant), self.user_host, prune
                )
                work.folders = self._folders(work.tenant)
                try:
                    work.site = self._site(server, observed, work.tenant)
                except database.DatabaseError as exc:
                    work.error = str(exc)
            self._plan_settings(server, [work for work in works if not work.error])
        finally:
            server.close()
        passwords = {work.tenant.name: self.password("redis", work.tenant) for work in works}
        for connect in self.redis:
            with connect() as connection:
                if self.shared_user:
                    connection.call("PING")
                    continue
                commands = resp.differences(resp.observe(connection), [work.tenant for work in works], passwords, prune)
            for work in works:
                work.redis.append(commands.get(work.tenant.name, []))
        return works, not observed.has_book

    def _site(self, server: database.Server, observed: database.Observed, tenant: Tenant) -> str:
        """Return what the tenant's site needs. A database that holds a finished site is never touched."""
        state = observed.book.get(tenant.name, ("", ""))[0]
        exists = tenant.database in observed.databases
        if state == "installed" and exists:
            return ""
        if state == "installed":
            raise database.DatabaseError(
                f"the site was installed, but its database {tenant.database} is gone: restore it, or, to install an empty"
                f" site, run: DELETE FROM {database.BOOK}.tenants WHERE name = '{tenant.name}'"
            )
        content = server.finished(tenant) if exists else "empty"
        if content == "empty":
            return "install"
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
        there = [work for work in works if work.site in ("", "adopt")]
        present = server.settings({work.tenant.database: work.tenant.settings for work in there})
        for work in works:
            now = present.get(work.tenant.database, {})
            work.settings = {
                name: value for name, value in work.tenant.settings.items() if now.get(name) != value
            }

    def _folders(self, tenant: Tenant) -> list[str]:
        """Return the tenant's folders that are missing or not tight enough."""
        base = os.path.join(self.places.shared_root, tenant.name)
        try:
            owner = pwd.getpwnam(self.places.owner)
            wanted = (owner.pw_uid, owner.pw_gid, FOLDER_MODE)
        except KeyError:
            wanted = (-1, -1, FOLDER_MODE)
        needed = []
        for path in [base, *(os.path.join(base, name) for name in FOLDERS)]:
            try:
                stat = os.lstat(path)
                present = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777)
            except FileNotFoundError:
                present = None
            if present != wanted:
                needed.append(path)
        return needed

    def act(self, works: list[Work], make_book: bool, parallel: int) -> None:
        """Do what is needed. What fails for one tenant is noted there and doesn't stop the others."""
        todo = [work for work in works if not work.error and work.actions()]
        if not todo and not make_book:
            return
        server = self.connect()
        try:
            if make_book:
                server.make_book()
        finally:
            server.close()
        for index, connect in enumerate([] if self.shared_user else self.redis):
            commands = [command for work in todo for command in work.redis[index]]
            if commands:
                with connect() as connection:
                    connection.pipeline(commands)
                    resp.save(connection)
        with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
            list(pool.map(self._act, todo))

    def _act(self, work: Work) -> None:
        try:
            for path in work.folders:
                self._folder(path)
            server = self.connect()
            try:
                for statement, values in work.sql:
                    server.query(statement, values)
                self._install(server, work)
            finally:
                server.close()
            for name, value in sorted(work.settings.items()):
                self._set(work.tenant, name, value)
        except (database.DatabaseError, OSError, RuntimeError) as exc:
            work.error = str(exc)

    def _folder(self, path: str) -> None:
        owner = pwd.getpwnam(self.places.owner)
        os.makedirs(path, mode=FOLDER_MODE, exist_ok=True)
        # Moodle's user may write in here: never follow a link it has put in the place of a folder.
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(handle, owner.pw_uid, owner.pw_gid)
            os.fchmod(handle, FOLDER_MODE)
        finally:
            os.close(handle)

    def _install(self, server: database.Server, work: Work) -> None:
        tenant = work.tenant
        release = os.path.basename(os.path.realpath(self.places.code))
        if work.site == "adopt":
            server.note(tenant.name, "installed", release)
        if work.site not in ("install", "again"):
            return
        self._claim(server, work)
        server.note(tenant.name, "installing", release)
        if work.site == "again":
            # A script that outlived the run that started it would write into the new database.
            for (process,) in server.query(
                "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s", (tenant.database_user(),)
            ):
                server.query("KILL %s", (process,))
            server.query(f"DROP DATABASE `{tenant.database}`")
            server.query(f"CREATE DATABASE `{tenant.database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
        self._cli(
            tenant,
            "admin/cli/install_database.php",
            "--agree-license",
            f"--lang={tenant.lang}",
            f"--adminuser={tenant.admin_user}",
            f"--adminpass={self.password('admin', tenant)}",
            f"--adminemail={tenant.admin_email}",
            f"--fullname={tenant.title}",
            f"--shortname={tenant.shortname}",
        )
        server.note(tenant.name, "installed", release)

    def _claim(self, server: database.Server, work: Work) -> None:
        """Make sure that nobody else installs this site, and that it is still as it was when we looked."""
        tenant = work.tenant
        if server.query("SELECT GET_LOCK(%s, 0)", (f"{database.BOOK}:{tenant.name}",)) != [(1,)]:
            raise RuntimeError("another run is installing this site; wait until it has ended")
        wanted = {"install": "empty", "again": "unfinished"}[work.site]
        if server.finished(tenant) != wanted:
            raise RuntimeError("the site changed while it was looked at; run this again")

    def _set(self, tenant: Tenant, name: str, value: str | None) -> None:
        component, slash, short = name.rpartition("/")
        arguments = [f"--name={short}", "--unset" if value is None else f"--set={value}"]
        if slash:
            arguments.insert(0, f"--component={component}")
        self._cli(tenant, "admin/cli/cfg.php", *arguments)

    def _cli(self, tenant: Tenant, script: str, *arguments: str) -> None:
        """Run one of Moodle's scripts as PHP's user; its arguments go through standard input."""
        call = {"root": os.path.realpath(self.places.code), "script": script, "args": arguments}
        code, out, err = self.run(
            ["runuser", "-u", self.places.owner, "--", *self.places.php, self.places.cli],
            data=json.dumps(call),
            environ_update={"MOODLE_TENANT": tenant.name},
        )
        if code:
            text = " ".join((err.strip() or out.strip())[-600:].split())
            text = text.replace(self.password("admin", tenant), "********")
            raise RuntimeError(f"{script} ended with {code}: {text}")
