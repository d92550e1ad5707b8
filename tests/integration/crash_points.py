# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs scale.yml on a real fleet and kills its controller at a chosen step, for the tests and the benchmark."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SCALE = HERE.parents[1] / "playbooks" / "scale.yml"
# Where launches take long, a run leaves it to the next one to let the nodes join.
RUNS = 3


def points(inventory: Path, desired: int, at: str = "") -> list[str]:
    """Run scale.yml; returns the crash points it came past in their order, the last of them fatal when it is ``at``.

    :raises AssertionError: when the playbook failed by itself, or never came to ``at``.
    """
    with tempfile.NamedTemporaryFile("r", prefix="moodle-fleet-", encoding="utf-8") as file:
        environment = {
            **os.environ, "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"), "ANSIBLE_CALLBACKS_ENABLED": "crash_point",
            "CRASH_POINTS": file.name, "CRASH_AT": at,
        }
        for _run in range(RUNS if at else 1):
            done = subprocess.run(
                ["ansible-playbook", "-i", str(inventory), str(SCALE), "-e", f"fleet_desired={desired}"],
                env=environment, cwd=SCALE.parents[1], capture_output=True, text=True, check=False, start_new_session=True,
            )
            if done.returncode:
                break
        passed = list(dict.fromkeys(file.read().splitlines()))
    assert done.returncode == (-signal.SIGKILL if at else 0), f"{at}: {passed}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    return passed
