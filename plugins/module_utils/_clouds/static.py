# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Cloud driver ``static``: nodes are servers that exist already, taken from a pool and given back to it.

What a cloud keeps for its servers stands in ``pool.json`` in the fleet's state directory: who serves as what since when,
the tags, which recipe each machine holds. On the controller, since a machine that is switched off can't be asked; each
change is made under a lock and replaces the file in one step. A machine in service says itself whose it is as well.

An image is a record, no copy: release and fingerprint of the recipe. A machine holds it once the recipe was applied to it,
and keeps it in the pool; one that does not gets the recipe at its launch (playbooks/scale.yml).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import re
import shutil
import time
from collections import Counter
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
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.static_machine import Machine
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._schema import Field, Problem

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

ROLES = ("web", "balancer", "database", "cache", "jobs", "logs", "builder")
_PARALLEL = 16
_NAME = "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"


def _address_problem(value: str) -> str | None:
    try:
        ipaddress.ip_address(value)
    except ValueError as exc:
        return f"write the machine's IP address, such as 192.0.2.11 ({exc})"
    return None


def _network_problem(value: str) -> str | None:
    try:
        ipaddress.ip_network(value)
    except ValueError as exc:
        return f"write a network such as 192.0.2.0/24 ({exc})"
    return None


def _pool_problem(value: Sequence[Mapping[str, Any]]) -> str | None:
    for key in ("name", "address"):
        twice = [text for text, count in Counter(machine[key] for machine in value).items() if count > 1]
        if twice:
            return f"give each machine its own {key}; {twice[0]} stands there twice"
    return None if value else "name at least one machine"


def _command(text: str) -> Field:
    return Field(list, default=[], items=Field(str), help=text)


def _networks(text: str) -> Field:
    return Field(list, required=True, items=Field(str, check=_network_problem), help=text)


SETTINGS = {
    "ssh_key": Field(str, required=True,
                     help="private key with which root logs in at every machine; a relative path starts at the fleet file"),
    "networks": _networks("networks of the machines: who may reach database, cache and logs"),
    "controller_networks": _networks("those from which the fleet is managed"),
    "boot_seconds": Field(int, default=300, minimum=5, maximum=3600, help="seconds that a machine may take until it answers on ssh"),
    "pool": Field(list, required=True, check=_pool_problem, help="the machines", items=Field(dict, fields={
        "name": Field(str, required=True, pattern=_NAME, help="its own name"),
        "address": Field(str, required=True, check=_address_problem, help="its address"),
        "host_key": Field(str, required=True, pattern=r"(ssh-ed25519|ecdsa-sha2-\S+|ssh-rsa) [A-Za-z0-9+/=]+( .*)?",
                          help="public half of its ssh host key: no machine is trusted at first sight"),
        "roles": Field(list, default=["web"], items=Field(str, choices=ROLES), help="what it may become; every `web` may become a `builder`"),
        "zone": Field(str, default="a", pattern="[a-z0-9-]{1,20}", help="rack, room or power line; nodes are spread over them"),
        "power_on": _command("command that switches it on, as a list, never through a shell; without one it is always on"),
        "power_off": _command("command that shuts it down softly"),
    })),
}


def fits(cloud: Mapping[str, Any], wanted: Mapping[str, int]) -> Iterator[Problem]:
    """Whether the pool has the machines that the rest of the fleet file asks for, by role; ``web`` is the maximum."""
    for role, count in wanted.items():
        able = sum(role in machine["roles"] for machine in cloud["pool"])
        key = "scaling.max_nodes" if role == "web" else f"services.{role}.count"
        if able < count:
            yield Problem(key, count, f"only {able} machines of cloud.pool have the role {role}; add machines or ask for less")
    # An image is made while the others serve.
    builders = sum(bool({"web", "builder"} & set(machine["roles"])) for machine in cloud["pool"])
    if builders <= wanted["web"]:
        yield Problem("scaling.max_nodes", wanted["web"], f"leaves none of the {builders} machines of cloud.pool with the role web "
                      "or builder to bake on; add a machine, or ask for one node less")


def driver(fleet: Fleet) -> StaticDriver:
    """The driver of one fleet."""
    return StaticDriver(fleet)


