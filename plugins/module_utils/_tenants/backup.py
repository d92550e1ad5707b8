# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Backups of tenants, kept by restic: a repository for each tenant, encrypted with a password of its own.

A snapshot holds a dump of the database, the data folder, and a manifest of both. The dump is taken first: files that the
dump speaks of are there when they are read later, for Moodle only ever adds to its file store, and keeps what it removes
in a bin for days.
"""

from __future__ import annotations

import calendar
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _secrets
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, dumps
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.site import PASSING, Run, Sites

CACHE = "/var/cache/moodle-fleet-backup"
FORMAT = 1
# restic's answer when some files could not be read.
INCOMPLETE = 3


class BackupError(Exception):
    """A backup cannot be made, read or found."""


class Store:
    """Where backups are: a folder, or a place that restic knows, such as ``s3:https://s3.example.org/bucket/folder``."""

    def __init__(self, where: str, secret: str, run: Run, environment: Mapping[str, object] | None = None) -> None:
        self.where = where.rstrip("/")
        self.secret = secret
        self.run = run
        self.environment = {str(key): str(value) for key, value in (environment or {}).items()}

    def restic(self, tenant: str, *words: str, allowed: tuple[int, ...] = (0,), cwd: str = "/") -> tuple[int, str, str]:
        """Run restic on a tenant's repository. The password is no argument: those can be read by everybody on the node."""
        environment = {
            **self.environment, "RESTIC_PASSWORD": _secrets.derive(self.secret, "backup", tenant), "RESTIC_CACHE_DIR": CACHE,
            "RESTIC_PROGRESS_FPS": "0.01", "HOME": "/root",
        }
        command = ["restic", "--repo", f"{self.where}/{tenant}", *words]
        code, out, err = self.run(command, environ_update=environment, cwd=cwd, umask=0o077)
        if code not in allowed:
            lines = [line for line in err.strip().splitlines() if line.strip()] or ["no reason given"]
            raise BackupError(f"restic {words[0]} ended with {code}: {lines[-1][:300]}")
        return code, out, err

    def snapshots(self, tenant: str) -> list[dict]:
        """Return the tenant's snapshots, the newest last; none where there is no repository."""
        if not self.exists(tenant):
            return []
        found = json.loads(self.restic(tenant, "snapshots", "--json", "--no-lock")[1] or "[]") or []
        return sorted(found, key=lambda one: one["time"])

    def exists(self, tenant: str) -> bool:
        """Whether there is a repository that can be opened. One that cannot be is an error, not an absence."""
        code, dummy, err = self.restic(tenant, "cat", "config", "--no-lock", allowed=(0, 1, 10))
        if code == 0:
            return True
        if code == 10 or re.search(r"unable to open config file|does not exist|Is there a repository", err):
            return False
        raise BackupError(f"the backups of {tenant} cannot be read: {(err.strip().splitlines() or ['no reason given'])[-1][:300]}")

    def prepare(self, tenant: str) -> None:
        """Make the tenant's repository unless it is there."""
        if self.where.startswith("/"):
            os.makedirs(self.where, mode=0o700, exist_ok=True)
            os.chmod(self.where, 0o700)
        if not self.exists(tenant):
            self.restic(tenant, "init")


def when(snapshot: Mapping[str, str]) -> float:
    """Return the time of a snapshot in seconds since 1970."""
    match = re.match(r"(\d+-\d+-\d+T\d+:\d+:\d+)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", snapshot["time"])
    if not match:
        raise BackupError(f"restic names a time that is none: {snapshot['time']}")
    moment = calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
    if match[2] != "Z":
        hours, minutes = match[2][1:].split(":")
        moment -= (1 if match[2][0] == "+" else -1) * (int(hours) * 3600 + int(minutes) * 60)
    return float(moment)


def why_not_removed(store: Store, tenant: str, hours: float) -> str:
    """Return why a tenant must not be removed; empty when a backup is young enough."""
    remedy = f"make one, or name {tenant} in tenants_remove to remove it without"
    if not store.where:
        return f"it is not removed, for tenants_backup does not say where backups are: {remedy}"
    found = store.snapshots(tenant)
    if not found:
        return f"it is not removed, for {store.where} has no backup of it: {remedy}"
    age = (time.time() - when(found[-1])) / 3600
    return "" if age <= hours else f"it is not removed, for its newest backup is {age:.0f} h old, and {hours:g} h are allowed: {remedy}"


