# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What any cloud driver must do. A new driver adds a fleet of its own to ``FLEETS``."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import (
    CloudDriver,
    CloudError,
    LaunchSpec,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver, validate
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer, Fault
from ansible_collections.elearning.moodle_fleet.tests.integration.own_servers import OwnServers

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Setting:
    """Where a driver is tried: the section ``cloud``, two zones of it, and how to make the cloud fail."""

    cloud: dict[str, Any]
    zones: tuple[str, str]
    broken: Callable[[], AbstractContextManager[None]]


def _podman(request: pytest.FixtureRequest, state: Path) -> Setting:
    configuration = request.getfixturevalue("podman")
    settings = state / "containers.conf"
    if configuration is not None:
        settings.write_text(configuration.read_text())

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        before = settings.read_text() if settings.exists() else ""
        settings.write_text("[engine\n")
        yield
        settings.write_text(before)

    return Setting({"driver": "podman", "subnet": "10.89.91.0/24", "zones": ["a", "b"]}, ("a", "b"), broken)


def _aws(request: pytest.FixtureRequest, _state: Path) -> Setting:
    server: AwsServer = request.getfixturevalue("aws")
    settings = cloud_settings(server)

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        server.faults = [Fault("*", "InternalError", 500, times=None)]
        yield
        server.faults = []

    first, second, *_more = settings["zones"]
    return Setting({**settings, "zones": {zone: settings["zones"][zone] for zone in (first, second)}}, (first, second), broken)


def _static(request: pytest.FixtureRequest, state: Path) -> Setting:
    request.getfixturevalue("podman")
    servers: OwnServers = request.getfixturevalue("own_servers")

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        record = state / "pool.json"
        record.write_text("{")
        yield
        record.unlink()

    return Setting(servers.cloud(), ("a", "b"), broken)


@pytest.fixture(scope="module")
def own_servers(podman: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    """Five servers, two of them without power commands."""
    roles = ["web", "balancer", "database", "cache", "jobs", "logs"]
    machines = {f"m{number}": (roles, number < 4) for number in range(1, 6)}
    with OwnServers(tmp_path_factory.mktemp("own"), "fleet-contract-own", "10.89.99.0/24", machines) as servers:
        yield servers


FLEETS = {"podman": _podman, "aws": _aws, "static": _static}
# Whose nodes are servers that can be reached. moto's are not.
ALIVE = ["podman", "static"]
# Whose images are copies of the builder. Own servers get the recipe instead (see test_own_servers.py).
COPYING = ["podman"]


@pytest.fixture
def setting(request: pytest.FixtureRequest, driver_name: str, tmp_path: Path) -> Setting:
    """Where the driver is tried."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    return FLEETS[driver_name](request, state)


@pytest.fixture
def driver(setting: Setting, tmp_path: Path) -> Iterator[CloudDriver]:
    """A driver of an empty fleet; what it left is removed before and after."""
    values = {
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "contract", "state_dir": str(tmp_path / "state"),
        "cloud": setting.cloud, "scaling": {"min_nodes": 2, "max_nodes": 4},
    }
    driver = cloud_driver(validate(values, tmp_path / "moodle_fleet.yml"))
    driver.terminate([node.name for node in driver.nodes()])
    yield driver
    driver.destroy()


@pytest.fixture(params=FLEETS)
def driver_name(request: pytest.FixtureRequest) -> str:
    """Every driver; a test of living nodes asks for those of ``ALIVE`` alone."""
    return str(request.param)


@pytest.fixture
def cloud(driver: CloudDriver) -> CloudDriver:
    return driver


alive = pytest.mark.parametrize("driver_name", ALIVE, indirect=False)


def ssh(cloud: CloudDriver, name: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a node as Ansible would: with the driver's connection variables alone."""
    node = next(node for node in cloud.nodes() if node.name == name)
    variables = cloud.connection(node)
    return subprocess.run(
        ["ssh", "-i", variables["ansible_ssh_private_key_file"], *variables["ansible_ssh_common_args"].split(),
         "-o", "BatchMode=yes", f"{variables['ansible_user']}@{variables['ansible_host']}", command],
        capture_output=True, text=True, check=False, timeout=30,
    )


def test_a_launch_gives_nodes_with_all_that_the_fleet_needs(cloud: CloudDriver, setting: Setting) -> None:
    spec = LaunchSpec("web", 2, "abc123", release="4.5.6-ab", tags={"reason": "peak"})
    nodes = cloud.launch(spec)
    assert [node.name for node in nodes] == cloud.launch_names(spec)
    seen = cloud.nodes()
    assert [(n.name, n.address, n.zone, n.id, n.image) for n in seen] == [
        (n.name, n.address, n.zone, n.id, n.image) for n in nodes
    ]
    assert {node.role for node in seen} == {"web"}
    assert {node.zone for node in seen} == set(setting.zones)
    assert {node.state for node in seen} <= {"pending", "running"}
    assert {node.release for node in nodes + seen} == {"4.5.6-ab"}
    assert all(node.tags == {"reason": "peak"} and node.launched > 0 and node.address for node in nodes + seen)


@alive
def test_a_node_has_its_name_and_runs_systemd(cloud: CloudDriver) -> None:
    nodes = cloud.launch(LaunchSpec("web", 2, "abc123"))
    assert cloud.wait_reachable([node.name for node in nodes], 60) == []
    done = ssh(cloud, nodes[0].name, "hostname && cat /proc/1/comm")
    assert done.stdout.split() == [nodes[0].name, "systemd"], done.stderr


def test_the_host_key_of_a_new_node_is_known_before_it_boots(cloud: CloudDriver) -> None:
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc123"))
    options = cloud.connection(node)["ansible_ssh_common_args"].split()
    assert "StrictHostKeyChecking=yes" in options and f"HostKeyAlias={node.name}" in options
    file = next(option.partition("=")[2] for option in options if option.startswith("UserKnownHostsFile="))
    found = subprocess.run(["ssh-keygen", "-F", node.name, "-f", file], capture_output=True, text=True, check=False)
    assert "ssh-ed25519" in found.stdout


def test_the_same_token_never_launches_twice(cloud: CloudDriver) -> None:
    first = cloud.launch(LaunchSpec("web", 1, "abc123"))
    again = cloud.launch(LaunchSpec("web", 2, "abc123"))
    assert [node.address for node in again][:1] == [node.address for node in first]
    assert len(cloud.nodes()) == 2
    assert len(cloud.launch(LaunchSpec("web", 1, "other"))) == 1
    assert len(cloud.nodes()) == 3


def test_a_node_of_a_tier_that_is_gone_is_launched_again(cloud: CloudDriver) -> None:
    (old,) = cloud.launch(LaunchSpec("database", 1, ""))
    assert [node.name for node in cloud.launch(LaunchSpec("database", 1, ""))] == [old.name]
    cloud.terminate([old.name])
    assert cloud.nodes() == []
    (new,) = cloud.launch(LaunchSpec("database", 1, ""))
    assert new.name == old.name and [node.name for node in cloud.nodes()] == [old.name]


def test_two_controllers_that_launch_the_same_attempt_make_one_node(cloud: CloudDriver) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: cloud.launch(LaunchSpec("web", 1, "race")), range(2)))
    assert len(cloud.nodes()) == 1
    assert {node.name for result in results for node in result} == {cloud.nodes()[0].name}


