# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A whole fleet on EC2, built and changed by the playbooks an operator runs, over ssh, on instances that live.

Database and caches are managed elsewhere and speak TLS. First HAProxy on an EC2 instance serves the sites, then a load balancer
that is changed through its API takes over. The tests build on each other.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver, load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.life import NAME, Life, podman
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.loadbalancer import LoadBalancer
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer

from .. import managed
from ..conftest import ADDRESSES, ROOT, SECRET, TENANT, TENANTS, LocalFleet, changed
from ..test_scaling import check, learners, members, serves, settle

pytestmark = [
    pytest.mark.slow,
    # site.yml alone takes three minutes, most of it packages and processes that the other fleet of containers shows as well.
    pytest.mark.skipif(not os.environ.get("MOODLE_FLEET_TEST_AWS"), reason="MOODLE_FLEET_TEST_AWS is not set"),
]
NETWORK = "10.94.0.0/16"
# This machine's address there.
HERE = "10.94.0.1"
DOMAIN = "aws.localhost"


@dataclass
class World:
    """What there is on the test server, and the fleet on it."""

    server: AwsServer
    life: Life
    fleet: LocalFleet

    def instance(self, node: str) -> str:
        """The instance of a node."""
        return next(one.id for one in self.fleet.cloud.nodes() if one.name == node)

    def run(self, node: str, *command: str) -> str:
        """Run a command on a node, past ssh."""
        return podman("exec", Life.container(self.instance(node)), *command)


def soon(what: Callable[[], bool]) -> bool:
    """Whether it becomes so within half a minute."""
    deadline = time.monotonic() + 30
    while not what() and time.monotonic() < deadline:
        time.sleep(0.2)
    return what()


def inventory(folder: Path, variables: dict[str, object], **sections: object) -> LocalFleet:
    """An inventory and its fleet, which shares its state with others beside it."""
    (folder / "group_vars").mkdir(parents=True)
    (folder / "moodle_fleet.yml").write_text(yaml.safe_dump({
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "aws", "state_dir": "../state", "management_networks": [f"{HERE}/32"],
        "scaling": {"min_nodes": 2, "max_nodes": 4, "workers": 4}, **sections,
    }))
    (folder / "group_vars" / "all.yml").write_text(yaml.safe_dump(variables))
    return LocalFleet(folder, cloud_driver(load(folder / "moodle_fleet.yml")), 443, DOMAIN)


