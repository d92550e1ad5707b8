#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: tenants_release
short_description: Bring a tenant of a fleet to another release, or tell how far all are
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Does for one tenant what its way to a release still needs, on a node that has both releases. Its jobs are stopped, it is closed and
    dumped; then its hosts have to lead to the nodes of the new release, which another module does at the balancers, see
    RV(lead). Called again, it upgrades the database, drops caches, checks the site, opens it and lets its jobs run.
  - What fails sends the tenant back. Its dump is loaded, its hosts lead to the old nodes again, it is opened.
  - What has been done is observed, or written down in the fleet's database. Interrupted anywhere and called again, it goes on.
  - Without O(name) it changes nothing and returns RV(tenants), a line for each.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants
  - elearning.moodle_fleet.tenants.places
  - elearning.moodle_fleet.tenants.site
  - elearning.moodle_fleet.tenants.cache
options:
  name:
    description: The tenant, one of O(tenants).
    type: str
  target:
    description: Name of the release to bring it to. Without O(name) it may be left out; then it is the one of the latest release.
    type: str
    default: ""
  origin:
    description: Name of the release that it comes from. Needed with O(name).
    type: str
    default: ""
  routes:
    description: For each balancer, the hosts that do not lead to the old nodes, as M(elearning.moodle_fleet.balancer_lanes) returns them.
    type: list
    elements: dict
    default: []
  give_up:
    description: Why its hosts could not be led to the new nodes. The tenant is sent back.
    type: str
    default: ""
  run:
    description: What tells this run from others. A tenant that was given up in a run is not begun again in it.
    type: str
    default: ""
  max_failures:
    description: Begin with no other tenant once so many were given up in this run.
    type: int
    default: 3
  balancers:
    description: Addresses of the balancers, through which the opened site is asked for a page.
    type: list
    elements: str
    default: []
  root:
    description: Folder of the releases.
    type: path
    default: /srv/moodle
  component_root:
    description: Folder of what is made for each release.
    type: path
    default: /var/cache/moodle-fleet/component
  folder:
    description: Where the dumps are.
    type: path
    default: /var/lib/moodle-fleet/releases
  jobs_timeout:
    description: Seconds to wait for the tenant's tasks under way, before it is closed.
    type: int
    default: 600
  quiet_timeout:
    description: Seconds to wait for requests under way, once it is closed.
    type: float
    default: 15
attributes:
  check_mode:
    description: Can run in check mode and return what would be done.
    support: full
  diff_mode:
    description: Returns details on what has changed.
    support: none
seealso:
  - module: elearning.moodle_fleet.balancer_lanes
  - module: elearning.moodle_fleet.tenants_backup
"""

EXAMPLES = r"""
# Database and cache are those of the example of elearning.moodle_fleet.tenants.
- name: See how far the tenants are
  elearning.moodle_fleet.tenants_release:
    tenants: "{{ moodle_tenants }}"
    secret: "{{ moodle_fleet_secret }}"
    database: "{{ fleet_database }}"
    cache: "{{ fleet_cache }}"
  register: release
"""

RETURN = r"""
lead:
  description: The lane that the tenant's hosts have to lead to before the module can go on; empty when nothing is left to do.
  returned: with O(name)
  type: str
  sample: web_next
hosts:
  description: The tenant's hosts.
  returned: with O(name)
  type: list
  elements: str
held_back:
  description: Whether nothing was done because of O(max_failures).
  returned: with O(name)
  type: bool
steps:
  description: What would be done.
  returned: with O(name), in check mode
  type: list
  elements: str
tenants:
  description: How far each tenant is.
  returned: without O(name)
  type: list
  elements: dict
  contains:
    name:
      description: The tenant's name.
      type: str
    state:
      description: C(done), C(failed), C(waiting), or C(dumped), C(upgrading), C(returning) while its database is between two releases.
      type: str
    release:
      description: The release that its database is known to fit.
      type: str
    lane:
      description: Where all balancers lead its hosts; empty where they differ, or O(routes) was not given.
      type: str
    downtime:
      description: Seconds for which it was closed; C(0) where that is not over.
      type: float
    closed:
      description: When it was closed, in seconds since 1970.
      type: float
    opened:
      description: When it was opened.
      type: float
    error:
      description: Why it was given up.
      type: str
target:
  description: Name of the release.
  returned: always
  type: str
todo:
  description: Names of the tenants that have not arrived.
  returned: without O(name)
  type: list
  elements: str
counts:
  description: How many tenants are in each state.
  returned: without O(name)
  type: dict
