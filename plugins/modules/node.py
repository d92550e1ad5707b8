#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: node
version_added: "1.0.0"
short_description: Launch, tag and terminate nodes of a fleet
description:
  - Makes sure that nodes of a role exist, carry tags, or are gone, through the cloud driver that the fleet file names.
  - A launch is named by its O(token). The same token gives the same nodes, so a repeated call never launches twice.
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
      - V(present) launches what is missing of O(count) nodes, or only tags O(names) and notes the O(image) they hold.
      - V(absent) terminates O(names).
    type: str
    choices: [present, absent]
    default: present
  role:
    description: Role of the nodes to launch. Needed with O(state=present) unless O(names) is given.
    type: str
    choices: [web, balancer, database, cache, jobs, logs, monitoring, builder]
  count:
    description: How many nodes this launch consists of.
    type: int
    default: 1
  token:
    description:
      - Name of this launch, up to 16 characters of a-z and 0-9.
      - Empty for the nodes of a tier that always exists.
    type: str
    default: ""
  image:
    description:
      - Image to start from; empty for the cloud driver's base image.
      - With O(names), the image whose recipe was applied to them. Only own servers remember it; other nodes start from images.
    type: str
    default: ""
  release:
    description: Release that the image holds; kept on the node.
    type: str
    default: ""
  zones:
    description: Zones of the nodes, in the order in which they are used; empty for the cloud driver's own.
    type: list
    elements: str
    default: []
  names:
    description: Nodes to tag or to terminate.
    type: list
    elements: str
    default: []
  tags:
    description: Tags to set. An empty value removes the tag.
    type: dict
    default: {}
  timeout:
    description: Seconds to wait until launched nodes answer on their ssh port. V(0) does not wait.
    type: int
    default: 120
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: Two web nodes of one launch
  elearning.moodle_fleet.node:
    fleet_file: inventories/local/moodle_fleet.yml
    role: web
    count: 2
    token: a1b2c3
  delegate_to: localhost

- name: Keep a node for a post-mortem
  elearning.moodle_fleet.node:
    fleet_file: inventories/local/moodle_fleet.yml
    names: [local-web-a1b2c3-1]
    tags: {held: "disk errors"}
  delegate_to: localhost

- name: Take the other one away
  elearning.moodle_fleet.node:
    fleet_file: inventories/local/moodle_fleet.yml
    names: [local-web-a1b2c3-2]
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
nodes:
  description: The launched or tagged nodes.
  returned: when O(state=present)
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
launched:
  description: Names of the nodes that this call launched.
  returned: when O(state=present)
  type: list
  elements: str
  sample: [local-web-a1b2c3-1]
terminated:
  description: Names of the nodes that this call terminated.
  returned: when O(state=absent)
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import (
    CloudDriver,
    CloudError,
    LaunchSpec,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import (
    FleetFileError,
    cloud_driver,
    load,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node


def _lines(nodes: list[Node]) -> str:
    return "".join(f"{node.name} {dict(node.tags)} {node.image}\n" for node in nodes)


def launch(module: AnsibleModule, cloud: CloudDriver) -> dict:
    """Launch what is missing of the nodes that the token names."""
    params = module.params
    spec = LaunchSpec(**{key: params[key] for key in ("role", "count", "token", "image", "release", "zones", "tags")})
    names = cloud.launch_names(spec)
    before = [node for node in cloud.nodes() if node.name in names]
    missing = [name for name in names if name not in {node.name for node in before if node.state == "running"}]
    result = {"changed": bool(missing), "launched": missing}
    nodes = before
    if missing and not module.check_mode:
        nodes = cloud.launch(spec)
        unreachable = cloud.wait_reachable(missing, params["timeout"]) if params["timeout"] else []
        if unreachable:
            module.fail_json(
                msg=f"Failed to reach {', '.join(unreachable)} on ssh within timeout={params['timeout']} s; "
                "look at the node's console, or raise timeout",
                **result,
            )
    after = [node.name for node in before] + missing
    result["diff"] = {"before": "".join(f"{node.name}\n" for node in before), "after": "".join(f"{n}\n" for n in after)}
    result["nodes"] = [cloud.as_result(node) for node in nodes]
    return result


def tag(module: AnsibleModule, cloud: CloudDriver) -> dict:
    """Set or remove tags of named nodes."""
    wanted = {key: str(value) if value not in (None, "") else None for key, value in module.params["tags"].items()}
    before = {node.name: node for node in cloud.nodes() if node.name in module.params["names"]}
    unknown = sorted(set(module.params["names"]) - set(before))
    if unknown:
        module.fail_json(msg=f"names: {unknown!r}: no such node in this fleet; `moodle-fleet status` lists them")
    image = module.params["image"]
    differing = [name for name, node in before.items() if any(node.tags.get(k) != v for k, v in wanted.items())]
    unnoted = [name for name, node in before.items() if image and cloud.prepares and node.image != image]
    after = dict(before)
    if not module.check_mode:
        after.update({name: cloud.tag(name, wanted) for name in differing})
        after.update({name: cloud.prepared(name, image) for name in unnoted})
    return {
        "changed": bool(differing or unnoted),
        "launched": [],
        "nodes": [cloud.as_result(node) for node in after.values()],
        "diff": {"before": _lines(list(before.values())), "after": _lines(list(after.values()))},
    }


def terminate(module: AnsibleModule, cloud: CloudDriver) -> dict:
    """Terminate named nodes; those already gone count as done."""
    present = sorted({node.name for node in cloud.nodes()} & set(module.params["names"]))
    gone = present if module.check_mode else cloud.terminate(module.params["names"])
    return {
        "changed": bool(present),
        "terminated": gone,
        "diff": {"before": "".join(f"{name}\n" for name in present), "after": ""},
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "fleet_file": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "role": {"type": "str", "choices": ["web", "balancer", "database", "cache", "jobs", "logs", "monitoring", "builder"]},
            "count": {"type": "int", "default": 1},
            "token": {"type": "str", "default": "", "no_log": False},
            "image": {"type": "str", "default": ""},
            "release": {"type": "str", "default": ""},
            "zones": {"type": "list", "elements": "str", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "tags": {"type": "dict", "default": {}},
            "timeout": {"type": "int", "default": 120},
        },
        required_if=[("state", "absent", ["names"]), ("state", "present", ["role", "names"], True)],
        supports_check_mode=True,
    )
    try:
        cloud = cloud_driver(load(module.params["fleet_file"]))
        if module.params["state"] == "absent":
            result = terminate(module, cloud)
        elif module.params["names"]:
            result = tag(module, cloud)
        else:
            result = launch(module, cloud)
    except (FleetFileError, CloudError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
