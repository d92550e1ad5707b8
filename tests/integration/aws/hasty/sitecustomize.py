# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Python reads this at its start, where this folder is in PYTHONPATH: modules that wait until AWS agrees with itself don't.

What they made is there at once on the test server, and they ask for it again all the same.
"""

import time

_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, 0.05))
