# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where hosts lead, in a real HAProxy: at once, after a reload, and after a change that was broken off."""

from __future__ import annotations

import http.client
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_lanes import Lanes
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import RuntimeSocket

PORT = 18467
CONFIG = """
global
    stats socket {folder}/admin.sock level admin
    master-worker
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 1s
frontend public
    bind 127.0.0.1:{port}
    http-request set-var(txn.host) req.hdr(host),lower
    use_backend %[var(txn.host),field(1,:),map_str({folder}/lanes.map,web)]
    default_backend web
backend web
    http-request return status 200 content-type text/plain string web
backend web_next
    http-request return status 200 content-type text/plain string web_next
"""


class Balancer:
    """A HAProxy of the test's own."""

    def __init__(self, folder: Path) -> None:
        (folder / "haproxy.cfg").write_text(CONFIG.format(folder=folder, port=PORT))
        self.lanes = Lanes(RuntimeSocket(str(folder / "admin.sock")), str(folder / "lanes.map"), str(folder / "lock"))
        self.lanes.lead([], "web")
        self.process = subprocess.Popen(["haproxy", "-W", "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL)

    def ask(self, host: str) -> str:
        deadline = time.monotonic() + 10
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
            try:
                connection.request("GET", "/", headers={"Host": host})
                return connection.getresponse().read().decode()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            finally:
                connection.close()

    def reload(self) -> None:
        before = self.lanes.runtime.ask("show info")
        self.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                if self.lanes.runtime.ask("show info") and before.split("Pid: ")[1].split()[0] not in self.lanes.runtime.ask("show info"):
                    return
            except BalancerError:
                continue


@pytest.fixture(name="balancer")
def make_balancer(tmp_path: Path) -> Iterator[Balancer]:
    balancer = Balancer(tmp_path)
    balancer.ask("a.example")
    yield balancer
    balancer.process.terminate()
    balancer.process.wait(10)


def test_hosts_lead_where_they_are_told_at_once_and_after_a_reload(balancer: Balancer) -> None:
    assert balancer.ask("a.example:8443") == "web"
    assert balancer.lanes.lead(["a.example", "b.example"], "web_next")
    assert not balancer.lanes.lead(["a.example", "b.example"], "web_next")
    assert [balancer.ask(host) for host in ("a.example", "A.Example:8443", "b.example", "c.example")] == ["web_next"] * 3 + ["web"]
    balancer.reload()
    assert [balancer.ask(host) for host in ("a.example", "b.example", "c.example")] == ["web_next", "web_next", "web"]
    assert balancer.lanes.lead(["a.example"], "web")
    assert [balancer.ask(host) for host in ("a.example", "b.example")] == ["web", "web_next"]
    assert balancer.lanes.written() == balancer.lanes.running() == {"b.example": "web_next"}


def test_what_only_the_file_or_only_the_process_has_is_put_right(balancer: Balancer) -> None:
    balancer.lanes.lead(["a.example"], "web_next")
    balancer.lanes.runtime.ask(f"del map {balancer.lanes.path} a.example")
    assert balancer.ask("a.example") == "web"
    assert balancer.lanes.lead(["a.example"], "web_next")
    assert balancer.ask("a.example") == "web_next"
    Path(balancer.lanes.path).write_text("")
    assert balancer.lanes.lead(["a.example"], "web")
    assert balancer.lanes.running() == {}


def test_what_is_no_host_is_refused_and_changes_nothing(balancer: Balancer) -> None:
    with pytest.raises(BalancerError, match="no host name"):
        balancer.lanes.lead(["a.example web\nb"], "web_next")
    assert balancer.lanes.written() == {}
