# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every balancer driver must do. A driver is added to ``BALANCERS``, with what it is able to show.

Tests that ask for more than every balancer has (gauges of this moment, weights, a process that is restarted, a file) name the
drivers that have it.
"""

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
    StillBusy,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_steps import Steps
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.05)


def _command(command: object) -> tuple[int, str]:
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


@contextlib.contextmanager
def _haproxy(folder: Path) -> Iterator[Balancer]:
    if shutil.which("haproxy") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("HAProxy is not installed here")
    port, stats = _free_port(), _free_port()
    (folder / "conf.d").mkdir()
    (folder / "haproxy.cfg").write_text(CONFIG.format(folder=folder, port=port, stats=stats))
    file = MemberFile(_command, config_dir=str(folder), lock=str(folder / "lock"))
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
        _until(answers)

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

        _until(renewed)

    reader = HAProxyReader(["127.0.0.1"], port=stats, timeout=2)
    start()
    try:
        yield Balancer(members, reader, port, restart, reload, stop, lambda timeout: Steps(members, timeout=timeout))
    finally:
        stop()


@contextlib.contextmanager
def _alb(folder: Path, server: AwsServer) -> Iterator[Balancer]:
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


BALANCERS = ["haproxy", "alb"]
only_haproxy = pytest.mark.parametrize("balancer", ["haproxy"], indirect=True)


@pytest.fixture(name="balancer", params=BALANCERS)
def fixture_balancer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Balancer]:
    started = _haproxy(tmp_path) if request.param == "haproxy" else _alb(tmp_path, request.getfixturevalue("aws"))
    with started as balancer:
        yield balancer
        for node in balancer.nodes:
            node.stop()


def test_a_balancer_without_members_answers_503(balancer: Balancer) -> None:
    assert balancer.get() == 503
    reading = balancer.reader.read()
    assert reading.members == [] and reading.waiting == 0


@only_haproxy
def test_a_member_that_was_added_gets_nothing_before_it_is_healthy(balancer: Balancer) -> None:
    node = balancer.node(2)
    node.healthy = False
    assert balancer.members.join("n2", node.address, node.port, 2) is True
    time.sleep(0.5)
    assert balancer.get() == 503 and node.hits == 0
    assert balancer.state("n2") in ("starting", "down")


def test_a_member_serves_after_it_joined_and_not_before(balancer: Balancer) -> None:
    node = balancer.node(2)
    node.healthy = False
    waiting = threading.Thread(target=lambda: balancer.join("n2", node))
    waiting.start()
    time.sleep(0.5)
    assert balancer.get() == 503 and node.hits == 0
    node.healthy = True
    waiting.join()
    assert balancer.get() == 200
    (member,) = balancer.reader.read().members
    assert (member.name, member.address, member.state, member.capacity) == ("n2", node.address, "up", 2)


def test_joining_again_changes_nothing(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    (outcome,) = balancer.steps(5).join([Wanted("n2", node.address, node.port)])
    assert outcome.changed is False and outcome.state == "up"
    assert balancer.members.join("n2", node.address, node.port, 2) is False


def test_a_member_that_stays_unhealthy_is_reported_and_taken_out(balancer: Balancer) -> None:
    node = balancer.node(2)
    node.healthy = False
    (outcome,) = balancer.steps(1).join([Wanted("n2", node.address, node.port)])
    assert "503" in outcome.error and outcome.ended_by_deadline
    assert balancer.state("n2") == "absent"


def test_another_release_does_not_join(balancer: Balancer) -> None:
    node = balancer.node(2)
    (outcome,) = balancer.steps(0.5).join([Wanted("n2", node.address, node.port)], release="r2")
    assert "'r1'" in outcome.error and "'r2'" in outcome.error
    assert node.hits == 0 and balancer.get() == 503


def test_each_member_may_have_a_release_of_its_own(balancer: Balancer) -> None:
    new, old = balancer.node(2), balancer.node(3)
    wanted = [Wanted("n2", new.address, new.port, release="r1"), Wanted("n3", old.address, old.port, release="r0")]
    outcomes = balancer.steps(0.5).join(wanted)
    assert [bool(outcome.error) for outcome in outcomes] == [False, True]
    assert (balancer.state("n2"), balancer.state("n3")) == ("up", "absent")


def test_a_node_that_knows_other_tenants_is_refused_at_once(balancer: Balancer) -> None:
    node = balancer.node(2)
    began = time.monotonic()
    (outcome,) = balancer.steps(30).join([Wanted("n2", node.address, node.port)], tenants="t2")
    assert time.monotonic() - began < 10
    assert outcome.stale and "other tenants" in outcome.error
    assert node.hits == 0 and balancer.state("n2") == "absent"
    (outcome,) = balancer.steps(5).join([Wanted("n2", node.address, node.port)], tenants="t1")
    assert not outcome.stale and balancer.state("n2") == "up"


@only_haproxy
def test_members_survive_restart_and_reload(balancer: Balancer) -> None:
    nodes = [balancer.node(last) for last in (2, 3)]
    for node in nodes:
        balancer.join(f"n{node.address[-1]}", node)
    balancer.members.drain("n3")
    for again in (balancer.restart, balancer.reload):
        again()
        _until(lambda: balancer.state("n2") == "up")
        assert balancer.state("n3") == "drained"
        hits = nodes[1].hits
        assert {balancer.get() for dummy in range(10)} == {200}
        assert nodes[1].hits == hits


@only_haproxy
def test_draining_waits_for_the_requests_under_way(balancer: Balancer) -> None:
    nodes = [balancer.node(last) for last in (2, 3)]
    for node in nodes:
        balancer.join(f"n{node.address[-1]}", node)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(balancer.get("/slow"))) for dummy in range(4)]
    for thread in threads:
        thread.start()
    _until(lambda: balancer.reader.read().in_service == 4)
    (early,) = balancer.steps(0).drain(["n2"])
    assert early.ended_by_deadline and early.in_service == 2 and early.state == "draining"
    (outcome,) = balancer.steps(10).drain(["n2"])
    assert not outcome.ended_by_deadline and outcome.state == "drained" and outcome.in_service == 0
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    hits = nodes[0].hits
    assert {balancer.get() for dummy in range(6)} == {200} and nodes[0].hits == hits


def test_a_draining_member_gets_no_more_requests_and_those_under_way_end_well(balancer: Balancer) -> None:
    nodes = [balancer.node(last) for last in (2, 3)]
    for node in nodes:
        balancer.join(f"n{node.address[-1]}", node)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(balancer.get("/slow"))) for dummy in range(4)]
    for thread in threads:
        thread.start()
    _until(lambda: nodes[0].hits + nodes[1].hits == 4)
    (early,) = balancer.steps(0).drain(["n2"])
    assert early.changed and early.ended_by_deadline and early.state == "draining"
    hits = nodes[0].hits
    assert {balancer.get() for dummy in range(6)} == {200} and nodes[0].hits == hits
    (outcome,) = balancer.steps(10).drain(["n2"])
    assert not outcome.changed and not outcome.ended_by_deadline and outcome.state == balancer.drained
    for thread in threads:
        thread.join()
    assert answers == [200] * 4


def test_a_drained_member_can_come_back(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    assert balancer.members.drain("n2") is True
    assert balancer.members.drain("n2") is False
    assert balancer.get() == 503
    balancer.join("n2", node)
    assert balancer.get() == 200


def test_removing_and_removing_again(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    (outcome,) = balancer.steps(5).remove(["n2"], force=True)
    assert outcome.changed and outcome.state == "absent" and not outcome.error
    assert balancer.members.remove("n2") is False
    balancer.restart()
    assert balancer.state("n2") == "absent"


@only_haproxy
def test_removal_under_way_ends_at_the_deadline_when_forced(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    thread = threading.Thread(target=lambda: balancer.get("/slow"))
    thread.start()
    _until(lambda: balancer.reader.read().in_service == 1)
    with contextlib.suppress(StillBusy):
        balancer.members.remove("n2")
    (outcome,) = balancer.steps(0.2).remove(["n2"], force=True)
    thread.join()
    assert outcome.state == "absent" and not outcome.error


def test_a_name_with_another_address_is_another_node(balancer: Balancer) -> None:
    old = balancer.node(2, "n")
    balancer.join("n", old)
    new = balancer.node(3, "n")
    balancer.join("n", new)
    hits = old.hits
    assert {balancer.get() for dummy in range(4)} == {200}
    assert old.hits == hits and new.hits >= 4


@only_haproxy
def test_a_gentle_start_ends_at_the_full_share(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node, ramp_steps=2, ramp_interval=0.1)
    assert balancer.members.members()[0].ramp == 1.0
    assert balancer.members.ramp("n2", 0.5) is True and balancer.members.ramp("n2", 0.5) is False
    assert balancer.reader.read().members[0].ramp == 0.5


@only_haproxy
def test_waiting_requests_and_finished_ones_are_counted(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    before = balancer.reader.read()
    threads = [threading.Thread(target=lambda: balancer.get("/slow")) for dummy in range(5)]
    for thread in threads:
        thread.start()
    _until(lambda: balancer.reader.read().waiting == 3)
    assert balancer.reader.read().in_service == 2
    for thread in threads:
        thread.join()
    after = balancer.reader.read()
    assert after.requests - before.requests == 5 and after.started == before.started
    assert after.waiting == after.in_service == 0


@only_haproxy
def test_counters_that_started_anew_are_seen(balancer: Balancer) -> None:
    before = balancer.reader.read().started
    time.sleep(1.1)
    balancer.restart()
    assert balancer.reader.read().started != before


def test_no_answer_is_an_error_and_never_zeros(balancer: Balancer) -> None:
    balancer.stop()
    began = time.monotonic()
    with pytest.raises(BalancerError, match=balancer.complaint):
        balancer.reader.read()
    with pytest.raises(BalancerError):
        balancer.members.members()
    assert time.monotonic() - began < balancer.patience


@pytest.mark.parametrize("name, address", [("a b", "127.0.0.2"), ("a\ndel server", "127.0.0.2"), ("a", "host; x"), ("", "127.0.0.2")])
def test_nothing_but_names_and_addresses_reaches_the_balancer(balancer: Balancer, name: str, address: str) -> None:
    with pytest.raises(BalancerError):
        balancer.members.join(name, address, 80, 1)
    assert balancer.members.members() == []


@only_haproxy
def test_a_file_the_balancer_refuses_is_not_put_in_place(balancer: Balancer, tmp_path: Path) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    path = tmp_path / "conf.d" / "web.cfg"
    before = path.read_text()
    (tmp_path / "conf.d" / "broken.cfg").write_text("frontend nonsense\n    no such keyword\n")
    with pytest.raises(BalancerError, match="refuses"):
        balancer.members.remove("n2")
    assert path.read_text() == before and [name for name in os.listdir(path.parent) if name.startswith(".")] == []
    assert balancer.get() == 200
