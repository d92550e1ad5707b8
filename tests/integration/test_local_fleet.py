# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What learners and operators are promised of a whole fleet, asked through HTTPS at the balancer."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import ssl
import subprocess
import threading
import time

import pytest
import requests

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.resp import Connection

from .conftest import PORT, SECRET, TENANTS, LocalFleet, changed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tenant", TENANTS)
def test_each_host_shows_its_own_site(fleet: LocalFleet, tenant: str) -> None:
    page = fleet.visitor().get(fleet.url(tenant), timeout=30)
    assert page.status_code == 200
    assert f"Site of {tenant}" in page.text


def test_each_balancer_leads_to_the_sites(fleet: LocalFleet) -> None:
    context = ssl.create_default_context(cafile=str(fleet.state_dir / "tls" / "ca.pem"))
    addresses = fleet.addresses("balancer").values()
    assert len(addresses) == 2
    for address in addresses:
        with context.wrap_socket(socket.create_connection((address, 443), timeout=30), server_hostname="acme.localhost") as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: acme.localhost:%d\r\nConnection: close\r\n\r\n" % PORT)
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"Site of acme" in answer


def ask(host: bytes) -> bytes:
    """The status line for a request with this Host header, sent as it stands."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", PORT), timeout=30) as plain:
        with context.wrap_socket(plain, server_hostname="acme.localhost") as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    assert b"Site of" not in answer
    return answer.split(b"\r\n", 1)[0]


UNKNOWN = [b"other.localhost", b"localhost", b"xacme.localhost", b"acme.localhost.evil.example", b"127.0.0.1", b"acme"]
MALFORMED = [b"acme.localhost.", b"acme.localhost@other.localhost", b"*.localhost", b"acme_localhost"]


@pytest.mark.parametrize("host", UNKNOWN)
def test_an_unknown_host_is_not_found(fleet: LocalFleet, host: bytes) -> None:
    assert ask(host + b":%d" % PORT).split()[1] == b"404"


@pytest.mark.parametrize("host", MALFORMED)
def test_a_malformed_host_is_refused(fleet: LocalFleet, host: bytes) -> None:
    assert ask(host + b":%d" % PORT).split()[1] == b"400"


def test_a_session_moves_between_nodes_and_is_refused_on_another_tenant(fleet: LocalFleet) -> None:
    session = fleet.login("acme")
    nodes = fleet.addresses("web")
    assert len(nodes) == 2
    for name, address in nodes.items():
        page = fleet.at_node(session, address, "acme", "/my/")
        assert page.status_code == 200
        assert "You are logged in as admin" in page.text
        assert f'<span id="node">{name}</span>' in page.text
        other = fleet.at_node(session, address, "globex", "/my/")
        assert (other.status_code, "login" in other.headers["Location"]) == (303, True)


def test_a_file_written_on_one_node_is_read_on_the_other(fleet: LocalFleet) -> None:
    session = fleet.login("acme")
    writer, reader = fleet.addresses("web").values()
    page = fleet.at_node(session, writer, "acme", "/my/")
    sesskey = page.text.split('name="sesskey" value="')[1].split('"')[0]
    content = b"learners' work " * 1000
    done = fleet.at_node(
        session, writer, "acme", "/files/upload.php", method="POST", data={"sesskey": sesskey}, files={"file": ("a b.txt", content)}
    )
    path = done.text.split('id="file" href="')[1].split('"')[0]
    got = fleet.at_node(session, reader, "acme", path)
    assert got.status_code == 200
    assert got.content == content
    assert "X-Accel-Redirect" not in got.headers
    assert fleet.at_node(requests.Session(), reader, "acme", path).status_code == 303


def logged(fleet: LocalFleet, tenant: str, marker: str) -> list[str]:
    """The lines with this marker in the tenant's file at the log server, as soon as there is one."""
    logs, lines = next(iter(fleet.addresses("logs"))), ""
    command = ["podman", "exec", logs, "grep", "-hF", marker, f"/var/log/moodle-fleet/tenants/{tenant}.log"]
    deadline = time.monotonic() + 30
    while not lines and time.monotonic() < deadline:
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        time.sleep(0.2)
    return lines.splitlines()


def test_the_visitors_address_cannot_be_forged(fleet: LocalFleet) -> None:
    marker = f"/forged-{time.time_ns()}"
    fleet.visitor().get(fleet.url("acme", marker), headers={"X-Forwarded-For": "192.0.2.99"}, timeout=30)
    clients = {json.loads(line[line.index("{"):])["client"] for line in logged(fleet, "acme", marker)}
    assert clients == {str(next(ipaddress.ip_network(fleet.cloud.settings["subnet"]).hosts()))}