class StaticDriver(CloudDriver):
    """Machines of the pool that serve one fleet."""

    prepares = True

    def __init__(self, fleet: Fleet):
        self.fleet = fleet
        self.state = fleet.state_dir
        self.settings = fleet.cloud
        self.pool: dict[str, Mapping[str, Any]] = {machine["name"]: machine for machine in self.settings["pool"]}

    # -- observing ---------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        # What was taken, not what answers: whether it serves, the balancer knows better than a look at its ssh port.
        return sorted((_node(name, kept) for name, kept in self._read()["nodes"].items()), key=lambda node: node.name)

    def images(self) -> list[dict[str, Any]]:
        return sorted(self._read()["images"], key=lambda image: -image["created"])

    def connection(self, node: Node) -> dict[str, Any]:
        key = self.fleet.path.parent / Path(self.settings["ssh_key"]).expanduser()
        return ssh.connection(node.address, node.name, key, self._folder(node.name) / "known_hosts")

    def networks(self) -> dict[str, list[str]]:
        return {"fleet": list(self.settings["networks"]), "controller": list(self.settings["controller_networks"])}

    def zones(self) -> list[str]:
        # Read at every check, also by those that launch nothing: a pool file that is broken is told by nodes().
        taken = set()
        with contextlib.suppress(CloudError):
            taken = {kept["machine"] for kept in self._read()["nodes"].values()}
        web = [machine for machine in self.pool.values() if "web" in machine["roles"]]
        return sorted({machine["zone"] for machine in web if machine["name"] not in taken} or {machine["zone"] for machine in web})

    # -- changing ----------------------------------------------------------------------------------------------

    def launch_names(self, spec: LaunchSpec) -> list[str]:
        if not re.fullmatch("[a-z0-9]{0,16}", spec.token):
            raise CloudError(f"token: {spec.token!r}: use at most 16 characters of a-z and 0-9")
        parts = [self.fleet.name, spec.role] + ([spec.token] if spec.token else [])
        return ["-".join([*parts, str(i + 1)]) for i in range(spec.count)]

    def launch(self, spec: LaunchSpec) -> list[Node]:
        names = self.launch_names(spec)
        # Written down before a machine is touched: who goes on after an interruption goes on with the same ones.
        with self._change() as record:
            zones = list(spec.zones) or self.zones()
            for i, name in enumerate(names):
                if name not in record["nodes"]:
                    self._assign(record, name, spec, zones[i % len(zones)] if zones else "")
            starting = [name for name in names if record["nodes"].get(name, {}).get("state") == "pending"]
            lacking = [name for name in names if name not in record["nodes"]]
        problems = self._each(starting, self._take)
        if lacking:
            problems.append(
                f"no machine of cloud.pool with the role {spec.role} is free for {', '.join(lacking)}; add one, or lower scaling.max_nodes"
            )
        if problems:
            raise CloudError("Failed to launch: " + "; ".join(problems))
        return [node for node in self.nodes() if node.name in names]

    def terminate(self, names: Iterable[str]) -> list[str]:
        ours = sorted({node.name for node in self.nodes()} & set(names))
        problems = self._each(ours, self._give_back)
        if problems:
            raise CloudError("Given back to the pool, but: " + "; ".join(problems))
        return ours

    def tag(self, name: str, tags: Mapping[str, str | None]) -> Node:
        with self._change() as record:
            kept = self._kept(record, name, "tag")
            kept["tags"] = {key: value for key, value in {**kept["tags"], **tags}.items() if value is not None}
        return _node(name, kept)

    def prepared(self, name: str, image: str) -> Node:
        with self._change() as record:
            kept = self._kept(record, name, "note the image of")
            kept["image"] = image
            self._machine_record(record, kept["machine"]).update(holds=image, role=kept["role"])
        return _node(name, kept)

    def wait_reachable(self, names: Iterable[str], timeout: float) -> list[str]:
        addresses = {node.name: node.address for node in self.nodes()}
        return ssh.unreachable({name: addresses.get(name, "") for name in names}, timeout)

    def bake(self, name: str, release: str, recipe: str = "") -> str:
        image = hashlib.sha256(json.dumps([self.fleet.name, release, recipe]).encode()).hexdigest()[:16]
        with self._change() as record:
            self._kept(record, name, "make an image of")
            record["images"] = [one for one in record["images"] if one["id"] != image]
            record["images"].append({"id": image, "role": "web", "release": release, "recipe": recipe, "created": time.time()})
        self.prepared(name, image)
        return image

    def remove_images(self, ids: Iterable[str]) -> None:
        with self._change() as record:
            record["images"] = [image for image in record["images"] if image["id"] not in set(ids)]

    def destroy(self) -> list[str]:
        """Give every machine back and remove the state directory. Data of databases and shared files stay where they are."""
        removed = self.terminate([node.name for node in self.nodes()])
        shutil.rmtree(self.state, ignore_errors=True)
        return removed

    # -- parts -------------------------------------------------------------------------------------------------

    def _assign(self, record: dict[str, Any], name: str, spec: LaunchSpec, zone: str) -> None:
        """Write down which machine is to be this node, if one is free."""
        taken = {kept["machine"] for kept in record["nodes"].values()}
        roles = {"web", "builder"} if spec.role == "builder" else {spec.role}
        free = [machine for machine in self.pool.values() if roles & set(machine["roles"]) and machine["name"] not in taken]
        if not free:
            return

        def last_choice(machine: Mapping[str, Any]) -> tuple[Any, ...]:
            known = self._machine_record(record, machine["name"])
            # What failed last is tried last, or one broken machine would be launched for ever.
            return known["failed"], not self._holds(known, spec.role, spec.image), machine["zone"] != zone

        machine = min(free, key=last_choice)
        known = self._machine_record(record, machine["name"])
        record["nodes"][name] = {
            "machine": machine["name"], "role": spec.role, "address": machine["address"], "zone": machine["zone"],
            "state": "pending", "launched": time.time(), "release": spec.release, "tags": dict(spec.tags),
            "image": spec.image if self._holds(known, spec.role, spec.image) else "",
        }
        ssh.write(self._folder(name) / "known_hosts", f"{name} {' '.join(machine['host_key'].split()[:2])}\n")

    def _take(self, name: str) -> None:
        with self._change() as record:
            kept = self._kept(record, name, "take")
            known = self._machine_record(record, kept["machine"])
            former = known["uncleaned"]
            if not kept["image"]:
                # What it held is no longer sure once another recipe or role is applied to it.
                known["holds"] = ""
        owner, timeout = f"{self.fleet.name}/{name}", self.settings["boot_seconds"]
        try:
            as_prepared = self._machine(name, kept).take(owner, name, bool(kept["image"]), former, timeout)
        except CloudError:
            with self._change() as record:
                self._machine_record(record, kept["machine"])["failed"] = time.time()
            raise
        with self._change() as record:
            known = self._machine_record(record, kept["machine"])
            known.update(failed=0.0, uncleaned="")
            if name in record["nodes"]:
                record["nodes"][name]["state"] = "running"
                if not as_prepared:
                    known["holds"] = record["nodes"][name]["image"] = ""

    def _give_back(self, name: str) -> None:
        kept = self._read()["nodes"].get(name)
        if kept is None:
            return
        machine, owner = self._machine(name, kept), f"{self.fleet.name}/{name}"
        clean = machine.release(owner)
        problem = None
        try:
            machine.switch_off()
        except CloudError as exc:
            problem = exc
        with self._change() as record:
            known = self._machine_record(record, kept["machine"])
            if not clean:
                # Cleaned at its next launch instead, and tried last.
                known.update(uncleaned=owner, holds="", failed=time.time())
            record["nodes"].pop(name, None)
        shutil.rmtree(self._folder(name), ignore_errors=True)
        if problem is not None:
            raise problem

    def _machine(self, name: str, kept: Mapping[str, Any]) -> Machine:
        # A machine that was taken out of the file while it served is given back without its power commands.
        known = self.pool.get(kept["machine"], {})
        return Machine(
            kept["machine"], kept["address"], self.connection(_node(name, kept)), known.get("power_on", ()), known.get("power_off", ())
        )

    def _each(self, names: Sequence[str], work: Callable[[str], None]) -> list[str]:
        """Do something with each node at once; returns what went wrong."""

        def attempt(name: str) -> str:
            try:
                work(name)
            except CloudError as exc:
                return str(exc)
            return ""

        with ThreadPoolExecutor(_PARALLEL) as threads:
            return [problem for problem in threads.map(attempt, names) if problem]

    def _folder(self, name: str) -> Path:
        return self.state / "nodes" / name

    @staticmethod
    def _holds(known: Mapping[str, Any], role: str, image: str) -> bool:
        """Whether a machine holds this image for this role. The builder's recipe is that of a web node."""
        return bool(image) and known["holds"] == image and role == "web" and known["role"] in ("web", "builder")

    @staticmethod
    def _machine_record(record: dict[str, Any], machine: str) -> dict[str, Any]:
        found: dict[str, Any] = record["machines"].setdefault(machine, {"holds": "", "role": "", "failed": 0.0, "uncleaned": ""})
        return found

    def _kept(self, record: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
        if name not in record["nodes"]:
            raise CloudError(f"Failed to {what} node {name}: fleet {self.fleet.name} has no node of this name")
        found: dict[str, Any] = record["nodes"][name]
        return found

    def _read(self) -> dict[str, Any]:
        path = self.state / "pool.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return {key: record[key] for key in ("nodes", "machines", "images")}
        except FileNotFoundError:
            return {"nodes": {}, "machines": {}, "images": []}
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise CloudError(f"The record of the pool {path} can't be read ({exc}); restore it from a backup") from exc

    @contextlib.contextmanager
    def _change(self) -> Iterator[dict[str, Any]]:
        """The record, locked and written back; unchanged when the body fails."""
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.state / "pool.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            record = self._read()
            yield record
            ssh.write(self.state / "pool.json", json.dumps(record, indent=1, sort_keys=True))


def _node(name: str, kept: Mapping[str, Any]) -> Node:
    """One node of the record."""
    keys = ("role", "address", "zone", "state", "launched", "release", "image", "tags")
    return Node(name=name, id=kept["machine"], **{key: kept[key] for key in keys})


__all__ = ["SETTINGS", "StaticDriver", "driver", "fits"]
