#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: tenants_import
short_description: Make an existing stand-alone Moodle a tenant of a fleet
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Takes a dump of the database and the data folder of a Moodle that ran elsewhere. The dump is loaded beside everything else, by an account
    that reaches nothing else, and examined. All that speaks against the import is said at once, before anything is changed.
  - Then the tables move into the tenant's database, with the fleet's prefix and C(utf8mb4), the files are copied, an older Moodle is
    upgraded, its address is replaced in content and settings by Moodle's own tools, and caches and sessions are dropped.
  - The site keeps its identity, C(siteidentifier) and keys, its accounts and their passwords.
  - Repeat an import that was broken off; files that were copied are not copied again.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants
  - elearning.moodle_fleet.tenants.places
  - elearning.moodle_fleet.tenants.site
  - elearning.moodle_fleet.tenants.cache
options:
  name:
    description: The tenant, one of O(tenants).
    type: str
    required: true
  dump:
    description: Path on this node of the dump, as C(mariadb-dump) or C(mysqldump) makes it of one database, plain or packed by gzip.
    type: path
    required: true
  data:
    description: Path on this node of the data folder, C(dataroot) in the site's C(config.php).
    type: path
    required: true
  wwwroot:
    description: The address that the site had, C(wwwroot) in its C(config.php). Without it, the one that is found in the database.
    type: str
    default: ""
  old_data:
    description: The path that the data folder had on its server, to be replaced in settings.
    type: str
    default: ""
  prefix:
    description: The prefix of its tables. Without it, the one that is found in the dump.
    type: str
  overwrite:
    description: Replace a site that is there.
    type: bool
    default: false
  missing_files:
    description: Import it although files are missing that the database speaks of.
    type: bool
    default: false
  missing_plugins:
    description: Import it although the fleet's release lacks plugins of it.
    type: bool
    default: false
  component_root:
    description: Folder of what is made for each release.
    type: path
    default: /var/cache/moodle-fleet/component
attributes:
  check_mode:
    description: Can run in check mode. It loads the dump beside everything else, examines it, and takes it away again.
    support: full
  diff_mode:
    description: Returns details on what has changed.
    support: none
seealso:
  - module: elearning.moodle_fleet.tenants_restore
"""

EXAMPLES = r"""
# Database and cache are those of the example of elearning.moodle_fleet.tenants.
- name: Make the college's old Moodle a tenant
  elearning.moodle_fleet.tenants_import:
    name: college
    dump: /srv/import/college.sql.gz
    data: /srv/import/moodledata
    wwwroot: https://moodle.college.example
    tenants: "{{ moodle_tenants }}"
    secret: "{{ moodle_fleet_secret }}"
    database: "{{ fleet_database }}"
    cache: "{{ fleet_cache }}"
"""

RETURN = r"""
imported:
  description: What was found, and taken over unless in check mode.
  returned: success
  type: dict
  contains:
    moodle:
      description: Moodle's release.
      type: str
    version:
      description: Its version.
      type: str
    prefix:
      description: The prefix of its tables.
      type: str
    wwwroot:
      description: The address that it had.
      type: str
    tables:
      description: How many tables it has.
      type: int
    left_out:
      description: Tables in the dump that are not Moodle's.
      type: list
      elements: str
    converted:
      description: Tables that were not C(utf8mb4) and InnoDB.
      type: list
      elements: str
    upgraded:
      description: Whether it is older than the fleet's release.
      type: bool
    files:
      description: How many files were copied.
      type: int
    bytes:
      description: How many bytes they have.
      type: int
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, definition, importing, source
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.arguments import TENANTS, make_applier

# The plugins that the code has, from its component cache.
LIST = (
    "$file = $argv[1]; if (is_file($file)) { $cache = []; require $file; foreach ($cache['plugins'] ?? [] as $type => $all) {"
    " foreach (array_keys($all) as $one) { $found[] = \"{$type}_{$one}\"; } } } echo json_encode($found ?? []);"
)


def plugins_of(module: AnsibleModule, component: str) -> list[str]:
    """Return the names of the plugins in the release; none where it is not made of components."""
    code, out, err = module.run_command([*module.params["php"], "-r", LIST, component])
    if code:
        raise importing.ImportRefused(f"the plugins of the release cannot be listed: {(out + err).strip()[-300:]}")
    return json.loads(out)


def run(module: AnsibleModule) -> dict:
    """Import what is asked for."""
    params = module.params
    tenant = definition.named(params["tenants"], params["name"])
    applier = make_applier(module)
    if tenant.server not in applier.servers:
        raise ValueError(f"its database is to be on {tenant.server!r}, which is not one of the servers")
    keys = ("dump", "data", "old_data", "prefix", "overwrite", "missing_files", "missing_plugins")
    request = importing.Request(tenant, wwwroot=params["wwwroot"].rstrip("/"), **{key: params[key] for key in keys})
    component = os.path.join(params["component_root"], applier.sites.places.release, "component.php")
    found = importing.bring_in(applier, request, plugins_of(module, component), module.check_mode)
    return {"changed": True, "imported": found}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **TENANTS,
            "name": {"type": "str", "required": True},
            "dump": {"type": "path", "required": True},
            "data": {"type": "path", "required": True},
            "wwwroot": {"type": "str", "default": ""},
            "old_data": {"type": "str", "default": ""},
            "prefix": {"type": "str"},
            "overwrite": {"type": "bool", "default": False},
            "missing_files": {"type": "bool", "default": False},
            "missing_plugins": {"type": "bool", "default": False},
            "component_root": {"type": "path", "default": "/var/cache/moodle-fleet/component"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (*apply.ERRORS, importing.ImportRefused, source.SourceError, ValueError) as exc:
        module.fail_json(msg=f"Failed to import {module.params['name']}: {exc}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
