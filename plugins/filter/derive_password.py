# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter derive_password."""

from __future__ import annotations

DOCUMENTATION = r"""
name: derive_password
author: Moodle Fleet contributors (!UNKNOWN)
short_description: Derive a password from the fleet's one secret
version_added: "1.0.0"
description:
  - Returns the password for a purpose and a name, always the same for the same input.
  - It has 30 URL-safe characters, among them an upper and a lower case letter, a digit and one of C(-_).
  - Raise O(generation) to rotate a password without changing the fleet's secret.
positional: purpose, name
options:
  _input:
    description: The fleet's secret, at least 32 characters. Keep it in Ansible Vault.
    type: string
    required: true
  purpose:
    description: What the password is for, such as V(db), V(admin), V(redis), V(db-root) or V(redis-admin).
    type: string
    required: true
  name:
    description: Whose password it is, such as a tenant's name. Neither this nor O(purpose) may contain a colon.
    type: string
    required: true
  generation:
    description: Counts up when the password is rotated.
    type: int
    default: 1
"""

EXAMPLES = r"""
- name: Show the first password of a site's admin
  ansible.builtin.debug:
    msg: "{{ moodle_fleet_secret | elearning.moodle_fleet.derive_password('admin', 'physics') }}"

- name: Use the database administrator's password of the second generation
  ansible.builtin.set_fact:
    database_password: "{{ moodle_fleet_secret | elearning.moodle_fleet.derive_password('db-root', 'fleet', generation=2) }}"
"""

RETURN = r"""
_value:
  description: The password.
  type: string
"""

from ansible.errors import AnsibleFilterError

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive


def derive_password(secret: str, purpose: str, name: str, generation: int = 1) -> str:
    """Derive a password; wrong input becomes one clear message."""
    try:
        return derive(str(secret), str(purpose), str(name), int(generation))
    except ValueError as exc:
        raise AnsibleFilterError(f"derive_password: {exc}") from exc


class FilterModule:
    """The filter's entry point for Ansible."""

    def filters(self):
        """Return the filters of this file by name."""
        return {"derive_password": derive_password}
