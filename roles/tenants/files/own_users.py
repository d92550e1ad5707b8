# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gives tenants that ask for it a Unix user of their own on this node. Reads tenants.own, and makes of it

- the users, each with a group of its own, and the one of nginx, whose group may pass their gates (systemd-sysusers),
- for each a map with its own passwords, which its user alone can read,
- for each a folder on the node's own disk,
- tenants.users, from tenant to number: nginx sends their requests, and PHP-FPM makes pools, by it.

Users of tenants that are gone stay: a number comes from a name and is never given to another. Repeated, it changes nothing.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path

CONFIG = Path("/etc/moodle-fleet")
SYSUSERS = Path("/etc/sysusers.d/moodle-fleet.conf")
# As in plugins/module_utils/_tenants/site.py.
WEB_USER, WEB_ID = "moodle-web", 1_899_999_999


def write(path: Path, text: str, mode: int, gid: int = 0) -> bool:
    """Write a file of root's, unless it is there as it should be."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        found = path.stat()
        if (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, gid, mode):
            return False
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        os.fchown(stream.fileno(), 0, gid)
        os.fchmod(stream.fileno(), mode)
    fresh.replace(path)
    return True


def make_users(tenants: dict[str, dict]) -> None:
    """The users and groups, and the one of nginx."""
    # By the other group it reads the files of those that share a user.
    lines = [f'u {WEB_USER} {WEB_ID} "nginx" /nonexistent /usr/sbin/nologin', f"m {WEB_USER} www-data"]
    lines += [f'u {one["unix_user"]} {one["uid"]} "Moodle tenant {name}" /nonexistent /usr/sbin/nologin' for name, one in tenants.items()]
    SYSUSERS.parent.mkdir(exist_ok=True)
    write(SYSUSERS, "\n".join([*lines, ""]), 0o644)
    subprocess.run(["systemd-sysusers", str(SYSUSERS)], check=True)
    for name, one in tenants.items():
        found = pwd.getpwnam(one["unix_user"])
        if (found.pw_uid, found.pw_gid) != (one["uid"], one["uid"]):
            raise SystemExit(f"tenant {name}: the user {one['unix_user']} has the number {found.pw_uid} on this node, not {one['uid']}:"
                             " remove that user, or set the tenant's uid")


def php_map(fleet: dict, hosts: dict[str, str], name: str, one: dict) -> str:
    """A tenant's own tenants.php."""
    data = json.dumps({"fleet": fleet, "hosts": {host: name for host, owner in hosts.items() if owner == name}, "tenants": {name: one}})
    quoted = data.replace("\\", "\\\\").replace("'", "\\'")
    return f"<?php\n// Written by Ansible; changes made here are lost.\nreturn json_decode('{quoted}', true);\n"


def make_maps(data: dict) -> None:
    """For each tenant its own map; those of tenants that have no user any more go."""
    folder = CONFIG / "tenants"
    folder.mkdir(mode=0o711, exist_ok=True)
    folder.chmod(0o711)
    for name, one in data["tenants"].items():
        write(folder / f"{name}.php", php_map(data["fleet"], data["hosts"], name, one), 0o640, one["uid"])
    for path in folder.glob("*.php"):
        if path.stem not in data["tenants"]:
            path.unlink()


def make_local(path: Path, uid: int, gid: int, mode: int) -> None:
    """A folder that only holds what can be made again: one of another user's goes."""
    if path.is_symlink() or (path.exists() and path.stat().st_uid != uid):
        remove_local(path)
    path.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(handle, uid, gid)
        os.fchmod(handle, mode)
    finally:
        os.close(handle)


def remove_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    """Bring this node into the state that tenants.own asks for."""
    with open(CONFIG / "tenants.own", encoding="utf-8") as stream:
        data = json.load(stream)
    tenants: dict[str, dict] = data["tenants"]
    local = Path(data["fleet"]["local_root"])
    make_users(tenants)
    make_maps(data)
    listing = CONFIG / "tenants.users"
    before = listing.read_text(encoding="utf-8") if listing.exists() else ""
    for line in before.splitlines():
        name = line.split()[0]
        if name not in tenants:
            remove_local(local / name)
    for name, one in tenants.items():
        make_local(local / name, one["uid"], WEB_ID, 0o710)
        make_local(local / name / "opcache-cli", one["uid"], one["uid"], 0o700)
    # Last: from now on its requests go to its pool.
    if write(listing, "".join(f"{name} {one['uid']};\n" for name, one in tenants.items()), 0o644):
        print("changed")


if __name__ == "__main__":
    main()
