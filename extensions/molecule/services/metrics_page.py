# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prints what `moodle-fleet metrics` says of a fleet whose last check is from now, at its maximum and doubted."""

from __future__ import annotations

import time

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import MEMORY, Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Reason, Sample
from ansible_collections.elearning.moodle_fleet.trigger.metrics import render

now = time.time()
reasons = (Reason("tracking", "busy", 9), Reason("max_nodes", "never more", 6))
inputs = {"now": now, "phases": {"in_service": 6}, "outlook": {"points": [[now, 30.0]]}}
with Ledger(MEMORY) as ledger:
    for at in (now - 15, now):
        ledger.commit(at, "check", Sample(at, 15, 24.0, 24, 3, 24, 6, 9, True), Decision(6, "none", 6, 9, True, reasons), Plan(), 0, inputs=inputs)
    print(render("molecule", Policy(), ledger, now))
