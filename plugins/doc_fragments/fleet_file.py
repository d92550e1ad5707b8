# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations


class ModuleDocFragment:
    """Options and attributes shared by the modules that run on the controller."""

    DOCUMENTATION = r"""
options:
  fleet_file:
    description:
      - Path of the fleet file, C(moodle_fleet.yml), on the controller.
      - The whole file is checked before anything is changed.
    type: path
    required: true
notes:
  - Runs on the controller; use it with C(hosts=localhost) or C(delegate_to=localhost).
requirements:
  - PyYAML
"""

    LEDGER = r"""
options:
  ledger_password:
    description:
      - Password of a ledger that is kept in MariaDB. Without it, and with a ledger that is a file, it is found as the command
        C(moodle-fleet) finds it, in the environment variable E(MOODLE_FLEET_LEDGER_PASSWORD) or in a file.
    type: str
"""

    ATTRIBUTES = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
"""
