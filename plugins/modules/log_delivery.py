#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: log_delivery
version_added: "1.0.0"
short_description: Prove that a node's log lines have arrived at the log server
description:
  - With O(mode=mark) it writes a unique line at the end of everything that the role P(elearning.moodle_fleet.log_forwarding#role)
    forwards, that is to the journal and to each of the files. Run it on a node after its services were stopped.
  - With O(mode=confirm) it waits on the log server until all these lines are there.
  - Each source is read in order and all of them share one queue that keeps the order, so a mark that arrived proves that
    everything before it has arrived.
options:
  mode:
    description: What to do, see above.
    type: str
    choices: [mark, confirm]
    required: true
  node:
    description: With O(mode=confirm), the node's name at the log server.
    type: str
  marker:
    description: With O(mode=confirm), the marker that O(mode=mark) returned as RV(marker).
    type: str
  channels:
    description: With O(mode=confirm), the sources that O(mode=mark) returned as RV(channels).
    type: list
    elements: str
  timeout:
    description: With O(mode=confirm), seconds to wait. Reaching it fails, since lines would be lost with the node.
    type: float
    default: 60.0
  directory:
    description: With O(mode=confirm), the log server's folder.
    type: path
    default: /var/log/moodle-fleet
  config:
    description: With O(mode=mark), the file in which the forwarder says what it forwards.
    type: path
    default: /etc/moodle-fleet/log_forwarding.json
attributes:
  check_mode:
    description: Can run in check mode. Nothing is marked and nothing is waited for then.
    support: full
  diff_mode:
    description: Returns what changed.
    support: none
  idempotent:
    description: A second run changes nothing. Each mark is a new line.
    support: partial
    details: Confirming changes nothing.
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: Mark the end of the node's lines
  elearning.moodle_fleet.log_delivery:
    mode: mark
  register: mark

- name: Wait until the log server has them all
  elearning.moodle_fleet.log_delivery:
    mode: confirm
    node: "{{ inventory_hostname }}"
    marker: "{{ mark.marker }}"
    channels: "{{ mark.channels }}"
    timeout: 60
  delegate_to: logs-1
"""

RETURN = r"""
marker:
  description: The marker, empty in check mode.
  returned: always
  type: str
  sample: 5f0c2d1e9b7a4c3d8e6f
channels:
  description: The sources that were marked or confirmed, by the names under which the log server files them.
  returned: always
  type: list
  elements: str
  sample: [moodle-fleet-delivery, nginx-access]
seconds:
  description: How long the confirmation took.
  returned: with O(mode=confirm)
  type: float
  sample: 0.4
"""

import glob
import json
import os
import re
import syslog
import time
import uuid

from ansible.module_utils.basic import AnsibleModule

JOURNAL = "moodle-fleet-delivery"
# How much of a file's end is searched first; the mark is among its last lines.
TAIL = 4 * 1024 * 1024


def text_of(marker: str, channel: str) -> str:
    """The line that marks one source."""
    return f"moodle-fleet delivery mark {marker} {channel}"


def forwarded(path: str) -> list[tuple[str, str]]:
    """Tag and path of each file that exists now."""
    with open(path, encoding="utf-8") as handle:
        entries = json.load(handle)["files"]
    return [(entry["tag"], name) for entry in entries for name in sorted(glob.glob(entry["path"]))]


def mark(files: list[tuple[str, str]]) -> tuple[str, list[str]]:
    """Write the marks; returns the marker and the sources."""
    marker = uuid.uuid4().hex[:20]
    channels = []
    for number, (tag, path) in enumerate(files):
        channel = f"{tag}.{number}"
        with open(path, "a", encoding="utf-8") as handle:
            # A writer may have been stopped in the middle of a line.
            handle.write(("\n" if ends_open(path) else "") + text_of(marker, channel) + "\n")
        channels.append(channel)
    syslog.openlog(JOURNAL)
    syslog.syslog(syslog.LOG_INFO, text_of(marker, JOURNAL))
    syslog.closelog()
    return marker, [*channels, JOURNAL]


def ends_open(path: str) -> bool:
    """Whether the file's last line has no end."""
    with open(path, "rb") as handle:
        if not handle.seek(0, os.SEEK_END):
            return False
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) != b"\n"


def program(channel: str) -> str:
    """The program under which the log server files a source."""
    return channel.rsplit(".", 1)[0] if re.search(r"\.\d+$", channel) else channel


def arrived(folder: str, marker: str, channel: str) -> bool:
    """Whether a mark stands in the program's file, or in the one that was rotated away just before."""
    base = os.path.join(folder, program(channel) + ".log")
    wanted = text_of(marker, channel).encode() + b"\n"
    for path in [base, *sorted(glob.glob(glob.escape(base) + "-*[0-9]"))]:
        try:
            with open(path, "rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(max(0, size - TAIL))
                if wanted in handle.read():
                    return True
        except FileNotFoundError:
            continue
    return False


def confirm(folder: str, marker: str, channels: list[str], timeout: float) -> tuple[list[str], float]:
    """Wait for the marks; returns those missing and the seconds it took."""
    began = time.monotonic()
    missing = list(channels)
    while True:
        missing = [channel for channel in missing if not arrived(folder, marker, channel)]
        taken = time.monotonic() - began
        if not missing or taken >= timeout:
            return missing, taken
        time.sleep(0.1)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": ["mark", "confirm"], "required": True},
            "node": {"type": "str"},
            "marker": {"type": "str"},
            "channels": {"type": "list", "elements": "str"},
            "timeout": {"type": "float", "default": 60.0},
            "directory": {"type": "path", "default": "/var/log/moodle-fleet"},
            "config": {"type": "path", "default": "/etc/moodle-fleet/log_forwarding.json"},
        },
        required_if=[("mode", "confirm", ["node", "marker", "channels"])],
        supports_check_mode=True,
    )
    params = module.params
    if params["mode"] == "mark":
        try:
            files = forwarded(params["config"])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            module.fail_json(
                msg=f"config: {params['config']} could not be read: {exc}; apply the role log_forwarding to this node first"
            )
        if module.check_mode:
            module.exit_json(changed=True, marker="", channels=[])
        marker, channels = mark(files)
        module.exit_json(changed=True, marker=marker, channels=channels)

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", params["node"]):
        module.fail_json(msg=f"node: {params['node']!r} is no node name: use letters, digits, dots, dashes and underscores")
    if module.check_mode or not params["marker"]:
        module.exit_json(changed=False, marker=params["marker"], channels=params["channels"], seconds=0.0)
    folder = os.path.join(params["directory"], params["node"])
    missing, taken = confirm(folder, params["marker"], params["channels"], params["timeout"])
    if missing:
        module.fail_json(
            msg=f"after {taken:.0f} s the log server has no mark of {', '.join(missing)} from {params['node']} in {folder}; "
            "look at the forwarder there (systemctl status rsyslog) before the node is removed",
            marker=params["marker"],
            channels=missing,
            seconds=taken,
        )
    module.exit_json(changed=False, marker=params["marker"], channels=params["channels"], seconds=round(taken, 3))


if __name__ == "__main__":
    main()
