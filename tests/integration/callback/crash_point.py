# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Kills the controller, with all that it started here, at a chosen step of a playbook.

Each task of ours that acts on the outside world has two crash points: ``begin`` (sent off, its answer never seen: the work may
be done, half done or not done) and ``end`` (done and answered, nothing after it). Each that comes is written to the file in
``CRASH_POINTS``, as for example ``end Join``; ``CRASH_AT`` is the one that is not survived.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: crash_point
type: aggregate
short_description: Kill the controller at a chosen step
description: For the tests.
"""

import os
import signal
from typing import Any

from ansible.plugins.callback import CallbackBase

OURS = "elearning.moodle_fleet."


class CallbackModule(CallbackBase):
    """Counts the crash points."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "crash_point"

    def __init__(self) -> None:
        super().__init__()
        self.file = os.environ["CRASH_POINTS"]
        self.at = os.environ["CRASH_AT"]

    def _point(self, moment: str, task: Any) -> None:
        if not task.action.startswith((OURS, "ansible.builtin.shell")):
            return
        point = f"{moment} {task.get_name()}"
        with open(self.file, "a", encoding="utf-8") as handle:
            handle.write(f"{point}\n")
        if point == self.at:
            os.killpg(0, signal.SIGKILL)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._point("begin", task)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._point("end", result._task)

    v2_runner_on_failed = v2_runner_on_ok
