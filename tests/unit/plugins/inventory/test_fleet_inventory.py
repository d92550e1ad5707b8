# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader

from ansible_collections.elearning.moodle_fleet.plugins.inventory import fleet as plugin
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import validate
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node

FILE = """
plugin: elearning.moodle_fleet.fleet
fleet: test
cloud: {driver: podman}
scaling: {min_nodes: 2, max_nodes: 4}
"""


OPTIONS = {"cache": False, "strict": True, "compose": {}, "groups": {}, "keyed_groups": [], "phases": True}


def node(name: str, role: str = "web", **more: object) -> Node:
    """A node with unimportant values filled in."""
    return Node(name, role, f"10.0.0.{len(name)}", "a", "running", 0.0, **more)  # type: ignore[arg-type]


class Cloud:
    """A cloud driver's reading half that counts how often it is asked."""

    def __init__(self, nodes: list[Node]):
        self.listed = nodes
        self.calls = 0

    def nodes(self) -> list[Node]:
        self.calls += 1
        return self.listed

    def networks(self) -> dict[str, list[str]]:
        return {"fleet": ["10.0.0.0/8"], "controller": ["10.0.0.1/32"]}

    def connection(self, one: Node) -> dict[str, object]:
        return {"ansible_host": one.address}


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(nodes: list[Node], text: str = FILE, phases: dict[str, str] | None = None):
        path = tmp_path / "moodle_fleet.yml"
        path.write_text(text)
        cloud = Cloud(nodes)
        monkeypatch.setattr(plugin, "cloud_driver", lambda fleet: cloud)
        monkeypatch.setattr(plugin.InventoryModule, "_phases", lambda self, fleet, nodes: phases or {})
        inventory = InventoryData()
        reader = plugin.InventoryModule()
        monkeypatch.setattr(reader, "get_option", OPTIONS.get)
        monkeypatch.setattr(plugin.InventoryModule, "_read_config_data", lambda self, path: None)
        reader.parse(inventory, DataLoader(), str(path), cache=False)
        inventory.reconcile_inventory()
        return inventory, cloud

    return run


def test_hosts_stand_in_the_groups_of_role_zone_phase_and_release(parse) -> None:
    inventory, _cloud = parse([node("w1", release="4.5.6-ab"), node("db", "database")], phases={"w1": "in_service"})
    groups = {group.name for group in inventory.hosts["w1"].get_groups()}
    assert {"fleet", "web", "zone_a", "phase_in_service", "state_running", "release_4_5_6_ab"} <= groups
    assert inventory.hosts["w1"].vars["ansible_host"] == "10.0.0.2"
    assert inventory.hosts["w1"].vars["fleet_node"]["phase"] == "in_service"


def test_a_wrong_file_is_refused_before_the_cloud_is_asked(parse) -> None:
    with pytest.raises(AnsibleParserError, match="flet.*did you mean 'fleet'"):
        parse([], FILE + "flet: x\n")


def test_tags_are_plain_data(parse) -> None:
    inventory, _cloud = parse([node("w1", tags={"held": "{{ lookup('pipe', 'id') }}"})])
    assert inventory.hosts["w1"].vars["fleet_node"]["tags"] == {"held": "{{ lookup('pipe', 'id') }}"}


def test_a_thousand_nodes_are_one_call_to_the_cloud(parse) -> None:
    inventory, cloud = parse([node(f"w{i}") for i in range(1000)])
    assert len(inventory.groups["web"].hosts) == 1000
    assert cloud.calls == 1


def test_endpoints_are_the_given_ones_or_those_of_the_first_node() -> None:
    values = {
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "test", "cloud": {"driver": "podman"},
        "scaling": {"min_nodes": 2, "max_nodes": 4},
        "services": {"database": {"endpoint": "db.example.org:3307", "tls": True}, "files": {"src": "nas:/moodle"}},
    }
    found = plugin.endpoints(validate(values, "f"), [node("cache", "cache"), node("lb", "balancer")])
    assert found["database"] == {"host": "db.example.org", "port": 3307, "tls": True}
    assert found["cache"] == {"host": "10.0.0.5", "port": 6379, "tls": False, "shared_user": False}
    assert found["cache_muc"] == {"host": "10.0.0.5", "port": 6380}
    assert found["balancer"] == {"addresses": ["10.0.0.2"]}
    assert found["files"]["fstype"] == "nfs4"
    assert "logs" not in found


def test_the_playbooks_learn_where_the_ledger_is() -> None:
    values = {"plugin": "elearning.moodle_fleet.fleet", "fleet": "test", "state_dir": "state", "cloud": {"driver": "podman"}}
    assert plugin.ledger(validate(values, "/x/moodle_fleet.yml")) == {"driver": "sqlite"}
    values["ledger"] = {"driver": "mariadb", "endpoint": "db.example.org:3306"}
    found = plugin.ledger(validate(values, "/x/moodle_fleet.yml"))
    assert (found["endpoint"], found["password_file"]) == ("db.example.org:3306", "/x/state/ledger.password")


def test_a_balancer_that_is_no_node_is_a_host_of_the_controller() -> None:
    arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:"
    values = {
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "test", "scaling": {"min_nodes": 2, "max_nodes": 4},
        "cloud": {"driver": "aws", "network": "10.20.0.0/16", "zones": {"eu-central-1a": "subnet-0a"}, "base_image": "ami-01"},
        "balancer": {"driver": "alb", "target_group": f"{arn}targetgroup/web/0a", "networks": ["10.20.0.0/20"],
                     "load_balancer": f"{arn}loadbalancer/app/fleet/0b"},
    }
    fleet = validate(values, "/x/moodle_fleet.yml")
    host = plugin.balancer_host(fleet)
    assert host is not None and host.groups == ["balancer", "balancer_api"]
    assert host.variables["ansible_connection"] == "local" and host.variables["balancer_fleet_file"] == "/x/moodle_fleet.yml"
    assert plugin.endpoints(fleet, [])["balancer"] == {"addresses": ["10.20.0.0/20"]}


def test_with_balancer_nodes_there_is_no_such_host() -> None:
    values = {"plugin": "elearning.moodle_fleet.fleet", "fleet": "test", "cloud": {"driver": "podman"}}
    assert plugin.balancer_host(validate(values, "/x/moodle_fleet.yml")) is None
