# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet
version_added: "1.0.0"
short_description: Nodes of a Moodle fleet
description:
  - Reads the fleet file C(moodle_fleet.yml), asks its cloud driver for the nodes, and yields them by role, zone, phase
    and release, with the variables that are needed to reach them.
  - The fleet file has more keys than are listed here; they describe the fleet, and P(elearning.moodle_fleet.fleet#inventory)
    checks all of them before it asks the cloud.
  - Groups are C(fleet), the roles, and C(zone_), C(phase_), C(state_) and C(release_) followed by the value.
  - Each host has the variable C(fleet_node), a dictionary with C(name), C(role), C(address), C(zone), C(state), C(phase),
    C(release), C(launched), C(image) and C(tags).
  - Tags come from the cloud and stay untrusted; no template is ever built from them.
extends_documentation_fragment:
  - constructed
  - inventory_cache
options:
  plugin:
    description: Name of this plugin.
    type: str
    required: true
    choices: [elearning.moodle_fleet.fleet]
  fleet:
    description: Name of the fleet, part of every node's name.
    type: str
    required: true
  state_dir:
    description: Folder on the controller for keys, host keys and the ledger; C(~/.local/state/moodle-fleet/FLEET) by default.
    type: str
  cloud:
    description: Key C(driver) names the cloud driver, the other keys are its settings.
    type: dict
    required: true
  balancer:
    description: Key C(driver) names the balancer driver, the other keys are its settings.
    type: dict
  services:
    description: For each tier other than C(web), how many nodes it has, or the endpoint where it is managed elsewhere.
    type: dict
  scaling:
    description: The scaling policy.
    type: dict
  events:
    description:
      - What the scaling may know ahead. C(tenants) says whether the tenants' quizzes and assignments are read (they are, by default),
        C(calendar) is an iCalendar file or its address.
    type: dict
  management_networks:
    description: Networks from which the balancer's counters may be read, beside the fleet's own.
    type: list
    elements: str
  costs:
    description: What a web node costs (C(node_hour), C(currency)), for C(moodle-fleet report).
    type: dict
  metrics:
    description: Where each check leaves its numbers for Prometheus (C(textfile)).
    type: dict
  notifications:
    description: Whom C(moodle-fleet notify) tells what.
    type: dict
  ledger:
    description: Where the fleet's history and its lock are kept (C(driver), C(endpoint), C(database), C(user), C(tls), C(password_file)).
    type: dict
  phases:
    description: Whether to ask the balancer for the members' states, so that hosts get their phase.
    type: bool
    default: true
requirements:
  - PyYAML
"""

EXAMPLES = r"""
# moodle_fleet.yml: a fleet of podman containers on one machine
plugin: elearning.moodle_fleet.fleet
fleet: local
cloud:
  driver: podman
  zones: [a, b]
services:
  balancer: {count: 1, publish: ["127.0.0.1:8443:443"]}
  # A database that is managed elsewhere is left out by giving its endpoint.
  database: {endpoint: "db.example.org:3306"}
scaling:
  min_nodes: 2
  max_nodes: 6
  workers: 4
keyed_groups:
  - {key: fleet_node.zone, prefix: az}
"""

import ipaddress
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import (
    Fleet,
    FleetFileError,
    cloud_driver,
    load,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import password_file
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node

PORTS = {"database": 3306, "cache": 6379, "logs": 2514}
MUC_PORT = 6380


@dataclass(frozen=True)
class Host:
    """What the inventory knows of one node: plain data that can be cached."""

    name: str
    groups: list[str]
    variables: dict[str, Any] = field(default_factory=dict)


def _endpoint(text: str) -> dict[str, Any]:
    host, _colon, port = text.rpartition(":")
    return {"host": host, "port": int(port)}


def endpoints(fleet: Fleet, nodes: list[Node]) -> dict[str, Any]:
    """Where each service of the fleet is reached: the given endpoint, else the address of its first node."""
    balancers = [node.address for node in nodes if node.role == "balancer"]
    # A balancer that is no node: whoever has an address of its networks.
    result: dict[str, Any] = {"balancer": {"addresses": balancers or list(fleet.balancer.get("networks") or [])}}
    for service, port in PORTS.items():
        given = fleet.services[service].get("endpoint")
        first = next((node.address for node in nodes if node.role == service), None)
        if given:
            result[service] = _endpoint(given)
        elif first:
            result[service] = {"host": first, "port": port}
    muc = fleet.services["cache"].get("muc_endpoint")
    if muc:
        result["cache_muc"] = _endpoint(muc)
    elif "cache" in result:
        port = result["cache"]["port"] if fleet.services["cache"].get("endpoint") else MUC_PORT
        result["cache_muc"] = {"host": result["cache"]["host"], "port": port}
    for service, keys in (("database", ("tls",)), ("cache", ("tls", "shared_user"))):
        if service in result:
            result[service].update({key: bool(fleet.services[service].get(key)) for key in keys})
    result["files"] = fleet.services["files"]
    return result


def networks(fleet: Fleet, known: dict[str, list[str]]) -> dict[str, list[str]]:
    """The fleet's networks, also as MariaDB writes them, and those that may read the balancer's counters."""
    return {
        "fleet": known["fleet"],
        "fleet_netmask": [ipaddress.ip_network(network).with_netmask for network in known["fleet"]],
        "controller": [*known["controller"], *fleet.balancer["management_networks"]],
    }


def ledger(fleet: Fleet) -> dict[str, Any]:
    """Where the ledger is kept; of one in MariaDB, what makes its database and account."""
    if fleet.ledger["driver"] != "mariadb":
        return {"driver": fleet.ledger["driver"]}
    return {**fleet.ledger, "password_file": str(password_file(fleet))}


def host(node: Node, connection: dict[str, Any], phase: str) -> Host:
    """One node as inventory data. A pure function of what was observed."""
    groups = [node.role, f"zone_{node.zone}", f"phase_{phase}", f"state_{node.state}"]
    if node.release:
        groups.append(f"release_{node.release}")
    facts = {**asdict(node), "tags": dict(node.tags), "phase": phase}
    return Host(node.name, groups, {"fleet_node": facts, **connection})


def balancer_host(fleet: Fleet) -> Host | None:
    """A balancer that is changed through an API, as a host whose tasks run on the controller; None with balancer nodes."""
    if fleet.balancer["driver"] != "alb":
        return None
    name = f"{fleet.name}-balancer"
    return Host(name, ["balancer", "balancer_api"], {
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
        "balancer_fleet_file": str(fleet.path),
        "fleet_node": {"name": name, "role": "balancer", "state": "running", "address": "", "zone": "", "tags": {}},
    })


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Entry point of the plugin."""

    NAME = "elearning.moodle_fleet.fleet"

    def verify_file(self, path: str) -> bool:
        """Whether this file is for this plugin, by its name."""
        return super().verify_file(path) and path.endswith(("moodle_fleet.yml", "moodle_fleet.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill the inventory from the fleet file.

        :raises AnsibleParserError: when the fleet file holds a mistake or the cloud does not answer.
        """
        super().parse(inventory, loader, path, cache)
        try:
            fleet = load(path)
            self._read_config_data(path)
            data = self._cached(path, cache, fleet)
        except (FleetFileError, CloudError) as exc:
            raise AnsibleParserError(str(exc)) from exc
        self._fill(fleet, data)

    def _cached(self, path: str, cache: bool, fleet: Fleet) -> dict[str, Any]:
        key = self.get_cache_key(path)
        wanted = self.get_option("cache")
        if wanted and cache:
            try:
                return self._cache[key]
            except KeyError:
                pass
        data = self._observe(fleet)
        if wanted:
            self._cache[key] = data
        return data

    def _observe(self, fleet: Fleet) -> dict[str, Any]:
        cloud = cloud_driver(fleet)
        nodes = cloud.nodes()
        phases = self._phases(fleet, nodes) if self.get_option("phases") else {}
        hosts = [host(node, cloud.connection(node), phases.get(node.name, node.state)) for node in nodes]
        api = balancer_host(fleet)
        hosts += [api] if api else []
        return {
            "hosts": [asdict(one) for one in hosts],
            "endpoints": endpoints(fleet, nodes),
            "networks": networks(fleet, cloud.networks()),
        }

    def _phases(self, fleet: Fleet, nodes: list[Node]) -> dict[str, str]:
        from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import observed_phases

        try:
            return observed_phases(fleet, nodes)
        except BalancerError as exc:
            # A fleet that is being built has no balancer yet; hosts then carry their cloud state.
            self.display.vvv(f"phases are unknown: {exc}")
            return {}

    def _fill(self, fleet: Fleet, data: dict[str, Any]) -> None:
        strict = self.get_option("strict")
        top = self.inventory.add_group("fleet")
        for role in ("balancer", "web", "database", "cache", "jobs", "logs", "monitoring"):
            self.inventory.add_child(top, self.inventory.add_group(role))
        self.inventory.set_variable("all", "moodle_fleet_name", fleet.name)
        self.inventory.set_variable("all", "moodle_fleet_endpoints", data["endpoints"])
        self.inventory.set_variable("all", "moodle_fleet_networks", data["networks"])
        self.inventory.set_variable("all", "moodle_fleet_file", str(fleet.path))
        self.inventory.set_variable("all", "moodle_fleet_state_dir", str(fleet.state_dir))
        self.inventory.set_variable("all", "moodle_fleet_ledger", ledger(fleet))
        for one in data["hosts"]:
            name = self.inventory.add_host(one["name"])
            for group in one["groups"]:
                self.inventory.add_child(self.inventory.add_group(self._sanitize_group_name(group)), name)
            for key, value in one["variables"].items():
                self.inventory.set_variable(name, key, value)
            variables = one["variables"]
            self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
            self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
            self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)
