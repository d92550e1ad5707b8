#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: tenants_backup
short_description: Back up the tenants of a fleet
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Makes a snapshot of each tenant, its database and its data folder, in a repository of its own that restic keeps.
    It is encrypted with a password derived from the fleet's secret, and what an earlier snapshot has is not stored again.
  - Sites go on while they are backed up. The database is dumped as of one moment, in one transaction; the data folder is
    read after it.
  - A tenant's failure does not stop the others. At the end the module fails and names it.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants
  - elearning.moodle_fleet.tenants.places
  - elearning.moodle_fleet.tenants.site
  - elearning.moodle_fleet.tenants.cache
  - elearning.moodle_fleet.tenants.backup
options:
  keep:
    description: Which snapshots to keep, a number for each of restic's units C(daily), C(weekly) and so on. Empty keeps all.
    type: dict
    default: {}
  only:
    description: Names of the tenants to back up; all of them without it.
    type: list
    elements: str
    default: []
  drill:
    description:
      - Make no snapshot, but prove of each tenant's newest one that it could be restored. It is restored beside everything else,
        checked, and taken away again.
    type: bool
    default: false
  parallel:
    description: How many tenants are worked on at a time.
    type: int
    default: 2
  folder:
    description: Where dumps are for a moment, and where a drill restores to.
    type: path
    default: /var/lib/moodle-fleet/backup
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns details on what has changed.
    support: none
seealso:
  - module: elearning.moodle_fleet.tenants_restore
"""

EXAMPLES = r"""
# Database and cache are those of the example of elearning.moodle_fleet.tenants.
- name: Back up all tenants
  elearning.moodle_fleet.tenants_backup:
    tenants: "{{ moodle_tenants }}"
    secret: "{{ moodle_fleet_secret }}"
    store: s3:https://s3.example.org/moodle-backups
    environment: {AWS_ACCESS_KEY_ID: AKIAEXAMPLE, AWS_SECRET_ACCESS_KEY: "{{ backup_key }}"}
    keep: {daily: 7, weekly: 5, monthly: 12}
    database: "{{ fleet_database }}"
    cache: "{{ fleet_cache }}"
"""

RETURN = r"""
tenants:
  description: What was done for each tenant.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The tenant's name.
      type: str
    snapshot:
      description: Id of the snapshot; empty where there is none.
      type: str
    seconds:
      description: How long it took.
      type: float
    figures:
      description:
        - Of a backup C(bytes), C(added) (bytes that were new to the repository) and C(files).
        - Of a drill C(tables), C(files), C(dump_bytes) and C(made), when the backup was made.
      type: dict
    error:
      description: Why it failed; empty otherwise.
      type: str
failed_tenants:
  description: Names of the tenants that failed.
  returned: always
  type: list
  elements: str
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, backup, database, definition, restore
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.arguments import BACKUP, TENANTS, make_applier, make_store


class Backups:
    """Backs up tenants, or proves that they could be restored."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.applier = make_applier(module)
        self.store = make_store(module)

    def observe(self) -> dict[str, database.Entry]:
        """Return which tenants have a site."""
        server = self.applier.servers[definition.DEFAULT_SERVER].connect()
        try:
            return server.observe().book
        finally:
            server.close()

    def one(self, tenant: definition.Tenant, entry: database.Entry) -> dict:
        """Do it for one tenant; what fails is noted."""
        began = time.monotonic()
        result = {"name": tenant.name, "snapshot": "", "figures": {}, "error": "", "seconds": 0.0}
        try:
            if entry.state != "installed":
                raise backup.BackupError(f"there is no finished site to back up ({entry.state or 'nothing is known of it'})")
            if entry.server not in self.applier.servers:
                raise backup.BackupError(f"its database is on {entry.server!r}, which is not one of the servers")
            if not self.module.check_mode:
                self._drill(tenant, result) if self.params["drill"] else self._back_up(tenant, entry, result)
        except (*apply.ERRORS, backup.BackupError, ValueError) as exc:
            result["error"] = str(exc)
        result["seconds"] = round(time.monotonic() - began, 2)
        self.module.log(f"{tenant.name}: {result['error'] or result['snapshot']} ({result['seconds']} s)")
        return result

    def _back_up(self, tenant: definition.Tenant, entry: database.Entry, result: dict) -> None:
        home = self.applier.servers[entry.server]
        source = backup.Source(tenant.name, tenant.database, home.account, entry.wwwroot or self.applier.wwwroot(tenant))
        book, server = self.applier.servers[definition.DEFAULT_SERVER].connect(), home.connect()
        try:
            apply.claim(book, tenant.name)
            made = backup.back_up(self.store, self.applier.sites, source, self.params["folder"], self.params["keep"], server)
        finally:
            server.close()
            book.close()
        result["snapshot"] = made.pop("snapshot")
        result["figures"] = made

    def _drill(self, tenant: definition.Tenant, result: dict) -> None:
        found = self.store.snapshots(tenant.name)
        if not found:
            raise backup.BackupError(f"{self.store.where} has no backup of it")
        result["snapshot"] = found[-1]["short_id"]
        result["figures"] = restore.drill(self.applier, self.store, tenant, found[-1]["id"], self.params["folder"])

    def run(self) -> dict:
        """Do it for all."""
        tenants = definition.load(self.params["tenants"])
        unknown = sorted(set(self.params["only"]) - {tenant.name for tenant in tenants})
        if unknown:
            raise ValueError(f"only: {unknown[0]!r} is not one of the tenants")
        book = self.observe()
        # A tenant that is to be removed may be backed up first.
        chosen = [
            tenant for tenant in tenants
            if tenant.name in self.params["only"] or (not self.params["only"] and (tenant.serves or tenant.name in book))
        ]
        if not self.module.check_mode:
            os.makedirs(self.params["folder"], mode=0o700, exist_ok=True)
            os.chmod(self.params["folder"], 0o700)
        with ThreadPoolExecutor(max_workers=max(1, self.params["parallel"])) as pool:
            results = list(pool.map(lambda tenant: self.one(tenant, book.get(tenant.name, database.Entry())), chosen))
        return {
            "changed": not self.params["drill"] and bool(results),
            "tenants": results, "failed_tenants": [item["name"] for item in results if item["error"]],
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **TENANTS, **BACKUP,
            "keep": {"type": "dict", "default": {}},
            "only": {"type": "list", "elements": "str", "default": []},
            "drill": {"type": "bool", "default": False},
            "parallel": {"type": "int", "default": 2},
            "folder": {"type": "path", "default": "/var/lib/moodle-fleet/backup"},
        },
        supports_check_mode=True,
    )
    try:
        result = Backups(module).run()
    except (*apply.ERRORS, backup.BackupError, ValueError) as exc:
        module.fail_json(msg=str(exc))
    if result["failed_tenants"]:
        errors = "; ".join(f"{item['name']}: {item['error']}" for item in result["tenants"] if item["error"])
        what = "prove the backups" if module.params["drill"] else "back up"
        module.fail_json(msg=f"Failed to {what} of {len(result['failed_tenants'])} tenants: {errors}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
