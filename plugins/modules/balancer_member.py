#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: balancer_member
version_added: "1.0.0"
short_description: Let web nodes join, drain and leave the balancer
description:
  - Changes the member list of the HAProxy on the node the module runs on. With several balancers, run it on each of them.
  - Each change is made in the running process and in C(conf.d/<backend>.cfg), so it survives a reload and a restart.
    HAProxy is never reloaded.
  - With O(fleet_file) of a fleet behind an Application Load Balancer it changes the target group, from the controller.
    Nodes are registered by their instance, once their own health check has passed. AWS does not tell how many requests are
    under way, so a member drains for the whole of the deregistration delay, and is absent when it has.
  - All members of a call are handled side by side.
  - With an empty O(members) and no O(name) the module only makes sure that the member list exists.
options:
  state:
    description:
      - V(joined) adds members and waits until each is healthy; until then no request reaches it.
      - V(drained) sends no new requests to members and waits until those under way are done or O(timeout) is over. Reaching
        the deadline is no failure; RV(timed_out) says so. Members that are gone already are passed over.
      - V(absent) forgets members.
    type: str
    choices: [joined, drained, absent]
    default: joined
  fleet_file:
    description:
      - Path of the fleet file, where its C(balancer.driver) is V(alb); the module then runs on the controller.
      - Without it the module runs on the HAProxy node itself.
    type: path
  name:
    description: The member's name. Either this or O(members).
    type: str
  address:
    description: IP address of the node. Needed to join.
    type: str
  port:
    description: Port of the node.
    type: int
    default: 80
  capacity:
    description: Number of the node's workers. When it is not given, the node's health check is asked.
    type: int
  members:
    description: Several members at once.
    type: list
    elements: dict
    suboptions:
      name:
        description: The member's name.
        type: str
        required: true
      address:
        description: IP address of the node. Needed to join.
        type: str
      port:
        description: Port of the node.
        type: int
        default: 80
      capacity:
        description: Number of the node's workers. When it is not given, the node's health check is asked.
        type: int
      release:
        description: Release that this member's health check has to name; empty for that of O(release).
        type: str
        default: ""
  exclusive:
    description: With O(state=joined), forget all members that are not named, for example those of nodes that do not exist any more.
    type: bool
    default: false
  release:
    description: Let a node join only when its health check names this release.
    type: str
    default: ""
  tenants:
    description:
      - Let a node join only when its health check names this fingerprint of the tenants it knows, see
        P(elearning.moodle_fleet.tenants_files#filter).
      - A node that names another is refused at once; RV(stale) has its name.
    type: str
    default: ""
  balancers:
    description: Number of balancers that share the members. Each lets through its share of a member's capacity.
    type: int
    default: 1
  timeout:
    description: Seconds to wait for health, for the requests under way, or for HAProxy to let go of a member.
    type: float
    default: 60.0
  force:
    description: With O(state=absent), end requests that are still under way when O(timeout) is over.
    type: bool
    default: true
  ramp:
    description: How gently a new member starts.
    type: dict
    default: {}
    suboptions:
      steps:
        description: Number of steps before the member gets its full share; 0 gives it at once.
        type: int
        default: 0
      interval:
        description: Seconds between two steps.
        type: float
        default: 1.0
  health_path:
    description: Path of the nodes' health check.
    type: str
    default: /healthz
  backend:
    description: Name of HAProxy's backend.
    type: str
    default: web
  socket:
    description: HAProxy's admin socket.
    type: path
    default: /run/haproxy/admin.sock
  config_dir:
    description: HAProxy's configuration folder.
    type: path
    default: /etc/haproxy
attributes:
  check_mode:
    description: Can run in check mode and return what would change. It waits for nothing.
    support: full
  diff_mode:
    description: Returns the member list before and after.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
seealso:
  - module: elearning.moodle_fleet.balancer_info
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: Let two new nodes join, gently
  elearning.moodle_fleet.balancer_member:
    members:
      - {name: web-1, address: 10.89.77.11}
      - {name: web-2, address: 10.89.77.12}
    release: 4.5.6-1a2b3c4d
    ramp: {steps: 3, interval: 0.5}

- name: Take a node out of service and wait for its learners, at most five minutes
  elearning.moodle_fleet.balancer_member:
    name: web-1
    state: drained
    timeout: 300
  register: drain

- name: Forget it
  elearning.moodle_fleet.balancer_member:
    name: web-1
    state: absent

- name: Let a node join the target group of a fleet on AWS
  elearning.moodle_fleet.balancer_member:
    fleet_file: inventories/aws/moodle_fleet.yml
    members:
      - {name: prod-web-a1b2c3-1, address: 10.20.0.11}
  delegate_to: localhost

- name: Keep these members alone
  elearning.moodle_fleet.balancer_member:
    members:
      - {name: web-2, address: 10.89.77.12, capacity: 8}
    exclusive: true
"""

RETURN = r"""
members:
  description: What became of each member the call was about.
  returned: when the balancer answers
  type: list
  elements: dict
  sample:
    - name: web-1
      changed: true
      state: drained
      error: ""
      in_service: 0
      waiting: 0
      ended_by_deadline: false
      stale: false
      seconds: 1.204
  contains:
    name:
      description: Name of the member.
      type: str
    changed:
      description: Whether it was changed.
      type: bool
    state:
      description: Its state now, V(up), V(starting), V(down), V(draining), V(drained) or V(absent).
      type: str
    error:
      description: Why it is not in the wanted state.
      type: str
    in_service:
      description: Requests the member works on now.
      type: int
    waiting:
      description: Requests waiting for this member now.
      type: int
    ended_by_deadline:
      description: Whether the deadline ended the wait.
      type: bool
    stale:
      description: Whether it was refused because of O(tenants).
      type: bool
    seconds:
      description: How long it took.
      type: float
left:
  description: Requests still under way at all these members when the module ended.
  returned: when the balancer answers
  type: int
  sample: 0
stale:
  description: Names of the members that were refused because of O(tenants).
  returned: when the balancer answers
  type: list
  elements: str
  sample: []
timed_out:
  description: Whether the deadline ended the wait for any member.
  returned: when the balancer answers
  type: bool
  sample: false
"""

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers import haproxy_stats as stats
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.gate import Outcome, Wanted
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import (
    HAProxyMembers,
    MemberFile,
    RuntimeSocket,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_steps import HAProxySteps
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import (
    Fleet,
    FleetFileError,
    cloud_driver,
    load,
)

MEMBER = {
    "address": {"type": "str"},
    "port": {"type": "int", "default": 80},
    "capacity": {"type": "int"},
}


def wanted_members(params: dict) -> list[Wanted]:
    """The members the call is about."""
    entries = params["members"] or []
    if params["name"]:
        entries = [params]
    names = [entry["name"] for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise BalancerError(f"members: {name!r} is named twice, name each member once")
    if params["state"] == "joined":
        for entry in entries:
            if not entry["address"]:
                raise BalancerError(f"address: missing for {entry['name']!r}, give the node's IP address")
    return [
        Wanted(entry["name"], entry["address"] or "", entry["port"], entry["capacity"], entry["release"])
        for entry in entries
    ]


def planned(params: dict, rows: dict, lines: dict, wanted: list[Wanted]) -> dict[str, str]:
    """The member list as it would be afterwards."""
    after = described(rows, lines)
    for one in wanted:
        if params["state"] == "joined":
            row, line = rows.get(one.name), lines.get(one.name)
            capacity = None if one.capacity is None else -(-one.capacity // params["balancers"])
            fits = (
                row is not None
                and line is not None
                and line.weight > 0
                and stats.endpoint(row) == (one.address, one.port)
                and stats.state(row) == "up"
                and capacity in (None, line.capacity)
            )
            if not fits:
                after[one.name] = f"joined {one.address}:{one.port} capacity {capacity or 'of the node'}"
        elif params["state"] == "drained" and one.name in after and not after[one.name].startswith("drain"):
            after[one.name] = "draining"
        elif params["state"] == "absent":
            after.pop(one.name, None)
    return after


def described(rows: dict, lines: dict) -> dict[str, str]:
    """The member list for a diff."""
    text = {}
    for name in sorted(set(rows) | set(lines)):
        row = rows.get(name)
        if row is None:
            text[name] = "in the file alone"
            continue
        address, port = stats.endpoint(row)
        state = stats.state(row)
        if state in ("draining", "drained"):
            text[name] = "draining"
        else:
            kind = "joined" if name in lines and state == "up" else f"{state}{'' if name in lines else ', not in the file'}"
            text[name] = f"{kind} {address}:{port} capacity {stats.number(row, 'slim')}"
    return text


def run(module: AnsibleModule, members: HAProxyMembers) -> dict:
    """Everything but the error handling."""
    params = module.params
    wanted = wanted_members(params)
    names = [one.name for one in wanted]
    if not wanted and not params["exclusive"]:
        changed = not members.file.exists()
        if changed and not module.check_mode:
            with members.file.change():
                pass
        return {"changed": changed, "members": [], "left": 0, "stale": [], "timed_out": False}

    rows, lines = members.rows(), members.file.read()
    before = described(rows, lines)
    ghosts = []
    if params["exclusive"] and params["state"] == "joined":
        ghosts = sorted(set(before) - set(names))
    if module.check_mode:
        after = planned(params, rows, lines, wanted)
        for name in ghosts:
            after.pop(name, None)
        return {
            "changed": after != before,
            "members": [],
            "left": 0,
            "stale": [],
            "timed_out": False,
            "diff": {"before": before, "after": after},
        }

    outcomes = carry_out(params, lambda: HAProxySteps(members, timeout=params["timeout"]), wanted, ghosts)
    return result_of(params, outcomes, before, described(members.rows(), members.file.read()))


def carry_out(params: dict, steps: Callable[[], Any], wanted: list[Wanted], ghosts: list[str]) -> list[Outcome]:
    """Bring the members to the wanted state, and forget the ghosts."""
    names = [one.name for one in wanted]
    if params["state"] == "drained":
        return steps().drain(names)
    if params["state"] == "absent":
        return steps().remove(names, force=params["force"])
    outcomes = steps().join(
        wanted,
        release=params["release"],
        tenants=params["tenants"],
        balancers=params["balancers"],
        health_path=params["health_path"],
        ramp_steps=params["ramp"].get("steps") or 0,
        ramp_interval=params["ramp"].get("interval") or 0.0,
    )
    return outcomes + (steps().remove(ghosts, force=params["force"]) if ghosts else [])


def result_of(params: dict, outcomes: list[Outcome], before: dict[str, str], after: dict[str, str]) -> dict:
    """The module's answer."""
    result = {
        "changed": any(one.changed for one in outcomes),
        "members": [one.as_dict() for one in outcomes],
        "left": sum(one.in_service + one.waiting for one in outcomes),
        "stale": [one.name for one in outcomes if one.stale],
        "timed_out": any(one.ended_by_deadline for one in outcomes),
        "diff": {"before": before, "after": after},
    }
    wrong = [one for one in outcomes if one.error]
    if wrong:
        result["failed"] = True
        result["msg"] = "; ".join(f"{one.name} is not {params['state']}: {one.error}" for one in wrong)
    return result


def run_alb(module: AnsibleModule, fleet: Fleet) -> dict:
    """The same with a target group."""
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb import members as alb_members
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb_steps import AlbSteps

    params = module.params
    wanted = wanted_members(params)
    nodes = cloud_driver(fleet).nodes()
    members = alb_members(fleet, lambda: nodes)
    found = members.look()
    before = {name: "draining" if state == "draining" else "joined" for name, (state, _why) in found.items()}
    names = [one.name for one in wanted]
    exclusive = params["exclusive"] and params["state"] == "joined"
    ghosts = sorted(name for name in before if name not in names and before[name] == "joined") if exclusive else []
    if module.check_mode or not (wanted or ghosts):
        after = {name: state for name, state in before.items() if name not in ghosts}
        for name in names:
            if params["state"] == "joined":
                after[name] = "joined"
            elif name in after:
                after[name] = "draining"
        empty = {"members": [], "left": 0, "stale": [], "timed_out": False}
        return {"changed": after != before, **empty, "diff": {"before": before, "after": after}}
    outcomes = carry_out(params, lambda: AlbSteps(members, timeout=params["timeout"]), wanted, ghosts)
    after = {name: "draining" if state == "draining" else "joined" for name, (state, _why) in members.look().items()}
    return result_of(params, outcomes, before, after)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["joined", "drained", "absent"], "default": "joined"},
            "fleet_file": {"type": "path"},
            "name": {"type": "str"},
            **MEMBER,
            "members": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    **MEMBER,
                    "release": {"type": "str", "default": ""},
                },
            },
            "exclusive": {"type": "bool", "default": False},
            "release": {"type": "str", "default": ""},
            "tenants": {"type": "str", "default": ""},
            "balancers": {"type": "int", "default": 1},
            "timeout": {"type": "float", "default": 60.0},
            "force": {"type": "bool", "default": True},
            "ramp": {
                "type": "dict",
                "default": {},
                "options": {
                    "steps": {"type": "int", "default": 0},
                    "interval": {"type": "float", "default": 1.0},
                },
            },
            "health_path": {"type": "str", "default": "/healthz"},
            "backend": {"type": "str", "default": "web"},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "config_dir": {"type": "path", "default": "/etc/haproxy"},
        },
        mutually_exclusive=[("name", "members")],
        required_one_of=[("name", "members")],
        supports_check_mode=True,
    )
    for key, least in (("balancers", 1), ("timeout", 0)):
        if module.params[key] < least:
            module.fail_json(msg=f"{key}: {module.params[key]!r} is too small, use at least {least}")

    def check(command):
        status, _out, err = module.run_command(list(command))
        return status, err

    try:
        if module.params["fleet_file"]:
            fleet = load(module.params["fleet_file"])
            if fleet.balancer["driver"] != "alb":
                module.fail_json(msg="fleet_file: this fleet is behind HAProxy: run the module on its balancer nodes, without fleet_file")
            result = run_alb(module, fleet)
        else:
            file = MemberFile(check, config_dir=module.params["config_dir"], backend=module.params["backend"])
            result = run(module, HAProxyMembers(RuntimeSocket(module.params["socket"]), file))
    except (BalancerError, CloudError, FleetFileError) as exc:
        module.fail_json(msg=str(exc))
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
