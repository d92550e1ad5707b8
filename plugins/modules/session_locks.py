#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: session_locks
version_added: "1.0.0"
short_description: Release the session locks of nodes that do not serve any more
description:
  - Moodle locks a learner's session in Redis for the time of a request. The lock of a node that died in the middle stays
    until it expires, and the learner's next request waits for that.
  - Removes the locks whose value names one of O(nodes), and nothing else. A lock that changed hands meanwhile is left alone.
  - Only use it for nodes that are gone or were stopped.
options:
  nodes:
    description: Host names of the nodes.
    type: list
    elements: str
    required: true
  host:
    description: Address of the Redis server that holds the sessions.
    type: str
    default: 127.0.0.1
  port:
    description: Its port.
    type: int
    default: 6379
  user:
    description: Redis user that may see all tenants' keys.
    type: str
    default: fleet_admin
  password:
    description: Its password.
    type: str
    default: ""
attributes:
  check_mode:
    description: Can run in check mode and return what would be released.
    support: full
  diff_mode:
    description: Returns what changed.
    support: none
  idempotent:
    description: A second run changes nothing.
    support: full
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: Release the locks of a node that died
  elearning.moodle_fleet.session_locks:
    nodes: [local-web-a1b2c3-1]
    password: "{{ cache_admin_password }}"
"""

RETURN = r"""
released:
  description: How many locks were released, by the node that held them.
  returned: success
  type: dict
  sample: {local-web-a1b2c3-1: 3}
"""

import re
from collections import Counter

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.resp import Connection, RedisError

PATTERN = "t:*:s:*.lock"
# How many keys Redis looks at in one step, which nobody else notices.
STEP = 1000
# The value may be wrapped by PHP's serialiser: it is searched, not compared.
HOLDER = re.compile(r"\[pid [^\]]*\] ([^:\s]+):")
RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('unlink', KEYS[1]) end return 0"


def held(connection: Connection, nodes: set[str]) -> dict[str, tuple[str, str]]:
    """The locks of these nodes: value and holder by key."""
    found: dict[str, tuple[str, str]] = {}
    cursor = "0"
    while True:
        cursor, keys = connection.call("SCAN", cursor, "MATCH", PATTERN, "COUNT", str(STEP))
        values = connection.call("MGET", *keys) if keys else []
        for key, value in zip(keys, values):
            holder = HOLDER.search(value or "")
            if holder and holder[1] in nodes:
                found[key] = (value, holder[1])
        if cursor == "0":
            return found


def release(connection: Connection, locks: dict[str, tuple[str, str]]) -> Counter[str]:
    """Remove the locks that still are what they were."""
    answers = connection.pipeline([("EVAL", RELEASE, "1", key, value) for key, (value, _holder) in locks.items()])
    return Counter(holder for (_value, holder), gone in zip(locks.values(), answers) if gone)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "list", "elements": "str", "required": True},
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 6379},
            "user": {"type": "str", "default": "fleet_admin"},
            "password": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        with Connection(params["host"], params["port"], params["user"], params["password"]) as connection:
            locks = held(connection, set(params["nodes"]))
            if module.check_mode:
                released = Counter(holder for _value, holder in locks.values())
            else:
                released = release(connection, locks) if locks else Counter()
    except RedisError as exc:
        module.fail_json(msg=f"Failed to release the session locks of {', '.join(params['nodes'])}: {exc}")
    module.exit_json(changed=bool(released), released=dict(released))


if __name__ == "__main__":
    main()