def test_terminate_may_be_repeated_and_touches_its_own_nodes_only(cloud: CloudDriver) -> None:
    one, two = cloud.launch(LaunchSpec("web", 2, "abc123"))
    assert cloud.terminate([one.name, "contract-web-never-1"]) == [one.name]
    assert cloud.terminate([one.name]) == []
    assert [node.name for node in cloud.nodes()] == [two.name]


@alive
def test_a_new_node_at_an_old_address_is_reached_without_trust_on_first_use(cloud: CloudDriver) -> None:
    (old,) = cloud.launch(LaunchSpec("web", 1, "old"))
    assert cloud.wait_reachable([old.name], 60) == []
    assert ssh(cloud, old.name, "true").returncode == 0
    cloud.terminate([old.name])
    (new,) = cloud.launch(LaunchSpec("web", 1, "new"))
    assert new.address == old.address
    # 20 s: a stale neighbour entry would keep it unreachable for longer than that.
    assert cloud.wait_reachable([new.name], 20) == []
    assert ssh(cloud, new.name, "hostname").stdout.strip() == new.name


def test_tags_are_set_and_removed(cloud: CloudDriver) -> None:
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc123", tags={"a": "1"}))
    assert cloud.tag(node.name, {"held": "post-mortem"}).tags == {"a": "1", "held": "post-mortem"}
    assert cloud.tag(node.name, {"a": None}).tags == {"held": "post-mortem"}
    assert cloud.nodes()[0].tags == {"held": "post-mortem"}
    with pytest.raises(CloudError, match="no node of this name"):
        cloud.tag("contract-web-never-1", {"a": "1"})


def test_an_unreachable_node_is_named_when_the_time_is_up(cloud: CloudDriver) -> None:
    assert cloud.wait_reachable(["contract-web-never-1"], 0.2) == ["contract-web-never-1"]


def test_an_image_is_baked_of_a_node_launched_and_removed(cloud: CloudDriver) -> None:
    (builder,) = cloud.launch(LaunchSpec("builder", 1, ""))
    image = cloud.bake(builder.name, "4.5.6-ab", "0123")
    cloud.terminate([builder.name])
    (listed,) = cloud.images()
    assert listed["id"].startswith(image[:12])
    assert (listed["role"], listed["release"], listed["recipe"]) == ("web", "4.5.6-ab", "0123")
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc123", image=image, release="4.5.6-ab"))
    assert node.image[:12] == image[:12]
    cloud.terminate([node.name])
    cloud.remove_images([image])
    cloud.remove_images([image])
    assert cloud.images() == []


@pytest.mark.parametrize("driver_name", COPYING, indirect=False)
def test_what_the_builder_got_is_in_the_image(cloud: CloudDriver) -> None:
    (builder,) = cloud.launch(LaunchSpec("builder", 1, ""))
    cloud.wait_reachable([builder.name], 60)
    assert ssh(cloud, builder.name, "echo baked > /etc/recipe").returncode == 0
    image = cloud.bake(builder.name, "4.5.6-ab", "0123")
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc123", image=image, release="4.5.6-ab"))
    assert cloud.wait_reachable([node.name], 60) == []
    assert ssh(cloud, node.name, "cat /etc/recipe").stdout == "baked\n"
    assert ssh(cloud, node.name, "hostname").stdout.strip() == node.name


def test_a_cloud_that_does_not_answer_is_an_error_not_an_empty_fleet(cloud: CloudDriver, setting: Setting) -> None:
    with setting.broken(), pytest.raises(CloudError):
        cloud.nodes()


def test_nothing_is_left_of_a_destroyed_fleet(cloud: CloudDriver, tmp_path: Path) -> None:
    nodes = cloud.launch(LaunchSpec("web", 2, "abc123"))
    assert cloud.destroy() == [node.name for node in nodes]
    assert cloud.nodes() == [] and cloud.images() == [] and not (tmp_path / "state").exists()
