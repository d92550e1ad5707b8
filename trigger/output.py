# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tables for people: drawn with rich on a terminal, plain columns elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import counted

# Left out by rich where NO_COLOR is set.
_STYLES = dict.fromkeys(("sick", "stranded", "ghost", "failed"), "red") | {"in_service": "green", "done": "green"}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            drawn = Table(title=title, title_justify="left")
            for name in head:
                drawn.add_column(name)
            for row in rows:
                drawn.add_row(*[Text(cell, style=_STYLES.get(cell, "")) for cell in row])  # Text: a cloud's names are no markup
            Console().print(drawn)
            return
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    print(title)
    for row in [head, *rows]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def status(name: str, data: Mapping[str, Any]) -> None:
    """The fleet as it is now."""
    taken = data["sample"]
    share = f" ({taken['load'] / taken['capacity']:.0%})" if taken["capacity"] else ""
    print(f"Fleet {name}: {counted(data['size'], 'web node')} present, {data['desired']} wanted "
          f"({data['min_nodes']} to {data['max_nodes']})")
    trust = "" if taken["trusted"] else ", not trusted: " + "; ".join(fault["text"] for fault in taken["faults"])
    print(f"Load {taken['load']:.1f} of {taken['capacity']} workers{share}, {taken['waiting']} waiting{trust}")
    for pause in data["pauses"]:
        until = "" if not pause["until"] else " until " + _when(pause["until"])
        what = "Scaling in" if pause["scope"] == "in" else "Scaling"
        print(f"{what} is paused since {_when(pause['since'])}{until}: {pause['reason'] or 'no reason given'}")
    last = data["last_check"]
    if last:
        ago = max(0, data["now"] - last["started"])
        print(f"Last check {last['id']} {ago:.0f} s ago: {last['status']}"
              + (f", {last['message']}" if last["message"] else ""))
    else:
        print("No check was made yet: is the timer running?")
    for error in data["errors"]:
        print(f"Not answering: {error}")
    if data["phases"]:
        table("Web nodes", ("node", "phase"), sorted(data["phases"].items()))
    for step in data["plan"]["steps"]:
        target = step.get("node") or counted(step.get("count", 0))
        print(f"The next check would {step['action']} {target}: {step['reason']}")


def history(rows: Sequence[Mapping[str, Any]]) -> None:
    """The latest checks, newest first."""
    if not rows:
        print("No check has changed anything yet.")
        return
    lines = []
    for row in rows:
        done = ", ".join(
            f"{one['action']} {one['node']} {one['status']}"
            + (f" {one['seconds']:.1f} s" if one["seconds"] is not None else "")
            for one in row["activities"]
        )
        size = f"{row['size']} → {row['desired']}"
        lines.append((str(row["id"]), _when(row["started"]), size, row["status"], done or row["message"]))
    table("Checks", ("check", "time", "nodes", "status", "what was done"), lines)


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
