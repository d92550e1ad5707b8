# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter scale_activities."""

from __future__ import annotations

DOCUMENTATION = r"""
name: scale_activities
author: Moodle Fleet contributors (!UNKNOWN)
short_description: Say what became of the steps of a plan
version_added: "1.0.0"
description:
  - Puts together what the tasks of the playbook C(scale.yml) registered, as M(elearning.moodle_fleet.scale_record) takes it.
  - Steps that could not be carried out are named with the reason under RV(_value.problems).
options:
  _input:
    description: What the tasks registered, by the names that C(scale.yml) gives them.
    type: dictionary
    required: true
"""

EXAMPLES = r"""
- name: Show that a member without a node was forgotten
  ansible.builtin.debug:
    msg: "{{ (what | elearning.moodle_fleet.scale_activities).activities }}"
  vars:
    what: {now: 12.5, began: 10.0, forget: [local-web-1], forgotten: [{members: [{name: local-web-1, error: ""}]}]}
"""

RETURN = r"""
_value:
  description: What became of the steps.
  type: dictionary
  contains:
    activities:
      description: One entry for each step, with status, seconds, and the seconds of its parts.
      type: list
      elements: dictionary
    problems:
      description: What failed, as sentences.
      type: list
      elements: string
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any


def _answers(registered: Iterable[Any], name: str) -> list[Mapping[str, Any]]:
    """What each balancer said about one member."""
    rows = []
    for one in registered or ():
        found = [row for row in (one or {}).get("members", ()) if row["name"] == name]
        rows += found or [{"name": name, "error": (one or {}).get("msg") or "the balancer did not answer"}]
    return rows


def _verdict(rows: list[Mapping[str, Any]]) -> tuple[str, str]:
    errors = [str(row["error"]) for row in rows if row.get("error")]
    return ("failed", errors[0]) if errors else ("done", "")


def _longest(rows: list[Mapping[str, Any]]) -> float:
    return max((float(row.get("seconds", 0)) for row in rows), default=0.0)


def _launches(run: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    seconds = round(float(run.get("launch_ended") or run["now"]) - float(run["began"]), 3)
    for result in run.get("launched") or ():
        failed = "nodes" not in result
        yield {
            "action": "launch",
            "node": str(result["step"]["token"]),
            "status": "failed" if failed else "done",
            "seconds": seconds,
            "note": str(result.get("msg") or "") if failed else ", ".join(node["name"] for node in result["nodes"]),
        }


def _leaves(run: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for step in run.get("leave") or ():
        name = str(step["node"])
        drained = _answers(run.get("drained"), name)
        parts = {"requests": _longest(drained)}
        try:
            stopped = json.loads((run.get("stopped") or {}).get(name, {}).get("stdout") or "{}")
        except ValueError:
            stopped = {}
        parts |= {part: stopped[part] / 1000 for part in ("idle", "tasks", "stop") if part in stopped}
        confirmed = (run.get("confirmed") or {}).get(name) or {}
        if "seconds" in confirmed:
            parts["logs"] = confirmed["seconds"]
        overdue = name in (run.get("overdue") or ())
        lost = []
        if any(row.get("ended_by_deadline") for row in drained) or stopped.get("left"):
            lost.append("work was left")
        if name not in (run.get("dead") or ()) and ("seconds" not in confirmed or confirmed.get("msg")):
            lost.append("the log server did not confirm the last line")
        status, message = "done", ""
        if name not in (run.get("gone") or ()):
            status, message = "running", "; ".join(lost)
        elif overdue and lost:
            status, message = "deadline", "; ".join(lost)
        yield {
            "action": str(step["action"]), "node": name, "status": status, "note": message,
            "seconds": round(float(run["now"]) - float(step.get("since") or run["began"]), 3),
            "steps": {part: round(seconds, 3) for part, seconds in parts.items()},
        }


def scale_activities(run: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the activities and the problems of one run of scale.yml."""
    activities = []
    for name in run.get("forget") or ():
        status, message = _verdict(_answers(run.get("forgotten"), name))
        activities.append({"action": "forget", "node": str(name), "status": status, "note": message})
    activities += _launches(run)
    for member in run.get("members") or ():
        rows = _answers(run.get("joined"), member["name"])
        status, message = _verdict(rows)
        seconds = round(_longest(rows), 3)
        activities.append({
            "action": "join", "node": str(member["name"]), "status": status, "note": message, "seconds": seconds,
            "steps": {"healthy": seconds},
        })
    activities += _leaves(run)
    problems = [
        f"{one['action']} {one['node']}: {one['note'] or 'failed'}" for one in activities if one["status"] == "failed"
    ]
    for one in activities:
        one |= {"started": float(run["began"]), "finished": float(run["now"])}
    return {"activities": activities, "problems": problems}


class FilterModule:
    """The filter's entry point for Ansible."""

    def filters(self):
        """Return the filters of this file by name."""
        return {"scale_activities": scale_activities}
