# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tenant's folders and its Moodle, on a node that has the release: Moodle's own scripts are run as PHP's user."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

FOLDERS = ("data", "cache", "temp", "backup")
FOLDER_MODE = 0o750
# Where a tenant has a Unix user of its own, its outermost folder is the gate: that user and nginx, by nginx's group, may pass. What
# lies behind then needs no group, which Moodle would not keep, nor NFS, which knows 16 of a user.
WEB_GID = 1_899_999_999
GATE_MODE = 0o710
BEHIND_MODE = 0o755
# While a site changes its user, its old and its new one see that it is closed.
AJAR_MODE = 0o711
# Where Moodle says to every node that the command line closed the site.
CLOSED = "data/climaintenance.html"
# By the tenant's name: the release its jobs run with where that is not the fleet's, or nothing while there is no site yet.
LANES_FOLDER = ".fleet/lanes"
CLOSED_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Maintenance</title></head>
<body><h1>Maintenance</h1><p>This site is being worked on and will be back soon.</p></body></html>
"""
# What Moodle makes again by itself, in its data folder.
PASSING = ("cache", "climaintenance.html", "localcache", "lock", "muc", "sessions", "temp")

Run = Callable[..., tuple[int, str, str]]


class SiteError(Exception):
    """One of Moodle's scripts failed; the text says which and why, and holds no password."""


@dataclass
class Places:
    """Where things are on this node."""

    code: str
    shared_root: str
    owner: str
    cli: str
    php: list[str]
    # Number of the Unix user of those tenants that have one of their own.
    users: Mapping[str, int] = field(default_factory=dict)

    @property
    def release(self) -> str:
        """Name of the release."""
        return os.path.basename(os.path.realpath(self.code))

    def folder(self, tenant: str) -> str:
        """A tenant's folder on the shared file system."""
        return os.path.join(self.shared_root, tenant)

    def account(self, tenant: str = "") -> tuple[int, int]:
        """User and group number of a tenant's PHP; -1 where it does not exist yet."""
        if tenant in self.users:
            return self.users[tenant], self.users[tenant]
        try:
            owner = pwd.getpwnam(self.owner)
        except KeyError:
            return -1, -1
        return owner.pw_uid, owner.pw_gid

    def user(self, tenant: str) -> str:
        """Name of the Unix user that a tenant's PHP runs as."""
        if tenant not in self.users:
            return self.owner
        try:
            return pwd.getpwuid(self.users[tenant]).pw_name
        except KeyError as exc:
            raise SiteError(f"there is no user with the number {self.users[tenant]} on this node") from exc

    def folders(self, tenant: str) -> dict[str, tuple[int, int, int]]:
        """A tenant's folders, with the user, group and mode that each is to have."""
        uid, gid = self.account(tenant)
        base = self.folder(tenant)
        own = tenant in self.users
        return {base: (uid, WEB_GID if own else gid, GATE_MODE if own else FOLDER_MODE)} | {
            os.path.join(base, name): (uid, gid, BEHIND_MODE if own else FOLDER_MODE) for name in FOLDERS
        }


