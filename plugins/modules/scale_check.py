#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: scale_check
version_added: "1.0.0"
short_description: Observe a fleet, decide how many web nodes it needs, plan the steps
description:
  - Takes the same check as the command C(moodle-fleet check), without acting on it.
  - Reads the nodes from the cloud and the load from the balancer, decides, and returns the plan as data.
  - With O(record=true) the check, its plan and the launches it announces are written to the fleet's ledger first, so
    that a run that is cut off is picked up by the next check. Report the outcome with
    M(elearning.moodle_fleet.scale_record).
  - Such a check takes the fleet's lock, for as long as it takes, and fails where another check has it for more than 15 seconds.
  - In check mode nothing is recorded.
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
  desired:
    description:
      - Number of web nodes that a person asks for. It stands above the recommendation, never above the bounds of the
        fleet file, and a pause of all scaling holds against it.
      - Without it the fleet's own decision counts.
    type: int
  release:
    description: Launch new nodes from the newest image of this release; empty for the newest image of any.
    type: str
    default: ""
  record:
    description: Whether to write the check to the ledger. Needed when the plan is going to be carried out.
    type: bool
    default: true
seealso:
  - module: elearning.moodle_fleet.scale_record
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: See what the next check would do
  elearning.moodle_fleet.scale_check:
    fleet_file: inventories/local/moodle_fleet.yml
    record: false
  register: check

- name: Show why
  ansible.builtin.debug:
    var: check.reasons

- name: Plan five web nodes
  elearning.moodle_fleet.scale_check:
    fleet_file: inventories/local/moodle_fleet.yml
    desired: 5
"""

RETURN = r"""
check_id:
  description: Number of the check in the ledger; V(0) when it was not recorded.
  returned: success
  type: int
  sample: 1412
status:
  description: V(planned) when there are steps, V(idle) when there are none, V(blind) when the cloud or balancer failed.
  returned: success
  type: str
  sample: planned
decision:
  description: The decision, with C(desired), C(direction), C(size), C(recommended), C(trusted) and C(reasons).
  returned: success
  type: dict
  sample: {desired: 3, direction: out, size: 2, recommended: 3, trusted: true, frozen: false, hold_in: false, reasons: []}
plan:
  description: The steps in their order, and notes. See the documentation of scaling for the keys of a step.
  returned: success
  type: dict
  sample:
    steps:
      - {action: launch, count: 1, token: 8f0c2a91d3, zones: [b], tags: {launch: 8f0c2a91d3}, reason: "3 nodes wanted, 2 present"}
    notes: []
phases:
  description: Phase of each web node by name.
  returned: success
  type: dict
  sample: {local-web-1: in_service, local-web-2: in_service}
sample:
  description: The load and whether it is trusted.
  returned: success
  type: dict
  sample: {load: 11.2, capacity: 8, waiting: 3, trusted: true}
reasons:
  description: The reasons of the decision as sentences, in their order.
  returned: success
  type: list
  elements: str
  sample: ["6.2 of 8 workers busy (78%), target 70%: 3 nodes"]
errors:
  description: What did not answer.
  returned: success
  type: list
  elements: str
  sample: []
"""

import contextlib

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import check, sources_of
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import FleetFileError, load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import LedgerError, Locked, open_ledger, single_flight
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy

# Seconds to wait for another check: it takes less, unless it carries out a plan.
PATIENCE = 15


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "fleet_file": {"type": "path", "required": True},
            "desired": {"type": "int"},
            "release": {"type": "str", "default": ""},
            "record": {"type": "bool", "default": True},
            "ledger_password": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["desired"] is not None and params["desired"] < 0:
        module.fail_json(msg=f"desired: {params['desired']}: give the number of web nodes, 0 or more")
    record = params["record"] and not module.check_mode
    try:
        fleet = load(params["fleet_file"], params["ledger_password"])
        lock = single_flight(fleet, "check", PATIENCE) if record else contextlib.nullcontext()
        with lock, open_ledger(fleet, trace=record) as ledger:
            outcome = check(
                Policy.from_settings(fleet.scaling),
                ledger,
                sources_of(fleet),
                origin="playbook",
                manual=params["desired"],
                release=params["release"],
                record=record,
            )
    except Locked as exc:
        module.fail_json(msg=f"{exc}: run this again when it has ended")
    except (FleetFileError, LedgerError, CloudError) as exc:
        module.fail_json(msg=str(exc))
    for error in outcome.errors:
        module.warn(error)
    data = outcome.to_data()
    for key in ("message", "activities"):
        del data[key]
    module.exit_json(changed=False, reasons=[reason.text for reason in outcome.decision.reasons], **data)


if __name__ == "__main__":
    main()
