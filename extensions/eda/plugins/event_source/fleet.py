# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""An event source of ansible-rulebook: what C(moodle-fleet status) says of a fleet, again and again."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

DOCUMENTATION = r"""
---
short_description: Follow a Moodle fleet
description:
  - Follows C(moodle-fleet status --watch --json), which reads the balancer, the cloud and the fleet's ledger, and writes nothing.
  - Each reading is an event C(fleet_status) with C(fleet), C(size), C(desired), C(phases), C(sample) (with C(load), C(capacity),
    C(waiting), C(trusted)), C(errors), C(pauses) and C(last_check).
  - Each check that the ledger has since the last reading makes an event C(fleet_check) as well, with C(fleet), C(id), C(started),
    C(status) and C(message). The check that was there at the start makes none.
  - Where the command ends, it is started again after O(interval) seconds, and its last words are logged.
options:
  fleet_file:
    description: Absolute path of the fleet file.
    type: str
    required: true
  command:
    description: The command and its first arguments.
    type: list
    elements: str
    default: [moodle-fleet]
  interval:
    description: Seconds from one reading to the next.
    type: float
    default: 5
"""

EXAMPLES = r"""
- elearning.moodle_fleet.fleet:
    fleet_file: /etc/moodle-fleet/moodle_fleet.yml
    interval: 5
"""

STATUS = ("fleet", "size", "desired", "phases", "sample", "errors", "pauses", "last_check")
# One reading of a thousand nodes is longer than asyncio's limit of a line.
LINE = 16 * 1024 * 1024
logger = logging.getLogger(__name__)


def events(reading: dict[str, Any], seen: int | None) -> tuple[list[dict[str, Any]], int]:
    """The events of a reading, and the number of its last check; ``seen`` is that of the reading before, None for the first."""
    made: list[dict[str, Any]] = [{"fleet_status": {key: reading[key] for key in STATUS if key in reading}}]
    last = reading.get("last_check") or {}
    number = int(last.get("id") or 0)
    if seen is not None and number > seen:
        made.append({"fleet_check": {"fleet": reading.get("fleet"), **last}})
    return made, max(number, seen or 0)


def arguments(args: dict[str, Any]) -> tuple[list[str], float]:
    """The command line and the interval; ValueError with a remedy when an option can't be used."""
    file, command, interval = args.get("fleet_file"), args.get("command", ["moodle-fleet"]), args.get("interval", 5)
    if not file or not isinstance(file, str):
        raise ValueError("fleet_file: give the absolute path of the fleet file")
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise ValueError(f"command: {command!r}: give a list, for example [moodle-fleet]")
    try:
        seconds = float(interval)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0.2 <= seconds <= 3600:
        raise ValueError(f"interval: {interval!r}: give seconds from 0.2 to 3600")
    return [*command, "--fleet", file, "status", "--json", "--watch", f"{seconds:g}"], seconds


async def main(queue: asyncio.Queue[Any], args: dict[str, Any]) -> None:
    """Called by ansible-rulebook; runs until it is cancelled."""
    command, interval = arguments(args)
    seen: int | None = None
    while True:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=LINE,
        )
        assert process.stdout and process.stderr
        complaint = asyncio.create_task(process.stderr.read())
        try:
            async for line in process.stdout:
                reading = json.loads(line)
                if "error" in reading:
                    continue  # said on the standard error too
                made, seen = events(reading, seen)
                for event in made:
                    await queue.put(event)
            code = await process.wait()
            words = (await complaint).decode("utf-8", "replace").strip()
            logger.error("moodle-fleet status ended with %s and starts again in %g s: %s", code, interval, words[-500:])
        finally:
            complaint.cancel()
            if process.returncode is None:
                process.terminate()
                await process.wait()
        await asyncio.sleep(interval)
