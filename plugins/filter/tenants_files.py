# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter tenants_files."""

from __future__ import annotations

DOCUMENTATION = r"""
name: tenants_files
author: Moodle Fleet contributors (!UNKNOWN)
short_description: Make the tenants map of a node
version_added: "1.0.0"
description:
  - Checks the list of tenants and returns the content of the generated files of a node.
  - The fingerprint is a checksum of all. A node answers it in its health check.
  - What would open one tenant to another, such as a file lock on the shared file system, is refused.
  - A mistake in the list becomes one message that names tenant, key, value and remedy.
positional: secret, fleet
options:
  _input:
    description: The list of tenants, as in C(moodle_tenants).
    type: list
    elements: dictionary
    required: true
  secret:
    description: The fleet's secret, from which each tenant's passwords are derived.
    type: string
    required: true
  fleet:
    description: Settings that hold for all tenants, such as where the database and the cache are.
    type: dictionary
    required: true
  public_port:
    description: The port visitors use; it is part of each site's address unless it is V(443).
    type: int
    default: 443
  servers:
    description: Further database servers by name, each with C(host), C(port) and C(tls), for the tenants that name one.
    type: dictionary
    default: {}
"""

EXAMPLES = r"""
- name: Show the host names that are served
  ansible.builtin.debug:
    msg: "{{ (moodle_tenants | elearning.moodle_fleet.tenants_files(moodle_fleet_secret, {})).map }}"
  no_log: true
"""

RETURN = r"""
_value:
  description: The files' content.
  type: dictionary
  contains:
    php:
      description: C(tenants.php); it holds passwords.
      type: string
    own:
      description: C(tenants.own), the same of the tenants with a Unix user of their own, for root alone.
      type: string
    map:
      description: C(tenants.map), nginx's map from host name to tenant.
      type: string
    fingerprint:
      description: The first 16 digits of the SHA-256 of all three, one after the other.
      type: string
"""

import hashlib

from ansible.errors import AnsibleFilterError

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import definition, isolation, render


def tenants_files(raw: object, secret: str, fleet: dict, public_port: int = 443, servers: dict | None = None) -> dict[str, str]:
    """Return the content of tenants.php and tenants.map, and their fingerprint."""
    try:
        tenants = definition.load(raw)
        php = render.tenants_php(tenants, str(secret), fleet, int(public_port), servers)
        own = render.tenants_own(tenants, str(secret), fleet, int(public_port), servers)
        hosts = render.tenants_map(tenants)
        # Nothing is written that would open one tenant to another.
        isolation.refuse(render.tenants_data(tenants, str(secret), fleet, int(public_port), servers))
    except ValueError as exc:
        raise AnsibleFilterError(str(exc)) from exc
    fingerprint = hashlib.sha256((php + own + hosts).encode()).hexdigest()[:16]
    return {"php": php, "own": own, "map": hosts, "fingerprint": fingerprint}


class FilterModule:
    """The filter's entry point for Ansible."""

    def filters(self):
        """Return the filters of this file by name."""
        return {"tenants_files": tenants_files}
