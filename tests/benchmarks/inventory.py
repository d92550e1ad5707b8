# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""1,000 nodes: `ansible-inventory --list` with the fleet's plugin against a plugin that asks nobody."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from measure import median, report, run, say

NODES = 1000
FLEET = """---
plugin: elearning.moodle_fleet.fleet
fleet: thousand
state_dir: {state}
phases: false
cloud: {{driver: podman, subnet: 10.200.0.0/16, zones: [a, b, c]}}
"""
# Stands in podman's place and knows a thousand containers.
PODMAN = """#!/bin/sh
exec cat {listing}
"""
# The least that a plugin can do: the same hosts and variables, read from a file.
PLUGIN = '''
import json
from ansible.plugins.inventory import BaseInventoryPlugin

class InventoryModule(BaseInventoryPlugin):
    NAME = "thousand"

    def verify_file(self, path):
        return path.endswith("thousand.none")

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        with open(path) as file:
            found = json.load(file)
        self.inventory.add_group("web")
        for name, variables in found["_meta"]["hostvars"].items():
            self.inventory.add_host(name, group="web")
            for key, value in variables.items():
                self.inventory.set_variable(name, key, value)
'''


def listing() -> str:
    """What podman would say of so many containers."""
    first = ipaddress.ip_address("10.200.1.0")
    return json.dumps([
        {
            "Names": [f"thousand-web-{number}"], "State": "running", "ImageID": "0" * 64,
            "Labels": {
                "moodle_fleet.fleet": "thousand", "moodle_fleet.role": "web", "moodle_fleet.zone": "abc"[number % 3],
                "moodle_fleet.address": str(first + number), "moodle_fleet.launched": f"{time.time():.3f}",
                "moodle_fleet.release": "4.5.6-00000000",
            },
        }
        for number in range(NODES)
    ])


def timed(source: Path, environment: dict[str, str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds, hosts."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = run("ansible-inventory", "-i", str(source), "--list", env=os.environ | environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, len(json.loads(output)["_meta"]["hostvars"])


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `inventory`."""
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as name:
        folder = Path(name)
        for part in ("bin", "plugins", "state"):
            (folder / part).mkdir()
        (folder / "listing").write_text(listing(), encoding="utf-8")
        (folder / "bin/podman").write_text(PODMAN.format(listing=folder / "listing"), encoding="utf-8")
        (folder / "bin/podman").chmod(0o755)
        (folder / "plugins/thousand.py").write_text(PLUGIN, encoding="utf-8")
        (folder / "moodle_fleet.yml").write_text(FLEET.format(state=folder / "state"), encoding="utf-8")
        path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        hosts = run("ansible-inventory", "-i", str(folder / "moodle_fleet.yml"), "--list", env=os.environ | path)
        (folder / "thousand.none").write_text(hosts, encoding="utf-8")
        nobody = {"ANSIBLE_INVENTORY_PLUGINS": str(folder / "plugins"), "ANSIBLE_INVENTORY_ENABLED": "thousand"}
        sides = {
            "the fleet's plugin": (folder / "moodle_fleet.yml", path),
            "a plugin that asks nobody": (folder / "thousand.none", path | nobody),
        }
        found: dict[str, list[tuple[float, float, int]]] = {side: [] for side in sides}
        for number in range(given.rounds):
            say(f"  round {number + 1} of {given.rounds} …")
            for side, (source, environment) in sides.items():
                found[side].append(timed(source, environment))
    rows = [
        {"inventory": side, "hosts": values[0][2], "seconds": median([value[0] for value in values]),
         "CPU seconds": median([value[1] for value in values])}
        for side, values in found.items()
    ]
    report("inventory", f"ansible-inventory with {NODES} nodes", rows)
