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
- name: Look at the tenants
  elearning.moodle_fleet.tenants_info:
    tenants: "{{ moodle_tenants }}"
    database:
      host: db.example.org
      user: fleet_admin
      password: "{{ moodle_fleet_secret | elearning.moodle_fleet.derive_password('db-root', 'fleet') }}"
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


def run(params: dict) -> list[dict]:
    """Return what there is of each tenant."""
    tenants = definition.load(params["tenants"])
    options = params["database"]
    server = database.Server(options["host"], options["port"], options["user"], options["password"], options["tls"])
    try:
        observed = server.observe()
        installed = {
            tenant.name
            for tenant in tenants
            if observed.book.get(tenant.name, ("",))[0] == "installed" and tenant.database in observed.databases
        }
        asked = {tenant.database: {"version": "", "release": ""} for tenant in tenants if tenant.name in installed}
        values = server.settings(asked)
    finally:
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
        argument_spec={
            "tenants": {"type": "list", "elements": "dict", "required": True},
            "database": {
                "type": "dict",
                "required": True,
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 3306},
                    "user": {"type": "str", "required": True},
                    "password": {"type": "str", "required": True, "no_log": True},
                    "user_host": {"type": "str", "default": "%"},
                    "tls": {"type": "bool", "default": False},
                },
            },
        },
        supports_check_mode=True,
    )
    try:
        found = run(module.params)
    except (database.DatabaseError, ValueError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, tenants=found)


if __name__ == "__main__":
    main()