"""

from collections import Counter

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._releases import lane, plan, table
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, database, definition
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.arguments import TENANTS, make_applier


def one(module: AnsibleModule) -> dict:
    """Go on with one tenant."""
    params = module.params
    tenant = definition.named(params["tenants"], params["name"])
    for key in ("target", "origin", "run"):
        if not params[key]:
            raise ValueError(f"{key} is missing: it is needed with name")
    places = params["root"], params["component_root"]
    course = lane.Course(
        lane.find_release(params["origin"], *places), lane.find_release(params["target"], *places), params["run"], params["folder"],
        params["balancers"], params["public_port"], params["jobs_timeout"], params["quiet_timeout"],
    )
    applier = make_applier(module)
    book = applier.servers[definition.DEFAULT_SERVER].connect()
    home = None
    try:
        entry = book.observe().book.get(tenant.name, database.Entry())
        if entry.state not in ("installed", "upgrading"):
            raise ValueError(f"{tenant.name} has no finished site ({entry.state or 'nothing is known of it'}): finish that first")
        if entry.server not in applier.servers:
            raise ValueError(f"its database is on {entry.server!r}, which is not one of the servers")
        home = applier.servers[entry.server].connect()
        if not module.check_mode:
            table.make(book)
            apply.claim(book, tenant.name)
        found = table.lines(book)
        way = lane.Lane(applier, course, tenant, lane.lane_of(tenant, params["routes"]), book, home)
        todo = plan.steps(way.see())
        result = {"changed": bool(todo), "lead": "", "hosts": list(tenant.hosts), "held_back": False, "target": course.target.name}
        if module.check_mode:
            return {**result, "steps": list(todo)}
        given_up = [line for line in found.values() if line.run == course.run and line.error]
        if "look" in todo and len(given_up) >= params["max_failures"]:
            return {**result, "changed": False, "held_back": True}
        if params["give_up"]:
            plan.send_back(way, params["give_up"])
        return {**result, "lead": plan.go_on(way)}
    finally:
        if home is not None:
            home.close()
        book.close()


def everybody(module: AnsibleModule) -> dict:
    """Tell how far all tenants are."""
    params = module.params
    applier = make_applier(module)
    book = applier.servers[definition.DEFAULT_SERVER].connect()
    try:
        entries, found = book.observe().book, table.lines(book)
    finally:
        book.close()
    target = params["target"] or max(found.values(), key=lambda line: line.began, default=table.Line()).target
    rows = []
    for tenant in definition.load(params["tenants"]):
        entry = entries.get(tenant.name, database.Entry())
        if not tenant.serves or not entry.state:
            continue
        rows.append(row(tenant, entry, found.get(tenant.name, table.Line()), target, lane.lane_of(tenant, params["routes"])))
    return {
        "changed": False, "target": target, "tenants": rows,
        "todo": [one["name"] for one in rows if one["state"] != "done"], "counts": dict(Counter(one["state"] for one in rows)),
    }


def row(tenant: definition.Tenant, entry: database.Entry, line: table.Line, target: str, where: str) -> dict:
    """Return how far one tenant is."""
    if line.target != target:
        line = table.Line()
    state = line.phase or ("done" if entry.release == target else "waiting")
    if state == plan.DONE and line.ours:
        # Its database has arrived; it is still closed, or was not seen to serve.
        state = "opening"
    return {
        "name": tenant.name, "state": state, "release": entry.release, "lane": where, "downtime": round(line.downtime, 1),
        "closed": line.closed, "opened": line.opened, "error": line.error,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **TENANTS,
            "name": {"type": "str"},
            "target": {"type": "str", "default": ""},
            "origin": {"type": "str", "default": ""},
            "routes": {"type": "list", "elements": "dict", "default": []},
            "give_up": {"type": "str", "default": ""},
            "run": {"type": "str", "default": ""},
            "max_failures": {"type": "int", "default": 3},
            "balancers": {"type": "list", "elements": "str", "default": []},
            "root": {"type": "path", "default": "/srv/moodle"},
            "component_root": {"type": "path", "default": "/var/cache/moodle-fleet/component"},
            "folder": {"type": "path", "default": "/var/lib/moodle-fleet/releases"},
            "jobs_timeout": {"type": "int", "default": 600},
            "quiet_timeout": {"type": "float", "default": 15.0},
        },
        supports_check_mode=True,
    )
    try:
        result = one(module) if module.params["name"] else everybody(module)
    except (*apply.ERRORS, lane.ReleaseError, plan.StepFailed, ValueError) as exc:
        module.fail_json(msg=f"Failed to {'bring ' + module.params['name'] + ' to the release' if module.params['name'] else 'look at the release'}: {exc}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
