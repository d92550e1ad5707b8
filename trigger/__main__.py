# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``python -m ansible_collections.elearning.moodle_fleet.trigger``, and the entry point of ``moodle-fleet``."""

from __future__ import annotations

import sys

from ansible_collections.elearning.moodle_fleet.trigger.cli import main

if __name__ == "__main__":
    sys.exit(main())