@pytest.fixture(scope="module", name="world")
def fixture_world(aws_server: AwsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The fleet, built by playbooks/site.yml."""
    folder = tmp_path_factory.mktemp("aws")
    for name in ("database", "sessions", "caches"):
        (folder / name).mkdir()
    aws_server.reset()
    certificate = managed.Certificate.make(folder, HERE)
    passwords = [derive(SECRET, name, "fleet") for name in ("db-root", "redis-admin")]
    with (
        aws_server.as_environment(),
        Life(aws_server, NETWORK, folder / "instances") as life,
        managed.database(folder / "database", certificate, passwords[0], HERE) as database,
        managed.cache(folder / "sessions", certificate, passwords[1], HERE) as sessions,
        managed.cache(folder / "caches", certificate, passwords[1], HERE) as caches,
    ):
        tenants = "".join(TENANT.replace(".localhost", f".{DOMAIN}").format(name=name) for name in TENANTS)
        variables = {
            "moodle_source": str(ROOT / "tests" / "standin"), "moodle_fleet_secret": SECRET, "moodle_public_port": 443,
            "moodle_tenants": yaml.safe_load(tenants), "base_ca_certificates": certificate.certificate.read_text(),
        }
        services = {
            "database": {"endpoint": f"{HERE}:{database}", "tls": True}, "jobs": {"count": 1}, "logs": {"count": 1},
            "cache": {"endpoint": f"{HERE}:{sessions}", "muc_endpoint": f"{HERE}:{caches}", "tls": True, "shared_user": True},
        }
        # All but one are spot.
        cloud = cloud_settings(aws_server, NETWORK, spot_share=1.0, on_demand_base=1, events_queue=aws_server.queue("aws"))
        fleet = inventory(folder / "inventory", variables, cloud=cloud, services=services)
        fleet.playbook("site")
        (balancer,) = fleet.addresses("balancer").values()
        ADDRESSES.update({f"{tenant}.{DOMAIN}": balancer for tenant in TENANTS})
        yield World(aws_server, life, fleet)


@pytest.fixture(name="fleet")
def fixture_fleet(world: World) -> LocalFleet:
    return world.fleet


def test_the_instances_serve_the_sites(world: World, fleet: LocalFleet) -> None:
    assert sorted(node.role for node in fleet.cloud.nodes()) == ["balancer", "jobs", "logs", "web", "web"]
    assert world.life.alive() == {node.id for node in fleet.cloud.nodes()}
    session = fleet.login("acme")
    for name, address in fleet.addresses("web").items():
        page = fleet.at_node(session, address, "acme", "/my/")
        assert page.status_code == 200 and f'<span id="node">{name}</span>' in page.text
    assert world.run(name, "hostname") == name


def test_web_nodes_start_from_what_the_builder_became(world: World, fleet: LocalFleet) -> None:
    (image,) = fleet.cloud.images()
    web = [node for node in fleet.cloud.nodes() if node.role == "web"]
    assert {node.image for node in web} == {image["id"]}
    made_of = world.server.ec2.amis[image["id"]].instance_id
    assert made_of not in world.life.alive() and image["id"] in world.life.images
    for node in web:
        used = podman("inspect", "--format", "{{.ImageName}}", Life.container(node.id))
        assert used == f"localhost/{NAME}-{image['id']}:latest"
    assert changed(fleet.playbook("bake")) == {"localhost": 0}
    assert len(fleet.cloud.images()) == 1


def test_it_grows_and_shrinks_under_load(world: World, fleet: LocalFleet) -> None:
    before = fleet.addresses("web")
    with learners(fleet) as seen:
        done = fleet.playbook("scale", "-e", "fleet_desired=3")
        (new,) = set(fleet.addresses("web")) - set(before)
        assert serves(fleet, 3) and soon(lambda: new in seen.nodes)
        settle(fleet, lambda: serves(fleet, 2), "--desired", "2")
    assert seen.failures == []
    assert not re.search(rf"^(ok|changed): \[{new}\]", done.stdout, re.M), "the new node was logged into"
    (gone,) = {*before, new} - set(fleet.addresses("web"))
    assert soon(lambda: world.life.alive() == {node.id for node in fleet.cloud.nodes()})
    lines = world.run(next(iter(fleet.addresses("logs"))), "cat", f"/var/log/moodle-fleet/{gone}/nginx-access.log")
    assert seen.lines[gone] and [mark for mark in seen.lines[gone] if lines.count(mark) != 1] == []


def test_a_spot_node_leaves_before_its_two_minutes_are_over_and_after_its_replacement_came(world: World, fleet: LocalFleet) -> None:
    settle(fleet, lambda: serves(fleet, 3), "--desired", "3")
    spot = next(one for one in world.server.instances() if one.lifecycle == "spot")
    name = next(node.name for node in fleet.cloud.nodes() if node.id == spot.id)
    world.server.interrupt(spot.id)
    began = time.monotonic()
    fewest = 3
    with learners(fleet) as seen:
        while name in fleet.addresses("web"):
            check(fleet, "--desired", "3")
            fewest = min(fewest, list(members(fleet).values()).count("up"))
            assert time.monotonic() - began < 120, members(fleet)
    assert fewest == 3
    assert seen.failures == []
    assert soon(lambda: spot.id not in world.life.alive())
    del world.server.notices[spot.id]


def test_a_person_drains_a_node_and_keeps_it(world: World, fleet: LocalFleet) -> None:
    settle(fleet, lambda: serves(fleet, 3), "--desired", "3")
    name = sorted(fleet.addresses("web"))[0]
    fleet.playbook("drain", "-e", json.dumps({"nodes": [name], "hold": "a look at its disk"}))
    assert serves_without(fleet, name)
    assert world.instance(name) in world.life.alive()
    world.life.kill(world.instance(name))


def serves_without(fleet: LocalFleet, name: str) -> bool:
    """Whether a node exists, is held, and takes no traffic."""
    node = next(one for one in fleet.cloud.nodes() if one.name == name)
    return bool(node.tags.get("held")) and name not in members(fleet)


@pytest.fixture(scope="module", name="alb")
def fixture_alb(world: World) -> Iterator[tuple[LoadBalancer, World]]:
    """The same fleet behind a load balancer of AWS's, which sends requests to its healthy targets."""
    fleet = world.fleet
    # A node that disappears just after its launch is believed to be there until the cloud's list has to be right.
    deadline = time.monotonic() + 2 * fleet.cloud.settle
    while check(fleet, "--desired", "2")["decision"]["size"] != 2 or not serves(fleet, 2):
        assert time.monotonic() < deadline, members(fleet)
    fleet.cloud.terminate(fleet.addresses("balancer"))
    balancer = LoadBalancer(world.server)
    balancer.where = world.life.addresses
    world.server.targets.initial_seconds, world.server.targets.drain_seconds = 1.0, 2.0
    values = yaml.safe_load(fleet.file.read_text())
    variables = yaml.safe_load((fleet.inventory / "group_vars" / "all.yml").read_text())
    other = inventory(
        fleet.inventory.parent / "alb", variables, cloud=values["cloud"], services=values["services"], balancer=balancer.settings()
    )
    yield balancer, replace(world, fleet=other)
    balancer.close()


def states(balancer: LoadBalancer) -> dict[str, str]:
    """The state of each target."""
    targets = balancer.server.targets
    return {one.id: targets.state(balancer.group, one)[0] for one in targets.current(balancer.group)}


def page(balancer: LoadBalancer) -> str:
    """A page as learners get it."""
    connection = http.client.HTTPConnection("127.0.0.1", balancer.port, timeout=30)
    connection.request("GET", "/", headers={"Host": f"acme.{DOMAIN}"})
    answer = connection.getresponse()
    assert answer.status == 200
    return answer.read().decode()


def test_a_load_balancer_of_aws_takes_over(alb: tuple[LoadBalancer, World]) -> None:
    balancer, world = alb
    fleet = world.fleet
    before = {node.id for node in fleet.cloud.nodes() if node.role == "web"}
    assert "launch" in fleet.playbook("scale", "--check", "--diff", "-e", "fleet_desired=3").stdout
    assert states(balancer) == {} and len(world.server.instances()) == 4
    fleet.playbook("scale", "-e", "fleet_desired=3")
    now = {node.id for node in fleet.cloud.nodes() if node.role == "web"}
    assert before < now and len(now) == 3
    assert states(balancer) == dict.fromkeys(now, "healthy")
    assert all(int(node.tags["workers"]) > 0 for node in fleet.cloud.nodes() if node.id in now)
    assert "Site of acme" in page(balancer)
    assert sum(changed(fleet.playbook("scale", "-e", "fleet_desired=3")).values()) == 0

    # Its health is the node's own.
    victim = next(node for node in fleet.cloud.nodes() if node.id in now - before)
    world.run(victim.name, "systemctl", "stop", "php-fpm")
    assert states(balancer) == {**dict.fromkeys(before, "healthy"), victim.id: "unhealthy"}
    world.run(victim.name, "systemctl", "start", "php-fpm")
    assert soon(lambda: states(balancer) == dict.fromkeys(now, "healthy"))


def test_what_is_announced_and_what_is_recommended_is_replaced_before_it_goes(alb: tuple[LoadBalancer, World]) -> None:
    balancer, world = alb
    fleet, server = world.fleet, world.server
    server.calls.clear()
    assert check(fleet, "--desired", "3")["status"] == "idle"
    assert server.counts() == dict.fromkeys((
        "DescribeInstances", "DescribeInstanceStatus", "DescribeSpotInstanceRequests", "ReceiveMessage", "DescribeTargetHealth",
        "GetMetricData",
    ), 1)
    ours = [one for one in server.instances() if one.id in states(balancer)]
    old = next(one.id for one in ours if one.lifecycle != "spot")
    risky = next(one.id for one in ours if one.lifecycle == "spot")
    server.interrupt(old, "instance-retirement", 3600)
    server.recommend(fleet.cloud.settings["events_queue"], risky)
    server.calls.clear()
    deadline = time.monotonic() + 150
    while world.life.alive() & {old, risky}:
        assert time.monotonic() < deadline, (states(balancer), [node.name for node in fleet.cloud.nodes()])
        check(fleet, "--desired", "3")
        assert list(states(balancer).values()).count("healthy") >= 3
    del server.notices[old]
    assert len(states(balancer)) == 3
    actions = [call.action for call in server.calls]
    order = [actions.index(name) for name in ("RunInstances", "RegisterTargets", "DeregisterTargets", "TerminateInstances")]
    assert order == sorted(order)
    assert "Site of acme" in page(balancer)


def test_nothing_is_left(alb: tuple[LoadBalancer, World]) -> None:
    _balancer, world = alb
    world.fleet.playbook("destroy", "-e", "destroy_confirmed=true")
    assert world.server.instances() == []
    assert world.fleet.cloud.images() == []
    assert soon(lambda: world.life.alive() == set())
