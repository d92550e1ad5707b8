# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A HAProxy and a load balancer of AWS's test server, each with nodes behind it, for the contract that both keep."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb import AlbMembers, AlbReader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.alb_steps import AlbSteps
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import (
    BalancerError,
    BalancerMembers,
    BalancerReader,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.gate import Wanted
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy import HAProxyReader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import (
    HAProxyMembers,
    MemberFile,
    RuntimeSocket,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_steps import HAProxySteps
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import LaunchSpec
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import types
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings, fleet
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.loadbalancer import LoadBalancer
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer, Fault

CONFIG = """
global
    stats socket {folder}/admin.sock level admin expose-fd listeners
defaults common
    mode http
    timeout connect 1s
    timeout client 20s
    timeout server 20s
    timeout queue 20s
    timeout check 1s
frontend public from common
    bind 127.0.0.1:{port}
    default_backend web
frontend stats from common
    bind 127.0.0.1:{stats}
    http-request use-service prometheus-exporter if {{ path /metrics }}
    stats enable
    stats uri /stats
    stats show-legends
defaults web from common
    balance leastconn
    option http-server-close
    retries 3
    option redispatch 1
    option httpchk
    http-check send meth GET uri /healthz
    http-check expect status 200
    default-server observe layer4 error-limit 2 on-error mark-down inter 200ms fastinter 100ms downinter 200ms fall 2 rise 2
"""


class Node:
    """A web node: answers, slowly where asked to, and says whether it is healthy."""

    def __init__(self, address: str, workers: int = 2):
        self.address = address
        self.healthy = True
        self.hits = 0
        node = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                health = self.path == "/healthz"
                if not health:
                    node.hits += 1
                if self.path.startswith("/slow"):
                    time.sleep(1.0)
                body = json.dumps({"release": "r1", "tenants": "t1", "workers": workers, "node": address}).encode()
                self.send_response(200 if node.healthy or not health else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Balancer:
    """A running balancer and both halves of its driver."""

    members: BalancerMembers
    reader: BalancerReader
    port: int
    restart: Callable[[], None]
    reload: Callable[[], None]
    stop: Callable[[], None]
    steps: Callable[[float], Any]
    # The state of a member that has drained, and how a balancer that can't be asked is complained of.
    drained: str = "drained"
    complaint: str = "could not be read"
    # Seconds after which it is given up.
    patience: float = 5.0
    # Told of each node before it is used: a cloud's balancer takes the cloud's own servers alone.
    announce: Callable[[str, Node], None] = lambda _name, _node: None
    nodes: list[Node] = field(default_factory=list)

    def node(self, last: int, name: str = "") -> Node:
        self.nodes.append(Node(f"127.0.0.{last}"))
        self.announce(name or f"n{last}", self.nodes[-1])
        return self.nodes[-1]

    def join(self, name: str, node: Node, **options: object) -> None:
        wanted = Wanted(name, node.address, node.port)
        (outcome,) = self.steps(10).join([wanted], **options)
        assert not outcome.error, outcome

    def state(self, name: str) -> str:
        return {one.name: one.state for one in self.members.members()}.get(name, "absent")

    def get(self, path: str = "/") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.05)


def command(command: object) -> tuple[int, str]:
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


@contextlib.contextmanager
def haproxy(folder: Path) -> Iterator[Balancer]:
    if shutil.which("haproxy") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("HAProxy is not installed here")
    port, stats = free_port(), free_port()
    (folder / "conf.d").mkdir()
    (folder / "haproxy.cfg").write_text(CONFIG.format(folder=folder, port=port, stats=stats))
    file = MemberFile(command, config_dir=str(folder), lock=str(folder / "lock"))
    with file.change():
        pass
    members = HAProxyMembers(RuntimeSocket(str(folder / "admin.sock")), file)
    process: list[subprocess.Popen[bytes]] = []

    def answers() -> bool:
        try:
            members.members()
        except BalancerError:
            return False
        return True

    def start() -> None:
        command = ["haproxy", "-W", "-f", str(folder / "haproxy.cfg"), "-f", str(folder / "conf.d")]
        process.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        until(answers)

    def stop() -> None:
        for one in process:
            one.terminate()
            one.wait(10)
        process.clear()

    def restart() -> None:
        stop()
        start()

    def reload() -> None:
        before = reader.read().started
        time.sleep(1.1)
        process[0].send_signal(signal.SIGUSR2)

        def renewed() -> bool:
            with contextlib.suppress(BalancerError):
                return reader.read().started != before
            return False

        until(renewed)

    reader = HAProxyReader(["127.0.0.1"], port=stats, timeout=2)
    start()
    try:
        yield Balancer(members, reader, port, restart, reload, stop, lambda timeout: HAProxySteps(members, timeout=timeout))
    finally:
        stop()


@contextlib.contextmanager
def alb(folder: Path, server: AwsServer) -> Iterator[Balancer]:
    server.targets.initial_seconds, server.targets.drain_seconds = 0.3, 1.5
    balancer = LoadBalancer(server)
    definition = fleet(folder, cloud_settings(server), balancer=balancer.settings())
    cloud = cloud_driver(definition)
    nodes: dict[str, types.Node] = {}

    def current() -> list[types.Node]:
        found = {node.id: node for node in cloud.nodes()}
        return [replace(found[node.id], name=node.name, address=node.address) for node in nodes.values()]

    members = AlbMembers(definition, current)

    def announce(name: str, node: Node) -> None:
        token = f"t{len(balancer.where)}"
        (launched,) = cloud.launch(LaunchSpec("web", 1, token))
        balancer.where[launched.id] = node.address
        # Another node under the same name: the old one is gone.
        if name in nodes:
            server.ec2.terminate_instances([nodes[name].id])
        nodes[name] = replace(launched, name=name, address=node.address)

    def stop() -> None:
        server.faults = [Fault("DescribeTargetHealth", "ServiceUnavailable", 503, times=None)]

    class Reader(BalancerReader):
        def read(self) -> Any:
            return AlbReader(definition, current()).read()

    def nothing() -> None:
        """AWS restarts nothing that we could see."""

    try:
        yield Balancer(
            members, Reader(), balancer.port, nothing, nothing, stop,
            lambda timeout: AlbSteps(members, timeout=timeout, interval=0.2), "absent", "Failed to", 60.0, announce,
        )
    finally:
        server.faults = []
        balancer.close()
