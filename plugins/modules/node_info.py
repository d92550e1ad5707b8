#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
version_added: "1.0.0"
short_description: List the nodes and images of a fleet
description:
  - Lists what the cloud driver of a fleet observes. Changes nothing.
extends_documentation_fragment:
  - elearning.moodle_fleet.fleet_file
  - elearning.moodle_fleet.fleet_file.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  role:
    description: List only nodes of this role.
    type: str
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: See the web nodes
  elearning.moodle_fleet.node_info:
    fleet_file: inventories/local/moodle_fleet.yml
    role: web
  delegate_to: localhost
  register: web

- name: Print their addresses
  ansible.builtin.debug:
    msg: "{{ web.nodes | map(attribute='address') | list }}"
"""

RETURN = r"""
nodes:
  description: The nodes, sorted by name, each with its connection variables.
  returned: always
  type: list
  elements: dict
  sample:
    - name: local-web-a1b2c3-1
      role: web
      address: 10.89.77.12
      zone: a
      state: running
      launched: 1795383000.5
      release: 4.5.6-1a2b3c4d
      image: ""
      tags: {}
      connection: {ansible_host: 10.89.77.12, ansible_user: root}
images:
  description: Baked images of this fleet, newest first.
  returned: always
  type: list
  elements: dict
  sample:
    - id: 3b1f
      role: web
      release: 4.5.6-1a2b3c4d
      recipe: 9f86d081
      created: 1795383000.0
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import (
    FleetFileError,
    cloud_driver,
    load,
)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"fleet_file": {"type": "path", "required": True}, "role": {"type": "str"}},
        supports_check_mode=True,
    )
    try:
        cloud = cloud_driver(load(module.params["fleet_file"]))
        nodes = [node for node in cloud.nodes() if module.params["role"] in (None, node.role)]
        result = {"nodes": [cloud.as_result(node) for node in nodes], "images": cloud.images()}
    except (FleetFileError, CloudError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
