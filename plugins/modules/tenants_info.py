#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: tenants_info
short_description: Look at the tenants of a fleet
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Says for each tenant whether its site is installed and which version its database has.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns details on what has changed.
    support: none
seealso:
  - module: elearning.moodle_fleet.tenants
"""

EXAMPLES = r"""
# The database is that of the example of elearning.moodle_fleet.tenants.
- name: Look at the tenants
  elearning.moodle_fleet.tenants_info:
    tenants: "{{ moodle_tenants }}"
    database: "{{ fleet_database }}"
  register: sites
"""

RETURN = r"""
tenants:
  description: The tenants, in the given order.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The tenant's name.
      type: str
    hosts:
      description: Its host names.
      type: list
      elements: str
    state:
      description: The state it should have.
      type: str
    installed:
      description: Whether its site is installed.
      type: bool
    version:
      description: Moodle's version in its database; empty where nothing is installed.
      type: str
      sample: '2024100706.00'
    release:
      description: Moodle's release in its database; empty where nothing is installed.
      type: str
      sample: 4.5.6 (Build 20250811)
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, definition
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.arguments import LIST, database_servers


def run(params: dict) -> list[dict]:
    """Return what there is of each tenant."""
    tenants = definition.load(params["tenants"])
    servers = database_servers(params)
    connections = {definition.DEFAULT_SERVER: servers[definition.DEFAULT_SERVER].connect()}
    values: dict[str, dict[str, str]] = {}
    installed = set()
    try:
        observed = {definition.DEFAULT_SERVER: connections[definition.DEFAULT_SERVER].observe()}
        book = observed[definition.DEFAULT_SERVER].book
        homes = {tenant.name: book[tenant.name].server for tenant in tenants if tenant.name in book and book[tenant.name].server in servers}
        for name in set(homes.values()) - set(connections):
            connections[name] = servers[name].connect()
            observed[name] = connections[name].observe()
        for name, server in connections.items():
            mine = [
                tenant for tenant in tenants
                if homes.get(tenant.name) == name and book[tenant.name].state == "installed" and tenant.database in observed[name].databases
            ]
            installed |= {tenant.name for tenant in mine}
            values |= server.settings({tenant.database: {"version": None, "release": None} for tenant in mine})
    finally:
        for server in connections.values():
            server.close()
    return [
        {
            "name": tenant.name,
            "hosts": list(tenant.hosts),
            "state": tenant.state,
            "installed": tenant.name in installed,
            "version": values.get(tenant.database, {}).get("version", ""),
            "release": values.get(tenant.database, {}).get("release", ""),
        }
        for tenant in tenants
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=LIST,
        supports_check_mode=True,
    )
    try:
        found = run(module.params)
    except (database.DatabaseError, ValueError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, tenants=found)


if __name__ == "__main__":
    main()
