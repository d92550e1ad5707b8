# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A fleet on AWS's test server, over HTTP: inventory and launch against amazon.aws, growth in API calls, interruptions."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from inventory import PLUGIN

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import aws_parts as parts
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.growth import MODES, Growth
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import REGION, AwsServer, Fault
from measure import median, report, run, say

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


# The same question, asked with nothing around it: what the API and boto3 take by themselves.
BARE = f"""
import boto3
pages = boto3.client("ec2").get_paginator("describe_instances").paginate(
    Filters=[{{"Name": "tag:moodle_fleet", "Values": ["thousand"]}}], PaginationConfig={{"PageSize": 1000}})
assert sum(len(one["Instances"]) for page in pages for one in page["Reservations"]) == {NODES}
"""


@dataclass(frozen=True)
class Run:
    """One command: wall and CPU seconds, API calls, what it printed."""

    wall: float
    cpu: float
    calls: int
    output: str


def timed(server: AwsServer, command: list[str], environment: dict[str, str]) -> Run:
    """Run a command; the server's own CPU is not in it, as it runs in this process."""
    calls, before, start = len(server.calls), resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = run(*command, env=os.environ | environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall, cpu, len(server.calls) - calls, output)


def inventory(server: AwsServer, rounds: int) -> None:
    """1,000 instances: the fleet's plugin, amazon.aws.aws_ec2, and a plugin that asks nobody."""
    server.reset()
    cloud = cloud_settings(server)
    say(f"  {NODES} instances …")
    for number in range(NODES // 50):
        tags = parts.node_tags("thousand", "web", f"t{number}", range(50), "4.5.6-00000000", {"launch": f"t{number}"})
        # Past the API, whose answer nobody wants.
        server.ec2.run_instances(
            cloud["base_image"], 50, None, [], tags={"instance": tags}, instance_type="m7i.large", region_name=REGION,
            is_instance_type_default=False, subnet_id=list(cloud["zones"].values())[number % 3],
        )
    server.keep_answers = True
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
        lists = ["ansible-inventory", "--list", "-i"]
        sides: dict[str, tuple[list[str], dict[str, str]]] = {
            "the fleet's plugin": ([*lists, str(ours)], {}),
            "amazon.aws.aws_ec2": ([*lists, str(theirs)], {"ANSIBLE_INVENTORY_ENABLED": "amazon.aws.aws_ec2"}),
            "a plugin that asks nobody": ([*lists, str(folder / "thousand.none")], nobody),
            "boto3 alone": ([sys.executable, "-c", BARE], {}),
        }
        found: dict[str, list[Run]] = {side: [] for side in sides}
        for number in range(rounds):
            say(f"  inventory, round {number + 1} of {rounds} …")
            for side, (command, environment) in sides.items():
                found[side].append(timed(server, command, environment))
    server.keep_answers = False
    rows = []
    for side, values in found.items():
        hosts = len(json.loads(values[0].output)["_meta"]["hostvars"]) if values[0].output else NODES
        rows.append({"inventory": side, "hosts": hosts, "API calls": values[0].calls,
                     "seconds": median([value.wall for value in values]), "CPU seconds": median([value.cpu for value in values])})
    cpu = {str(row["inventory"]): float(str(row["CPU seconds"])) for row in rows}
    ours_cpu, theirs_cpu, none_cpu, bare_cpu = (cpu[side] for side in sides)
    report("aws-inventory", f"ansible-inventory with {NODES} instances", rows, [
        f"CPU of the fleet's plugin beyond boto3's: {(ours_cpu - bare_cpu) / none_cpu:.2f} × a plugin that asks nobody; "
        f"with boto3's: {ours_cpu / none_cpu:.2f} ×. Against amazon.aws.aws_ec2: {ours_cpu / theirs_cpu:.2f} ×.",
    ])


def launch(server: AwsServer, rounds: int) -> None:
    """One node: our module against amazon.aws.ec2_instance."""
    server.reset()
    cloud = cloud_settings(server)
    subnet = next(iter(cloud["zones"].values()))
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as name:
        ours = fleet_file(Path(name), cloud)
        found: dict[str, list[Run]] = {"elearning.moodle_fleet.node": [], "amazon.aws.ec2_instance": []}
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
        {"module": module, "API calls": median([one.calls for one in values]), "seconds": median([one.wall for one in values]),
         "CPU seconds": median([one.cpu for one in values])}
        for module, values in found.items()
    ]
    wall, cpu = (rows[0][column] / rows[1][column] for column in ("seconds", "CPU seconds"))
    report("aws-launch", "Launch of one instance", rows,
           [f"Ours takes {wall:.2f} × the time and {cpu:.2f} × the CPU of amazon.aws.ec2_instance."])


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
