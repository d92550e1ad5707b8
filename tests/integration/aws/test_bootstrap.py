# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From an empty account to what a fleet needs and back again, by the playbooks an operator runs.

moto makes nothing that answers: a mount, a failover, a TLS connection are not shown here.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
from pathlib import Path

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver, load
from ansible_collections.elearning.moodle_fleet.tests.integration.aws import more
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import REGION, AwsServer, Fault

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SECRET = "a-secret-for-tests-alone-0123456789abcdef"
assert more.PARAMETERS  # what moto lacks is there before the server starts


def certificate(folder: Path) -> None:
    """A certificate, its key and the authority that signed it."""
    now = datetime.datetime.now(datetime.timezone.utc)
    authority = ec.generate_private_key(ec.SECP256R1())
    key = rsa.generate_private_key(65537, 2048)
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("Tests", "*.example.org"))
    for name, who, public in (("ca", issuer, authority.public_key()), ("cert", subject, key.public_key())):
        made = (
            x509.CertificateBuilder().subject_name(who).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=9)).sign(authority, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ))


@pytest.fixture(name="inventory")
def fixture_inventory(tmp_path: Path) -> Path:
    """A copy of inventories/aws, with what its comments ask for."""
    inventory = tmp_path / "inventory"
    shutil.copytree(ROOT / "inventories" / "aws", inventory)
    certificate(tmp_path)
    files = ", ".join(f"{what}: {tmp_path / name}.pem" for what, name in (("certificate", "cert"), ("key", "key"), ("chain", "ca")))
    variables = inventory / "group_vars" / "all"
    (variables / "secret.yml").write_text(f"---\nmoodle_fleet_secret: {SECRET}\n")
    with (variables / "bootstrap.yml").open("a") as file:
        # Two zones make the same things in less time.
        file.write(f"aws_zones: [{REGION}a, {REGION}b]\n")
        file.write(f"aws_services_certificate: {{name: sites, {files}}}\naws_network_controllers: [192.0.2.0/28]\n")
    text = (inventory / "moodle_fleet.yml").read_text()
    (inventory / "moodle_fleet.yml").write_text(text.replace("fleet: prod\n", f"fleet: prod\nstate_dir: {tmp_path / 'state'}\n"))
    return inventory


def playbook(name: str, inventory: Path, *arguments: str, check: bool = True) -> str:
    """Run a playbook as docs/aws.md says; its output."""
    command = ["ansible-playbook", "-i", "localhost,", str(ROOT / "playbooks" / f"{name}.yml"),
               "-e", f"moodle_fleet_file={inventory / 'moodle_fleet.yml'}", *arguments]
    environment = {
        **os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml", "ANSIBLE_PIPELINING": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "hasty"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) is check, text[-6000:]
    assert SECRET not in text
    return text


def changed(text: str) -> int:
    """Changed tasks."""
    return int(re.search(r"changed=(\d+)", text)[1])


def reads(call: str) -> bool:
    """Whether a call only looks."""
    return call.startswith(("Describe", "List", "Get", "GET "))


@pytest.fixture(name="left")
def fixture_left(aws: AwsServer) -> object:
    """What there is beside an empty account, by kind."""
    def kinds() -> dict[str, int]:
        ec2, elb, rds, efs, iam = (boto3.client(name, REGION) for name in ("ec2", "elbv2", "rds", "efs", "iam"))
        cache, secrets, acm = (boto3.client(name, REGION) for name in ("elasticache", "secretsmanager", "acm"))
        sqs, events = (boto3.client(name, REGION) for name in ("sqs", "events"))
        found = {
            "networks": [one for one in ec2.describe_vpcs()["Vpcs"] if not one["IsDefault"]],
            "addresses": ec2.describe_addresses()["Addresses"],
            "gateways": [one for one in ec2.describe_nat_gateways()["NatGateways"] if one["State"] != "deleted"],
            "groups": [one for one in ec2.describe_security_groups()["SecurityGroups"] if one["GroupName"] != "default"],
            "endpoints": [one for one in ec2.describe_vpc_endpoints()["VpcEndpoints"] if one["State"] == "available"],
            "balancers": elb.describe_load_balancers()["LoadBalancers"],
            "target groups": elb.describe_target_groups()["TargetGroups"],
            "certificates": acm.list_certificates()["CertificateSummaryList"],
            "databases": rds.describe_db_instances()["DBInstances"],
            "file systems": efs.describe_file_systems()["FileSystems"],
            "caches": cache.describe_replication_groups()["ReplicationGroups"],
            "roles": iam.list_roles()["Roles"],
            "instance profiles": iam.list_instance_profiles()["InstanceProfiles"],
            "queues": sqs.list_queues().get("QueueUrls", []),
            "rules": events.list_rules()["Rules"],
            "secrets": secrets.list_secrets()["SecretList"],
            "instances": [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]
                          if i["State"]["Name"] != "terminated"],
        }
        return {kind: len(those) for kind, those in found.items() if those}

    return kinds


