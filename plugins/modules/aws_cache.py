#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: aws_cache
version_added: "1.0.0"
short_description: A replicated cache at ElastiCache
description:
  - Makes sure that a replication group (one shard of Valkey or Redis, with replicas in other zones that take over) exists or
    is gone. Encrypted in transit and at rest, and reached by a password.
  - P(community.aws.elasticache#module) makes single servers alone, which nobody takes over.
  - A changed O(password) is not noticed, since ElastiCache does not show it.
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
  name:
    description: Name of the replication group, at most 40 of a-z, 0-9 and -.
    type: str
    required: true
  region:
    description: Region, such as V(eu-central-1).
    type: str
    required: true
  state:
    description: Whether it ought to exist.
    type: str
    choices: [present, absent]
    default: present
  engine:
    description: Program that is run.
    type: str
    choices: [valkey, redis]
    default: valkey
  engine_version:
    description: Its version; the newest that ElastiCache has where this is not given. A version that runs is never changed here.
    type: str
  node_type:
    description: Size of each server. Needed with O(state=present).
    type: str
  replicas:
    description: Servers that stand by in other zones. Counted when it is made.
    type: int
    default: 1
  subnet_group:
    description: Name of ElastiCache's subnet group. Needed with O(state=present).
    type: str
  security_groups:
    description: Ids of security groups.
    type: list
    elements: str
    default: []
  port:
    description: Port.
    type: int
    default: 6379
  password:
    description: Password, 16 to 128 characters. Needed with O(state=present).
    type: str
  parameters:
    description: Settings of the server, kept in a parameter group of the same name. Needs O(family).
    type: dict
    default: {}
  family:
    description: Family of the parameter group, such as V(valkey8).
    type: str
  snapshot_days:
    description: For how many days daily snapshots are kept; V(0) makes none.
    type: int
    default: 0
  tags:
    description: Tags, set when it is made.
    type: dict
    default: {}
  timeout:
    description: Seconds until it has to be ready, or gone.
    type: int
    default: 1800
"""

EXAMPLES = r"""
- name: Sessions that survive a server and are never evicted
  elearning.moodle_fleet.aws_cache:
    name: moodle-fleet-prod-sessions
    region: eu-central-1
    node_type: cache.t4g.small
    subnet_group: moodle-fleet-prod
    security_groups: [sg-0123456789abcdef0]
    password: "{{ cache_admin_password }}"
    family: valkey8
    parameters: {maxmemory-policy: noeviction}
    tags: {moodle_fleet: prod}
  delegate_to: localhost
"""

RETURN = r"""
host:
  description: Name of the server that takes writes; it stays the same when another one takes over.
  returned: when it exists
  type: str
  sample: master.moodle-fleet-prod-sessions.abc123.euc1.cache.amazonaws.com
port:
  description: Its port.
  returned: when it exists
  type: int
  sample: 6379
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    boto3 = None

POLL_SECONDS = 15


def code(exc: Exception) -> str:
    """AWS's name of an error."""
    return getattr(exc, "response", {}).get("Error", {}).get("Code", "")


def find(client: Any, name: str) -> dict | None:
    """The replication group as AWS describes it; None where there is none."""
    try:
        return client.describe_replication_groups(ReplicationGroupId=name)["ReplicationGroups"][0]
    except ClientError as exc:
        if code(exc) == "ReplicationGroupNotFoundFault":
            return None
        raise


def parameters(client: Any, name: str) -> dict[str, str] | None:
    """The settings that a parameter group changes; None where there is no group."""
    found: dict[str, str] = {}
    try:
        pages = client.get_paginator("describe_cache_parameters").paginate(CacheParameterGroupName=name, Source="user")
        for page in pages:
            found.update({one["ParameterName"]: one.get("ParameterValue", "") for one in page["Parameters"]})
    except ClientError as exc:
        if code(exc) in ("CacheParameterGroupNotFound", "CacheParameterGroupNotFoundFault"):
            return None
        raise
    return found


def settle(module: AnsibleModule, client: Any) -> dict | None:
    """Wait while the group is being made, changed or deleted.

    Its members are asked for first: until the description says which they are, there is nothing to connect to.
    """
    deadline = time.monotonic() + module.params["timeout"]
    while True:
        group = find(client, module.params["name"])
        if group is None or group["Status"] == "available":
            return group
        if group["Status"] == "create-failed":
            module.fail_json(msg=f"Failed to make {module.params['name']}: AWS says create-failed; see the events of ElastiCache")
        if time.monotonic() > deadline:
            module.fail_json(
                msg=f"{module.params['name']} is still {group['Status']!r} after timeout={module.params['timeout']} s; run this again"
            )
        time.sleep(POLL_SECONDS)


def wanted_changes(params: dict, group: dict) -> dict[str, tuple[Any, Any]]:
    """What differs of a group that exists and can be changed: argument, what it is, what it ought to be."""
    pairs = {
        "CacheNodeType": (group.get("CacheNodeType"), params["node_type"]),
        "SnapshotRetentionLimit": (int(group.get("SnapshotRetentionLimit") or 0), params["snapshot_days"]),
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def creation(params: dict) -> dict[str, Any]:
    """The arguments that make the group."""
    arguments = {
        "ReplicationGroupId": params["name"],
        "ReplicationGroupDescription": params["name"],
        "Engine": params["engine"],
        "CacheNodeType": params["node_type"],
        "NumCacheClusters": params["replicas"] + 1,
        "AutomaticFailoverEnabled": params["replicas"] > 0,
        "MultiAZEnabled": params["replicas"] > 0,
        "CacheSubnetGroupName": params["subnet_group"],
        "SecurityGroupIds": params["security_groups"],
        "Port": params["port"],
        "TransitEncryptionEnabled": True,
        "AtRestEncryptionEnabled": True,
        "AuthToken": params["password"],
        "SnapshotRetentionLimit": params["snapshot_days"],
        "Tags": [{"Key": str(key), "Value": str(value)} for key, value in sorted(params["tags"].items())],
    }
    if params["engine_version"]:
        arguments["EngineVersion"] = params["engine_version"]
    if params["parameters"]:
        arguments["CacheParameterGroupName"] = params["name"]
    return arguments


def set_parameters(module: AnsibleModule, client: Any) -> list[str]:
    """Make the parameter group and set what differs; returns it in words."""
    params = module.params
    if not params["parameters"]:
        return []
    wanted = {key: str(value) for key, value in params["parameters"].items()}
    found = parameters(client, params["name"])
    differing = {key: value for key, value in wanted.items() if (found or {}).get(key) != value}
    if not module.check_mode:
        if found is None:
            client.create_cache_parameter_group(
                CacheParameterGroupName=params["name"], CacheParameterGroupFamily=params["family"],
                Description=params["name"],
                Tags=[{"Key": str(key), "Value": str(value)} for key, value in sorted(params["tags"].items())],
            )
        if differing:
            client.modify_cache_parameter_group(
                CacheParameterGroupName=params["name"],
                ParameterNameValues=[{"ParameterName": k, "ParameterValue": v} for k, v in sorted(differing.items())],
            )
    return [f"parameter {key}: {(found or {}).get(key)} -> {value}" for key, value in sorted(differing.items())]


def present(module: AnsibleModule, client: Any) -> dict:
    """Make the group, or change what can be changed."""
    params = module.params
    said = set_parameters(module, client)
    group = find(client, params["name"])
    if group is None:
        said.append(f"replication group {params['name']}, {params['replicas'] + 1} x {params['node_type']}")
        if not module.check_mode:
            client.create_replication_group(**creation(params))
            group = settle(module, client)
    else:
        changes = wanted_changes(params, group)
        said += [f"{key}: {pair[0]} -> {pair[1]}" for key, pair in sorted(changes.items())]
        if not module.check_mode:
            if changes:
                settle(module, client)
                client.modify_replication_group(
                    ReplicationGroupId=params["name"], ApplyImmediately=True, **{key: pair[1] for key, pair in changes.items()}
                )
            group = settle(module, client)
    result: dict[str, Any] = {"changed": bool(said), "diff": {"before": "", "after": "".join(f"{line}\n" for line in said)}}
    endpoint = ((group or {}).get("NodeGroups") or [{}])[0].get("PrimaryEndpoint") or {}
    if endpoint:
        result.update(host=endpoint["Address"], port=int(endpoint["Port"]))
    return result


def absent(module: AnsibleModule, client: Any) -> dict:
    """Remove the group and its parameter group."""
    name = module.params["name"]
    group = find(client, name)
    has_parameters = parameters(client, name) is not None if module.params["parameters"] else False
    if not module.check_mode:
        if group is not None and group["Status"] != "deleting":
            client.delete_replication_group(ReplicationGroupId=name, RetainPrimaryCluster=False)
        deadline = time.monotonic() + module.params["timeout"]
        while group is not None and find(client, name) is not None:
            if time.monotonic() > deadline:
                module.fail_json(msg=f"{name} is still there after timeout={module.params['timeout']} s; run this again")
            time.sleep(POLL_SECONDS)
        if has_parameters:
            client.delete_cache_parameter_group(CacheParameterGroupName=name)
    there = group is not None or has_parameters
    return {"changed": there, "diff": {"before": f"replication group {name}\n" if there else "", "after": ""}}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "region": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "engine": {"type": "str", "choices": ["valkey", "redis"], "default": "valkey"},
            "engine_version": {"type": "str"},
            "node_type": {"type": "str"},
            "replicas": {"type": "int", "default": 1},
            "subnet_group": {"type": "str"},
            "security_groups": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": 6379},
            "password": {"type": "str", "no_log": True},
            "parameters": {"type": "dict", "default": {}},
            "family": {"type": "str"},
            "snapshot_days": {"type": "int", "default": 0},
            "tags": {"type": "dict", "default": {}},
            "timeout": {"type": "int", "default": 1800},
        },
        required_if=[("state", "present", ["node_type", "subnet_group", "password"])],
        supports_check_mode=True,
    )
    if boto3 is None:
        module.fail_json(msg=missing_required_lib("boto3"))
    if module.params["state"] == "present" and module.params["parameters"] and not module.params["family"]:
        module.fail_json(msg="family: None: parameters need the family of their group, such as valkey8")
    client = boto3.client("elasticache", region_name=module.params["region"], config=Config(retries={"mode": "standard"}))
    try:
        act = present if module.params["state"] == "present" else absent
        result = act(module, client)
    except (BotoCoreError, ClientError) as exc:
        module.fail_json(msg=f"Failed to look after {module.params['name']} at ElastiCache: {exc}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
