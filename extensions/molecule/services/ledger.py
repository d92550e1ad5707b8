# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keeps a value in a ledger in the database of this scenario, as the account that the role made: ledger.py ADDRESS USER < PASSWORD"""

from __future__ import annotations

import sys

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_mariadb import Access, MariaDB, hold

access = Access(sys.argv[1], 3306, "fleet_ledger", sys.argv[2], sys.stdin.read().strip())
with hold(access, "check"), Ledger(MariaDB(access)) as ledger:
    ledger.remember("seen", "here")
    assert ledger.state("seen") == "here"
