# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tables for people: drawn with rich on a terminal, plain columns elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import counted

# Left out by rich where NO_COLOR is set.
_STYLES = dict.fromkeys(("sick", "stranded", "ghost", "failed"), "red") | {"in_service": "green", "done": "green"}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            Console().print(_drawn(title, head, rows))
            return
    print("\n".join(_plain(title, head, rows)))


def _drawn(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, title_justify="left")
    for name in head:
        drawn.add_column(name)
    for row in rows:
        drawn.add_row(*[Text(cell, style=_STYLES.get(cell, "")) for cell in row])  # Text: a cloud's names are no markup
    return drawn


def _plain(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    return [title, *("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *rows])]


def status(name: str, data: Mapping[str, Any]) -> None:
    """The fleet as it is now."""
    before, after = _status_lines(name, data)
    print("\n".join(before))
    if data["phases"]:
        table("Web nodes", _NODES_HEAD, sorted(data["phases"].items()))
    for line in after:
        print(line)


_NODES_HEAD = ("node", "phase")


def _status_lines(name: str, data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What stands above and below the table of nodes."""
    taken = data["sample"]
    share = f" ({taken['load'] / taken['capacity']:.0%})" if taken["capacity"] else ""
    lines = [f"Fleet {name}: {counted(data['size'], 'web node')} present, {data['desired']} wanted "
             f"({data['min_nodes']} to {data['max_nodes']})"]
    trust = "" if taken["trusted"] else ", not trusted: " + "; ".join(fault["text"] for fault in taken["faults"])
    lines.append(f"Load {taken['load']:.1f} of {taken['capacity']} workers{share}, {taken['waiting']} waiting{trust}")
    for pause in data["pauses"]:
        until = "" if not pause["until"] else " until " + _when(pause["until"])
        what = "Scaling in" if pause["scope"] == "in" else "Scaling"
        lines.append(f"{what} is paused since {_when(pause['since'])}{until}: {pause['reason'] or 'no reason given'}")
    last = data["last_check"]
    if last:
        ago = max(0, data["now"] - last["started"])
        lines.append(f"Last check {last['id']} {ago:.0f} s ago: {last['status']}"
                     + (f", {last['message']}" if last["message"] else ""))
    else:
        lines.append("No check was made yet: is the timer running?")
    lines += [f"Not answering: {error}" for error in data["errors"]]
    after = [
        f"The next check would {step['action']} {step.get('node') or counted(step.get('count', 0))}: {step['reason']}"
        for step in data["plan"]["steps"]
    ]
    return lines, after


def watch(name: str, read: Callable[[], Mapping[str, Any]], seconds: float) -> None:
    """Show the status again and again until interrupted: in place on a terminal, else as text that goes on."""
    if sys.stdout.isatty():
        try:
            from rich.console import Group
            from rich.live import Live
            from rich.text import Text
        except ImportError:
            pass
        else:
            with Live(screen=True, auto_refresh=False) as live:
                while True:
                    data = read()
                    before, after = _status_lines(name, data)
                    nodes = [_drawn("Web nodes", _NODES_HEAD, sorted(data["phases"].items()))] if data["phases"] else []
                    reasons = [f"  {number}. {reason['text']} → {reason['desired']}"
                               for number, reason in enumerate(data["decision"]["reasons"], 1)]
                    foot = f"{_when(data['now'])}, every {seconds:g} s; Ctrl-C ends"
                    # Text: a pause's reason or a node's name is no markup.
                    live.update(Group(Text("\n".join([*before, "Why:", *reasons])), *nodes, Text("\n".join([*after, foot]))), refresh=True)
                    time.sleep(seconds)
    while True:
        data = read()
        print(f"-- {_when(data['now'])}")
        status(name, data)
        sys.stdout.flush()
        time.sleep(seconds)


def watch_lines(read: Callable[[], Mapping[str, Any]], seconds: float) -> None:
    """The same as data: one line of JSON each time."""
    import json

    while True:
        print(json.dumps(read(), ensure_ascii=False), flush=True)
        time.sleep(seconds)


def history(rows: Sequence[Mapping[str, Any]]) -> None:
    """The latest checks, newest first."""
    if not rows:
        print("No check has changed anything yet; 'moodle-fleet history --all' also lists those that had nothing to do.")
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
