#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: tenants_restore
short_description: Restore a tenant of a fleet from a backup
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Replaces a tenant's database and data folder by those of a snapshot that M(elearning.moodle_fleet.tenants_backup) made.
  - Everything is fetched and verified before anything is touched. The site is closed meanwhile; other tenants notice nothing.
  - Into another tenant, the copy becomes a site of its own, with its own address, identifiers and keys, so that both may live.
  - A backup of an older Moodle is upgraded to this release, one of a newer Moodle is refused.
  - Repeat a restore that was broken off. Until then the tenant stays closed, and M(elearning.moodle_fleet.tenants) says so.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants
  - elearning.moodle_fleet.tenants.places
  - elearning.moodle_fleet.tenants.site
  - elearning.moodle_fleet.tenants.cache
  - elearning.moodle_fleet.tenants.backup
options:
  name:
    description: The tenant to restore, one of O(tenants). It need not exist yet.
    type: str
    required: true
  origin:
    description: The tenant whose backup it is; the same without it. It need not be one of O(tenants).
    type: str
  snapshot:
    description: Id of the snapshot.
    type: str
    default: latest
  overwrite:
    description: Replace a site that is there.
    type: bool
    default: false
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns details on what has changed.
    support: none
seealso:
  - module: elearning.moodle_fleet.tenants_backup
"""

EXAMPLES = r"""
# Database and cache are those of the example of elearning.moodle_fleet.tenants.
- name: Put yesterday's physics beside today's
  elearning.moodle_fleet.tenants_restore:
    name: physics_copy
    origin: physics
    tenants: "{{ moodle_tenants }}"
    secret: "{{ moodle_fleet_secret }}"
    store: /srv/backups
    database: "{{ fleet_database }}"
    cache: "{{ fleet_cache }}"
"""

RETURN = r"""
restored:
  description: What was restored, from the snapshot's manifest.
  returned: when not in check mode
  type: dict
  contains:
    tenant:
      description: Whose backup it is.
      type: str
    made:
      description: When it was made, in seconds since 1970.
      type: int
    moodle:
      description: Moodle's release in it.
      type: str
snapshot:
  description: The snapshot's id.
  returned: success
  type: str
"""

import re

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, backup, definition, restore, source
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.arguments import BACKUP, TENANTS, make_applier, make_store


def run(module: AnsibleModule) -> dict:
    """Restore what is asked for."""
    params = module.params
    tenant = definition.named(params["tenants"], params["name"])
    origin = params["origin"] or tenant.name
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", origin):
        raise ValueError(f"origin: {origin!r} is no tenant's name")
    store = make_store(module)
    found = store.snapshots(origin)
    if params["snapshot"] != "latest":
        found = [one for one in found if one["id"].startswith(params["snapshot"])]
    if not found:
        raise backup.BackupError(f"{store.where or 'the store, which is not given,'} has no such backup of {origin}: {params['snapshot']}")
    snapshot = found[-1]["id"]
    if module.check_mode:
        return {"changed": True, "snapshot": snapshot}
    manifest = restore.restore(
        make_applier(module), store, restore.Request(tenant, origin, snapshot, params["overwrite"])
    )
    return {"changed": True, "snapshot": snapshot, "restored": {key: manifest[key] for key in ("tenant", "made", "moodle")}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **TENANTS, **BACKUP,
            "name": {"type": "str", "required": True},
            "origin": {"type": "str"},
            "snapshot": {"type": "str", "default": "latest"},
            "overwrite": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (*apply.ERRORS, backup.BackupError, source.SourceError, ValueError) as exc:
        module.fail_json(msg=f"Failed to restore {module.params['name']}: {exc}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
