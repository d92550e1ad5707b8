#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: tenants
short_description: Bring all tenants of a fleet into being
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Gives every tenant its database, a database user and a Redis user that reach nothing but its own, its folders, and
    its site, installed by Moodle's own script. Run it on one node that runs Moodle's code, the jobs node.
  - A handful of queries says what differs, however many tenants there are; where nothing does, nothing is run.
  - Users carry the generation of their password in their name. So passwords are rotated without an interruption. Count
    up C(generation) of a tenant, tell all nodes, then call this with O(prune) to remove the old users.
  - An installation that was broken off is recognised and done anew. A database that holds a finished site is never
    dropped; nor is one that this module did not begin to fill.
  - A tenant's failure does not stop the others. At the end the module fails and names it.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants
options:
  secret:
    description: The fleet's secret, at least 32 characters, from which all passwords are derived.
    type: str
    required: true
  cache:
    description: The Redis server, or the two of them, for sessions and for Moodle's caches. Users are made on both.
    type: dict
    required: true
    suboptions:
      host:
        description: Its host name or address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 6379
      muc_host:
        description: Host name or address of the server for Moodle's caches; O(cache.host) without it.
        type: str
      muc_port:
        description: Port of the server for Moodle's caches; O(cache.port) without it.
        type: int
      user:
        description: A user that may make users.
        type: str
        default: default
      password:
        description: Its password.
        type: str
        default: ''
      tls:
        description: Whether it is reached by TLS. Its certificate has to be good for its name and trusted by the node.
        type: bool
        default: false
      shared_user:
        description:
          - Whether all tenants use the default user with O(cache.password), because the server lets nobody make users, as
            ElastiCache does. It is only asked whether it answers.
        type: bool
        default: false
  code:
    description: Folder of the release, or the link to it, that installs the sites.
    type: path
    default: /srv/moodle/current
  shared_root:
    description: Where the shared file system is mounted.
    type: path
    default: /srv/moodledata
  owner:
    description: The user that PHP runs as; it owns the tenants' folders.
    type: str
    default: www-data
  cli:
    description: The script that runs Moodle's scripts, as installed by the role P(elearning.moodle_fleet.tenants#role).
    type: path
    default: /usr/lib/moodle-fleet/cli.php
  php:
    description:
      - PHP's command line program and its options. The default compiles Moodle's code to a folder of its own, which
        halves the time an installation takes.
    type: list
    elements: str
    default:
      - php
      - -d
      - max_input_vars=5000
      - -d
      - opcache.enable_cli=1
      - -d
      - opcache.file_cache=/var/cache/moodle-fleet/opcache-cli
      - -d
      - opcache.file_cache_only=1
  prune:
    description: Remove the users of other generations.
    type: bool
    default: false
  parallel:
    description: How many tenants are worked on at a time.
    type: int
    default: 2
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
    details:
      - Where a server cannot be reached yet, everything is taken to be missing.
  diff_mode:
    description: Returns what has to be done for each tenant.
    support: full
seealso:
  - module: elearning.moodle_fleet.tenants_info
"""

EXAMPLES = r"""
- name: Bring the tenants into being
  elearning.moodle_fleet.tenants:
    tenants:
      - name: physics
        hosts: [physics.example.org]
        title: Physics
        admin: {user: admin, email: admin@physics.example.org}
        settings: {theme: classic, quiz/timelimit: 3600}
    secret: "{{ moodle_fleet_secret }}"
    database:
      host: db.example.org
      user: fleet_admin
      password: "{{ moodle_fleet_secret | elearning.moodle_fleet.derive_password('db-root', 'fleet') }}"
    cache:
      host: cache.example.org
      user: fleet_admin
      password: "{{ moodle_fleet_secret | elearning.moodle_fleet.derive_password('redis-admin', 'fleet') }}"
"""

RETURN = r"""
tenants:
  description: What was done for each tenant, in the given order.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The tenant's name.
      type: str
    changed:
      description: Whether something had to be done.
      type: bool
    actions:
      description: What had to be done.
      type: list
      elements: str
      sample: [create database, create user, install the site]
    error:
      description: Why it failed; empty otherwise.
      type: str
failed_tenants:
  description: Names of the tenants that failed.
  returned: always
  type: list
  elements: str
