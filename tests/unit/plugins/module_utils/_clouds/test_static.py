# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The pool of own servers: what a fleet file may say, and which machine is chosen. Machines are not reached here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import static
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError, LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.static_machine import Machine
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import FleetFileError, cloud_driver, load, validate

ROOT = Path(__file__).parents[5]


def machine(number: int, **more: Any) -> dict[str, Any]:
    return {"name": f"m{number}", "address": f"192.0.2.{number}", "host_key": "ssh-ed25519 AAAA", **more}


def values(*pool: dict[str, Any], **scaling: Any) -> dict[str, Any]:
    services: dict[str, Any] = {role: {"count": 0} for role in ("balancer", "database", "cache", "jobs", "logs")}
    cloud = {"driver": "static", "ssh_key": "key", "networks": ["192.0.2.0/24"], "controller_networks": ["192.0.2.1/32"], "pool": list(pool)}
    return {"plugin": "elearning.moodle_fleet.fleet", "fleet": "own", "state_dir": "state", "cloud": cloud, "services": services,
            "scaling": {"min_nodes": 1, "max_nodes": 3, **scaling}}


POOL = [machine(number, zone="ab"[number % 2]) for number in range(1, 5)]


@pytest.fixture(name="cloud")
def _cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> static.StaticDriver:
    """A driver whose machines are always there, clean, and as they were left."""
    monkeypatch.setattr(Machine, "take", lambda *_arguments: True)
    monkeypatch.setattr(Machine, "release", lambda *_arguments: True)
    driver = cloud_driver(validate(values(*POOL), tmp_path / "moodle_fleet.yml"))
    assert isinstance(driver, static.StaticDriver)
    return driver


def test_the_example_is_valid() -> None:
    fleet = load(ROOT / "inventories" / "own" / "moodle_fleet.yml")
    assert fleet.cloud["boot_seconds"] == 300
    assert [one["name"] for one in fleet.cloud["pool"] if one["power_on"]] == ["rack1-12", "rack2-12"]


@pytest.mark.parametrize(("change", "says"), [
    ({"pool": []}, "cloud.pool: []: name at least one machine"),
    ({"pool": [*POOL, machine(1)]}, "give each machine its own name; m1 stands there twice"),
    ({"pool": [*POOL, {**machine(9), "address": "192.0.2.1"}]}, "give each machine its own address; 192.0.2.1 stands there twice"),
    ({"pool": [machine(1, address="m1.example.org")]}, "cloud.pool[0].address: 'm1.example.org': write the machine's IP address"),
    ({"pool": [machine(1, host_key="none")]}, "cloud.pool[0].host_key: 'none': must match"),
    ({"pool": [machine(1, roles=["king"])]}, "cloud.pool[0].roles[0]: 'king': use one of: web, balancer"),
    ({"pool": [machine(1, power_on="wakeonlan 02:00")]}, "cloud.pool[0].power_on: 'wakeonlan 02:00': must be a list"),
    ({"pool": [machine(1, power=["x"])]}, "cloud.pool[0].power: ['x']: unknown key"),
    ({"networks": ["lan"]}, "cloud.networks[0]: 'lan': write a network such as"),
    ({"pool": POOL[:2]}, "scaling.max_nodes: 3: only 2 machines of cloud.pool have the role web; add machines or ask for less"),
    ({"pool": POOL[:3]}, "scaling.max_nodes: 3: leaves none of the 3 machines"),
])
def test_mistakes_in_the_pool(change: dict[str, Any], says: str) -> None:
    wrong = copy.deepcopy(values(*POOL))
    wrong["cloud"] |= change
    with pytest.raises(FleetFileError) as caught:
        validate(wrong, "/etc/x/moodle_fleet.yml")
    assert says in str(caught.value)


def test_a_tier_without_a_machine_is_named() -> None:
    wrong = values(*POOL)
    wrong["services"]["database"] = {"count": 1}
    with pytest.raises(FleetFileError, match=r"services.database.count: 1: only 0 machines of cloud.pool have the role database"):
        validate(wrong, "/etc/x/moodle_fleet.yml")


def test_nodes_are_spread_over_the_zones_as_asked(cloud: static.StaticDriver) -> None:
    assert [node.zone for node in cloud.launch(LaunchSpec("web", 2, "abc", zones=["b", "a"]))] == ["b", "a"]
    # A zone that is full is no reason not to launch.
    assert [node.zone for node in cloud.launch(LaunchSpec("web", 2, "def", zones=["a", "a"]))] == ["a", "b"]
    assert cloud.zones() == ["a", "b"]


