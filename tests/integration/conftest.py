# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A fleet of containers with the stand-in site, built once by the real playbooks for all tests that ask for it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import urllib3.util.connection

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudDriver
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver, load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer

ROOT = Path(__file__).parents[2]
PORT = 18443
SECRET = "a-secret-for-tests-alone-0123456789abcdef"
TENANTS = ("acme", "globex")
# Where a host's name leads to, other than to this machine.
ADDRESSES: dict[str, str] = {}
FLEET = """
plugin: elearning.moodle_fleet.fleet
fleet: {name}
state_dir: ../state
cloud:
  driver: podman
  subnet: {subnet}
  zones: [a, b]
services:
  balancer: {{count: {balancers}, publish: ["127.0.0.1:{port}:443"]}}
scaling: {{min_nodes: 2, max_nodes: 4, workers: 4}}
"""
VARIABLES = """
moodle_source: {source}
moodle_fleet_secret: {secret}
moodle_public_port: {port}
moodle_tenants:
"""
TENANT = """
  - name: {name}
    hosts: [{name}.localhost]
    title: Site of {name}
    admin: {{user: admin, email: admin@{name}.example}}
"""


@pytest.fixture(scope="session")
def podman() -> Path | None:
    """The containers.conf that this machine's podman needs, if it needs one (scripts/test finds out)."""
    path = os.environ.get("CONTAINERS_CONF")
    return Path(path) if path else None


@pytest.fixture(scope="session")
def aws_server() -> Iterator[AwsServer]:
    """One AWS for all tests; ask for ``aws`` to have it empty."""
    with AwsServer() as server:
        yield server


@pytest.fixture
def aws(aws_server: AwsServer) -> Iterator[AwsServer]:
    """An empty AWS that clients of this test, and what it starts, find by their environment."""
    aws_server.reset()
    with aws_server.as_environment():
        yield aws_server


@dataclass(frozen=True)
class LocalFleet:
    """A fleet of containers and how to reach it."""

    inventory: Path
    cloud: CloudDriver
    port: int = PORT
    domain: str = "localhost"

    @property
    def file(self) -> Path:
        """The fleet file."""
        return self.inventory / "moodle_fleet.yml"

    @property
    def state_dir(self) -> Path:
        """The controller's folder."""
        return self.inventory.parent / "state"

    def playbook(self, name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of our playbooks, as an operator would."""
        command = ["ansible-playbook", "-i", str(self.inventory), str(ROOT / "playbooks" / f"{name}.yml"), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}")
        return done

    def command(self, *words: str, events: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``moodle-fleet``; ``events`` is that section of the fleet file."""
        file = self.file
        if events:
            file = self.inventory / "with_events.yml"
            file.write_text(f"{self.file.read_text()}\nevents: {events}\n")
        module = "ansible_collections.elearning.moodle_fleet.trigger"
        command = [sys.executable, "-m", module, "--fleet", str(file), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        finally:
            if events:
                file.unlink()

    def addresses(self, role: str) -> dict[str, str]:
        """Name and address of the running nodes of a role."""
        return {node.name: node.address for node in self.cloud.nodes() if node.role == role and node.state == "running"}

    def visitor(self) -> requests.Session:
        """A browser: it trusts the fleet's authority and finds every *.localhost at the balancer."""
        session = requests.Session()
        # An authority named in the environment would go before the fleet's own.
        session.trust_env = False
        session.verify = str(self.state_dir / "tls" / "ca.pem")
        return session

    def url(self, tenant: str, path: str = "/") -> str:
        """Address of a page at the balancer."""
        return f"https://{tenant}.{self.domain}:{self.port}{path}"

    def login(self, tenant: str, welcome: str = "You are logged in as admin") -> requests.Session:
        """A browser in which the administrator of a tenant is logged in."""
        session = self.visitor()
        page = session.get(self.url(tenant, "/login/index.php"), timeout=60)
        form = {
            "username": "admin",
            "password": derive(SECRET, "admin", tenant),
            "logintoken": re.search(r'name="logintoken" value="([^"]+)"', page.text)[1],
        }
        done = session.post(self.url(tenant, "/login/index.php"), data=form, timeout=60)
        assert welcome in done.text, done.text[-3000:]
        return session

    def at_node(self, session: requests.Session, address: str, tenant: str, path: str, **more: object) -> requests.Response:
        """A request of this browser that a certain node answers, past the balancer."""
        headers = {"Host": f"{tenant}.{self.domain}:{self.port}", "Cookie": "; ".join(f"{c.name}={c.value}" for c in session.cookies)}
        method = str(more.pop("method", "GET"))
        return requests.request(
            method, f"http://{address}{path}", headers=headers, allow_redirects=False, timeout=30, **more
        )


def changed(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Changed tasks by host, from a playbook's recap."""
    recap = done.stdout.split("PLAY RECAP", 1)[1]
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: .*changed=(\d+)", recap, re.M)}


@pytest.fixture(scope="session", autouse=True)
def _localhost_names() -> Iterator[None]:
    """Resolve *.localhost to this machine, as browsers do and the C library need not."""
    original = urllib3.util.connection.create_connection

    def connect(address: tuple[str, int], *arguments: object, **more: object) -> socket.socket:
        host, port = address
        usual = "127.0.0.1" if host.endswith(".localhost") else host
        return original((ADDRESSES.get(host, usual), port), *arguments, **more)

    urllib3.util.connection.create_connection = connect
    yield
    urllib3.util.connection.create_connection = original


def new_fleet(
    folder: Path, podman: Path | None, *, name: str, subnet: str, port: int, source: str, balancers: int = 1
) -> Iterator[LocalFleet]:
    """The files of a fleet of which nothing exists yet. What an earlier run left is removed first, and all of it at the end."""
    inventory, state = folder / "inventory", folder / "state"
    (inventory / "group_vars").mkdir(parents=True)
    text = FLEET.format(name=name, subnet=subnet, port=port, balancers=balancers)
    (inventory / "moodle_fleet.yml").write_text(text)
    variables = VARIABLES.format(source=source, secret=SECRET, port=port)
    variables += "".join(TENANT.format(name=tenant) for tenant in TENANTS)
    (inventory / "group_vars" / "all.yml").write_text(variables)

    def prepare() -> CloudDriver:
        state.mkdir(mode=0o700, exist_ok=True)
        if podman is not None:
            shutil.copy(podman, state / "containers.conf")
        return cloud_driver(load(inventory / "moodle_fleet.yml"))

    prepare().destroy()
    yield LocalFleet(inventory, prepare(), port)
    if not os.environ.get("KEEP_FLEET"):
        prepare().destroy()


@pytest.fixture(scope="session")
def bare_fleet(tmp_path_factory: pytest.TempPathFactory, podman: Path | None) -> Iterator[LocalFleet]:
    """A fleet of the stand-in site that does not exist yet."""
    yield from new_fleet(
        tmp_path_factory.mktemp("e2e"), podman, name="e2e", subnet="10.89.92.0/24", port=PORT,
        source=f"{ROOT}/tests/standin", balancers=2,
    )


@pytest.fixture(scope="session")
def fleet(bare_fleet: LocalFleet) -> LocalFleet:
    """The fleet, built by playbooks/site.yml; its first run in check mode is part of it."""
    first = bare_fleet.playbook("site", "--check", "--diff")
    assert "+e2e-database-1" in first.stdout
    assert bare_fleet.cloud.nodes() == []
    bare_fleet.playbook("site")
    return bare_fleet
