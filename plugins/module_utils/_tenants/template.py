# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One site installed for each release, of which new sites are copies.

A template is a folder that root alone can read: a dump, an archive of the data folder, and a file with both checksums that
is written last. A template that is not complete, or not of this release, language and format, is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import dumps, render, resp
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import RIGHTS, Server
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.site import PASSING, SiteError, Sites

FORMAT = 1
# No tenant can have this name, nor this host or database.
NAME = "-template"
HOST = "template.moodle-fleet.invalid"
EMAIL = f"admin@{HOST}"
DATABASE = "moodle-fleet-template"
USER = "moodle-fleet-template"
# What is in there tells of the installation, partly with the values that a copy must not have.
WITHOUT_ROWS = tuple(f"mdl_{table}" for table in ("config_log", "logstore_standard_log", "sessions", "task_log", "upgrade_log"))
KEPT = 4


@dataclass(frozen=True)
class Copy:
    """What a copy is made of."""

    dump: str
    files: str


class Templates:
    """The templates on this node."""

    def __init__(self, folder: str, sites: Sites, account: dumps.Account, server: Callable[[], Server], user_host: str,
                 redis: Sequence[Callable[[], resp.Connection]], report: Callable[[str], None], *, shared_user: bool = False) -> None:
        self.folder = folder
        self.sites = sites
        self.account = account
        self.server = server
        self.user_host = user_host
        self.redis = redis
        self.report = report
        self.shared_user = shared_user

    def path(self, lang: str) -> str:
        """Folder of the template for this release and language."""
        code = os.path.realpath(self.sites.places.code)
        marker = os.path.join(os.path.dirname(code), f".{os.path.basename(code)}.complete")
        words = [str(FORMAT), os.path.basename(code), lang]
        if os.path.exists(marker):
            with open(marker, encoding="ascii") as stream:
                words.append(stream.read().strip())
        return os.path.join(self.folder, hashlib.sha256("\0".join(words).encode()).hexdigest()[:16])

    def copy(self, lang: str) -> Copy:
        """Return the template, which is made if need be."""
        target = self.path(lang)
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.chmod(self.folder, 0o700)
        with open(os.path.join(self.folder, ".lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._complete(target):
                self._make(target, lang)
                self._forget_old()
            os.utime(target)
        return Copy(os.path.join(target, "dump.sql"), os.path.join(target, "files.tar"))

    @staticmethod
    def _complete(target: str) -> bool:
        try:
            with open(os.path.join(target, "template.json"), encoding="utf-8") as stream:
                known = json.load(stream)
            return all(dumps.digest(os.path.join(target, name)) == known[name] for name in ("dump.sql", "files.tar"))
        except (OSError, ValueError, KeyError):
            return False

    def _make(self, target: str, lang: str) -> None:
        self.report(f"installing the template of {self.sites.places.release}, language {lang}")
        scratch = tempfile.mkdtemp(prefix=".new-", dir=self.folder)
        try:
            with self._site() as sites:
                password = secrets.token_urlsafe(24) + "aA1-"
                sites.script(
                    NAME, "admin/cli/install_database.php", "--agree-license", f"--lang={lang}", "--adminuser=admin",
                    f"--adminpass={password}", f"--adminemail={EMAIL}", "--fullname=Template", "--shortname=template",
                    hide=[password],
                )
                dumps.dump(self.account, DATABASE, os.path.join(scratch, "dump.sql"), WITHOUT_ROWS)
                pack(os.path.join(sites.places.folder(NAME), "data"), os.path.join(scratch, "files.tar"))
            known = {name: dumps.digest(os.path.join(scratch, name)) for name in ("dump.sql", "files.tar")}
            known |= {"release": sites.places.release, "lang": lang}
            with open(os.path.join(scratch, "template.json"), "w", encoding="utf-8") as stream:
                json.dump(known, stream)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextlib.contextmanager
    def _site(self) -> Iterator[Sites]:
        """A database, users and folders for the installation, which are gone afterwards, as is what an earlier one left."""
        server = self.server()
        try:
            if server.query("SELECT GET_LOCK(%s, 600)", (DATABASE,)) != [(1,)]:
                raise SiteError("another node has been installing a template for ten minutes; wait until it has ended")
            self._clean(server)
            password = secrets.token_urlsafe(24)
            server.recreate(DATABASE)
            server.query("CREATE USER %s@%s IDENTIFIED BY %s", (USER, self.user_host, password))
            server.query(f"GRANT {RIGHTS} ON `{DATABASE}`.* TO %s@%s", (USER, self.user_host))
            for connect in () if self.shared_user else self.redis:
                with connect() as connection:
                    connection.call("ACL", "SETUSER", USER, "reset", "on", f">{password}", f"~t:{NAME}:*", *resp.COMMANDS)
            self.sites.settle(NAME)
            with tempfile.TemporaryDirectory(prefix="moodle-fleet-", dir="/run") as folder:
                uid, gid = self.sites.places.account()
                os.chown(folder, 0, gid)
                os.chmod(folder, 0o750)
                tenant = {
                    "wwwroot": f"https://{HOST}", "state": "active", "database": DATABASE, "database_user": USER,
                    "database_password": password, "redis_user": USER, "redis_password": password,
                    "dbhost": self.account.host, "dbport": self.account.port,
                    "database_tls": self.account.tls,
                }
                path = os.path.join(folder, "tenants.php")
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w", encoding="utf-8") as stream:
                    stream.write(
                        "<?php\n$map = require '/etc/moodle-fleet/tenants.php';\n$map['hosts'] = [];\n"
                        f"$map['tenants'] = [{render.php(NAME)} => {render.php(tenant)}];\nreturn $map;\n"
                    )
                os.chown(path, 0, gid)
                yield Sites(self.sites.places, self.sites.run, path)
        finally:
            try:
                self._clean(server)
            finally:
                server.close()

    def _clean(self, server: Server) -> None:
        server.query("DROP USER IF EXISTS %s@%s", (USER, self.user_host))
        server.end_connections(USER)
        server.query(f"DROP DATABASE IF EXISTS `{DATABASE}`")
        for connect in self.redis:
            with connect() as connection:
                if not self.shared_user:
                    connection.call("ACL", "DELUSER", USER)
                resp.forget(connection, [NAME])
        self.sites.remove_folders(NAME)

    def _forget_old(self) -> None:
        """Remove what interrupted runs left, and templates of releases that are long gone."""
        found = [entry for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)]
        templates = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.stat().st_mtime)
        old = [entry for entry in found if entry.name.startswith(".new-")] + templates[:-KEPT]
        for entry in old:
            shutil.rmtree(entry.path, ignore_errors=True)


def pack(folder: str, target: str) -> None:
    """Archive a data folder, without what Moodle makes again by itself."""
    left_out = [f"--exclude=./{name}" for name in PASSING]
    words = ["tar", "--create", "--file", target, "--directory", folder, "--numeric-owner", "--sort=name", *left_out, "."]
    _tar(words, umask=0o077)


def unpack(archive: str, folder: str, owner: tuple[int, int]) -> None:
    """Unpack such an archive into a folder that is there, as PHP's user, who cannot read the archive itself."""
    who = {"user": owner[0], "group": owner[1], "extra_groups": [], "umask": 0o027} if os.geteuid() == 0 else {}
    with open(archive, "rb") as stream:
        _tar(["tar", "--extract", "--file", "-", "--directory", folder, "--no-overwrite-dir"], stdin=stream, **who)


def _tar(words: list[str], **options: object) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise SiteError(f"tar ended with {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
