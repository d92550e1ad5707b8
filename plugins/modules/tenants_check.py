#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: tenants_check
short_description: Try whether each tenant is kept from every other
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Looks for hosts, databases, prefixes and folders that two tenants share, for unsafe settings about proxies, for locks in
    files, for permissions and links that are too open.
  - Then tries, for every ordered pair of tenants, to read the other's files, rows, caches and sessions with the accounts of the
    first. Files are tried by PHP, configured for the first tenant.
  - Where the cache has one user for all tenants, its keys are open to all of them. They are not tried, and RV(notes) and a
    warning say so.
  - Changes nothing. Run it on a node that knows the tenants, the jobs node.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants.places
options:
  map:
    description: The tenants map of this node.
    type: path
    default: /etc/moodle-fleet/tenants.php
  own_map:
    description: The map of the tenants that have a Unix user of their own.
    type: path
    default: /etc/moodle-fleet/tenants.own
  library:
    description: Folder of the fleet's own scripts.
    type: path
    default: /usr/lib/moodle-fleet
  php:
    description: PHP's command line program and its options.
    type: list
    elements: str
    default: [php]
  parallel:
    description: How many tenants are tried at a time.
    type: int
    default: 2
  fail:
    description: Fail when something is found.
    type: bool
    default: true
requirements:
  - PyMySQL
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns details on what has changed.
    support: none
"""

EXAMPLES = r"""
- name: Try whether each tenant is kept from every other
  elearning.moodle_fleet.tenants_check:
"""

RETURN = r"""
findings:
  description: What one tenant has of another, or everybody of a tenant.
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: V(host), V(state), V(database), V(redis), V(user), V(directory), V(proxy), V(flag), V(lock), V(permissions), V(files),
        V(rows), V(keys), V(sessions), V(session), V(cache), or V(trial) where something could not be tried.
      type: str
    tenant:
      description: Whose accounts or settings.
      type: str
    other:
      description: Who is not kept from them, if it is one tenant.
      type: str
    text:
      description: What was found.
      type: str
pairs:
  description: How many ordered pairs were tried, by kind.
  returned: always
  type: dict
  sample: {files: 16770, rows: 16770, keys: 16770, sessions: 16770}
notes:
  description: What was not tried because it is open in this fleet, such as the keys of a cache with one user for all tenants.
  returned: always
  type: list
  elements: str
tenants:
  description: How many tenants there are.
  returned: always
  type: int
seconds:
  description: How long it took.
  returned: always
  type: float
"""

import json
import os
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, isolation, resp, site, trial
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.arguments import PLACES


def read_map(module: AnsibleModule) -> dict:
    """Return the tenants map, read by PHP as it would be for a request."""
    code, out, err = module.run_command([*module.params["php"], "-r", "echo json_encode(require $argv[1]);", module.params["map"]])
    if code:
        raise site.SiteError(f"{module.params['map']} cannot be read: {' '.join((err or out).split())[-300:]}")
    data = json.loads(out)
    # PHP has one kind of list for both.
    data = {key: data[key] or {} for key in ("fleet", "hosts", "tenants")}
    if os.path.exists(module.params["own_map"]):
        with open(module.params["own_map"], encoding="utf-8") as stream:
            own = json.load(stream)
        data["hosts"] |= own["hosts"]
        data["tenants"] |= own["tenants"]
    return data


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **PLACES,
            "map": {"type": "path", "default": "/etc/moodle-fleet/tenants.php"},
            "own_map": {"type": "path", "default": "/etc/moodle-fleet/tenants.own"},
            "library": {"type": "path", "default": "/usr/lib/moodle-fleet"},
            "php": {"type": "list", "elements": "str", "default": ["php"]},
            "parallel": {"type": "int", "default": 2},
            "fail": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    began = time.monotonic()
    try:
        data = read_map(module)
        users = {name: entry["uid"] for name, entry in data["tenants"].items() if entry.get("uid")}
        places = site.Places(
            params["code"], params["shared_root"], params["owner"], os.path.join(params["library"], "cli.php"), params["php"], users
        )
        tried = trial.Trial(data, site.Sites(places, module.run_command), params["parallel"])
        findings = tried.run()
    except (database.DatabaseError, resp.RedisError, site.SiteError, OSError, ValueError) as exc:
        module.fail_json(msg=f"Failed to try the tenants' isolation: {exc}")
    result = {
        "changed": False, "findings": [finding.to_data() for finding in findings], "pairs": tried.pairs,
        "notes": tried.notes, "tenants": len(tried.tenants),
        "seconds": round(time.monotonic() - began, 2),
    }
    for note in tried.notes:
        module.warn(note)
    if findings and params["fail"]:
        counts = ", ".join(f"{number} × {kind}" for kind, number in isolation.summary(findings).items())
        first = "; ".join(str(finding) for finding in findings[:5])
        module.fail_json(msg=f"The tenants are not kept from each other ({counts}): {first}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
