#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: balancer_lanes
version_added: "1.0.0"
short_description: Let hosts lead to one of the two pools of web nodes
description:
  - While a release is under way there are two pools of web nodes, each with a backend at HAProxy. This module says to which one hosts lead,
    on the HAProxy node it runs on. With several balancers, run it on each of them.
  - The change is made in HAProxy's map file and in the running process, so it survives a reload and a restart. HAProxy is never reloaded.
  - With empty O(hosts) it makes sure that the file exists, and returns what is in it.
options:
  hosts:
    description: The host names.
    type: list
    elements: str
    default: []
  lane:
    description: The backend they lead to; V(web) is the one of hosts that are not in the map.
    type: str
    choices: [web, web_next]
    default: web
  everything:
    description: Let all hosts that are in the map lead to O(lane).
    type: bool
    default: false
  socket:
    description: HAProxy's admin socket.
    type: path
    default: /run/haproxy/admin.sock
  path:
    description: The map file.
    type: path
    default: /etc/haproxy/lanes.map
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns the map before and after.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
seealso:
  - module: elearning.moodle_fleet.balancer_member
  - module: elearning.moodle_fleet.tenants_release
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: Let a tenant's hosts lead to the nodes of the new release
  elearning.moodle_fleet.balancer_lanes:
    hosts: [physics.example.org, phys.example.org]
    lane: web_next
"""

RETURN = r"""
lanes:
  description: The hosts that do not lead to V(web), and where they lead.
  returned: success
  type: dict
  sample: {physics.example.org: web_next}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_lanes import DEFAULT, Lanes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import RuntimeSocket


def run(module: AnsibleModule, lanes: Lanes) -> dict:
    """Lead the hosts, or say what would change."""
    params = module.params
    before = lanes.written()
    hosts = [*params["hosts"], *(before if params["everything"] else [])]
    if module.check_mode:
        after = {**before, **dict.fromkeys(hosts, params["lane"])}
        after = {host: lane for host, lane in after.items() if lane != DEFAULT}
        changed = after != before or not lanes.exists()
    else:
        missing = not lanes.exists()
        changed = lanes.lead(hosts, params["lane"]) or missing
        after = lanes.written()
    return {"changed": changed, "lanes": after, "diff": {"before": before, "after": after}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "hosts": {"type": "list", "elements": "str", "default": []},
            "lane": {"type": "str", "choices": ["web", "web_next"], "default": "web"},
            "everything": {"type": "bool", "default": False},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "path": {"type": "path", "default": "/etc/haproxy/lanes.map"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module, Lanes(RuntimeSocket(module.params["socket"]), module.params["path"]))
    except (BalancerError, OSError) as exc:
        module.fail_json(msg=f"Failed to lead hosts to {module.params['lane']}: {exc}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