def test_from_an_empty_account_and_back(aws: AwsServer, inventory: Path, left, tmp_path: Path) -> None:
    image = aws.base_image()
    first = playbook("aws_bootstrap", inventory, "--check", "--diff", "-e", f"aws_base_image={image}")
    assert changed(first) > 3
    assert left() == {}
    assert {call.action for call in aws.calls if not reads(call.action)} == set()

    playbook("aws_bootstrap", inventory, "-e", f"aws_base_image={image}")
    assert left() == {
        "networks": 1, "addresses": 1, "gateways": 1, "groups": 9, "endpoints": 1, "balancers": 1, "target groups": 1,
        "certificates": 1, "databases": 1, "file systems": 1, "caches": 2, "roles": 1, "instance profiles": 1, "secrets": 1,
        "queues": 1, "rules": 1,
    }
    aws.calls.clear()
    again = playbook("aws_bootstrap", inventory, "--diff")
    assert changed(again) == 0, again
    assert {call.action for call in aws.calls if not reads(call.action)} == set()

    ec2, elb = boto3.client("ec2", REGION), boto3.client("elbv2", REGION)
    # The fleet file is complete: nodes start where it says.
    definition = load(inventory / "moodle_fleet.yml")
    assert sorted(definition.cloud["zones"]) == [f"{REGION}{zone}" for zone in "ab"]
    assert definition.services["database"]["endpoint"].endswith(".rds.amazonaws.com:3306")
    assert definition.services["cache"]["shared_user"] and definition.services["cache"]["muc_endpoint"].endswith(":6380")
    (target,) = boto3.client("events", REGION).list_targets_by_rule(Rule="moodle-fleet-prod-rebalance")["Targets"]
    assert target["Arn"] == definition.cloud["events_queue"]
    nodes = cloud_driver(definition).launch(LaunchSpec("web", 2, "abc"))
    assert sorted(node.zone for node in nodes) == sorted(definition.cloud["zones"])

    # Only the balancer is open to the world, and only for the web.
    open_to_all = {
        (group["GroupName"], rule["FromPort"]) for group in ec2.describe_security_groups()["SecurityGroups"]
        for rule in group["IpPermissions"] if rule["IpRanges"] and rule["IpRanges"][0]["CidrIp"] == "0.0.0.0/0"
    }
    assert open_to_all == {("moodle-fleet-prod-balancer", 80), ("moodle-fleet-prod-balancer", 443)}
    attributes = elb.describe_target_group_attributes(TargetGroupArn=definition.balancer["target_group"])["Attributes"]
    assert {one["Key"]: one["Value"] for one in attributes}["slow_start.duration_seconds"] == "30"
    database = boto3.client("rds", REGION).describe_db_instances()["DBInstances"][0]
    assert database["MultiAZ"] and database["StorageEncrypted"] and database["DeletionProtection"]
    assert not database["PubliclyAccessible"]

    refused = playbook("aws_teardown", inventory, check=False)
    assert "teardown_confirmed=prod" in refused
    refused = playbook("aws_teardown", inventory, "-e", "teardown_confirmed=prod", check=False)
    assert "teardown_data_lost=true" in refused and "database moodle-fleet-prod" in refused
    assert left()["instances"] == 2

    # Interrupted in the middle, and run again.
    words = ("-e", "teardown_confirmed=prod", "-e", "teardown_data_lost=true")
    aws.faults = [Fault("DeleteDBSubnetGroup", "InvalidDBSubnetGroupStateFault", 400, times=None)]
    assert "InvalidDBSubnetGroupStateFault" in playbook("aws_teardown", inventory, *words, check=False)
    aws.faults = []
    there = {"networks", "addresses", "gateways", "groups", "endpoints"}
    assert set(left()) == there | {"file systems", "roles", "instance profiles", "secrets", "queues", "rules"}
    playbook("aws_teardown", inventory, *words)
    assert left() == {}
    assert boto3.client("rds", REGION).describe_db_snapshots()["DBSnapshots"]
    assert changed(playbook("aws_teardown", inventory, *words)) == 0
