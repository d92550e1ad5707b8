# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Restores a tenant from a backup, into itself or another tenant, and proves that a backup could be restored."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import backup, database, dumps, resp, source
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.apply import Applier, DatabaseServer, Work, claim
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.definition import DEFAULT_SERVER, Tenant
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.site import SiteError

# No tenant can have this name.
DRILL = "moodle-fleet-drill"


@dataclass(frozen=True)
class Request:
    """What is to be restored."""

    tenant: Tenant
    origin: str
    snapshot: str
    overwrite: bool


def restore(applier: Applier, store: backup.Store, request: Request) -> dict:
    """Replace a tenant's site by what a snapshot holds; returns the manifest.

    The site is closed meanwhile. Everything is fetched and verified before anything is touched, and a restore that was broken
    off is repeated as a whole.
    """
    tenant, sites = request.tenant, applier.sites
    home = applier.servers[tenant.server]
    scratch = os.path.join(sites.places.shared_root, f".restore-{tenant.name}")
    book, server = applier.servers[DEFAULT_SERVER].connect(), home.connect()
    try:
        claim(book, tenant.name)
        entry = book.observe().book.get(tenant.name, database.Entry())
        if entry.state == "upgrading":
            raise SiteError(f"a release is under way with {tenant.name}: run release.yml until it has ended")
        there = entry.state not in ("restoring", "removing", "importing") and server.finished(tenant) != "empty"
        if there and not request.overwrite:
            raise SiteError(f"{tenant.name} has a site; give overwrite to replace it by the backup of {request.origin}")
        manifest = backup.fetch(store, request.origin, request.snapshot, scratch)
        pending = _compare_versions(manifest, sites.places.code)
        book.note(tenant.name, state="restoring", server=tenant.server)
        if os.path.isdir(os.path.join(sites.places.folder(tenant.name), "data")):
            sites.close(tenant.name)
        make_accounts(applier, server, home, tenant)
        server.end_connections(tenant.database_user())
        server.recreate(tenant.database)
        dumps.load(home.account, tenant.database, manifest["dump"])
        swap_data(applier, tenant, manifest, scratch)
        for connect in applier.redis:
            with connect() as connection:
                resp.forget(connection, [tenant.name])
        _make_it_fit(applier, request, manifest, pending)
        book.note(
            tenant.name, state="installed", release_name=sites.places.release, server=tenant.server, wwwroot=applier.wwwroot(tenant),
            held="list" if tenant.state == "maintenance" else "",
        )
        if tenant.state != "maintenance":
            sites.open(tenant.name)
        return manifest
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        server.close()
        book.close()


def _compare_versions(manifest: dict, code: str) -> bool:
    """Return whether the backup is of an older version, which then has to be upgraded; refuse a newer one."""
    mine = source.describe(os.path.realpath(code))["version"]
    if float(manifest["version"] or 0) > float(mine):
        raise SiteError(f"the backup is of Moodle {manifest['moodle']}, which is newer than this release; install that one first")
    return float(manifest["version"] or 0) < float(mine)


def make_accounts(applier: Applier, server: database.Server, home: DatabaseServer, tenant: Tenant) -> None:
    """Make the tenant's users and folders, which may be gone."""
    for statement, values in database.statements(
        server.observe(), tenant, applier.password("db", tenant), home.user_host, False
    ):
        server.query(statement, values)
    work = Work(tenant)
    applier.plan_redis([work], False)
    for commands, connect in zip(work.redis, applier.redis):
        if commands:
            with connect() as connection:
                connection.pipeline(commands)
                resp.save(connection)
    applier.sites.settle(tenant.name)


def swap_data(applier: Applier, tenant: Tenant, manifest: dict, scratch: str) -> None:
    sites = applier.sites
    base = sites.places.folder(tenant.name)
    os.rename(os.path.join(base, "data"), os.path.join(scratch, "replaced"))
    os.rename(manifest["data"], os.path.join(base, "data"))
    sites.close(tenant.name)
    for name in ("cache", "temp"):
        shutil.rmtree(os.path.join(base, name), ignore_errors=True)
    if manifest["owner"] != list(sites.places.account(tenant.name)):
        sites.change_owner(tenant.name)
    sites.settle(tenant.name)


def _make_it_fit(applier: Applier, request: Request, manifest: dict, pending: bool) -> None:
    tenant, sites = request.tenant, applier.sites
    address = applier.wwwroot(tenant)
    if pending:
        sites.script(tenant.name, "admin/cli/upgrade.php", "--non-interactive")
    if request.origin != tenant.name:
        # Both sites may live from now on.
        sites.change(tenant.name, own={
            "from": manifest["wwwroot"], "to": address,
            "paths": {f"/{request.origin}/data/": f"/{tenant.name}/data/"},
        })
    if manifest["wwwroot"] != address:
        sites.replace_address(tenant.name, manifest["wwwroot"], address)
    sites.script(tenant.name, "admin/cli/purge_caches.php")


def drill(applier: Applier, store: backup.Store, tenant: Tenant, snapshot: str, folder: str) -> dict:
    """Restore a snapshot beside everything else, check it, and take it away again.

    The restored database must give the very dump it was made from, each file of Moodle's store must have the content its name
    says, and each file the database speaks of must be there.
    """
    home = applier.servers[tenant.server]
    name = f"{DRILL}-{tenant.name}"
    scratch = os.path.join(folder, f"drill-{tenant.name}")
    server = home.connect()
    try:
        manifest = backup.fetch(store, tenant.name, snapshot, scratch)
        server.recreate(name)
        dumps.load(home.account, name, manifest["dump"])
        again = os.path.join(scratch, "again.sql")
        dumps.dump(home.account, name, again)
        if dumps.digest(again) != manifest["dump_sha256"]:
            raise SiteError(f"the database restored from snapshot {snapshot} does not have the content that was backed up")
        present = _check_store(os.path.join(manifest["data"], "filedir"))
        wanted = {word for (word,) in server.query(
            f"SELECT DISTINCT contenthash FROM `{name}`.mdl_files WHERE filesize > 0{_own_files(server, name)}"
        )}
        bin_ = _names(os.path.join(manifest["data"], "trashdir"))
        missing = wanted - present - bin_
        if missing:
            raise SiteError(f"{len(missing)} files that the database speaks of are not in snapshot {snapshot}, such as {min(missing)}")
        tables = len(server.query("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s", (name,)))
        return {"tables": tables, "files": len(present), "dump_bytes": manifest["dump_bytes"], "made": manifest["made"]}
    finally:
        server.query(f"DROP DATABASE IF EXISTS `{name}`")
        server.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _own_files(server: database.Server, name: str) -> str:
    """Leave out files that are kept elsewhere, where the site can have some."""
    query = "SELECT 1 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = 'mdl_files' AND COLUMN_NAME = 'referencefileid'"
    return " AND referencefileid IS NULL" if server.query(query, (name,)) else ""


def _names(folder: str) -> set[str]:
    return {name for dummy, dummy2, files in os.walk(folder) for name in files if len(name) == 40}


def _check_store(folder: str) -> set[str]:
    """Return the names in Moodle's file store; each must be the SHA-1 of its content."""
    names = set()
    for where, dummy, files in os.walk(folder):
        for name in files:
            if len(name) != 40:
                continue
            with open(os.path.join(where, name), "rb") as stream:
                if hashlib.file_digest(stream, "sha1").hexdigest() != name:
                    raise SiteError(f"the file {name} has another content than its name says")
            names.add(name)
    return names
