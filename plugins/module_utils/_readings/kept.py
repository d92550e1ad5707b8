# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was read outside of the check and kept for it: a check reads this and asks nobody."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._kept import load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

EVENTS = "events.json"
TIERS = "tiers.json"


def foreseen(fleet: Fleet, until: float = math.inf) -> Foreseen:
    """What begins before ``until``; nothing, read never, where it is missing or damaged."""
    try:
        return Foreseen.from_data(load(fleet, EVENTS), until)
    except (KeyError, TypeError, ValueError):
        return Foreseen()


def saturated(fleet: Fleet, now: float) -> dict[str, str]:
    """The tiers that are full, for the check's brake. A reading that is missing, old or odd never holds anything back."""
    data = load(fleet, TIERS)
    if not data:
        return {}
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import tiers

    try:
        return tiers.saturated(data, now)
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