def test_those_that_could_be_had_stay(cloud: static.StaticDriver) -> None:
    with pytest.raises(CloudError, match="no machine of cloud.pool with the role web is free for own-web-abc-5, own-web-abc-6"):
        cloud.launch(LaunchSpec("web", 6, "abc"))
    assert len(cloud.nodes()) == 4


def test_an_image_is_held_for_the_role_it_was_made_for_alone(cloud: static.StaticDriver) -> None:
    (builder,) = cloud.launch(LaunchSpec("builder", 1, ""))
    image = cloud.bake(builder.name, "4.5.6-ab", "0123")
    assert cloud.bake(builder.name, "4.5.6-ab", "0123") == image and len(cloud.images()) == 1
    cloud.terminate([builder.name])
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc", image=image))
    assert (node.id, node.image) == (builder.id, image)
    cloud.terminate([node.name])
    # Another image is applied to it: of the first one nothing is sure any more, also when that was interrupted.
    (node,) = cloud.launch(LaunchSpec("builder", 1, ""))
    assert (node.id, node.image) == (builder.id, "")
    cloud.terminate([node.name])
    assert [node.image for node in cloud.launch(LaunchSpec("web", 1, "def", image=image))] == [""]


def test_a_machine_that_left_the_file_is_still_a_node_and_can_be_given_back(cloud: static.StaticDriver) -> None:
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc"))
    del cloud.pool[node.id]
    assert [one.address for one in cloud.nodes()] == [node.address]
    assert cloud.terminate([node.name]) == [node.name]


def test_a_change_that_fails_leaves_the_record_as_it_was(cloud: static.StaticDriver) -> None:
    cloud.launch(LaunchSpec("web", 1, "abc"))
    before = (cloud.state / "pool.json").read_text()
    with pytest.raises(CloudError, match="no node of this name"):
        cloud.tag("own-web-never-1", {"held": "x"})
    assert (cloud.state / "pool.json").read_text() == before
    assert (cloud.state / "pool.json").stat().st_mode & 0o077 == 0


class Killed(BaseException):
    """The controller died here."""


def test_a_controller_that_dies_at_any_point_is_replaced_by_one_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of the record and every step at a machine is a crash point, before it is done and after."""
    calls, dies_at = 0, 0
    owners: dict[str, str] = {}

    def crash_point() -> None:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            raise Killed

    def take(self: Machine, owner: str, *_more: object) -> bool:
        crash_point()
        assert owners.setdefault(self.name, owner) == owner, "a machine was given to two nodes"
        crash_point()
        return True

    def release(self: Machine, owner: str) -> bool:
        crash_point()
        if owners.get(self.name) == owner:
            del owners[self.name]
        crash_point()
        return True

    def write(path: Path, text: str, original: Any = static.ssh.write) -> None:
        crash_point()
        original(path, text)
        crash_point()

    monkeypatch.setattr(Machine, "take", take)
    monkeypatch.setattr(Machine, "release", release)
    monkeypatch.setattr(static.ssh, "write", write)
    monkeypatch.setattr(static, "_PARALLEL", 1)

    def work(folder: Path) -> static.StaticDriver:
        driver = cloud_driver(validate(values(*POOL), folder / "moodle_fleet.yml"))
        assert isinstance(driver, static.StaticDriver)
        driver.launch(LaunchSpec("builder", 1, ""))
        image = driver.bake("own-builder-1", "4.5.6-ab", "0123")
        driver.terminate(["own-builder-1"])
        one, two = driver.launch(LaunchSpec("web", 2, "abc", image=image))
        driver.prepared(two.name, image)
        driver.tag(one.name, {"retiring": "1"})
        driver.terminate([one.name])
        return driver

    (tmp_path / "0").mkdir()
    work(tmp_path / "0")
    points = calls
    assert points > 40
    for dies_at in range(1, points + 1):
        calls = 0
        owners.clear()
        folder = tmp_path / str(dies_at)
        folder.mkdir()
        with pytest.raises(Killed):
            work(folder)
        driver = work(folder)
        assert [node.name for node in driver.nodes()] == ["own-web-abc-2"], dies_at
        assert owners == {driver.nodes()[0].id: "own/own-web-abc-2"}, dies_at
        assert len(driver.images()) == 1
