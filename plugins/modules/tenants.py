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
    its site. Run it on one node that runs Moodle's code, the jobs node.
  - A new site is a copy of a template, which Moodle's own script installs once for each release and language. What no two
    sites may share is made anew in the copy, by Moodle's own functions. See O(clone).
  - A handful of queries says what differs, however many tenants there are; where nothing does, nothing is run.
  - Users carry the generation of their password in their name. So passwords are rotated without an interruption. Count
    up C(generation) of a tenant, tell all nodes, then call this with O(prune) to remove the old users.
  - An installation that was broken off is recognised and done anew. A database that holds a finished site is never
    dropped; nor is one that this module did not begin to fill.
  - A tenant whose first host name changed gets its address replaced in all its content, by Moodle's own tool; one that names
    another database server is moved there. Both are closed from then on, until this is called with O(finish), after all
    nodes know of the change.
  - A tenant with C(state=absent) is removed with everything in it, where a backup of today exists or O(remove) names it.
  - A tenant's failure does not stop the others. At the end the module fails and names it. What was done for each tenant is
    logged as it goes on; C(journalctl --follow --grep=moodle_fleet.tenants) shows it.
extends_documentation_fragment:
  - elearning.moodle_fleet.tenants
  - elearning.moodle_fleet.tenants.places
  - elearning.moodle_fleet.tenants.site
  - elearning.moodle_fleet.tenants.cache
  - elearning.moodle_fleet.tenants.backup
options:
  prune:
    description: Remove the users of other generations.
    type: bool
    default: false
  parallel:
    description: How many tenants are worked on at a time.
    type: int
    default: 2
  clone:
    description: Make new sites as copies of a template. Without it, each is installed by Moodle's own script.
    type: bool
    default: true
  templates:
    description: Folder of the templates, for root alone. One that is missing or incomplete is made again.
    type: path
    default: /var/lib/moodle-fleet/templates
  remove:
    description: Names of tenants with C(state=absent) that are removed even without a backup of today.
    type: list
    elements: str
    default: []
  backup_max_age:
    description: Hours that the newest backup of a tenant may be old for it to be removed.
    type: int
    default: 24
  finish:
    description: Only let tenants serve again that were closed for a change, now that every node knows of it.
    type: bool
    default: false
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
    seconds:
      description: How long it took.
      type: float
    error:
      description: Why it failed; empty otherwise.
      type: str
failed_tenants:
  description: Names of the tenants that failed.
  returned: always
  type: list
  elements: str
queries:
  description: How many statements the database servers were asked for.
  returned: always
  type: int
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, backup, database, definition, resp, template
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.arguments import (
    BACKUP,
    TENANTS,
    make_applier,
    make_store,
)


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
        for tenant in tenants if tenant.serves
    ]


def full_applier(module: AnsibleModule) -> apply.Applier:
    """Put together what does the work."""
    params = module.params
    applier = make_applier(module)
    if params["clone"]:
        home = applier.servers[definition.DEFAULT_SERVER]
        applier.templates = template.Templates(
            params["templates"], applier.sites, home.account, home.connect, home.user_host, applier.redis, module.log,
            shared_user=applier.shared_user,
        )

    def may_remove(tenant: definition.Tenant) -> str:
        if tenant.name in params["remove"]:
            return ""
        try:
            return backup.why_not_removed(make_store(module), tenant.name, params["backup_max_age"])
        except backup.BackupError as exc:
            return f"it is not removed: {exc}"

    applier.may_remove = may_remove
    return applier


def run(module: AnsibleModule) -> dict:
    """Observe, plan and act."""
    params = module.params
    tenants = definition.load(params["tenants"])
    applier = full_applier(module)
    make_book = False
    try:
        if params["finish"]:
            works = applier.finish(tenants, module.check_mode)
        else:
            works, make_book = applier.plan(tenants, params["prune"])
    except (database.DatabaseError, resp.RedisError) as exc:
        if not module.check_mode:
            raise
        module.warn(f"Everything is taken to be missing: {exc}")
        works, make_book = ([], False) if params["finish"] else (all_missing(tenants), True)
    if not module.check_mode and not params["finish"]:
        prepare_file_cache(module)
        applier.act(works, make_book, params["parallel"])
    results = [work.result() for work in works]
    after = "".join(f"{item['name']}: {action}\n" for item in results for action in item["actions"])
    return {
        "changed": make_book or any(item["changed"] for item in results),
        "tenants": results,
        "failed_tenants": [item["name"] for item in results if item["error"]],
        "queries": applier.queries,
        "diff": {"before": "", "after": after},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **TENANTS, **BACKUP,
            "prune": {"type": "bool", "default": False},
            "parallel": {"type": "int", "default": 2},
            "clone": {"type": "bool", "default": True},
            "templates": {"type": "path", "default": "/var/lib/moodle-fleet/templates"},
            "remove": {"type": "list", "elements": "str", "default": []},
            "backup_max_age": {"type": "int", "default": 24},
            "finish": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (database.DatabaseError, resp.RedisError, ValueError) as exc:
        module.fail_json(msg=str(exc))
    if result["failed_tenants"]:
        errors = "; ".join(f"{item['name']}: {item['error']}" for item in result["tenants"] if item["error"])
        module.fail_json(msg=f"Failed to bring {len(result['failed_tenants'])} tenants into being: {errors}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
