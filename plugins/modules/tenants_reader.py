#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: tenants_reader
short_description: Let the controller read what is known ahead, and how busy databases and caches are
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Makes a database user C(fleet_reader) on each server, which may read a few columns of quizzes, assignments, enrolments,
    attempts and submissions of the installed tenants, and nothing else; and a Redis user of that name, which may ask for C(INFO).
  - Where all tenants share one Redis user, nobody can make others; its figures are then not read.
  - Takes away what the user may read of tenants that are gone.
  - Returns what C(moodle-fleet events) and C(moodle-fleet capacity) need to find databases and caches.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants
  - elearning.moodle_fleet.tenants.cache
options:
  password:
    description: The password of C(fleet_reader).
    type: str
    required: true
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
    details:
      - A server that cannot be reached yet is taken to need the user.
  diff_mode:
    description: Returns what has to be done.
    support: full
seealso:
  - module: elearning.moodle_fleet.tenants
"""

EXAMPLES = r"""
# Database and cache are those of the example of elearning.moodle_fleet.tenants.
- name: Let the controller read events
  elearning.moodle_fleet.tenants_reader:
    tenants: "{{ moodle_tenants }}"
    password: "{{ moodle_fleet_secret | elearning.moodle_fleet.derive_password('db-reader', 'fleet') }}"
    database: "{{ fleet_database }}"
    cache: "{{ fleet_cache }}"
  register: reader
"""

RETURN = r"""
actions:
  description: What had to be done.
  returned: success
  type: list
  elements: str
  sample: [grant select on moodle_acme.mdl_quiz]
access:
  description: Where the databases and caches are, without the password.
  returned: success
  type: dict
  contains:
    servers:
      description: Host, port and tls of each database server.
      type: dict
    tenants:
      description: Name, database and server of each installed tenant that serves.
      type: list
      elements: dict
    caches:
      description: Host, port and tls of each Redis.
      type: list
      elements: dict
"""

import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import accounts
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, definition, resp
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.arguments import (
    LIST,
    TENANTS,
    database_servers,
    redis_places,
)


def homes(book: dict[str, database.Entry], tenants: list[definition.Tenant], servers: Any) -> dict[str, str]:
    """The server of each tenant that is installed and serves."""
    return {
        tenant.name: book[tenant.name].server for tenant in tenants
        if tenant.state in ("active", "maintenance") and tenant.name in book
        and book[tenant.name].state == "installed" and book[tenant.name].server in servers
    }


def run(module: AnsibleModule) -> dict:
    """Observe, and give and take rights."""
    params = module.params
    tenants = definition.load(params["tenants"])
    servers = database_servers(params)
    actions: list[str] = []
    connection = servers[definition.DEFAULT_SERVER].connect()
    try:
        where = homes(connection.observe().book, tenants, servers)
    finally:
        connection.close()
    for name in sorted({definition.DEFAULT_SERVER, *where.values()}):
        connection = servers[name].connect()
        try:
            mine = [tenant.database for tenant in tenants if where.get(tenant.name) == name]
            for statement, values in accounts.database_statements(connection, mine, params["password"], servers[name].user_host):
                actions.append(words(statement))
                if not module.check_mode:
                    connection.query(statement, values)
        finally:
            connection.close()
    cache = params["cache"]
    places = [] if cache["shared_user"] else redis_places(cache)
    for connect in places:
        with connect() as redis:
            commands = accounts.redis_commands(redis, params["password"])
            actions += [f"{command[0].lower()} {command[1].lower()} {command[2]}" for command in commands]
            if commands and not module.check_mode:
                redis.pipeline(commands)
                resp.save(redis)
    return {
        "changed": bool(actions),
        "actions": actions,
        "access": {
            "servers": {
                name: {"host": one.account.host, "port": one.account.port, "tls": one.account.tls} for name, one in servers.items()
            },
            "tenants": [
                {"name": tenant.name, "database": tenant.database, "server": where[tenant.name]}
                for tenant in tenants if tenant.name in where
            ],
            "caches": [{"host": one.args[0], "port": one.args[1], "tls": cache["tls"]} for one in places],
        },
        "diff": {"before": "", "after": "".join(f"{action}\n" for action in actions)},
    }


def words(statement: str) -> str:
    """A statement in words: no values, no lists of columns."""
    return re.sub(r" \([^)]*\)|`", "", statement).split(" %s", maxsplit=1)[0].removesuffix(" TO").removesuffix(" FROM").lower()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**LIST, "cache": TENANTS["cache"], "password": {"type": "str", "required": True, "no_log": True}},
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (database.DatabaseError, resp.RedisError, ValueError) as exc:
        if module.check_mode and not isinstance(exc, ValueError):
            module.exit_json(changed=True, actions=["create user"], access={"servers": {}, "tenants": [], "caches": []})
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
