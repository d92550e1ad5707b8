# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: release_table
author: Moodle Fleet contributors (@moodle-fleet)
version_added: "1.0.0"
short_description: A release as a table
description: A line for each tenant, from what M(elearning.moodle_fleet.tenants_release) returns without a name.
options:
  _input:
    description: The module's result.
    type: dictionary
    required: true
"""

EXAMPLES = r"""
- name: Show how far a release is
  ansible.builtin.debug:
    msg: "{{ release | elearning.moodle_fleet.release_table }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: string
"""

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._releases.show import lines


class FilterModule:
    """The filter's entry point for Ansible."""

    def filters(self):
        """Return the filters of this file by name."""
        return {"release_table": lines}
