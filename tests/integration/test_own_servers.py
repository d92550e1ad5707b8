# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Own servers: what the cloud contract can't ask of every driver, and a whole fleet of them that grows and shrinks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError, LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.static import StaticDriver
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver, load

from .conftest import ROOT, SECRET, TENANT, TENANTS, VARIABLES, LocalFleet, changed
from .own_servers import OwnServers

pytestmark = pytest.mark.slow

UNIT = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
LAUNCH = """
import sys
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver, load
cloud_driver(load(sys.argv[1])).launch(LaunchSpec("web", 1, "abc"))
"""


@pytest.fixture(scope="module")
def servers(podman: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    """Three servers; m1 has power commands and is off at first."""
    machines = {name: (["web"], name == "m1") for name in ("m1", "m2", "m3")}
    with OwnServers(tmp_path_factory.mktemp("own"), "fleet-own", "10.89.100.0/24", machines) as servers:
        yield servers


def fleet_file(folder: Path, cloud: dict[str, Any], **more: Any) -> Path:
    """A fleet of web nodes alone."""
    services = {role: {"count": 0} for role in ("balancer", "jobs", "logs", "database", "cache")}
    values = {
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "own", "state_dir": "state", "cloud": cloud, "services": services,
        "scaling": {"min_nodes": 1, "max_nodes": 2}, **more,
    }
    file = folder / "moodle_fleet.yml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture
def cloud(servers: OwnServers, tmp_path: Path) -> Iterator[StaticDriver]:
    driver = cloud_driver(load(fleet_file(tmp_path, servers.cloud(["a"]))))
    assert isinstance(driver, StaticDriver)
    yield driver
    # What a test left unreachable or dirty.
    for machine in ("m2", "m3"):
        subprocess.run(["podman", "start", servers.container(machine)], check=True, capture_output=True)
    driver.terminate([node.name for node in driver.nodes()])


def prepare(servers: OwnServers, machine: str) -> None:
    """Something that serves, as the recipe leaves it behind, and a secret."""
    script = (f"mkdir -p /etc/moodle-fleet && echo secret > /etc/moodle-fleet/tenants.php && printf '{UNIT}' > "
              "/etc/systemd/system/moodle-fleet-test.service && systemctl enable --now --quiet moodle-fleet-test")
    servers.run(machine, "sh", "-c", script.replace("\n", "\\n"))


def serves(servers: OwnServers, machine: str) -> bool:
    return servers.run(machine, "sh", "-c", "systemctl is-active moodle-fleet-test || true").strip() == "active"


def files(servers: OwnServers, machine: str) -> set[str]:
    return set(servers.run(machine, "ls", "/etc/moodle-fleet").split())


def test_a_machine_is_switched_on_for_a_launch_and_off_when_it_is_given_back(cloud: StaticDriver, servers: OwnServers) -> None:
    assert not servers.is_on("m1")
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc"))
    assert (node.id, node.state) == ("m1", "running") and servers.is_on("m1")
    cloud.terminate([node.name])
    assert not servers.is_on("m1")


def test_the_builder_is_launched_first_and_starts_what_it_holds(cloud: StaticDriver, servers: OwnServers) -> None:
    # m1 is taken, so that the builder is not simply the first of the pool.
    cloud.launch(LaunchSpec("web", 1, "first"))
    (builder,) = cloud.launch(LaunchSpec("builder", 1, ""))
    prepare(servers, builder.id)
    image = cloud.bake(builder.name, "4.5.6-ab", "0123")
    cloud.terminate([*(node.name for node in cloud.nodes())])
    assert not serves(servers, builder.id)
    assert "tenants.php" not in files(servers, builder.id)
    assert servers.run(builder.id, "hostname").strip() == builder.id
    # Also after a power failure in the pool.
    servers.run(builder.id, "systemctl", "start", "multi-user.target")
    assert not serves(servers, builder.id)
    first, second = cloud.launch(LaunchSpec("web", 2, "abc", image=image))
    assert (first.id, first.image) == (builder.id, image) and serves(servers, builder.id)
    # The other one has to get the recipe; once it has, it is known to hold the same.
    assert (second.id, second.image) == ("m1", "")
    assert cloud.prepared(second.name, image).image == image
    cloud.terminate([first.name, second.name])
    assert {node.image for node in cloud.launch(LaunchSpec("web", 2, "def", image=image))} == {image}


def test_a_machine_that_was_installed_afresh_gets_the_recipe_again(cloud: StaticDriver, servers: OwnServers) -> None:
    (builder,) = cloud.launch(LaunchSpec("builder", 1, ""))
    image = cloud.bake(builder.name, "4.5.6-ab", "0123")
    cloud.terminate([builder.name])
    assert builder.id == "m1"
    subprocess.run(["podman", "start", servers.container("m1")], check=True, capture_output=True)
    servers.run("m1", "rm", "-rf", "/etc/moodle-fleet")
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc", image=image))
    assert (node.id, node.image) == ("m1", "")


def test_what_could_not_be_cleaned_is_cleaned_before_it_serves_again(cloud: StaticDriver, servers: OwnServers) -> None:
    nodes = cloud.launch(LaunchSpec("web", 3, "abc"))
    node = next(node for node in nodes if node.id == "m2")
    prepare(servers, "m2")
    subprocess.run(["podman", "kill", servers.container("m2")], check=True, capture_output=True)
    assert cloud.terminate([node.name]) == [node.name]
    subprocess.run(["podman", "start", servers.container("m2")], check=True, capture_output=True)
    servers.run("m2", "sh", "-c", "until systemctl is-active --quiet moodle-fleet-test; do sleep 0.1; done")
    (again,) = cloud.launch(LaunchSpec("web", 1, "def"))
    assert again.id == "m2"
    assert not serves(servers, "m2") and files(servers, "m2") == {"owner"}


def test_a_launch_that_was_killed_goes_on_with_the_same_machine(servers: OwnServers, tmp_path: Path) -> None:
    pool = servers.cloud(["a"])
    wake, pool["pool"][0]["power_on"] = pool["pool"][0]["power_on"], ["true"]
    file = fleet_file(tmp_path, pool)
    with subprocess.Popen([sys.executable, "-c", LAUNCH, str(file)]) as process:
        deadline = time.monotonic() + 30
        while not (seen := cloud_driver(load(file)).nodes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert [(node.id, node.state) for node in seen] == [("m1", "pending")]
    pool["pool"][0]["power_on"] = wake
    cloud = cloud_driver(load(fleet_file(tmp_path, pool)))
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc"))
    assert (node.id, node.state) == ("m1", "running") and len(cloud.nodes()) == 1
    assert cloud.destroy() == [node.name]


def test_a_machine_that_serves_another_fleet_is_not_taken(cloud: StaticDriver, servers: OwnServers, tmp_path: Path) -> None:
    (node,) = cloud.launch(LaunchSpec("web", 1, "abc"))
    (tmp_path / "other").mkdir()
    other = cloud_driver(load(fleet_file(tmp_path / "other", servers.cloud(["a"]), fleet="other")))
    with pytest.raises(CloudError, match=r"machine m1 .* it says that it serves as own/own-web-abc-1"):
        other.launch(LaunchSpec("web", 1, "abc"))
    # The next attempt takes another machine; giving the first one back leaves it to whom it serves.
    (elsewhere,) = other.launch(LaunchSpec("web", 1, "def"))
    assert elsewhere.id == "m2"
    other.settings["pool"][0]["power_off"] = []
    other.destroy()
    assert "owner" in files(servers, "m1") and servers.run("m1", "hostname").strip() == node.name


def test_a_machine_that_does_not_start_is_named_and_tried_last(servers: OwnServers, tmp_path: Path) -> None:
    pool = servers.cloud(["a"]) | {"boot_seconds": 5}
    pool["pool"][0]["power_on"] = ["true"]
    cloud = cloud_driver(load(fleet_file(tmp_path, pool)))
    with pytest.raises(CloudError, match=r"Failed to take machine m1 \(10.89.100.10\) within boot_seconds=5"):
        cloud.launch(LaunchSpec("web", 1, "abc"))
    cloud.terminate(["own-web-abc-1"])
    assert [node.id for node in cloud.launch(LaunchSpec("web", 2, "def"))] == ["m2", "m3"]
    pool["pool"][0]["power_on"] = ["sh", "-c", "echo no answer from the BMC >&2; exit 3"]
    cloud = cloud_driver(load(fleet_file(tmp_path, pool)))
    with pytest.raises(CloudError, match="power_on command of machine m1 ended with 3: no answer from the BMC"):
        cloud.launch(LaunchSpec("web", 1, "ghi"))
    with pytest.raises(CloudError, match="no machine of cloud.pool with the role web is free for own-web-jkl-1"):
        cloud.launch(LaunchSpec("web", 1, "jkl"))
    # Given back although it can't be switched off by a command that fails.
    pool["pool"][0]["power_off"] = ["false"]
    cloud = cloud_driver(load(fleet_file(tmp_path, pool)))
    with pytest.raises(CloudError, match="power_off command of machine m1 ended with 1"):
        cloud.destroy()
    assert cloud.nodes() == []


# -- a whole fleet ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_fleet(podman: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalFleet, OwnServers]]:
    """Nine bare servers, and the files of a fleet on them that keeps its ledger in its own database."""
    if not os.environ.get("MOODLE_FLEET_TEST_OWN"):
        pytest.skip("builds a fleet of its own: set MOODLE_FLEET_TEST_OWN=1")
    folder = tmp_path_factory.mktemp("ownfleet")
    machines = {role: ([role], False) for role in ("balancer", "database", "cache", "jobs", "logs")}
    machines |= {f"web{number}": (["web"], number > 2) for number in range(1, 5)}
    inventory = folder / "inventory"
    (inventory / "group_vars").mkdir(parents=True)
    variables = VARIABLES.format(source=f"{ROOT}/tests/standin", secret=SECRET, port=443)
    (inventory / "group_vars" / "all.yml").write_text(variables + "".join(TENANT.format(name=tenant) for tenant in TENANTS))
    with OwnServers(folder, "fleet-ownsite", "10.89.101.0/24", machines) as servers:
        values = {
            "plugin": "elearning.moodle_fleet.fleet", "fleet": "ownsite", "state_dir": "../state", "cloud": servers.cloud(),
            "scaling": {"min_nodes": 2, "max_nodes": 3, "workers": 4, "scale_in_window": 0, "cooldown_in": 0},
            "ledger": {"driver": "mariadb", "endpoint": f"{servers.address('database')}:3306"},
        }
        (inventory / "moodle_fleet.yml").write_text(yaml.safe_dump(values))
        yield LocalFleet(inventory, cloud_driver(load(inventory / "moodle_fleet.yml"))), servers


def site_of(fleet: LocalFleet, tenant: str) -> str:
    """A tenant's front page at the balancer."""
    (address,) = fleet.addresses("balancer").values()
    command = ["curl", "--silent", "--cacert", str(fleet.state_dir / "tls" / "ca.pem"), "--resolve", f"{tenant}.localhost:443:{address}"]
    return subprocess.run([*command, f"https://{tenant}.localhost/"], capture_output=True, text=True, check=False).stdout


def test_a_fleet_of_own_servers_is_built_grows_and_shrinks(own_fleet: tuple[LocalFleet, OwnServers]) -> None:
    fleet, servers = own_fleet
    fleet.playbook("site")
    assert [f"Site of {tenant}" in site_of(fleet, tenant) for tenant in TENANTS] == [True, True]
    again = fleet.playbook("site")
    assert sum(changed(again).values()) == 0, again.stdout[-6000:]

    fleet.playbook("scale", "-e", "fleet_desired=3")
    web = {node.id: node for node in fleet.cloud.nodes() if node.role == "web"}
    assert len(web) == 3 and all(node.image for node in web.values())
    phases = json.loads(subprocess.run(
        [sys.executable, "-m", "ansible_collections.elearning.moodle_fleet.trigger", "--fleet", str(fleet.file), "status", "--json"],
        capture_output=True, text=True, check=True,
    ).stdout)["phases"]
    assert set(phases.values()) == {"in_service"}

    fleet.playbook("scale", "-e", "fleet_desired=2")
    left = {node.id for node in fleet.cloud.nodes() if node.role == "web"}
    (gone,) = set(web) - left
    assert servers.is_on(gone) == (gone in ("web1", "web2"))
    if servers.is_on(gone):
        assert not {"tenants.php", "tenants.own"} & files(servers, gone)
        assert servers.run(gone, "sh", "-c", "systemctl is-active nginx || true").strip() == "inactive"
    assert f"Site of {TENANTS[0]}" in site_of(fleet, TENANTS[0])

    # It holds the recipe still: the next growth applies none, it only starts the machine.
    third = fleet.playbook("scale", "-e", "fleet_desired=3")
    (back,) = {node.id for node in fleet.cloud.nodes() if node.role == "web"} - left
    assert back == gone and "elearning.moodle_fleet.web" not in third.stdout

    # All of that stands in the fleet's database, and a check finds it there.
    checks = json.loads(fleet.command("history", "--json").stdout)["checks"]
    assert [(one["origin"], one["status"], one["desired"]) for one in checks] == [("playbook", "done", wanted) for wanted in (3, 2, 3)]
    assert {step["status"] for one in checks for step in one["activities"]} == {"done"}
    quiet = fleet.command("check", "--json")
    assert quiet.returncode == 0 and json.loads(quiet.stdout)["check_id"] > checks[0]["id"], quiet
    assert not {"ledger.sqlite", "check.lock", "image"} & {path.name for path in fleet.state_dir.iterdir()}
    assert (fleet.state_dir / "ledger.password").stat().st_mode & 0o777 == 0o600
