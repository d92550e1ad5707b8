# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Own servers for the cloud driver ``static``: containers that a test starts, and that the driver knows by address and key alone.

Those with power commands are off until the driver switches them on.
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import ssh
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.podman import mac_address

IMAGE = "localhost/moodle-fleet/base:bookworm"


class OwnServers:
    """A network of containers; ``machines`` gives each one's roles, and whether it has power commands."""

    def __init__(self, folder: Path, name: str, subnet: str, machines: Mapping[str, tuple[Sequence[str], bool]]):
        self.folder, self.name = folder, name
        self.network = ipaddress.ip_network(subnet)
        self.machines = machines
        self.key = folder / "id_ed25519"

    def __enter__(self) -> OwnServers:
        self.remove()
        ssh.make_key(self.key, "test")
        _podman("network", "create", f"--subnet={self.network}", self.name)
        _podman("volume", "create", self.name)
        for machine in self.machines:
            self._make(machine)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take everything away, also what an earlier run left."""
        left = _podman("ps", "--all", "--quiet", "--filter", f"network={self.name}").split()
        if left:
            _podman("rm", "--force", "--time", "5", "--volumes", *left)
        _podman("network", "rm", "--force", self.name)
        _podman("volume", "rm", "--force", self.name)

    def cloud(self, zones: Sequence[str] = ("a", "b")) -> dict[str, Any]:
        """The section ``cloud`` of a fleet file for them."""
        gateway = next(self.network.hosts())
        return {
            "driver": "static", "ssh_key": str(self.key), "networks": [str(self.network)],
            "controller_networks": [f"{gateway}/32"], "boot_seconds": 60,
            "pool": [self._entry(machine, zones[i % len(zones)]) for i, machine in enumerate(self.machines)],
        }

    def run(self, machine: str, *command: str) -> str:
        """Run a command on a machine, not by ssh."""
        return _podman("exec", self.container(machine), *command)

    def is_on(self, machine: str) -> bool:
        """Whether it runs."""
        return _podman("inspect", "--format", "{{.State.Running}}", self.container(machine)).strip() == "true"

    def container(self, machine: str) -> str:
        """Podman's name for a machine."""
        return f"{self.name}-{machine}"

    def address(self, machine: str) -> str:
        """Its address."""
        return str(list(self.network.hosts())[9 + list(self.machines).index(machine)])

    def _entry(self, machine: str, zone: str) -> dict[str, Any]:
        roles, powered = self.machines[machine]
        kind, key = (self.folder / machine / "ssh_host_ed25519_key.pub").read_text().split()[:2]
        entry = {"name": machine, "address": self.address(machine), "host_key": f"{kind} {key}", "roles": list(roles), "zone": zone}
        if powered:
            entry |= {"power_on": ["podman", "start", self.container(machine)], "power_off": ["podman", "stop", "--time", "10", self.container(machine)]}
        return entry

    def _make(self, machine: str) -> None:
        folder = self.folder / machine
        ssh.make_key(folder / "ssh_host_ed25519_key", machine)
        (folder / "authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
        address = self.address(machine)
        roles, powered = self.machines[machine]
        # The right to set a host name, which a server of one's own has.
        arguments = ["--systemd=always", "--cap-add=SYS_ADMIN", f"--name={self.container(machine)}", f"--hostname={machine}"]
        arguments += [f"--network={self.name}", f"--ip={address}", f"--mac-address={mac_address(address)}"]
        arguments += [f"--volume={folder}:/etc/ssh/fleet:ro"]
        # With that right systemd tries to give Redis users of its own, which a container can't have.
        (self.folder / "redis.conf").write_text("[Service]\nPrivateUsers=no\n")
        arguments += [f"--volume={self.folder}/redis.conf:/etc/systemd/system/redis-server@.service.d/stand-in.conf:ro"]
        if {"web", "jobs"} & set(roles):
            arguments += [f"--volume={self.name}:/srv/moodledata"]
        _podman(*(["create"] if powered else ["run", "--detach"]), *arguments, IMAGE, "/sbin/init")


def _podman(*arguments: str) -> str:
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode and arguments[:2] not in (("network", "rm"), ("volume", "rm")):
        raise AssertionError(f"podman {' '.join(arguments)} failed: {done.stderr}")
    return done.stdout
