#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: ledger_database
version_added: "1.0.0"
short_description: Make the database and the account of a ledger in MariaDB
description:
  - Makes the database and the account that the section C(ledger) of the fleet file names. The account may use this database
    and no other.
  - Does nothing where the ledger is a file. Never removes a ledger.
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
  admin_user:
    description: Account that may create databases and accounts on the server.
    type: str
    default: fleet_admin
  admin_password:
    description: Its password.
    type: str
    required: true
  ledger_password:
    description: Password that the ledger's account is to have.
    type: str
    required: true
  hosts:
    description: Where controllers come from, as MariaDB's host patterns. The account is removed for all others.
    type: list
    elements: str
    default: ["%"]
requirements:
  - PyMySQL
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: Make the ledger's database and account
  elearning.moodle_fleet.ledger_database:
    fleet_file: /etc/moodle-fleet/moodle_fleet.yml
    admin_password: "{{ database_admin_password }}"
    ledger_password: "{{ moodle_fleet_ledger_password }}"
    hosts: ["10.0.8.%"]
  delegate_to: localhost
"""

RETURN = r"""
actions:
  description: What was done, in words.
  returned: success
  type: list
  elements: str
  sample: [create database fleet_ledger, "create user fleet_ledger@10.0.8.%"]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import FleetFileError, load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import DatabaseError, Server, checksum

RIGHTS = ("Select", "Insert", "Update", "Delete", "Create", "Alter", "Index")


def statements(server: Server, database: str, user: str, password: str, hosts: list[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """What is lacking or too much: in words, as a statement, and its values."""
    needed: list[tuple[str, str, tuple[str, ...]]] = []
    # As MariaDB writes it in a grant, where an underscore would stand for any letter.
    pattern = database.replace("_", "\\_")
    if not server.query("SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = %s", (database,)):
        needed.append((f"create database {database}", f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin", ()))
    known = {host: kept or "" for host, kept in server.query("SELECT Host, authentication_string FROM mysql.user WHERE User = %s", (user,))}
    granted = {host for (host,) in server.query(
        "SELECT Host FROM mysql.db WHERE User = %s AND Db = %s AND " + " AND ".join(f"{right}_priv = 'Y'" for right in RIGHTS),
        (user, pattern),
    )}
    for host in sorted(set(known) - set(hosts)):
        needed.append((f"drop user {user}@{host}", "DROP USER %s@%s", (user, host)))
    for host in hosts:
        if host not in known:
            needed.append((f"create user {user}@{host}", "CREATE USER %s@%s IDENTIFIED BY %s", (user, host, password)))
        elif known[host].upper() != checksum(password):
            needed.append((f"set the password of {user}@{host}", "ALTER USER %s@%s IDENTIFIED BY %s", (user, host, password)))
        if host not in granted:
            needed.append((f"grant on {database} to {user}@{host}", f"GRANT {', '.join(RIGHTS)} ON `{pattern}`.* TO %s@%s", (user, host)))
    return needed


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "fleet_file": {"type": "path", "required": True},
            "admin_user": {"type": "str", "default": "fleet_admin"},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "ledger_password": {"type": "str", "required": True, "no_log": True},
            "hosts": {"type": "list", "elements": "str", "default": ["%"]},
        },
        supports_check_mode=True,
    )
    params = module.params
    actions: list[str] = []
    try:
        given = load(params["fleet_file"]).ledger
        if given["driver"] == "mariadb":
            host, _colon, port = given["endpoint"].rpartition(":")
            server = Server(host, int(port), params["admin_user"], params["admin_password"], given["tls"])
            try:
                for words, statement, values in statements(
                    server, given["database"], given["user"], params["ledger_password"], params["hosts"]
                ):
                    actions.append(words)
                    if not module.check_mode:
                        server.query(statement, values)
            finally:
                server.close()
    except (FleetFileError, DatabaseError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=bool(actions), actions=actions, diff={"before": "", "after": "".join(f"{action}\n" for action in actions)}
    )


if __name__ == "__main__":
    main()