def test_what_php_logs_for_a_tenant_is_in_the_tenants_file_alone(fleet: LocalFleet) -> None:
    for tenant in TENANTS:
        # A list where a text is wanted ends in PHP's own error.
        assert fleet.visitor().get(fleet.url(tenant, "/local/write.php?client[]=x"), timeout=30).status_code == 500
    for tenant in TENANTS:
        (program,) = {re.search(r" (tenant-\w+)\[", line)[1] for line in logged(fleet, tenant, "of type string, array given")}
        assert program == f"tenant-{tenant}"


def test_the_health_of_a_node_is_not_told_to_visitors(fleet: LocalFleet) -> None:
    for address in fleet.addresses("web").values():
        asked = requests.get(f"http://{address}/healthz", headers={"X-Forwarded-For": "192.0.2.99"}, timeout=10)
        assert asked.status_code == 404


def test_a_second_run_changes_nothing_and_check_mode_says_so(fleet: LocalFleet) -> None:
    again = changed(fleet.playbook("site"))
    assert again
    assert not any(again.values()), again
    predicted = changed(fleet.playbook("site", "--check", "--diff"))
    assert not any(predicted.values()), predicted


def test_no_secret_is_readable_by_everybody(fleet: LocalFleet) -> None:
    """Passwords of the fleet stand in no world-readable file and in no log."""
    session = fleet.login("acme")
    session.close()
    for node in fleet.cloud.nodes():
        done = subprocess.run(
            ["podman", "exec", node.name, "sh", "-c", "grep -rlsE --exclude-dir=proc -m1 'a-secret-for-tests-alone' /etc /var/log /run /tmp /root; "
             "for f in /etc/moodle-fleet/tenants.php; do [ ! -e $f ] || stat -c '%a %U:%G' $f; done"],
            capture_output=True, text=True, check=False,
        )
        assert done.stdout.strip() in ("", "640 root:www-data"), (node.name, done.stdout)


def test_the_lock_of_a_dead_request_is_taken_over_and_no_other(fleet: LocalFleet) -> None:
    """A lock lives as long as the connection to Redis that took it: a crashed worker keeps no learner waiting."""
    visitor, url = fleet.visitor(), fleet.url("acme")
    assert visitor.get(url, timeout=30).status_code == 200
    key = f"t:acme:s:{visitor.cookies['MoodleSession']}.lock"
    [address] = fleet.addresses("cache").values()
    password = derive(SECRET, "redis-admin", "fleet")
    with Connection(address, 6379, "fleet_admin", password) as admin:
        with Connection(address, 6379, "fleet_admin", password) as holder:
            holder.call("SET", key, f"[pid 1 client {holder.call('CLIENT', 'ID')}] elsewhere:/", "EX", "60")
            with pytest.raises(requests.ReadTimeout):
                visitor.get(url, timeout=2)
            assert "elsewhere" in admin.call("GET", key)
        start = time.monotonic()
        assert visitor.get(url, timeout=30).status_code == 200
        # The request that nobody waits for any more takes its turn too, and each lets go only after it was answered.
        while admin.call("EXISTS", key):
            time.sleep(0.1)
        assert time.monotonic() - start < 10, "the lock's expiry was waited for"


LOOKUPS = r"""
require "/usr/lib/moodle-fleet/output.php";
[$code, $data] = ["/tmp/lookups/code", "/tmp/lookups/data"];
$CFG = (object) ["dirroot" => $code, "dataroot" => $data, "moodle_fleet_output" => "/tmp/lookups"];
mkdir("/tmp/lookups");
file_put_contents("/tmp/lookups/files.php", "<?php return ['pix/a.svg' => true];");
$files = ["$code/pix/a.svg", "$code/pix/b.svg", "$code/lib.php", "$data/pix_plugins/a.svg", "$data/other/a.svg"];
$see = fn() => array_map(core\output\file_exists(...), $files);
$seen = [$see()];
foreach (array_slice($files, 1) as $file) { is_dir(dirname($file)) || mkdir(dirname($file), 0700, true); touch($file); }
echo json_encode([...$seen, $see()]);
"""


def look_up(fleet: LocalFleet, code: str) -> object:
    """What this code says on a web node, of files below a folder of its own."""
    node = next(iter(fleet.addresses("web")))
    try:
        return json.loads(fleet.cloud._podman_checked("look for files", "exec", node, "php", "-r", code))
    finally:
        fleet.cloud._podman_checked("clean up", "exec", node, "rm", "-rf", "/tmp/lookups")


def test_icons_and_templates_are_looked_up_in_the_list_of_the_release(fleet: LocalFleet) -> None:
    # The list is not looked at again; among the site's own icons nothing changes within a request.
    assert look_up(fleet, LOOKUPS) == [[True, False, False, False, False], [True, False, True, False, True]]


