# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tenant whose PHP runs as a Unix user of its own: what either can read of the other with no open_basedir at all."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import definition

from .conftest import SECRET, TENANTS, LocalFleet, changed

pytestmark = pytest.mark.slow

SHARED, OWN = TENANTS
SOCKETS = {SHARED: "/run/php/moodle.sock", OWN: f"/run/php/tenant-{OWN}.sock"}
# Code of an attacker, run by PHP-FPM. It never comes by config.php, so nothing confines it. Includes come first: OPcache may have the file.
PROBE = """<?php
$found = ['user' => posix_getpwuid(posix_geteuid())['name'], 'basedir' => ini_get('open_basedir'), 'read' => [], 'included' => []];
foreach (json_decode(file_get_contents('php://input'), true) as $path) {
    if (str_ends_with($path, '.php') && is_array(@include $path)) {
        $found['included'][] = $path;
    }
    if (@file_get_contents($path) !== false || @scandir($path) !== false) {
        $found['read'][] = $path;
    }
}
// Not function_exists(): OPcache answers that once for all pools.
$found['apcu'] = in_array('apcu_fetch', get_defined_functions()['internal'], true);
echo json_encode($found);
"""
CALL = """
import importlib.machinery, importlib.util, json, sys
loader = importlib.machinery.SourceFileLoader("fpm", "/usr/lib/moodle-fleet/fpm")
fpm = importlib.util.module_from_spec(importlib.util.spec_from_loader("fpm", loader))
loader.exec_module(fpm)
print(json.dumps(fpm.request(sys.argv[1], "/srv/probe.php", sys.stdin.buffer.read())))
"""


def entry(name: str, **more: object) -> dict:
    """A tenant of the list."""
    admin = {"user": "admin", "email": f"admin@{name}.example"}
    return {"name": name, "hosts": [f"{name}.localhost"], "title": f"Site of {name}", "admin": admin, **more}


