# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""No line is lost while the log server is away, however often forwarder and server are killed meanwhile."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from .conftest import LocalFleet

pytestmark = pytest.mark.slow

# As many as a busy node says in an hour without its access lines; with them, the same queue only fills further.
LINES = 20_000


def on(node: str, script: str) -> str:
    """Run a shell script on a node."""
    done = subprocess.run(["podman", "exec", node, "sh", "-ec", script], capture_output=True, text=True, check=True)
    return done.stdout


def kill(server: str) -> None:
    """Kill rsyslog there, which systemd starts again, after it has worked for a moment."""
    time.sleep(3)
    on(server, "systemctl kill --signal KILL rsyslog.service")


def test_lines_wait_on_the_node_for_as_long_as_the_log_server_is_away(fleet: LocalFleet) -> None:
    node, logs = sorted(fleet.addresses("web"))[0], next(iter(fleet.addresses("logs")))
    # With its socket, which would start it again.
    on(logs, "systemctl stop syslog.socket rsyslog.service")
    try:
        half = LINES // 2
        on(node, f"seq --format 'line %.0f.' {half} | systemd-cat --identifier absence")
        # In the worst moments: while it takes lines from the journal, and while it writes down how far its queue is.
        kill(node)
        kill(node)
        on(node, "truncate --size 200 /var/spool/rsyslog/moodle-fleet/forward.qi")
        on(node, f"seq --format 'line %.0f.' {half + 1} {LINES} | systemd-cat --identifier absence")
        kill(node)
        assert on(logs, f"cat /var/log/moodle-fleet/{node}/absence.log 2>/dev/null || true") == ""
    finally:
        on(logs, "systemctl start rsyslog.service syslog.socket")
    kill(logs)
    kill(node)
    deadline, missing = time.monotonic() + 180, set(range(1, LINES + 1))
    while missing and time.monotonic() < deadline:
        time.sleep(1)
        text = on(logs, f"cat /var/log/moodle-fleet/{node}/absence.log 2>/dev/null || true")
        missing -= {int(number) for number in re.findall(r"\] line (\d+)\.$", text, re.MULTILINE)}
    assert not missing, f"{len(missing)} lines are lost, from {min(missing)} to {max(missing)}"