CALLBACKS = r"""
require "/usr/lib/moodle-fleet/output.php";
$CFG = (object) ["dirroot" => "/tmp/lookups/code", "dataroot" => "/tmp/lookups/data", "localcachedir" => "/tmp/lookups/local",
    "moodle_fleet_output" => "/tmp/lookups"];
mkdir("/tmp/lookups/code/admin", 0700, true);
touch("/tmp/lookups/code/admin/lib.php");
touch("/tmp/lookups/code/admin/renderer.php");
file_put_contents("/tmp/lookups/code.php", "<?php return ['blog/lib.php' => true, 'blog/renderer.php' => true];");
class core_component {
    static function get_core_subsystems() {
        return ["access" => null, "admin" => "/tmp/lookups/code/admin", "blog" => "/tmp/lookups/code/blog"];
    }
}
function component_callback($component, $function, array $params = [], $default = null, bool $migratedtohook = false) {
    return [$component, $function, $params, $default, $migratedtohook];
}
function core_admin_known() {}
function admin_old() {}
function make_localcache_directory($directory) { static $made = 0; return "$directory " . ++$made; }
$file = core\output\renderer_factory\file_exists(...);
$ask = core\hook\output\component_callback(...);
echo json_encode([
    array_map($file, ["$CFG->dirroot/blog/renderer.php", "$CFG->dirroot/admin/renderer.php", "$CFG->dirroot//admin/renderer.php"]),
    core\output\component_callback("admin", "any", [1], "default"),
    $ask(component: "admin", function: "any", default: "default", migratedtohook: true),
    $ask(component: "blog", function: "any", default: "default", migratedtohook: true),
    array_map(fn($given) => $ask(...$given)[0], [["access", "any"], ["admin", "known"], ["admin", "old"], ["mod_forum", "any"]]),
    array_map(core\output\make_localcache_directory(...), ["a", "a", "b"]),
]);
"""


def test_parts_of_moodle_without_code_of_that_kind_are_not_looked_for(fleet: LocalFleet) -> None:
    files, without, named, there, others, folders = look_up(fleet, CALLBACKS)
    # What is written otherwise than in the list is looked for on disk.
    assert files == [True, False, True]
    assert without == named == "default"
    assert there == ["blog", "any", [], "default", True]
    assert others == ["access", "admin", "admin", "mod_forum"]
    assert folders == ["a 1", "a 1", "b 2"]


def test_each_worker_made_a_page_before_its_node_served(fleet: LocalFleet) -> None:
    for name, address in fleet.addresses("web").items():
        said = fleet.cloud._podman_checked("read what the warm-up said", "exec", name, "journalctl", "-u", "moodle-fleet-warmup", "-o", "cat", "--no-pager")
        visited = [json.loads(line)["visited"] for line in said.splitlines() if line.startswith("{")]
        assert visited[-1] == requests.get(f"http://{address}/healthz", timeout=5).json()["workers"]


def test_a_killed_node_costs_no_failed_get(fleet: LocalFleet) -> None:
    statuses: list[object] = []
    stop = threading.Event()

    def visit() -> None:
        session = fleet.visitor()
        while not stop.is_set():
            try:
                statuses.append(session.get(fleet.url("acme"), timeout=30).status_code)
            except requests.RequestException as exc:
                statuses.append(repr(exc))

    visitors = [threading.Thread(target=visit) for dummy in range(3)]
    for visitor in visitors:
        visitor.start()
    time.sleep(2)
    name = sorted(fleet.addresses("web"))[0]
    subprocess.run(["podman", "kill", "--signal", "KILL", name], check=True, capture_output=True)
    before = len(statuses)
    time.sleep(6)
    stop.set()
    for visitor in visitors:
        visitor.join()
    assert before > 5
    assert len(statuses) > before + 10
    assert set(statuses) == {200}, {status: statuses.count(status) for status in set(statuses)}


def test_the_next_run_brings_the_killed_node_back(fleet: LocalFleet) -> None:
    fleet.playbook("site")
    assert len(fleet.addresses("web")) == 2
    for address in fleet.addresses("web").values():
        assert requests.get(f"http://{address}/healthz", timeout=10).json()["status"] == "ready"


def test_the_controller_may_see_what_is_coming_and_how_busy_the_tiers_are(fleet: LocalFleet) -> None:
    access = fleet.state_dir / "reader.json"
    assert access.stat().st_mode & 0o777 == 0o600
    assert [tenant["name"] for tenant in json.loads(access.read_text())["tenants"]] == list(TENANTS)
    done = fleet.command("tiers", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {tier["name"].split(" ")[0]: tier for tier in json.loads(done.stdout)["tiers"]}
    assert set(found) == {"database", "cache", "files"}
    assert all(0 <= tier["share"] < 1 for tier in found.values()), found
    # The stand-in site has no quizzes: that is told for each tenant, with what to do.
    told = fleet.command("events", "--json", events="{tenants: true}")
    assert told.returncode == 4
    failures = json.loads(told.stdout)["failures"]
    assert set(failures) == set(TENANTS) and all("can't be read" in text for text in failures.values())
