#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Install the Debian packages that are missing
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Asks dpkg which of the packages are missing and runs M(ansible.builtin.apt) for those alone, without recommended
    packages. Where none is missing, apt is not started, which saves a second of CPU time for each role and node.
  - The list of packages is refreshed when it is older than a day, and only if something is to be installed.
  - Packages that are there stay at their version; upgrades are not this module's business.
options:
  name:
    description: The packages, by the names that dpkg shows, without versions or architectures.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Can run in check mode and return what would be installed.
    support: full
  diff_mode:
    description: Shows what M(ansible.builtin.apt) shows.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Install nginx
  elearning.moodle_fleet.packages:
    name: nginx-light

- name: Install Redis
  elearning.moodle_fleet.packages:
    name: [redis-server, redis-tools]
"""

RETURN = r"""
missing:
  description: The packages that were missing, and are installed now.
  returned: always
  type: list
  elements: str
  sample: [redis-tools]
"""
