# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tries, for every ordered pair of tenants, to get at the other's files, rows, caches and sessions with the rights of the first.

One connection and one process for each tenant, not for each pair: 130 tenants are 16,770 pairs.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, isolation, resp
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.isolation import Finding
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.site import FOLDERS, SiteError, Sites

KEYS = (
    "wwwroot", "dbhost", "dbname", "dbuser", "session_redis_prefix", "session_handler_class", "lock_factory",
    *isolation.FOLDERS, *isolation.FLAGS,
)
# How deep links are looked for: above this lie folders that Moodle makes, below it files by their checksum.
DEPTH = 3
SHARED_USER = (
    "keys and sessions were not tried: the cache has one user for all tenants (shared_user), whose password every tenant's code is"
    " given, so code that runs for one tenant can read and change the others' caches and sessions; only their prefixes differ"
)
MAP = "/etc/moodle-fleet/tenants.php"
# Maps of tenants with a Unix user of their own, for root and for that user.
OWN, OWN_MAPS = "/etc/moodle-fleet/tenants.own", "/etc/moodle-fleet/tenants"


class Trial:
    """One run of all trials. Counts the pairs that were tried, by kind."""

    def __init__(self, data: Mapping[str, Any], sites: Sites, parallel: int) -> None:
        self.data = data
        self.sites = sites
        self.parallel = parallel
        self.tenants: dict[str, Mapping[str, Any]] = dict(data["tenants"])
        self.pairs: dict[str, int] = {}
        # What is open because of what the fleet is made of, and what was therefore not tried.
        self.shared_user = bool(data["fleet"].get("cache_password"))
        self.notes = [SHARED_USER] if self.shared_user else []

    def run(self) -> list[Finding]:
        """Try everything, and return what should not have worked."""
        findings = isolation.of_map(self.data)
        seen = self._configurations()
        findings += isolation.of_configurations({name: one["config"] for name, one in seen.items()})
        findings += self._files(seen)
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            for found in pool.map(self.rows_and_keys, self.tenants):
                findings += found
        return findings + list(self._permissions())

    def rows_and_keys(self, name: str) -> list[Finding]:
        """Try the accounts of one tenant."""
        return self._rows(name) + ([] if self.shared_user else self._keys(name))

    def _others(self, name: str) -> Iterator[str]:
        return (other for other in self.tenants if other != name)

    def _count(self, kind: str, number: int) -> None:
        self.pairs[kind] = self.pairs.get(kind, 0) + number

    def _configurations(self) -> dict[str, dict[str, Any]]:
        """Ask each tenant's PHP for its configuration, and what it can read of the others'."""
        paths = {name: self._secrets(name) for name in self.tenants}

        def ask(name: str) -> dict[str, Any]:
            call = {"keys": KEYS, "paths": [path for other in self._others(name) for path in paths[other]] + [MAP, OWN]}
            answer = self.sites.ask(name, "isolation.php", call)
            try:
                return json.loads(answer.strip().splitlines()[-1])
            except (ValueError, IndexError) as exc:
                raise SiteError(f"isolation.php gave no answer for {name}: {answer[-200:]}") from exc

        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            return dict(zip(self.tenants, pool.map(ask, self.tenants)))

    def _secrets(self, name: str) -> list[str]:
        """What nobody else may read of a tenant."""
        folders = [os.path.join(self.sites.places.folder(name), part) for part in FOLDERS]
        return folders + ([f"{OWN_MAPS}/{name}.php"] if name in self.sites.places.users else [])

    def _files(self, seen: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
        findings = []
        owner = {path: name for name in self.tenants for path in self._secrets(name)}
        for name, one in seen.items():
            self._count("files", len(self.tenants) - 1)
            readable: dict[str, list[str]] = {}
            for path in one["readable"]:
                readable.setdefault(owner.get(path, ""), []).append(path)
            for other, paths in readable.items():
                findings.append(Finding("files", name, f"its code can read {paths[0]}", other or "all"))
        return findings

    def _rows(self, name: str) -> list[Finding]:
        """Read a row of each other tenant's, with the database account of this one."""
        entry = self.tenants[name]
        findings = []
        for host, port, tls in dict.fromkeys(self._server(other) for other in self.tenants):
            theirs = [other for other in self._others(name) if self._server(other) == (host, port, tls)]
            try:
                server = database.Server(host, port, entry["database_user"], entry["database_password"], tls)
            except database.DatabaseError as exc:
                if (host, port, tls) == self._server(name):
                    findings.append(Finding("trial", name, f"its own account does not work, so nothing was tried: {exc}"))
                else:
                    # It has no account there at all.
                    self._count("rows", len(theirs))
                continue
            try:
                if (host, port, tls) == self._server(name):
                    server.query(f"SELECT name FROM `{entry['database']}`.mdl_config LIMIT 1")
                for other in theirs:
                    try:
                        server.query(f"SELECT name FROM `{self.tenants[other]['database']}`.mdl_config LIMIT 1")
                    except database.DatabaseError as exc:
                        if "denied" not in str(exc):
                            findings.append(Finding("trial", name, f"the answer was no refusal: {exc}", other))
                        continue
                    findings.append(Finding("rows", name, f"its account {entry['database_user']} can read {self.tenants[other]['database']}", other))
                self._count("rows", len(theirs))
            except database.DatabaseError as exc:
                findings.append(Finding("trial", name, f"its own rows cannot be read, so nothing was tried: {exc}"))
            finally:
                server.close()
        return findings

    def _server(self, name: str) -> tuple[str, int, bool]:
        entry, fleet = self.tenants[name], self.data["fleet"]
        return (
            str(entry.get("dbhost") or fleet["dbhost"]), int(entry.get("dbport") or fleet["dbport"]),
            bool(entry.get("database_tls", fleet.get("database_tls"))),
        )

    def _keys(self, name: str) -> list[Finding]:
        """Read a cache's and a session's key of each other tenant's, with the Redis account of this one."""
        entry, fleet = self.tenants[name], self.data["fleet"]
        findings = []
        others = list(self._others(name))
        places = dict.fromkeys([(fleet["redis_host"], fleet["redis_port"]), (fleet["muc_host"], fleet["muc_port"])])
        for host, port in places:
            try:
                with resp.Connection(
                    str(host), int(port), entry["redis_user"], entry["redis_password"], bool(fleet.get("cache_tls"))
                ) as connection:
                    own = connection.answers([("GET", f"t:{name}:s:-isolation")])[0]
                    if isinstance(own, resp.RedisError):
                        findings.append(Finding("trial", name, f"its own keys cannot be read, so nothing was tried: {own}"))
                        continue
                    for kind, part, command in (("sessions", "s", "GET"), ("keys", "m", "HGETALL")):
                        answers = connection.answers([(command, f"t:{other}:{part}:-isolation") for other in others])
                        for other, answer in zip(others, answers):
                            if not isinstance(answer, resp.RedisError):
                                findings.append(Finding(kind, name, f"its account {entry['redis_user']} can read t:{other}:{part}:*", other))
                            elif "NOPERM" not in str(answer):
                                findings.append(Finding("trial", name, f"the answer was no refusal: {answer}", other))
                        if (host, port) == next(iter(places)):
                            self._count(kind, len(others))
            except resp.RedisError as exc:
                findings.append(Finding("trial", name, f"its own account does not work, so nothing was tried: {exc}"))
        return findings

    def _permissions(self) -> Iterator[Finding]:
        """Folders that others on the node may enter, and links that lead out of a tenant's folder, which nginx would follow."""
        shared = os.path.join(self.sites.places.shared_root, ".fleet")
        for path, mask in ((MAP, 0o027), (f"{shared}/tenants.php", 0o027), (OWN, 0o077), (f"{shared}/tenants.own", 0o077)):
            if os.path.exists(path) and os.stat(path).st_mode & mask:
                yield Finding("permissions", "fleet", f"{path} has mode {stat.S_IMODE(os.stat(path).st_mode):o}: others can read it")
        for name in self.tenants:
            base = self.sites.places.folder(name)
            for path, (owner, group, mode) in self.sites.places.folders(name).items():
                try:
                    found = os.lstat(path)
                except FileNotFoundError:
                    yield Finding("permissions", name, f"{path} is missing")
                    continue
                open_ = found.st_mode & 0o7777 & ~mode
                if open_ or (found.st_uid, found.st_gid) != (owner, group) or not stat.S_ISDIR(found.st_mode):
                    yield Finding(
                        "permissions", name, f"{path} has mode {stat.S_IMODE(found.st_mode):o}, owner {found.st_uid}, group {found.st_gid}:"
                        f" it must be a folder of {owner}:{group} with mode {mode:o} or less"
                    )
            yield from self._links(name, base, base, DEPTH)

    def _links(self, name: str, base: str, folder: str, depth: int) -> Iterator[Finding]:
        try:
            entries: Sequence[os.DirEntry[str]] = list(os.scandir(folder))
        except OSError:
            return
        for entry in entries:
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if os.path.commonpath([target, os.path.realpath(base)]) != os.path.realpath(base):
                    inside = os.path.relpath(target, self.sites.places.shared_root).split(os.sep)[0]
                    other = inside if inside in self.tenants else ""
                    yield Finding("files", name, f"the link {entry.path} leads to {target}", other)
            elif depth and entry.is_dir(follow_symlinks=False):
                yield from self._links(name, base, entry.path, depth - 1)
