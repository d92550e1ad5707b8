# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-alone Moodle, its dump and its data folder, becomes a tenant. Nothing is touched before all of it was examined."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, dumps, resp, restore, source
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.apply import Applier, DatabaseServer, claim
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.definition import DEFAULT_SERVER, Tenant
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.site import PASSING, SiteError

# No tenant can have this name, nor its account.
SCRATCH = "moodle-fleet-import"
PREFIX = "mdl_"
_COMPLETE = re.compile(rb"-- Dump completed")
_LISTED = 5


class ImportRefused(Exception):
    """The site cannot be imported; the text names everything that is wrong with it."""


@dataclass(frozen=True)
class Request:
    """What is to be imported: paths on this node, and what the files themselves don't say."""

    tenant: Tenant
    dump: str
    data: str
    wwwroot: str = ""
    old_data: str = ""
    prefix: str | None = None
    overwrite: bool = False
    missing_files: bool = False
    missing_plugins: bool = False


@dataclass(frozen=True)
class Findings:
    """What was found in the dump."""

    prefix: str
    tables: tuple[str, ...]
    others: tuple[str, ...]
    version: str
    release: str
    identifier: str
    wwwroot: str
    convert: tuple[str, ...]
    pending: bool

    def as_dict(self) -> dict[str, object]:
        """The part that a person wants to know."""
        return {
            "moodle": self.release, "version": self.version, "prefix": self.prefix, "wwwroot": self.wwwroot, "tables": len(self.tables),
            "left_out": list(self.others), "converted": list(self.convert), "upgraded": self.pending,
        }


def bring_in(applier: Applier, request: Request, plugins: Iterable[str], check_mode: bool) -> dict[str, object]:
    """Import a site, or only examine it; returns what was found. An import that was broken off is repeated as a whole."""
    tenant, sites = request.tenant, applier.sites
    home = applier.servers[tenant.server]
    _check_files(request)
    book, server = applier.servers[DEFAULT_SERVER].connect(), home.connect()
    name = f"{SCRATCH}-{tenant.name}"
    user = (f"moodle_{tenant.name}_import", home.user_host)
    try:
        claim(book, tenant.name)
        entry = book.observe().book.get(tenant.name, database.Entry())
        if entry.state not in ("", "installed", "importing"):
            raise SiteError(f"{tenant.name} is {entry.state}: end that first")
        if entry.state != "importing" and server.finished(tenant) != "empty" and not request.overwrite:
            raise SiteError(f"{tenant.name} has a site; give overwrite to replace it")
        _load(server, home, name, user, request.dump)
        found = _examine(server, name, request, set(plugins), sites.places.code)
        if check_mode:
            return found.as_dict()
        copied = copy_data(request.data, os.path.join(sites.places.shared_root, f".import-{tenant.name}"), sites.places.account(tenant.name))
        book.note(tenant.name, state="importing", server=tenant.server)
        if os.path.isdir(os.path.join(sites.places.folder(tenant.name), "data")):
            sites.close(tenant.name)
        restore.make_accounts(applier, server, home, tenant)
        server.end_connections(tenant.database_user())
        server.recreate(tenant.database)
        _take_over(server, name, tenant.database, found)
        _place_data(applier, tenant)
        for connect in applier.redis:
            with connect() as connection:
                resp.forget(connection, [tenant.name])
        _make_it_fit(applier, request, found)
        book.note(
            tenant.name, state="installed", release_name=sites.places.release, server=tenant.server, wwwroot=applier.wwwroot(tenant),
            held="list" if tenant.state == "maintenance" else "",
        )
        if tenant.state != "maintenance":
            sites.open(tenant.name)
        return {**found.as_dict(), **copied}
    finally:
        server.query(f"DROP DATABASE IF EXISTS `{name}`")
        server.query("DROP USER IF EXISTS %s@%s", user)
        server.close()
        book.close()


# Looking


def _check_files(request: Request) -> None:
    problems = []
    if not os.path.isfile(request.dump):
        problems.append(f"dump: {request.dump} is no file on this node")
    else:
        problems += dump_problems(request.dump)
    if not os.path.isdir(os.path.join(request.data, "filedir")):
        problems.append(f"data: {request.data} has no folder filedir, so it is no data folder of Moodle")
    if problems:
        raise ImportRefused("; ".join(problems))


def dump_problems(path: str) -> list[str]:
    """Return what speaks against a dump, from its first and last bytes."""
    try:
        with _open(path) as stream:
            head = stream.read(65536)
            tail = head
            while chunk := stream.read(1 << 20):
                tail = (tail + chunk)[-65536:]
    except (OSError, EOFError, gzip.BadGzipFile) as exc:
        return [f"dump: {path} cannot be read to its end: {exc}"]
    if b"PostgreSQL database dump" in head:
        return [f"dump: {path} is of PostgreSQL; the fleet has MariaDB: let Moodle's admin/tool/dbtransfer copy the site to MariaDB first"]
    if b"CREATE TABLE" not in head and b"CREATE TABLE" not in tail and b"dump" not in head[:200].lower():
        return [f"dump: {path} is no dump of mysqldump or mariadb-dump"]
    if not _COMPLETE.search(tail):
        return [f"dump: {path} does not end with '-- Dump completed': it was broken off, or made with --skip-comments; make it again without that"]
    return []


