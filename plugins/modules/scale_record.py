#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: scale_record
version_added: "1.0.0"
short_description: Record what became of a plan's steps in the fleet's ledger
description:
  - Writes outcome and duration of the steps of one check, so that C(moodle-fleet history) and C(explain) can tell.
  - A step that is reported again is overwritten, so the module may be called as often as is convenient.
extends_documentation_fragment:
  - elearning.moodle_fleet.fleet_file
  - elearning.moodle_fleet.fleet_file.ledger
  - elearning.moodle_fleet.fleet_file.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  check_id:
    description: Number of the check, as M(elearning.moodle_fleet.scale_check) returned it or the trigger gave it.
    type: int
    required: true
  activities:
    description: What became of the steps.
    type: list
    elements: dict
    default: []
    suboptions:
      action:
        description: The step's action.
        type: str
        required: true
        choices: [forget, launch, join, drain, retire]
      node:
        description: The step's node; for a launch its token.
        type: str
        required: true
      status:
        description:
          - What became of it. V(deadline) is a node that was ended by its deadline with work left.
        type: str
        choices: [running, done, failed, deadline, skipped]
        default: done
      started:
        description: Unix time of its begin.
        type: float
      finished:
        description: Unix time of its end.
        type: float
      seconds:
        description: How long it took.
        type: float
      steps:
        description: Seconds by the name of each part, for example V(verify) or V(wait_idle).
        type: dict
        default: {}
      note:
        description: What a reader should know, without secrets.
        type: str
        default: ""
  status:
    description:
      - V(done) or V(failed) closes the check; steps that were not reported become C(unknown).
      - Leave it out when the trigger runs the playbook, because the trigger closes the check itself.
    type: str
    choices: [done, failed]
  note:
    description: What a reader should know of the whole check.
    type: str
    default: ""
seealso:
  - module: elearning.moodle_fleet.scale_check
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: Record that a node has joined
  elearning.moodle_fleet.scale_record:
    fleet_file: inventories/local/moodle_fleet.yml
    check_id: 1412
    activities:
      - action: join
        node: local-web-8f0c2a91d3-1
        seconds: 2.4
        steps: {verify: 1.1, join: 0.2, ramp: 1.1}
    status: done
"""

RETURN = r"""
recorded:
  description: How many steps were new or different.
  returned: success
  type: int
  sample: 1
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import FleetFileError, load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import LedgerError, open_ledger


def main() -> None:
    """Entry point."""
    activity = {
        "action": {"type": "str", "required": True, "choices": ["forget", "launch", "join", "drain", "retire"]},
        "node": {"type": "str", "required": True},
        "status": {
            "type": "str",
            "choices": ["running", "done", "failed", "deadline", "skipped"],
            "default": "done",
        },
        "started": {"type": "float"},
        "finished": {"type": "float"},
        "seconds": {"type": "float"},
        "steps": {"type": "dict", "default": {}},
        "note": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "fleet_file": {"type": "path", "required": True},
            "check_id": {"type": "int", "required": True},
            "activities": {"type": "list", "elements": "dict", "default": [], "options": activity},
            "status": {"type": "str", "choices": ["done", "failed"]},
            "note": {"type": "str", "default": ""},
            "ledger_password": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    recorded, closed = 0, False
    try:
        fleet = load(params["fleet_file"], params["ledger_password"])
        # Check mode records nothing, and a check that was not recorded (0) has nothing to report to.
        if not module.check_mode and params["check_id"] > 0:
            with open_ledger(fleet) as ledger:
                found = ledger.checks(1, check=params["check_id"])
                if not found:
                    module.fail_json(msg=f"check_id: {params['check_id']}: the ledger of {fleet.name} has no such check")
                recorded = ledger.record(params["check_id"], [{**one, "message": one["note"]} for one in params["activities"]])
                closed = params["status"] is not None and found[0]["status"] != params["status"]
                if closed:
                    ledger.finish(params["check_id"], time.time(), params["status"], params["note"])
    except (FleetFileError, LedgerError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=bool(recorded or closed), recorded=recorded)


if __name__ == "__main__":
    main()
