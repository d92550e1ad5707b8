# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every balancer driver must do. A driver is added as one more parameter of the fixture ``balancer``."""

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
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import (
    BalancerError,
    BalancerMembers,
    BalancerReader,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy import HAProxyReader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import (
    HAProxyMembers,
    MemberFile,
    RuntimeSocket,
    StillBusy,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_steps import Steps, Wanted

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
    nodes: list[Node] = field(default_factory=list)

    def node(self, last: int) -> Node:
        self.nodes.append(Node(f"127.0.0.{last}"))
        return self.nodes[-1]

    def join(self, name: str, node: Node, **options: object) -> None:
        wanted = Wanted(name, node.address, node.port)
        (outcome,) = Steps(self.members, timeout=10).join([wanted], **options)
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
        yield Balancer(members, reader, port, restart, reload, stop)
    finally:
        stop()


@pytest.fixture(name="balancer", params=["haproxy"])
def fixture_balancer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Balancer]:
    with {"haproxy": _haproxy}[request.param](tmp_path) as balancer:
        yield balancer
        for node in balancer.nodes:
            node.stop()


def test_a_balancer_without_members_answers_503(balancer: Balancer) -> None:
    assert balancer.get() == 503
    reading = balancer.reader.read()
    assert reading.members == [] and reading.waiting == 0


def test_a_member_serves_after_it_joined_and_not_before(balancer: Balancer) -> None:
    node = balancer.node(2)
    node.healthy = False
    assert balancer.members.join("n2", node.address, node.port, 2) is True
    time.sleep(0.5)
    assert balancer.get() == 503 and node.hits == 0
    assert balancer.state("n2") in ("starting", "down")
    node.healthy = True
    balancer.join("n2", node)
    assert balancer.get() == 200
    (member,) = balancer.reader.read().members
    assert (member.name, member.address, member.state, member.capacity) == ("n2", node.address, "up", 2)


def test_joining_again_changes_nothing(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    (outcome,) = Steps(balancer.members, timeout=5).join([Wanted("n2", node.address, node.port)])
    assert outcome.changed is False and outcome.state == "up"
    assert balancer.members.join("n2", node.address, node.port, 2) is False


def test_a_member_that_stays_unhealthy_is_reported_and_taken_out(balancer: Balancer) -> None:
    node = balancer.node(2)
    node.healthy = False
    (outcome,) = Steps(balancer.members, timeout=1).join([Wanted("n2", node.address, node.port)])
    assert "503" in outcome.error and outcome.ended_by_deadline
    assert balancer.state("n2") == "absent"


def test_another_release_does_not_join(balancer: Balancer) -> None:
    node = balancer.node(2)
    (outcome,) = Steps(balancer.members, timeout=0.5).join([Wanted("n2", node.address, node.port)], release="r2")
    assert "'r1'" in outcome.error and "'r2'" in outcome.error
    assert node.hits == 0 and balancer.get() == 503


def test_each_member_may_have_a_release_of_its_own(balancer: Balancer) -> None:
    new, old = balancer.node(2), balancer.node(3)
    wanted = [Wanted("n2", new.address, new.port, release="r1"), Wanted("n3", old.address, old.port, release="r0")]
    outcomes = Steps(balancer.members, timeout=0.5).join(wanted)
    assert [bool(outcome.error) for outcome in outcomes] == [False, True]
    assert (balancer.state("n2"), balancer.state("n3")) == ("up", "absent")


def test_a_node_that_knows_other_tenants_is_refused_at_once(balancer: Balancer) -> None:
    node = balancer.node(2)
    began = time.monotonic()
    (outcome,) = Steps(balancer.members, timeout=30).join([Wanted("n2", node.address, node.port)], tenants="t2")
    assert time.monotonic() - began < 10
    assert outcome.stale and "other tenants" in outcome.error
    assert node.hits == 0 and balancer.state("n2") == "absent"
    (outcome,) = Steps(balancer.members, timeout=5).join([Wanted("n2", node.address, node.port)], tenants="t1")
    assert not outcome.stale and balancer.state("n2") == "up"


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


def test_draining_waits_for_the_requests_under_way(balancer: Balancer) -> None:
    nodes = [balancer.node(last) for last in (2, 3)]
    for node in nodes:
        balancer.join(f"n{node.address[-1]}", node)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(balancer.get("/slow"))) for dummy in range(4)]
    for thread in threads:
        thread.start()
    _until(lambda: balancer.reader.read().in_service == 4)
    (early,) = Steps(balancer.members, timeout=0).drain(["n2"])
    assert early.ended_by_deadline and early.in_service == 2 and early.state == "draining"
    (outcome,) = Steps(balancer.members, timeout=10).drain(["n2"])
    assert not outcome.ended_by_deadline and outcome.state == "drained" and outcome.in_service == 0
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    hits = nodes[0].hits
    assert {balancer.get() for dummy in range(6)} == {200} and nodes[0].hits == hits


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
    (outcome,) = Steps(balancer.members, timeout=5).remove(["n2"], force=True)
    assert outcome.changed and outcome.state == "absent" and not outcome.error
    assert balancer.members.remove("n2") is False
    balancer.restart()
    assert balancer.state("n2") == "absent"