"""

import functools
import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _secrets
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, database, definition, resp

SERVER = {
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 3306},
    "user": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "user_host": {"type": "str", "default": "%"},
    "tls": {"type": "bool", "default": False},
}
PHP = [
    "php", "-d", "max_input_vars=5000", "-d", "opcache.enable_cli=1", "-d",
    "opcache.file_cache=/var/cache/moodle-fleet/opcache-cli", "-d", "opcache.file_cache_only=1",
]


def prepare_file_cache(module: AnsibleModule) -> None:
    """Make the folder for compiled code, if PHP is told to use one; PHP refuses to start without it."""
    for option in module.params["php"]:
        key, equals, path = option.partition("=")
        if key == "opcache.file_cache" and path and not os.path.isdir(path):
            os.makedirs(path, mode=0o700)
            shutil.chown(path, module.params["owner"], module.params["owner"])


def all_missing(tenants: list[definition.Tenant]) -> list[apply.Work]:
    """Return the plan for servers that aren't there yet."""
    return [
        apply.Work(tenant, sql=[("CREATE DATABASE", ()), ("CREATE USER", ())], site="install", settings=dict(tenant.settings))
        for tenant in tenants
    ]


def run(module: AnsibleModule) -> dict:
    """Observe, plan and act."""
    params = module.params
    tenants = definition.load(params["tenants"])
    server, cache = params["database"], params["cache"]
    sessions = (cache["host"], cache["port"])
    places = dict.fromkeys([sessions, (cache["muc_host"] or sessions[0], cache["muc_port"] or sessions[1])])
    user = "default" if cache["shared_user"] else cache["user"]
    applier = apply.Applier(
        server=lambda: database.Server(server["host"], server["port"], server["user"], server["password"], server["tls"]),
        redis=[functools.partial(resp.Connection, *place, user, cache["password"], cache["tls"]) for place in places],
        shared_user=cache["shared_user"],
        places=apply.Places(params["code"], params["shared_root"], params["owner"], params["cli"], params["php"]),
        secret=params["secret"],
        user_host=server["user_host"],
        run=module.run_command,
    )
    try:
        works, make_book = applier.plan(tenants, params["prune"])
    except (database.DatabaseError, resp.RedisError) as exc:
        if not module.check_mode:
            raise
        module.warn(f"Everything is taken to be missing: {exc}")
        works, make_book = all_missing(tenants), True
    if not module.check_mode:
        prepare_file_cache(module)
        applier.act(works, make_book, params["parallel"])
    results = [work.result() for work in works]
    after = "".join(f"{item['name']}: {action}\n" for item in results for action in item["actions"])
    return {
        "changed": make_book or any(item["changed"] for item in results),
        "tenants": results,
        "failed_tenants": [item["name"] for item in results if item["error"]],
        "diff": {"before": "", "after": after},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "tenants": {"type": "list", "elements": "dict", "required": True},
            "secret": {"type": "str", "required": True, "no_log": True},
            "database": {"type": "dict", "required": True, "options": SERVER},
            "cache": {
                "type": "dict",
                "required": True,
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 6379},
                    "muc_host": {"type": "str"},
                    "muc_port": {"type": "int"},
                    "user": {"type": "str", "default": "default"},
                    "password": {"type": "str", "default": "", "no_log": True},
                    "tls": {"type": "bool", "default": False},
                    "shared_user": {"type": "bool", "default": False},
                },
            },
            "code": {"type": "path", "default": "/srv/moodle/current"},
            "shared_root": {"type": "path", "default": "/srv/moodledata"},
            "owner": {"type": "str", "default": "www-data"},
            "cli": {"type": "path", "default": "/usr/lib/moodle-fleet/cli.php"},
            "php": {"type": "list", "elements": "str", "default": PHP},
            "prune": {"type": "bool", "default": False},
            "parallel": {"type": "int", "default": 2},
        },
        supports_check_mode=True,
    )
    try:
        _secrets.derive(module.params["secret"], "check", "secret")
        result = run(module)
    except (database.DatabaseError, resp.RedisError, ValueError) as exc:
        module.fail_json(msg=str(exc))
    if result["failed_tenants"]:
        errors = "; ".join(f"{item['name']}: {item['error']}" for item in result["tenants"] if item["error"])
        module.fail_json(msg=f"Failed to bring {len(result['failed_tenants'])} tenants into being: {errors}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
