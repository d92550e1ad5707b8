# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The interface between the fleet and whatever provides its servers.

A driver is one file that implements :class:`CloudDriver` and passes
``tests/integration/contracts/test_cloud_contract.py``. It holds no rule of scaling: it observes nodes and carries out
single steps, each of which may be repeated without harm.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node


class CloudError(Exception):
    """A step at the cloud failed. The message says what was tried and what to do."""


@dataclass(frozen=True)
class LaunchSpec:
    """What to launch.

    ``token`` names this attempt: the same token and index give the same node, so a repeated call after a lost
    response launches nothing twice. ``zones`` is the order in which the nodes are spread; empty means the driver's own
    zones. ``image`` empty means the base image.
    """

    role: str
    count: int
    token: str
    image: str = ""
    release: str = ""
    zones: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


class CloudDriver(abc.ABC):
    """Servers of one fleet. Only nodes that carry this fleet's tag are ever seen or touched.

    ``settle`` is for how many seconds after a launch the cloud's list may lack nodes that it showed before.
    ``prepares`` is true where nodes start from nothing and hold an image once the recipe was applied to them.
    ``at_once`` is true where a node boots about as fast as Ansible: the trigger asks for it before the playbook does, which
    then finds it there. To ask twice must cost next to nothing.
    """

    settle = 0.0
    prepares = False
    at_once = False

    @abc.abstractmethod
    def nodes(self) -> list[Node]:
        """Every node of this fleet that exists, in one or few calls, sorted by name.

        :raises CloudError: when the cloud does not answer; never an empty list instead.
        """

    def notices(self, nodes: Sequence[Node]) -> dict[str, float]:
        """Names of those of these nodes that the cloud has announced to take away, with the Unix time of it."""
        return {}

    def hear(self, nodes: Sequence[Node]) -> None:  # noqa: B027 most clouds tell nothing
        """Note down on these nodes what the cloud tells once and keeps nowhere; the next :meth:`notices` knows of it.

        :raises CloudError: when the cloud does not answer.
        """

    def zones(self) -> list[str]:
        """The zones to spread over that have room, as far as is known; no call to the cloud."""
        return []

    @abc.abstractmethod
    def launch_names(self, spec: LaunchSpec) -> list[str]:
        """The names that the nodes of this launch have or will have; no call to the cloud."""

    @abc.abstractmethod
    def launch(self, spec: LaunchSpec) -> list[Node]:
        """Make sure that ``spec.count`` nodes of this token exist and start or run; return them, sorted by name.

        :raises CloudError: when not all of them can be had; those that could be stay.
        """

    @abc.abstractmethod
    def terminate(self, names: Iterable[str]) -> list[str]:
        """Remove nodes of this fleet; those already gone are left out of the returned names."""

    @abc.abstractmethod
    def tag(self, name: str, tags: Mapping[str, str | None]) -> Node:
        """Set tags of one node; a value of None removes the tag. Returns the node afterwards."""

    def prepared(self, name: str, image: str) -> Node:
        """Note that the recipe of this image was applied to a node; for drivers with ``prepares``."""
        raise CloudError(f"Failed to note that node {name} holds {image}: nodes of this cloud start from images")

    @abc.abstractmethod
    def wait_reachable(self, names: Iterable[str], timeout: float) -> list[str]:
        """Wait until the nodes answer on their ssh port; return those that did not within ``timeout`` seconds."""

    @abc.abstractmethod
    def connection(self, node: Node) -> dict[str, Any]:
        """Ansible's connection variables for one node, without any call to the cloud."""

    @abc.abstractmethod
    def networks(self) -> dict[str, list[str]]:
        """``fleet``: the networks of the nodes; ``controller``: those from which the fleet is managed. No call."""

    @abc.abstractmethod
    def images(self) -> list[dict[str, Any]]:
        """Baked images of this fleet, newest first: ``{id, role, release, recipe, created}``."""

    @abc.abstractmethod
    def bake(self, name: str, release: str, recipe: str = "") -> str:
        """Make an image of a builder node and return its id; ``recipe`` is a fingerprint of what was applied."""

    @abc.abstractmethod
    def remove_images(self, ids: Iterable[str]) -> None:
        """Remove baked images of this fleet; those already gone count as removed."""

    @abc.abstractmethod
    def destroy(self) -> list[str]:
        """Remove all that this fleet made at the cloud; returns the names of the nodes that were there."""

    def as_result(self, node: Node) -> dict[str, Any]:
        """A node as playbooks get it, with its connection variables."""
        return {**asdict(node), "tags": dict(node.tags), "connection": self.connection(node)}
