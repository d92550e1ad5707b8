#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet
version_added: "1.0.0"
short_description: Make sure that the tiers of a fleet exist, or remove the whole fleet
description:
  - Launches the nodes that the fleet file asks for and that are missing, tier by tier, all at once.
  - Never removes a node with O(state=present); web nodes beyond the minimum are the scaling's business.
extends_documentation_fragment:
  - elearning.moodle_fleet.fleet_file
  - elearning.moodle_fleet.fleet_file.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) launches what is missing.
      - V(absent) removes every node, image, shared file and key of the fleet.
    type: str
    choices: [present, absent]
    default: present
  roles:
    description: Tiers to look after. A tier that is managed elsewhere (it has an endpoint) has no nodes.
    type: list
    elements: str
    choices: [balancer, web, database, cache, jobs, logs, monitoring]
    default: [balancer, database, cache, logs]
  image:
    description: Image to start new nodes from; empty for the cloud driver's base image.
    type: str
    default: ""
  release:
    description: Release that the image holds; kept on the nodes.
    type: str
    default: ""
  timeout:
    description: Seconds to wait until every node of these tiers answers on its ssh port.
    type: int
    default: 120
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: The tiers that hold what is not to be lost
  elearning.moodle_fleet.fleet:
    fleet_file: inventories/local/moodle_fleet.yml
    roles: [database, cache, logs]
  delegate_to: localhost

- name: At least the minimum of web nodes
  elearning.moodle_fleet.fleet:
    fleet_file: inventories/local/moodle_fleet.yml
    roles: [web]
    image: "{{ image.image }}"
    release: 4.5.6-1a2b3c4d
  delegate_to: localhost
"""

RETURN = r"""
launched:
  description: Names of the nodes that were launched.
  returned: when O(state=present)
  type: list
  elements: str
  sample: [local-database-1]
terminated:
  description: Names of the nodes that were removed.
  returned: when O(state=absent)
  type: list
  elements: str
  sample: []
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import (
    CloudDriver,
    CloudError,
    LaunchSpec,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import (
    Fleet,
    FleetFileError,
    cloud_driver,
    load,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node

ROLES = ["balancer", "web", "database", "cache", "jobs", "logs", "monitoring"]


def missing(fleet: Fleet, nodes: list[Node], role: str, now: float) -> tuple[int, str]:
    """How many nodes a launch of this role needs, and the launch's token. ``now`` is in Unix seconds."""
    running = [node for node in nodes if node.role == role and node.state == "running"]
    if role == "web":
        # Web nodes come and go; each launch has a name of its own.
        coming = [node for node in nodes if node.role == role and node.state == "pending"]
        return max(Policy.from_settings(fleet.scaling).min_nodes - len(running) - len(coming), 0), f"{int(now):x}"
    service = fleet.services[role]
    wanted = 0 if service.get("endpoint") else service["count"]
    return (wanted if len(running) < wanted else 0), ""


def present(module: AnsibleModule, fleet: Fleet, cloud: CloudDriver) -> dict:
    """Launch what is missing and wait until it answers."""
    params = module.params
    before = cloud.nodes()
    names = [node.name for node in before if node.state == "running"]
    specs = []
    for role in params["roles"]:
        count, token = missing(fleet, before, role, time.time())
        if count:
            specs.append(LaunchSpec(role, count, token, image=params["image"], release=params["release"]))
    launched = [name for spec in specs for name in cloud.launch_names(spec) if name not in names]
    if launched and not module.check_mode:
        for spec in specs:
            cloud.launch(spec)
        unreachable = cloud.wait_reachable(launched, params["timeout"])
        if unreachable:
            module.fail_json(
                msg=f"Failed to reach {', '.join(unreachable)} on ssh within timeout={params['timeout']} s; "
                "look at the node's console, or raise timeout",
                changed=True,
                launched=launched,
            )
    lines = {"before": "".join(f"{n}\n" for n in names), "after": "".join(f"{n}\n" for n in names + launched)}
    return {"changed": bool(launched), "launched": launched, "diff": lines}


def absent(module: AnsibleModule, fleet: Fleet, cloud: CloudDriver) -> dict:
    """Remove everything."""
    nodes = [node.name for node in cloud.nodes()]
    left = bool(nodes) or bool(cloud.images()) or fleet.state_dir.exists()
    if left and not module.check_mode:
        cloud.destroy()
    return {"changed": left, "terminated": nodes, "diff": {"before": "".join(f"{n}\n" for n in nodes), "after": ""}}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "fleet_file": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "roles": {
                "type": "list", "elements": "str", "choices": ROLES,
                "default": ["balancer", "database", "cache", "logs"],
            },
            "image": {"type": "str", "default": ""},
            "release": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        fleet = load(module.params["fleet_file"])
        cloud = cloud_driver(fleet)
        act = present if module.params["state"] == "present" else absent
        result = act(module, fleet, cloud)
    except (FleetFileError, CloudError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
