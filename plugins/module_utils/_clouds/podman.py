# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Cloud driver ``podman``: nodes are systemd containers on the machine that runs Ansible.

What a cloud keeps for its servers is kept in two places here: what never changes as labels of the container, what
changes (tags) and what must exist before the first boot (host key, reserved address) in a folder per node below the
fleet's state directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import ssh
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import (
    CloudDriver,
    CloudError,
    LaunchSpec,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._schema import Field

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

LABEL = "moodle_fleet"
SHARED_FILES = "/srv/moodledata"
# A launch that died between reserving its address and starting its container gives the address back after this.
RESERVATION_SECONDS = 600
_PARALLEL = 8


def _subnet_problem(value: str) -> str | None:
    try:
        size = ipaddress.ip_network(value).num_addresses
    except ValueError as exc:
        return f"write a private network such as 10.89.77.0/24 ({exc})"
    return None if size >= 16 else "use a network of at least 16 addresses"


SETTINGS = {
    "subnet": Field(str, default="10.89.77.0/24", check=_subnet_problem, help="network of the containers, which podman makes"),
    "zones": Field(list, default=["a"], items=Field(str, pattern="[a-z0-9-]{1,20}"), help="names over which nodes are spread"),
    "base_image": Field(str, default="localhost/moodle-fleet/base:bookworm", help="a Debian with systemd and sshd, as `scripts/base-image` makes it"),
}

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def driver(fleet: Fleet) -> PodmanDriver:
    """The driver of one fleet."""
    return PodmanDriver(fleet)


class PodmanDriver(CloudDriver):
    """Containers of one fleet, told apart by the label ``moodle_fleet.fleet``."""

    at_once = True

    def __init__(self, fleet: Fleet, run: Run | None = None):
        self.fleet = fleet
        self.state = fleet.state_dir
        self.settings = fleet.cloud
        self.network = f"moodle-fleet-{fleet.name}"
        self.volume = f"moodle-fleet-{fleet.name}-files"
        self._run = run or self._podman

    # -- observing ---------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        listed = self._json("ps", "--all", "--filter", f"label={LABEL}.fleet={self.fleet.name}", "--format", "json")
        nodes = [self._node(entry) for entry in listed]
        return sorted((node for node in nodes if node.role), key=lambda node: node.name)

    def images(self) -> list[dict[str, Any]]:
        listed = self._json("images", "--filter", f"label={LABEL}.fleet={self.fleet.name}", "--format", "json")
        images = [
            {
                "id": entry["Id"],
                "role": entry["Labels"].get(f"{LABEL}.baked", ""),
                "release": entry["Labels"].get(f"{LABEL}.release", ""),
                "recipe": entry["Labels"].get(f"{LABEL}.recipe", ""),
                "created": float(entry.get("Created", 0)),
            }
            for entry in listed
        ]
        return sorted((image for image in images if image["role"]), key=lambda image: -image["created"])

    def connection(self, node: Node) -> dict[str, Any]:
        folder = self._folder(node.name)
        return ssh.connection(node.address, node.name, self.state / "ssh" / "id_ed25519", folder / "known_hosts")

    def networks(self) -> dict[str, list[str]]:
        network = ipaddress.ip_network(self.settings["subnet"])
        return {"fleet": [str(network)], "controller": [f"{next(network.hosts())}/32"]}

    def zones(self) -> list[str]:
        return list(self.settings["zones"])

    # -- changing ----------------------------------------------------------------------------------------------

    def launch_names(self, spec: LaunchSpec) -> list[str]:
        if not re.fullmatch("[a-z0-9]{0,16}", spec.token):
            raise CloudError(f"token: {spec.token!r}: use at most 16 characters of a-z and 0-9")
        parts = [self.fleet.name, spec.role] + ([spec.token] if spec.token else [])
        return ["-".join([*parts, str(i + 1)]) for i in range(spec.count)]

    def launch(self, spec: LaunchSpec) -> list[Node]:
        # Whoever asks for the same nodes meanwhile finds them afterwards.
        with self._lock("launch"):
            return self._launch(spec)

    def _launch(self, spec: LaunchSpec) -> list[Node]:
        zones = list(spec.zones) or self.settings["zones"]
        names = {name: zones[i % len(zones)] for i, name in enumerate(self.launch_names(spec))}
        self._prepare()
        existing = {node.name: node for node in self.nodes()}
        addresses = self._reserve([name for name in names if name not in existing], existing.values())

        def ensure(name: str) -> None:
            if name not in existing:
                self._create(name, names[name], addresses[name], spec)
            elif existing[name].state != "running":
                self._podman_checked(f"start node {name}", "start", name)

        with ThreadPoolExecutor(_PARALLEL) as pool:
            results = [pool.submit(ensure, name) for name in names]
        for result in results:
            result.result()  # raises the first failure, after the others had their chance
        return [node for node in self.nodes() if node.name in names]

    def terminate(self, names: Iterable[str]) -> list[str]:
        ours = {node.name for node in self.nodes()}
        gone = sorted(set(names) & ours)

        def remove(name: str) -> None:
            self._podman_checked(f"terminate node {name}", "rm", "--force", "--time", "10", "--volumes", name)

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(remove, gone))
        for name in names:
            shutil.rmtree(self._folder(name), ignore_errors=True)
        return gone

    def tag(self, name: str, tags: Mapping[str, str | None]) -> Node:
        with self._lock():
            node = next((node for node in self.nodes() if node.name == name), None)
            if node is None:
                raise CloudError(f"Failed to tag node {name}: fleet {self.fleet.name} has no node of this name")
            merged = {**node.tags, **tags}
            kept = {key: value for key, value in merged.items() if value is not None}
            ssh.write(self._folder(name) / "tags.json", json.dumps(kept, sort_keys=True))
        return next(node for node in self.nodes() if node.name == name)

    def wait_reachable(self, names: Iterable[str], timeout: float) -> list[str]:
        addresses = {node.name: node.address for node in self.nodes()}
        return ssh.unreachable({name: addresses.get(name, "") for name in names}, timeout)

    def bake(self, name: str, release: str, recipe: str = "") -> str:
        labels = {"fleet": self.fleet.name, "baked": "web", "release": release, "recipe": recipe}
        # A baked image must not look like a node: the builder's own labels are blanked.
        labels |= {"role": "", "zone": "", "launched": "", "address": ""}
        changes = [f"--change=LABEL {LABEL}.{key}={json.dumps(value)}" for key, value in labels.items()]
        self._podman_checked(f"stop builder {name}", "stop", "--time", "20", name)
        tag = f"localhost/moodle-fleet/{self.fleet.name}-web:{release or 'none'}"
        done = self._podman_checked(f"make an image of {name}", "commit", "--quiet", *changes, name, tag)
        return done.strip()

    def remove_images(self, ids: Iterable[str]) -> None:
        ours = {image["id"] for image in self.images()}
        for image in ours & set(ids):
            self._podman_checked("remove an image", "rmi", "--force", image)

    def destroy(self) -> list[str]:
        """Remove every node, image, the network, the shared files and the state directory of this fleet."""
        removed = self.terminate([node.name for node in self.nodes()])
        self.remove_images([image["id"] for image in self.images()])
        self._run(["podman", "network", "rm", "--force", self.network])
        self._run(["podman", "volume", "rm", "--force", self.volume])
        shutil.rmtree(self.state, ignore_errors=True)
        return removed

    # -- parts -------------------------------------------------------------------------------------------------

    def _create(self, name: str, zone: str, address: str, spec: LaunchSpec) -> None:
        shape = self.fleet.services.get(spec.role, {})
        labels = {
            "fleet": self.fleet.name, "role": spec.role, "zone": zone, "address": address,
            "launched": f"{time.time():.3f}", "release": spec.release, "token": spec.token,
        }
        ssh.write(self._folder(name) / "tags.json", json.dumps(dict(spec.tags), sort_keys=True))
        command = ["podman", "run", "--detach", "--systemd=always", f"--name={name}", f"--hostname={name}"]
        # As systemd sets it on a server; with the kernel's own 10, HAProxy and others lose log lines.
        command += ["--sysctl=net.unix.max_dgram_qlen=512"]
        command += [f"--network={self.network}", f"--ip={address}", f"--mac-address={mac_address(address)}"]
        command += [f"--label={LABEL}.{key}={value}" for key, value in labels.items()]
        command += [f"--volume={self._folder(name) / 'ssh'}:/etc/ssh/fleet:ro"]
        if spec.role in ("web", "jobs"):
            command += [f"--volume={self.volume}:{SHARED_FILES}"]
        if shape.get("cpus"):
            command += [f"--cpus={shape['cpus']}"]
        if shape.get("memory_mb"):
            command += [f"--memory={shape['memory_mb']}m"]
        # A port of this machine can lead to one node only: the first of its role.
        if name == self.launch_names(spec)[0]:
            command += [f"--publish={port}" for port in shape.get("publish") or []]
        done = self._run([*command, spec.image or self.settings["base_image"], "/sbin/init"])
        # Another controller that launches the same attempt may have been faster: that is our node as well.
        if done.returncode and "already in use" not in done.stderr:
            raise CloudError(f"Failed to launch node {name}: {_last_line(done.stderr)}")

    def _node(self, entry: Mapping[str, Any]) -> Node:
        labels = {key.removeprefix(f"{LABEL}."): value for key, value in (entry.get("Labels") or {}).items()}
        name = entry["Names"][0]
        try:
            tags = json.loads((self._folder(name) / "tags.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            tags = {}
        states = {"running": "running", "created": "pending", "configured": "pending", "stopping": "stopping"}
        return Node(
            name=name,
            role=labels.get("role", ""),
            address=labels.get("address", ""),
            zone=labels.get("zone", ""),
            state=states.get(entry["State"], "failed"),
            launched=float(labels.get("launched") or 0),
            release=labels.get("release", ""),
            image=entry.get("ImageID", ""),
            tags=tags,
        )

    def _folder(self, name: str) -> Path:
        return self.state / "nodes" / name

    @contextlib.contextmanager
    def _lock(self, what: str = "podman") -> Iterator[None]:
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.state / f"{what}.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        """Make what all nodes share: the ssh key, the network, the volume for shared files."""
        with self._lock():
            key = self.state / "ssh" / "id_ed25519"
            if not key.exists():
                ssh.make_key(key, f"moodle-fleet {self.fleet.name}")
            if self._run(["podman", "network", "exists", self.network]).returncode:
                label = f"--label={LABEL}.fleet={self.fleet.name}"
                subnet = f"--subnet={self.settings['subnet']}"
                self._podman_checked("make the network", "network", "create", label, subnet, self.network)
            if self._run(["podman", "volume", "exists", self.volume]).returncode:
                self._podman_checked("make the shared volume", "volume", "create", self.volume)

    def _reserve(self, names: Sequence[str], existing: Iterable[Node]) -> dict[str, str]:
        """Give each new node an address and its host key, under a lock, before it boots."""
        with self._lock():
            taken = {node.address for node in existing} | {node.address for node in self.nodes()}
            reserved = {}
            for folder in sorted((self.state / "nodes").glob("*/address")):
                age = time.time() - folder.stat().st_mtime
                if folder.parent.name in names or age < RESERVATION_SECONDS:
                    reserved[folder.parent.name] = folder.read_text(encoding="utf-8")
            taken |= set(reserved.values())
            network = ipaddress.ip_network(self.settings["subnet"])
            free = (str(host) for host in list(network.hosts())[9:] if str(host) not in taken)
            result = {}
            for name in names:
                address = reserved.get(name) or next(free, None)
                if address is None:
                    raise CloudError(f"Failed to launch {name}: no free address in cloud.subnet {network}; use a larger one")
                self._identity(name, address)
                result[name] = address
        return result

    def _identity(self, name: str, address: str) -> None:
        folder = self._folder(name)
        (folder / "ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
        host_key = folder / "ssh" / "ssh_host_ed25519_key"
        if not host_key.exists():
            ssh.make_key(host_key, name)
        shutil.copy(self.state / "ssh" / "id_ed25519.pub", folder / "ssh" / "authorized_keys")
        kind, key = host_key.with_suffix(".pub").read_text(encoding="utf-8").split()[:2]
        ssh.write(folder / "known_hosts", f"{name} {kind} {key}\n")
        ssh.write(folder / "address", address)

    def _podman(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ)
        # Made by scripts/demo where this machine's podman needs other defaults than its own.
        local = self.state / "containers.conf"
        if local.exists():
            environment["CONTAINERS_CONF"] = str(local)
        try:
            return subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                timeout=300,
            )
        except FileNotFoundError as exc:
            raise CloudError("podman is not installed: apt-get install podman") from exc
        except subprocess.TimeoutExpired as exc:
            raise CloudError(f"podman gave no answer for 300 s: {' '.join(command[:3])}") from exc

    def _podman_checked(self, what: str, *arguments: str) -> str:
        done = self._run(["podman", *arguments])
        if done.returncode:
            raise CloudError(f"Failed to {what}: {_last_line(done.stderr)}")
        return done.stdout

    def _json(self, *arguments: str) -> list[dict[str, Any]]:
        return json.loads(self._podman_checked(f"run podman {arguments[0]}", *arguments) or "[]") or []


def mac_address(address: str) -> str:
    """A locally administered MAC derived from the address: an address used again keeps its neighbours' ARP entries."""
    return "02:00:" + ":".join(f"{byte:02x}" for byte in ipaddress.ip_address(address).packed)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "podman said nothing"


__all__ = ["SETTINGS", "PodmanDriver", "driver", "mac_address"]
