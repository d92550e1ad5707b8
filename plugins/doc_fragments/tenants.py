# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules about tenants have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of M(elearning.moodle_fleet.tenants) and M(elearning.moodle_fleet.tenants_info)."""

    DOCUMENTATION = r"""
options:
  tenants:
    description:
      - The tenants, as in C(moodle_tenants). Each has the keys C(name), C(hosts), C(title) and C(admin) (with C(user)
        and C(email)), and may have C(shortname), C(lang), C(state), C(settings) and C(generation).
    type: list
    elements: dict
    required: true
  database:
    description: The database server, MariaDB.
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
        default: 3306
      user:
        description: A user that may make databases and users.
        type: str
        required: true
      password:
        description: Its password.
        type: str
        required: true
      user_host:
        description: Hosts from which the tenants' users may connect.
        type: str
        default: '%'
      tls:
        description: Whether it is reached by TLS. Its certificate has to be good for its name and trusted by the node.
        type: bool
        default: false
requirements:
  - PyMySQL
"""
