#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: balancer_info
version_added: "1.0.0"
short_description: Read the members and counters of the balancers
description:
  - Reads the statistics port of one or several HAProxy balancers and adds them up. Changes nothing.
  - With O(fleet_file) it reads the balancer that the fleet file names, also an Application Load Balancer, from the controller.
options:
  fleet_file:
    description: Path of the fleet file. Then the other options are not needed, except O(addresses) with HAProxy.
    type: path
  addresses:
    description: Addresses of the balancers.
    type: list
    elements: str
    default: ["127.0.0.1"]
  port:
    description: Port of the statistics.
    type: int
    default: 8404
  backend:
    description: Name of HAProxy's backend.
    type: str
    default: web
  timeout:
    description: Seconds to wait for each balancer.
    type: float
    default: 2.0
attributes:
  check_mode:
    description: Can run in check mode.
    support: full
  diff_mode:
    description: Returns what changed.
    support: none
  idempotent:
    description: A second run changes nothing.
    support: full
seealso:
  - module: elearning.moodle_fleet.balancer_member
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: Read the balancer this runs on
  elearning.moodle_fleet.balancer_info:
  register: balancer

- name: Read the load balancer of a fleet on AWS
  elearning.moodle_fleet.balancer_info:
    fleet_file: inventories/aws/moodle_fleet.yml
  delegate_to: localhost

- name: Print how busy the fleet is
  ansible.builtin.debug:
    msg: "{{ balancer.in_service }} in service, {{ balancer.waiting }} waiting, {{ balancer.capacity }} workers"
"""

RETURN = r"""
members:
  description: The members, sorted by name, as all balancers together see them.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web-1
      address: 10.89.77.11
      state: up
      capacity: 8
      in_service: 3
      waiting: 0
      since: 512.0
      ramp: 1.0
capacity:
  description: Workers of all members that are up.
  returned: success
  type: int
  sample: 16
in_service:
  description: Requests the members work on now.
  returned: success
  type: int
  sample: 5
waiting:
  description: Requests waiting for a worker now.
  returned: success
  type: int
  sample: 0
requests:
  description: Requests answered since the counters started.
  returned: success
  type: int
  sample: 40123
mean_seconds:
  description: Mean time of the last requests, or null where the balancer does not tell.
  returned: success
  type: float
  sample: 0.085
interval:
  description:
    - Seconds that RV(requests), RV(in_service), RV(waiting) and RV(mean_seconds) tell of, where the balancer knows past minutes alone.
    - V(0) where it counts.
  returned: success
  type: float
  sample: 0.0
faults:
  description: What speaks against the reading, for example that no target is healthy.
  returned: success
  type: list
  elements: str
  sample: []
started:
  description: When the counters started, in seconds since 1970, added up over all balancers; it changes when they are reset.
  returned: success
  type: float
  sample: 1795383000.5
taken:
  description: When this was read, in seconds since 1970.
  returned: success
  type: float
  sample: 1795383512.2
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy import HAProxyReader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_steps import as_dict
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import (
    FleetFileError,
    balancer_reader,
    cloud_driver,
    load,
)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "fleet_file": {"type": "path"},
            "addresses": {"type": "list", "elements": "str", "default": ["127.0.0.1"]},
            "port": {"type": "int", "default": 8404},
            "backend": {"type": "str", "default": "web"},
            "timeout": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        if params["fleet_file"]:
            fleet = load(params["fleet_file"])
            nodes = cloud_driver(fleet).nodes()
            own = [node.address for node in nodes if node.role == "balancer" and node.state == "running"]
            reader = balancer_reader(fleet, own or params["addresses"], nodes)
        else:
            reader = HAProxyReader(
                params["addresses"], port=params["port"], backend=params["backend"], timeout=params["timeout"]
            )
        counters = reader.read()
    except (BalancerError, CloudError, FleetFileError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=False,
        members=[as_dict(one) for one in counters.members],
        capacity=sum(one.capacity for one in counters.members if one.state == "up"),
        in_service=counters.in_service,
        waiting=counters.waiting,
        requests=counters.requests,
        mean_seconds=counters.mean_seconds,
        interval=counters.interval,
        faults=[text for _code, text in counters.faults],
        started=counters.started,
        taken=counters.taken,
    )


if __name__ == "__main__":
    main()