@dataclass(frozen=True)
class Source:
    """A tenant's site as it is to be backed up."""

    tenant: str
    database: str
    account: dumps.Account
    wwwroot: str


def manifest_of(sites: Sites, source: Source, dump: str, server: database.Server) -> dict:
    """Return what a restore has to know, and what it is checked by."""
    values = server.settings({source.database: {"version": "", "release": ""}}).get(source.database, {})
    return {
        "format": FORMAT, "tenant": source.tenant, "wwwroot": source.wwwroot, "release": sites.places.release,
        "version": values.get("version", ""), "moodle": values.get("release", ""), "dump": dump, "dump_sha256": dumps.digest(dump),
        "dump_bytes": os.path.getsize(dump), "data": os.path.join(sites.places.folder(source.tenant), "data"),
        "owner": list(sites.places.account(source.tenant)), "made": int(time.time()),
    }


def back_up(store: Store, sites: Sites, source: Source, folder: str, keep: Mapping[str, int], server: database.Server) -> dict:
    """Make a snapshot, then forget those that ``keep`` doesn't ask for; returns the snapshot's id and figures."""
    store.prepare(source.tenant)
    staging = os.path.join(folder, source.tenant)
    shutil.rmtree(staging, ignore_errors=True)
    os.makedirs(staging, mode=0o700)
    try:
        dump = os.path.join(staging, "database.sql")
        dumps.dump(source.account, source.database, dump)
        manifest = manifest_of(sites, source, dump, server)
        with open(os.path.join(staging, "manifest.json"), "w", encoding="utf-8") as stream:
            json.dump(manifest, stream, indent=1)
        left_out = [f"--exclude={manifest['data']}/{name}" for name in PASSING]
        # A lock of a run that was killed; those of living ones stay.
        store.restic(source.tenant, "unlock")
        code, out, err = store.restic(
            source.tenant, "backup", "--json", "--host", source.tenant, *left_out, staging, manifest["data"], allowed=(0, INCOMPLETE)
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    summary = next(line for line in map(json.loads, reversed(out.strip().splitlines())) if line.get("message_type") == "summary")
    if code == INCOMPLETE:
        store.restic(source.tenant, "forget", summary["snapshot_id"])
        raise BackupError(f"some files could not be read, so this is no backup: {' '.join(err.split())[-300:]}")
    if keep:
        words = [word for unit, count in keep.items() for word in (f"--keep-{unit}", str(count))]
        store.restic(source.tenant, "forget", "--prune", "--group-by", "host", *words)
    return {
        "snapshot": summary["snapshot_id"], "bytes": summary["total_bytes_processed"], "added": summary["data_added"],
        "files": summary["total_files_processed"],
    }


def fetch(store: Store, tenant: str, snapshot: str, target: str) -> dict:
    """Get a snapshot into an empty folder for root alone, every byte verified; returns its manifest with the paths there."""
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target, mode=0o700)
    # What is in the store counts, not what an earlier run has kept of it here.
    store.restic(tenant, "restore", snapshot, "--host", tenant, "--target", target, "--verify", "--no-cache")
    manifests = [
        os.path.join(folder, "manifest.json") for folder, dummy, files in os.walk(target) if "manifest.json" in files and "database.sql" in files
    ]
    if len(manifests) != 1:
        raise BackupError(f"the snapshot {snapshot} of {tenant} holds no backup of a tenant")
    with open(manifests[0], encoding="utf-8") as stream:
        manifest = json.load(stream)
    if manifest.get("format") != FORMAT or manifest.get("tenant") != tenant:
        raise BackupError(f"the snapshot {snapshot} is of tenant {manifest.get('tenant')}, format {manifest.get('format')}")
    manifest["dump"] = os.path.join(os.path.dirname(manifests[0]), "database.sql")
    manifest["data"] = target + manifest["data"]
    if dumps.digest(manifest["dump"]) != manifest["dump_sha256"]:
        raise BackupError(f"the dump in snapshot {snapshot} is not the one that its manifest speaks of")
    return manifest
