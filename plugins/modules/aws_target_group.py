#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: aws_target_group
version_added: "1.0.0"
short_description: Attributes of a load balancer's target group
description:
  - Sets attributes of a target group that P(community.aws.elb_target_group#module) has no option for, such as the slow start.
author:
  - Moodle Fleet contributors (@moodle-fleet)
requirements:
  - boto3
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns what differs.
    support: full
options:
  arn:
    description: ARN of the target group.
    type: str
    required: true
  region:
    description: Region, such as V(eu-central-1).
    type: str
    required: true
  attributes:
    description: Attributes by the names that AWS gives them. Others stay as they are.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Give a new web node its share little by little
  elearning.moodle_fleet.aws_target_group:
    arn: "{{ target_group.target_group_arn }}"
    region: eu-central-1
    attributes: {slow_start.duration_seconds: 30}
  delegate_to: localhost
"""

RETURN = r"""
attributes:
  description: The attributes that were asked for, as they are now.
  returned: success
  type: dict
  sample: {slow_start.duration_seconds: "30"}
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    boto3 = None


def lines(attributes: dict[str, str]) -> str:
    """Attributes as lines of a diff."""
    return "".join(f"{key}: {value}\n" for key, value in sorted(attributes.items()))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "arn": {"type": "str", "required": True},
            "region": {"type": "str", "required": True},
            "attributes": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    if boto3 is None:
        module.fail_json(msg=missing_required_lib("boto3"))
    wanted = {str(key): str(value) for key, value in module.params["attributes"].items()}
    try:
        client = boto3.client("elbv2", region_name=module.params["region"], config=Config(retries={"mode": "standard"}))
        answer = client.describe_target_group_attributes(TargetGroupArn=module.params["arn"])
        found = {one["Key"]: one["Value"] for one in answer["Attributes"]}
        before = {key: found.get(key, "") for key in wanted}
        differing = {key: value for key, value in wanted.items() if before[key] != value}
        if differing and not module.check_mode:
            client.modify_target_group_attributes(
                TargetGroupArn=module.params["arn"],
                Attributes=[{"Key": key, "Value": value} for key, value in sorted(differing.items())],
            )
    except (BotoCoreError, ClientError) as exc:
        module.fail_json(msg=f"Failed to set attributes of the target group {module.params['arn']}: {exc}")
    module.exit_json(changed=bool(differing), attributes=wanted, diff={"before": lines(before), "after": lines(wanted)})


if __name__ == "__main__":
    main()
