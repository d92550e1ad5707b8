# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who carries out a plan: a playbook on this machine, or a job of AWX."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import Outcome, RunResult
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet


def actor(arguments: argparse.Namespace, fleet: Fleet) -> Callable[[Outcome, int], RunResult] | str:
    """What carries out the plan of an outcome, and keeps a lock's descriptor meanwhile; or a text that says what is missing."""

    def variables(outcome: Outcome) -> dict[str, object]:
        return {
            "fleet_plan": outcome.plan.to_data()["steps"],
            "fleet_check_id": outcome.check,
            "fleet_file": str(fleet.path),
        }

    if not arguments.awx_url:
        def local(outcome: Outcome, lock: int) -> RunResult:
            from ansible_collections.elearning.moodle_fleet.trigger import runner

            playbook = arguments.playbook or runner.COLLECTION / "playbooks" / "scale.yml"
            folder = fleet.state_dir / "runs" / f"{outcome.check:08d}"
            launched = folder / "launched.json"
            # A ledger that begins anew counts its checks anew.
            launched.unlink(missing_ok=True)
            return runner.run_playbook(playbook, fleet.path, {**variables(outcome), "fleet_launched": str(launched)}, folder,
                                       lock=lock, timeout=arguments.timeout,
                                       meanwhile=lambda: runner.launch_at_once(fleet, outcome.plan, launched))
        return local

    token = os.environ.get("MOODLE_FLEET_AWX_TOKEN", "")
    if arguments.awx_token_file:
        try:
            token = Path(arguments.awx_token_file).read_text(encoding="utf-8").strip()
        except OSError as exc:
            return f"the token file {arguments.awx_token_file} cannot be read: {exc.strerror}"
    if not token or not arguments.awx_template:
        return "AWX needs --awx-template and a token (--awx-token-file or MOODLE_FLEET_AWX_TOKEN)"

    def remote(outcome: Outcome, _lock: int) -> RunResult:
        from ansible_collections.elearning.moodle_fleet.trigger.awx import AWX

        values = variables(outcome)
        del values["fleet_file"]  # a path on this machine means nothing to AWX's
        values["fleet_record"] = False  # this check records: the job's artifacts say what became of the plan
        return AWX(arguments.awx_url, token, arguments.awx_template).run(values, limit=arguments.timeout)
    return remote