def _open(path: str) -> BinaryIO:
    with open(path, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else open(path, "rb")


def _load(server: database.Server, home: DatabaseServer, name: str, user: tuple[str, str], path: str) -> None:
    """Load the dump beside everything else, with an account that reaches nothing else: nobody knows what is in it."""
    password = secrets.token_hex(24)
    server.recreate(name)
    server.query("DROP USER IF EXISTS %s@%s", user)
    server.query("CREATE USER %s@%s IDENTIFIED BY %s", (*user, password))
    server.query(f"GRANT {database.RIGHTS} ON `{database.pattern_of(name)}`.* TO %s@%s", user)
    account = replace(home.account, user=user[0], password=password)
    try:
        with _plain(path) as plain:
            dumps.load(account, name, plain)
    except database.DatabaseError as exc:
        remedy = ""
        if "denied" in str(exc).lower():
            remedy = "; make the dump of this one database alone, without --databases, --routines and --triggers"
        raise ImportRefused(f"dump: {exc}{remedy}") from exc


@contextlib.contextmanager
def _plain(path: str) -> Iterator[str]:
    """The path of a dump that is not packed."""
    with open(path, "rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            yield path
            return
    handle, plain = tempfile.mkstemp(prefix="moodle-fleet-import-", dir="/var/tmp")
    try:
        with gzip.open(path, "rb") as packed, open(handle, "wb") as target:
            shutil.copyfileobj(packed, target, 1 << 20)
        yield plain
    finally:
        os.unlink(plain)


def find_prefix(tables: Iterable[str]) -> str | None:
    """Return the prefix of Moodle's tables; nothing when these are not Moodle's."""
    names = set(tables)
    found = [name[: -len("config_plugins")] for name in names if name.endswith("config_plugins")]
    good = [prefix for prefix in found if {f"{prefix}config", f"{prefix}course", f"{prefix}user"} <= names]
    return min(good, key=len) if good else None


def _examine(server: database.Server, name: str, request: Request, plugins: set[str], code: str) -> Findings:
    rows = server.query(
        "SELECT TABLE_NAME, IFNULL(TABLE_COLLATION, ''), IFNULL(ENGINE, '') FROM information_schema.TABLES"
        " WHERE TABLE_SCHEMA = %s AND TABLE_TYPE = 'BASE TABLE'", (name,)
    )
    prefix = find_prefix(row[0] for row in rows) if request.prefix is None else request.prefix
    if prefix is None or f"{prefix}config" not in {row[0] for row in rows}:
        raise ImportRefused(f"dump: there are no tables of Moodle in it{'' if prefix is None else f' with the prefix {prefix!r}'} ({len(rows)} tables)")
    mine = [row for row in rows if row[0].startswith(prefix)]
    quoted = f"`{name}`.`{prefix}"
    config = dict(server.query(
        f"SELECT name, value FROM {quoted}config` WHERE name IN ('version', 'release', 'siteidentifier', 'rolesactive', 'upgraderunning')"
    ))
    problems = []
    if config.get("rolesactive") != "1":
        problems.append("its installation was never finished")
    if float(config.get("upgraderunning") or 0) > 0:
        problems.append("an upgrade was under way when the dump was made: end that, then dump again")
    described = source.describe(os.path.realpath(code))
    version, own = float(config.get("version") or 0), float(described["version"])
    if version > own:
        problems.append(
            f"it is Moodle {config.get('release')}, newer than the fleet's {described['release']}: bring the fleet to that release first"
        )
    if not config.get("siteidentifier"):
        problems.append("it has no siteidentifier")
    there = {plugin for (plugin,) in server.query(f"SELECT plugin FROM {quoted}config_plugins` WHERE name = 'version'")}
    unknown = sorted(there - plugins) if plugins else []
    if unknown and not request.missing_plugins:
        problems.append(
            f"the fleet's release lacks {len(unknown)} of its plugins, {_list(unknown)}: add them to the release, or say that they may be missing"
        )
    wanted = {word for (word,) in server.query(
        f"SELECT DISTINCT contenthash FROM {quoted}files` WHERE filesize > 0{_external(server, name, prefix)}"
    )}
    missing = sorted(word for word in wanted if not os.path.isfile(os.path.join(request.data, "filedir", word[:2], word[2:4], word)))
    if missing and not request.missing_files:
        problems.append(
            f"{len(missing)} of {len(wanted)} files that the database speaks of are not in {request.data}/filedir, {_list(missing)}:"
            " copy the data folder after the dump was made, or say that they may be missing"
        )
    address = request.wwwroot or _address(server, quoted)
    if not re.fullmatch(r"https?://[^/\s]+(/[^\s]*[^/\s])?", address):
        problems.append(f"wwwroot: {address!r} is no address, give the one that the site's config.php has")
    if problems:
        raise ImportRefused("; ".join(problems))
    return Findings(
        prefix, tuple(row[0] for row in mine), tuple(row[0] for row in rows if row not in mine), config["version"],
        config.get("release", ""), config["siteidentifier"], address,
        tuple(row[0] for row in mine if not row[1].startswith("utf8mb4") or row[2] != "InnoDB"), version < own,
    )


def _external(server: database.Server, name: str, prefix: str) -> str:
    query = "SELECT 1 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND COLUMN_NAME = 'referencefileid'"
    return " AND referencefileid IS NULL" if server.query(query, (name, f"{prefix}files")) else ""


def _address(server: database.Server, quoted: str) -> str:
    """The site's own line among the hosts it knows, which Moodle keeps whether the network is used or not."""
    try:
        rows = server.query(
            f"SELECT h.wwwroot FROM {quoted}mnet_host` h JOIN {quoted}config` c ON c.name = 'mnet_localhost_id' AND h.id = c.value"
        )
    except database.DatabaseError:
        return ""
    return rows[0][0] if rows else ""


def _list(words: list[str]) -> str:
    return ", ".join(words[:_LISTED]) + (" and others" if len(words) > _LISTED else "")


# Acting


def copy_data(origin: str, target: str, owner: tuple[int, int]) -> dict[str, int]:
    """Copy a data folder, without what Moodle makes again; what an earlier attempt has copied is not copied again.

    Links are not followed and not copied: nobody knows where they lead.
    """
    files = bytes_ = 0
    for folder, names, contents in os.walk(origin):
        relative = os.path.relpath(folder, origin)
        if relative == ".":
            names[:] = [name for name in names if name not in PASSING]
            contents = [name for name in contents if name not in PASSING]
        names[:] = [name for name in names if not os.path.islink(os.path.join(folder, name))]
        there = os.path.normpath(os.path.join(target, relative))
        os.makedirs(there, mode=0o750, exist_ok=True)
        os.chown(there, *owner)
        for name in contents:
            path, copy = os.path.join(folder, name), os.path.join(there, name)
            seen = os.lstat(path)
            if not stat.S_ISREG(seen.st_mode):
                continue
            # Moodle's file store never changes a file; of others the time tells.
            if not (os.path.isfile(copy) and os.stat(copy).st_size == seen.st_size and os.stat(copy).st_mtime >= seen.st_mtime):
                shutil.copyfile(path, f"{copy}.new")
                os.chmod(f"{copy}.new", 0o640)
                os.chown(f"{copy}.new", *owner)
                os.replace(f"{copy}.new", copy)
            files, bytes_ = files + 1, bytes_ + seen.st_size
    return {"files": files, "bytes": bytes_}


def _take_over(server: database.Server, name: str, target: str, found: Findings) -> None:
    """Move the tables to where they belong, with the fleet's prefix."""
    for table in found.convert:
        server.query(
            f"ALTER TABLE `{name}`.`{table}` ENGINE=InnoDB, ROW_FORMAT=DYNAMIC, CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"
        )
    for table in found.tables:
        server.query(f"RENAME TABLE `{name}`.`{table}` TO `{target}`.`{PREFIX}{table[len(found.prefix):]}`")
    # Everybody logs in again: sessions are kept elsewhere here.
    if f"{found.prefix}sessions" in found.tables:
        server.query(f"DELETE FROM `{target}`.{PREFIX}sessions")
    # Tasks that ran when the dump was made don't run here: whoever waits for them would wait for ever.
    for table in ("task_scheduled", "task_adhoc"):
        if f"{found.prefix}{table}" in found.tables and server.query(
            "SELECT 1 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND COLUMN_NAME = 'timestarted'",
            (target, f"{PREFIX}{table}"),
        ):
            server.query(f"UPDATE `{target}`.{PREFIX}{table} SET timestarted = NULL, hostname = NULL, pid = NULL")


def _place_data(applier: Applier, tenant: Tenant) -> None:
    sites = applier.sites
    base, copied = sites.places.folder(tenant.name), os.path.join(sites.places.shared_root, f".import-{tenant.name}")
    replaced = os.path.join(sites.places.shared_root, f".replaced-{tenant.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    os.rename(os.path.join(base, "data"), replaced)
    os.rename(copied, os.path.join(base, "data"))
    shutil.rmtree(replaced, ignore_errors=True)
    sites.close(tenant.name)
    for name in ("cache", "temp"):
        shutil.rmtree(os.path.join(base, name), ignore_errors=True)
    if tenant.uid:
        sites.change_owner(tenant.name)
    sites.settle(tenant.name)


def _make_it_fit(applier: Applier, request: Request, found: Findings) -> None:
    tenant, sites = request.tenant, applier.sites
    # Also where only plugins are newer; says so and does nothing where there is nothing to do.
    sites.script(tenant.name, "admin/cli/upgrade.php", "--non-interactive")
    address = applier.wwwroot(tenant)
    if found.wwwroot != address:
        paths = {request.old_data: os.path.join(sites.places.folder(tenant.name), "data")} if request.old_data else {}
        sites.change(tenant.name, move={"from": found.wwwroot, "to": address, "paths": paths})
        sites.replace_address(tenant.name, found.wwwroot, address)
    sites.script(tenant.name, "admin/cli/purge_caches.php")