class Sites:
    """The tenants' folders and sites, as seen from this node."""

    def __init__(self, places: Places, run: Run, map_file: str = "") -> None:
        self.places = places
        self.run = run
        self.map_file = map_file

    def wrong_folders(self, tenant: str) -> list[str]:
        """Return the tenant's folders that are missing or not tight enough."""
        needed = []
        for path, wanted in self.places.folders(tenant).items():
            try:
                found = os.lstat(path)
                present = (found.st_uid, found.st_gid, found.st_mode & 0o7777)
            except FileNotFoundError:
                present = None
            if present != wanted:
                needed.append(path)
        return needed

    def make_folder(self, tenant: str, path: str) -> None:
        """Make one of a tenant's folders, or give it its user and mode again."""
        uid, gid, mode = self.places.folders(tenant)[path]
        if uid < 0:
            raise SiteError(f"there is no user {self.places.owner} on this node")
        os.makedirs(path, mode=FOLDER_MODE, exist_ok=True)
        # Moodle's user may write in here: never follow a link it has put in the place of a folder.
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(handle, uid, gid)
            os.fchmod(handle, mode)
        finally:
            os.close(handle)

    def settle(self, tenant: str) -> None:
        """Make what is missing of a tenant's folders, and give all of them their user and mode."""
        for path in self.wrong_folders(tenant):
            self.make_folder(tenant, path)

    def other_owner(self, tenant: str) -> bool:
        """Whether a tenant's files are there and belong to another user than its PHP runs as."""
        try:
            return os.lstat(self.places.folder(tenant)).st_uid != self.places.account(tenant)[0]
        except FileNotFoundError:
            return False

    def change_owner(self, tenant: str) -> None:
        """Give all of a closed site's files to the user that its PHP is to run as. :meth:`settle` shuts the gate behind it.

        Broken off and repeated it goes on: the outermost folder, by which the change is seen, is the last.
        """
        base = self.places.folder(tenant)
        # Without the rights of others, files that were behind a gate are as tight as they are to be without one.
        more, less = (0o005, 0) if tenant in self.places.users else (0, 0o007)
        for _path, folders, files, handle in os.fwalk(base, topdown=False):
            for name in (*files, *folders):
                # What a visitor's code put there while this looked may be anything: only what was opened is changed.
                try:
                    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
                except OSError:
                    # A link, or gone.
                    continue
                found = os.fstat(opened)
                # A file with two names may be somebody else's; Moodle makes none.
                if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
                    self._give(tenant, opened, (found.st_mode & 0o7777 | more & (found.st_mode >> 6)) & ~less)
                else:
                    os.close(opened)
        data = self._data(tenant)
        try:
            with contextlib.suppress(OSError):
                self._give(tenant, os.open(os.path.basename(CLOSED), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=data), 0o644)
        finally:
            self._give(tenant, data, AJAR_MODE)
        self._give(tenant, os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), AJAR_MODE)

    def _give(self, tenant: str, opened: int, mode: int) -> None:
        """Give something that is open to a tenant's user, and close it."""
        try:
            os.fchown(opened, *self.places.account(tenant))
            os.fchmod(opened, mode)
        finally:
            os.close(opened)

    def remove_folders(self, tenant: str) -> None:
        """Remove all of a tenant's files. Links are removed, not followed."""
        base = self.places.folder(tenant)
        if os.path.lexists(base):
            shutil.rmtree(base)

    def closed(self, tenant: str) -> bool:
        """Whether Moodle's own maintenance is on."""
        return os.path.lexists(os.path.join(self.places.folder(tenant), CLOSED))

    def script(self, tenant: str, script: str, *arguments: str, hide: Iterable[str] = ()) -> str:
        """Run one of Moodle's scripts and return what it printed; its arguments go through standard input."""
        return self._php(tenant, self.places.cli, {"script": script, "args": arguments}, script, hide)

    def close(self, tenant: str) -> None:
        """Switch Moodle's maintenance on: every node answers 503 from now on, and cron rests.

        By the file that Moodle's own script writes, which works with a database that cannot be reached as well.
        """
        uid, gid = self.places.account(tenant)
        folder = self._data(tenant)
        try:
            page = CLOSED_PAGE.encode()
            with contextlib.suppress(OSError):
                with open(os.open("climaintenance.template.html", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as own:
                    page = own.read(1 << 20)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(".climaintenance.new", dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(".climaintenance.new", flags, 0o640, dir_fd=folder), "wb") as stream:
                stream.write(page)
                os.fchown(stream.fileno(), uid, gid)
            os.rename(".climaintenance.new", "climaintenance.html", src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    def open(self, tenant: str) -> None:
        """Switch Moodle's maintenance off."""
        folder = self._data(tenant)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("climaintenance.html", dir_fd=folder)
        finally:
            os.close(folder)

    def lead_jobs(self, tenant: str, release: str | None) -> None:
        """Say which release the tenant's jobs run with: None is the fleet's, "" lets them rest (half an hour at most)."""
        folder = os.path.join(self.places.shared_root, LANES_FOLDER)
        path = os.path.join(folder, tenant)
        if release is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        os.makedirs(folder, mode=0o750, exist_ok=True)
        os.chown(folder, 0, self.places.account()[1])
        with open(f"{path}.new", "w", encoding="ascii") as stream:
            stream.write(release + "\n")
        os.chmod(f"{path}.new", 0o644)
        os.replace(f"{path}.new", path)

    def _data(self, tenant: str) -> int:
        """Open a tenant's data folder. PHP's user may write around there: links are not followed."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        base = os.open(self.places.folder(tenant), flags)
        try:
            return os.open("data", flags, dir_fd=base)
        finally:
            os.close(base)

    def replace_address(self, tenant: str, old: str, new: str) -> None:
        """Replace an address in all content of a site, by Moodle's own tool."""
        self.script(
            tenant, "admin/tool/replace/cli/replace.php", f"--search={_bare(old)}", f"--replace={_bare(new)}", "--shorten",
            "--non-interactive",
        )

    def change(self, tenant: str, *, own: Mapping[str, object] | None = None, move: Mapping[str, object] | None = None,
               settings: Mapping[str, str | None] | None = None, hide: Iterable[str] = ()) -> None:
        """Make a copied site its own, or give one its new address, and set settings: in one process, by Moodle's own functions."""
        call = {"own": own, "move": move, "settings": dict(settings or {})}
        self._php(tenant, self.own("site.php"), call, "site.php", hide)

    def own(self, file: str) -> str:
        """Path of one of the fleet's own scripts."""
        return os.path.join(os.path.dirname(self.places.cli), file)

    def ask(self, tenant: str, file: str, call: Mapping[str, object]) -> str:
        """Run one of the fleet's own scripts for a tenant and return what it printed."""
        return self._php(tenant, self.own(file), call, file, ())

    def _php(self, tenant: str, file: str, call: Mapping[str, object], what: str, hide: Iterable[str]) -> str:
        environment = {"MOODLE_TENANT": tenant}
        if self.map_file:
            environment["MOODLE_FLEET_TENANTS"] = self.map_file
        code, out, err = self.run(
            ["runuser", "-u", self.places.user(tenant), "--", *self._php_words(tenant), file],
            data=json.dumps({"root": os.path.realpath(self.places.code), **call}),
            environ_update=environment, cwd="/",
        )
        if code:
            text = " ".join((err.strip() or out.strip())[-600:].split())
            for word in hide:
                text = text.replace(word, "********")
            raise SiteError(f"{what} ended with {code}: {text}")
        return out

    def _php_words(self, tenant: str) -> list[str]:
        """PHP with its options. Compiled code that another user wrote must not be run: a user of its own gets a folder of its own."""
        if tenant not in self.places.users:
            return list(self.places.php)
        words = []
        for word in self.places.php:
            key, equals, value = word.partition("=")
            words.append(f"{key}={os.path.dirname(value)}/{tenant}/opcache-cli" if key == "opcache.file_cache" and equals else word)
        return words


def _bare(address: str) -> str:
    """https://a.example → //a.example, as it stands in links of either scheme."""
    return "//" + address.split("//", 1)[-1]
