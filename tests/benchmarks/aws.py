# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A fleet on AWS's test server, over HTTP: inventory and launch against amazon.aws, growth in API calls, interruptions."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import yaml
from inventory import PLUGIN
from measure import median, report, run, say

from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.growth import MODES, Growth
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import REGION, AwsServer, Fault

NODES = 1000
# Two looks at each of seven checks, of which five grow the fleet, and one launch for each of them and zone with room.
FEWEST = 7 * 2 + 5 * 2


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `aws`."""
    with AwsServer() as server, server.as_environment():
        growth(server)
        interruptions(server, given.goal)
        inventory(server, given.rounds)
        launch(server, given.rounds)


def fleet_file(folder: Path, cloud: dict[str, Any]) -> Path:
    """A fleet file whose inventory asks for nodes alone."""
    path = folder / "moodle_fleet.yml"
    values = {"plugin": "elearning.moodle_fleet.fleet", "fleet": "thousand", "state_dir": str(folder / "state"),
              "phases": False, "cloud": cloud, "scaling": {"min_nodes": 2, "max_nodes": 2000}}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def timed(server: AwsServer, command: list[str], environment: dict[str, str]) -> tuple[float, float, int, str]:
    """Wall seconds, seconds that the server took of them, API calls, output."""
    calls, busy, start = len(server.calls), server.seconds, time.perf_counter()
    output = run(*command, env=os.environ | environment)
    return time.perf_counter() - start, server.seconds - busy, len(server.calls) - calls, output


def inventory(server: AwsServer, rounds: int) -> None:
    """1,000 instances: the fleet's plugin, amazon.aws.aws_ec2, and a plugin that asks nobody."""
    server.reset()
    cloud = cloud_settings(server)
    say(f"  {NODES} instances …")
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import aws_parts as parts

    ec2 = boto3.client("ec2", region_name=REGION)
    for number in range(NODES // 50):
        tags = parts.node_tags("thousand", "web", f"t{number}", range(50), "4.5.6-00000000", {"launch": f"t{number}"})
        ec2.run_instances(
            ImageId=cloud["base_image"], MinCount=1, MaxCount=50, InstanceType="m7i.large",
            SubnetId=list(cloud["zones"].values())[number % 3], TagSpecifications=parts.specifications(tags, False),
        )
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as name:
        folder = Path(name)
        (folder / "plugins").mkdir()
        (folder / "plugins/thousand.py").write_text(PLUGIN, encoding="utf-8")
        ours = fleet_file(folder, cloud)
        theirs = folder / "thousand.aws_ec2.yml"
        theirs.write_text(yaml.safe_dump({
            "plugin": "amazon.aws.aws_ec2", "regions": [REGION], "filters": {"tag:moodle_fleet": "thousand"},
            "hostnames": ["private-ip-address"],
        }), encoding="utf-8")
        nobody = {"ANSIBLE_INVENTORY_PLUGINS": str(folder / "plugins"), "ANSIBLE_INVENTORY_ENABLED": "thousand"}
        (folder / "thousand.none").write_text(run("ansible-inventory", "-i", str(ours), "--list"), encoding="utf-8")
        sides: dict[str, tuple[Path, dict[str, str]]] = {
            "the fleet's plugin": (ours, {}),
            "amazon.aws.aws_ec2": (theirs, {"ANSIBLE_INVENTORY_ENABLED": "amazon.aws.aws_ec2"}),
            "a plugin that asks nobody": (folder / "thousand.none", nobody),
        }
        found: dict[str, list[tuple[float, float, int, str]]] = {side: [] for side in sides}
        for number in range(rounds):
            say(f"  inventory, round {number + 1} of {rounds} …")
            for side, (source, environment) in sides.items():
                found[side].append(timed(server, ["ansible-inventory", "-i", str(source), "--list"], environment))
    rows = []
    for side, values in found.items():
        wall, api = median([value[0] for value in values]), median([value[1] for value in values])
        hosts = len(json.loads(values[0][3])["_meta"]["hostvars"])
        rows.append({"inventory": side, "hosts": hosts, "API calls": values[0][2], "seconds": wall, "of them the API's": api,
                     "own seconds": median([value[0] - value[1] for value in values])})
    own = {row["inventory"]: row["own seconds"] for row in rows}
    notes = [
        f"Own time of the fleet's plugin: {own[side] and own[list(sides)[0]] / own[side]:.2f} × that of {side}."
        for side in list(sides)[1:]
    ]
    report("aws-inventory", f"ansible-inventory with {NODES} instances", rows, notes)


def launch(server: AwsServer, rounds: int) -> None:
    """One node: our module against amazon.aws.ec2_instance."""
    server.reset()
    cloud = cloud_settings(server)
    subnet = next(iter(cloud["zones"].values()))
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as name:
        ours = fleet_file(Path(name), cloud)
        found: dict[str, list[tuple[float, float, int, str]]] = {"elearning.moodle_fleet.node": [], "amazon.aws.ec2_instance": []}
        # The first launch makes the keys and the launch template.
        for number in range(rounds + 1):
            say(f"  launch, round {number} of {rounds} …")
            token = f"r{number}"
            sides = {
                "elearning.moodle_fleet.node": {"fleet_file": str(ours), "role": "web", "token": token, "timeout": 0},
                "amazon.aws.ec2_instance": {
                    "name": token, "image_id": cloud["base_image"], "instance_type": "m7i.large", "vpc_subnet_id": subnet,
                    "security_groups": cloud["security_groups"]["all"], "wait": False, "region": REGION, "tags": {"fleet": "x"},
                    "metadata_options": {"http_tokens": "required", "http_endpoint": "enabled"},
                },
            }
            for module, arguments in sides.items():
                one = timed(server, ["ansible", "localhost", "-m", module, "-a", json.dumps(arguments)], {})
                if number:
                    found[module].append(one)
    rows = [
        {"module": module, "API calls": median([one[2] for one in values]), "seconds": median([one[0] for one in values]),
         "of them the API's": median([one[1] for one in values])}
        for module, values in found.items()
    ]
    ratio = rows[0]["seconds"] / rows[1]["seconds"]
    report("aws-launch", "Launch of one instance", rows, [f"Ours takes {ratio:.2f} × the time of amazon.aws.ec2_instance."])


def hard(server: AwsServer) -> None:
    """A zone without room."""
    server.capacity |= {(f"{REGION}c", kind): 0 for kind in ("m7i.large", "m6i.large")}


def growth(server: AwsServer) -> None:
    """2 to 40 nodes under throttling, one zone without room: API calls against the fewest."""
    rows = []
    for every in (0, 10, 4, 3):
        server.reset()
        with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as name:
            fleet = Growth(server, Path(name), cloud_settings(server))
            hard(server)
            if every:
                server.faults = [Fault("*", "RequestLimitExceeded", 503, times=None, every=every)]
            fleet.finish()
            fleet.close()
        calls = Counter(call.outcome for call in server.calls)
        throttled = calls["RequestLimitExceeded"]
        answered = sum(calls.values()) - throttled - 1  # the last look is this benchmark's own
        zones = fleet.by_zone()
        rows.append({
            "throttled": f"every {every}th call" if every else "never", "checks": fleet.checks, "throttled calls": throttled,
            "calls": answered, "fewest": FEWEST, "ratio": answered / FEWEST,
            "zones": " ".join(str(zones[f"{REGION}{zone}"]) for zone in "abc"),
        })
    report("aws-growth", "2 to 40 nodes, one zone without room", rows,
           ["The fewest: whoever knew beforehand which zone has no room. Calls that AWS throttled are not in it."])


def interruptions(server: AwsServer, goal: int) -> None:
    """Interrupt the growth at each of its calls, in each way; every time it must converge."""
    rows: Counter[tuple[str, str]] = Counter()
    converged = 0
    for mode in MODES:
        number = 0
        while True:
            number += 1
            server.reset()
            with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as name:
                fleet = Growth(server, Path(name), cloud_settings(server), goal=goal)
                hard(server)
                server.hidden_calls = 1
                fleet.interrupt(number, mode)
                fleet.finish()
                fleet.close()
            if not fleet.interrupted:
                break
            rows[mode, fleet.operations[number - 1]] += 1
            converged += 1
        say(f"  {mode}: {number - 1} calls interrupted, all converged")
    table: list[dict[str, object]] = [
        {"interrupted": mode, "call": action, "points": count}
        for (mode, action), count in sorted(rows.items())
    ]
    report("aws-interruptions", f"2 to {goal} nodes, interrupted at every call", table,
           [f"{converged} points, each converged to {goal} nodes: none twice, none unknown, none out of service."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--goal", type=int, default=40)
    main(None, parser.parse_args())