def test_removal_under_way_ends_at_the_deadline_when_forced(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    thread = threading.Thread(target=lambda: balancer.get("/slow"))
    thread.start()
    _until(lambda: balancer.reader.read().in_service == 1)
    with contextlib.suppress(StillBusy):
        balancer.members.remove("n2")
    (outcome,) = Steps(balancer.members, timeout=0.2).remove(["n2"], force=True)
    thread.join()
    assert outcome.state == "absent" and not outcome.error


def test_a_name_with_another_address_is_another_node(balancer: Balancer) -> None:
    old, new = balancer.node(2), balancer.node(3)
    balancer.join("n", old)
    balancer.join("n", new)
    hits = old.hits
    assert {balancer.get() for dummy in range(4)} == {200}
    assert old.hits == hits and new.hits >= 4


def test_a_gentle_start_ends_at_the_full_share(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node, ramp_steps=2, ramp_interval=0.1)
    assert balancer.members.members()[0].ramp == 1.0
    assert balancer.members.ramp("n2", 0.5) is True and balancer.members.ramp("n2", 0.5) is False
    assert balancer.reader.read().members[0].ramp == 0.5


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


def test_counters_that_started_anew_are_seen(balancer: Balancer) -> None:
    before = balancer.reader.read().started
    time.sleep(1.1)
    balancer.restart()
    assert balancer.reader.read().started != before


def test_no_answer_is_an_error_and_never_zeros(balancer: Balancer) -> None:
    balancer.stop()
    began = time.monotonic()
    with pytest.raises(BalancerError, match="could not be read"):
        balancer.reader.read()
    with pytest.raises(BalancerError, match="haproxy"):
        balancer.members.members()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name, address", [("a b", "127.0.0.2"), ("a\ndel server", "127.0.0.2"), ("a", "host; x"), ("", "127.0.0.2")])
def test_nothing_but_names_and_addresses_reaches_the_balancer(balancer: Balancer, name: str, address: str) -> None:
    with pytest.raises(BalancerError):
        balancer.members.join(name, address, 80, 1)
    assert balancer.members.members() == []


def test_a_file_the_balancer_refuses_is_not_put_in_place(balancer: Balancer, tmp_path: Path) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    path = tmp_path / "conf.d" / "web.cfg"
    if not path.exists():
        pytest.skip("this balancer keeps no file")
    before = path.read_text()
    (tmp_path / "conf.d" / "broken.cfg").write_text("frontend nonsense\n    no such keyword\n")
    with pytest.raises(BalancerError, match="refuses"):
        balancer.members.remove("n2")
    assert path.read_text() == before and [name for name in os.listdir(path.parent) if name.startswith(".")] == []
    assert balancer.get() == 200
