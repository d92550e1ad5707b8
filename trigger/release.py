# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``moodle-fleet release``: brings all tenants to another release, and says how far that is."""

from __future__ import annotations

import argparse
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._releases.show import lines
from ansible_collections.elearning.moodle_fleet.trigger import tenants

PLAYBOOKS = {"run": "release", "status": "release_status"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("action", choices=PLAYBOOKS, help="run: begin a release, or go on with it; status: how far it is, a line for each tenant")
    parser.add_argument("--version", default="", help="run: Moodle's version, a tag or branch, instead of moodle_version")
    parser.add_argument("--source", default="", help="run: where Moodle's code is, instead of moodle_source")
    parser.add_argument("--canary", action="append", default=[], metavar="TENANT", help="run: who goes first; can be repeated")
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="run: tenants that are worked on at a time (2)")
    parser.add_argument("--max-failures", type=int, default=3, metavar="N", help="run: begin with nobody else once so many failed (3)")
    parser.add_argument("--timeout", type=float, default=24 * 3600, metavar="S", help="seconds a run may take (86400)")


def variables(given: argparse.Namespace) -> dict[str, Any]:
    """The playbook's variables."""
    if given.action == "status":
        return {}
    chosen = {"moodle_version": given.version, "moodle_source": given.source}
    return {
        **{key: value for key, value in chosen.items() if value}, "release_canaries": given.canary,
        "release_parallel": given.parallel, "release_max_failures": given.max_failures,
    }


def run(given: argparse.Namespace, fleet: Fleet) -> tuple[int, dict[str, Any], str]:
    """Run it; returns an exit code, how far the tenants are, and what went wrong."""
    if given.action == "run" and (given.parallel < 1 or given.max_failures < 1):
        return 2, {}, "--parallel and --max-failures: use at least 1"
    return tenants.run_playbook(PLAYBOOKS[given.action], f"release-{given.action}", variables(given), fleet, given.timeout)


__all__ = ["arguments", "lines", "run", "variables"]