def sh(node: str, script: str, given: str = "") -> str:
    """Run a script on a node."""
    done = subprocess.run(["podman", "exec", "-i", node, "bash", "-ec", script], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def probe(node: str, tenant: str, paths: list[str]) -> dict:
    """What code in the pool of a tenant finds out on a node."""
    sh(node, "cat > /srv/probe.php", PROBE)
    done = subprocess.run(["podman", "exec", "-i", node, "python3", "-c", CALL, SOCKETS[tenant]], input=json.dumps(paths),
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(name="apply", scope="module")
def make_apply(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """What runs a playbook with the second tenant having a user of its own; afterwards it has none again."""
    file = tmp_path_factory.mktemp("own") / "tenants.json"

    def apply(playbook: str = "tenants", *words: str, own: bool = True) -> subprocess.CompletedProcess[str]:
        file.write_text(json.dumps({"moodle_tenants": [entry(SHARED), entry(OWN, own_user=own)]}))
        return fleet.playbook(playbook, "-e", f"@{file}", *words)

    yield apply
    apply(own=False)


def test_neither_reads_the_others_files_even_without_open_basedir(fleet: LocalFleet, apply: Callable[..., object]) -> None:
    (jobs,), webs = fleet.addresses("jobs"), fleet.addresses("web")
    uid = definition.load([entry(OWN, own_user=True)])[0].uid
    for tenant in TENANTS:
        sh(jobs, f"runuser -u www-data -- sh -c 'umask 027; echo {tenant} > /srv/moodledata/{tenant}/data/secret'")
    before = fleet.login(OWN)
    apply()
    again = changed(apply())
    assert not any(again.values()), again

    for node in sorted(webs):
        for tenant in TENANTS:
            page = fleet.at_node(fleet.visitor(), webs[node], tenant, "/")
            assert (page.status_code, f"Site of {tenant}" in page.text) == (200, True), page.text[-500:]
        mine = {tenant: [f"/srv/moodledata/{tenant}/data", f"/srv/moodledata/{tenant}/data/secret", f"/var/cache/moodle-fleet/{tenant}"]
                for tenant in TENANTS}
        maps = {SHARED: ["/etc/moodle-fleet/tenants.php"], OWN: [f"/etc/moodle-fleet/tenants/{OWN}.php"]}
        everything = [path for tenant in TENANTS for path in mine[tenant] + maps[tenant]] + ["/etc/moodle-fleet/tenants.own"]
        for tenant, user in ((SHARED, "www-data"), (OWN, f"t-{OWN}")):
            found = probe(node, tenant, everything)
            assert (found["user"], found["basedir"], found["apcu"]) == (user, "", tenant == SHARED)
            # The folder on the node's own disk may not be there yet.
            assert set(mine[tenant][:2] + maps[tenant]) <= set(found["read"]) <= set(mine[tenant] + maps[tenant]), (node, tenant)
            assert found["included"] == maps[tenant]
        assert derive(SECRET, "db", OWN, 1) not in sh(node, "cat /etc/moodle-fleet/tenants.php")

    # Who was logged in still is, and nginx may send the site's files.
    assert "You are logged in as admin" in before.get(fleet.url(OWN)).text
    assert sh(jobs, f"stat -c '%u %a' /srv/moodledata/{OWN} /srv/moodledata/{OWN}/data/secret").split() == [str(uid), "710", str(uid), "644"]
    for node in sorted(webs):
        for tenant in TENANTS:
            read = f"setpriv --reuid moodle-web --regid moodle-web --init-groups cat /srv/moodledata/{tenant}/data/secret"
            assert sh(node, read) == f"{tenant}\n"
        # A pool runs whatever it is sent, as its user: nobody but nginx can send it anything, and nginx is neither's user.
        assert sh(node, "ps -o user:32= -C nginx | sort -u").split() == ["moodle-web", "root"]
        for user, tenant in (("www-data", OWN), (f"t-{OWN}", SHARED)):
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({SOCKETS[tenant]!r})"
            assert "PermissionError" in sh(node, f'runuser -u {user} -- python3 -c "{connect}" 2>&1 || true')
            assert "PermissionError" not in sh(node, f'runuser -u moodle-web -- python3 -c "{connect}" 2>&1 || true')


def test_its_background_tasks_run_as_its_user(fleet: LocalFleet, apply: Callable[..., object]) -> None:
    (jobs,) = fleet.addresses("jobs")
    count = f"mariadb -N -e 'SELECT COUNT(*) FROM moodle_{OWN}.mdl_task_log'"
    (database,) = fleet.addresses("database")
    before = int(sh(database, count))
    deadline = time.monotonic() + 150
    while int(sh(database, count)) == before and time.monotonic() < deadline:
        time.sleep(1)
    assert int(sh(database, count)) > before, sh(jobs, "journalctl -t moodle-cron -n 30")
    # PHP kept what it compiled where only its user can.
    compiled = sh(jobs, f"find /var/cache/moodle-fleet/{OWN}/opcache-cli -name 'cron.php.bin' -printf '%u\\n' | sort -u")
    assert compiled == f"t-{OWN}\n"
    assert sh(jobs, f"find /srv/moodledata/{OWN} ! -user t-{OWN}") == ""


def test_the_isolation_check_finds_what_is_open(fleet: LocalFleet, apply: Callable[..., object], tmp_path: Path) -> None:
    (jobs,) = fleet.addresses("jobs")
    report = tmp_path / "report.json"

    def check() -> list[tuple[str, str, str]]:
        fleet.playbook("tenants_check", "-e", f"tenants_report={report}", check=False)
        return [(one["kind"], one["tenant"], one["other"]) for one in json.loads(report.read_text())["findings"]]

    assert check() == []
    assert json.loads(report.read_text())["pairs"]["files"] == 2
    sh(jobs, f"chmod 755 /srv/moodledata/{OWN}; sed -i \"s/'confine' => true/'confine' => false/\" /etc/moodle-fleet/tenants.php")
    assert set(check()) == {("permissions", OWN, ""), ("files", SHARED, OWN), ("files", SHARED, "all")}
    # With the gate shut, nothing but that keeps the unconfined out.
    sh(jobs, f"chmod 710 /srv/moodledata/{OWN}")
    assert set(check()) == {("files", SHARED, "all")}
    apply()
    assert check() == []


def test_a_new_node_makes_the_users_by_itself(fleet: LocalFleet, apply: Callable[..., object]) -> None:
    known = set(fleet.addresses("web"))
    done = apply("scale", "-e", "fleet_desired=3")
    (new,) = set(fleet.addresses("web")) - known
    assert not re.search(rf"^(ok|changed): \[{new}\]", done.stdout, re.M), "the new node was logged into"
    page = fleet.at_node(fleet.visitor(), fleet.addresses("web")[new], OWN, "/")
    assert (page.status_code, f"Site of {OWN}" in page.text) == (200, True)
    assert probe(new, OWN, [])["user"] == f"t-{OWN}"
    # A request of a pool of its own counts for whoever drains the node.
    hold = "import socket, time; s = socket.socket(socket.AF_UNIX); s.connect('%s'); time.sleep(3)" % SOCKETS[OWN]
    told = sh(new, f"python3 -c \"{hold}\" & sleep 1; python3 -IS /usr/lib/moodle-fleet/idle 0 || true; wait")
    assert (json.loads(told)["active"], json.loads(told)["idle"]) == (1, False)
    for _attempt in range(5):
        if len(fleet.addresses("web")) > 2:
            apply("scale", "-e", "fleet_desired=2")
    assert len(fleet.addresses("web")) == 2


def test_it_goes_back_to_the_shared_pool(fleet: LocalFleet, apply: Callable[..., object]) -> None:
    (jobs,), webs = fleet.addresses("jobs"), fleet.addresses("web")
    apply(own=False)
    assert sh(jobs, f"find /srv/moodledata/{OWN} ! -user www-data") == ""
    assert sh(jobs, f"find /srv/moodledata/{OWN} -perm /007 ! -type l") == ""
    for node, address in webs.items():
        page = fleet.at_node(fleet.visitor(), address, OWN, "/")
        assert (page.status_code, f"Site of {OWN}" in page.text) == (200, True), page.text[-500:]
        assert sh(node, f"ls -d /run/php/tenant-* /etc/moodle-fleet/tenants/*.php /var/cache/moodle-fleet/{OWN}/opcache-cli 2>/dev/null | wc -l") == "0\n"
