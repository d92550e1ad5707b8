# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The life of tenants on a fleet: made, compared, closed, renamed, moved, backed up, removed, restored, and kept apart."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest
import requests

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.resp import Connection

from . import likeness
from .conftest import SECRET, TENANTS, LocalFleet, changed

pytestmark = [
    pytest.mark.slow,
    # Not part of the whole suite: they take six minutes.
    pytest.mark.skipif(not os.environ.get("MOODLE_FLEET_TEST_TENANTS"), reason="MOODLE_FLEET_TEST_TENANTS is not set"),
]

FOLDER = "/srv/moodledata"
STORE = "/var/backups/moodle-fleet"
SECOND = "/var/lib/mysql-second"


def entry(name: str, **more: object) -> dict:
    """A tenant of the list."""
    admin = {"user": "admin", "email": f"admin@{name}.example"}
    return {"name": name, "hosts": [f"{name}.localhost"], "title": f"Site of {name}", "admin": admin, **more}


class Life:
    """The fleet with a list of tenants that the tests change."""

    def __init__(self, fleet: LocalFleet, folder: Path) -> None:
        self.fleet = fleet
        self.file = folder / "tenants.json"
        self.tenants = {name: entry(name) for name in TENANTS}
        self.more: dict[str, object] = {"tenants_backup": STORE}

    def run(self, playbook: str = "tenants", check: bool = True, **more: object) -> subprocess.CompletedProcess[str]:
        """Run a playbook with the list as it is now."""
        values = {"moodle_tenants": list(self.tenants.values()), **self.more, **more}
        self.file.write_text(json.dumps(values), encoding="utf-8")
        return self.fleet.playbook(playbook, "-e", f"@{self.file}", check=check)

    def node(self, role: str) -> str:
        """Name of the first node of a role."""
        return sorted(self.fleet.addresses(role))[0]

    def sh(self, role: str, script: str) -> str:
        """Run a shell script on the first node of a role."""
        done = subprocess.run(["podman", "exec", self.node(role), "bash", "-ec", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def query(self, port: int = 3306) -> Callable[[str], list[dict]]:
        """What runs a statement as the database's administrator."""
        connection = pymysql.connect(
            host=self.fleet.addresses("database")[self.node("database")], port=port, user="fleet_admin", autocommit=True,
            password=derive(SECRET, "db-root", "fleet"), charset="utf8mb4", cursorclass=pymysql.cursors.DictCursor,
        )

        def run(statement: str) -> list[dict]:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall())

        return run

    def get(self, host: str, path: str = "/", **more: object) -> requests.Response:
        """Ask the first web node past the balancer, whose certificate knows no new names."""
        address = self.fleet.addresses("web")[self.node("web")]
        headers = {"Host": f"{host}:{self.fleet.port}", "X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}
        return requests.request(more.pop("method", "GET"), f"http://{address}{path}", headers=headers, allow_redirects=False, timeout=30, **more)

    def content(self, tenant: str) -> tuple[dict[str, int], likeness.Cells, dict[str, str]]:
        """Checksums of a tenant's tables and files.

        Two tables count by their cells, for they hold the revisions by which Moodle makes nodes forget what they cached.
        """
        query = self.query()
        cells = {
            place: value for place, value in likeness.cells(query, f"moodle_{tenant}").items()
            if place[0] in ("config", "course") and not likeness.moment(place)
        }
        tables = [row["t"] for row in query(f"SELECT TABLE_NAME AS t FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'moodle_{tenant}'")]
        checksums = {
            table: query(f"CHECKSUM TABLE `moodle_{tenant}`.`{table}` EXTENDED")[0]["Checksum"]
            for table in tables if table not in ("mdl_config", "mdl_course")
        }
        listed = self.sh("jobs", f"cd {FOLDER}/{tenant}/data && find filedir -type f -print0 | sort -z | xargs -0 sha256sum")
        return checksums, cells, {line[66:]: line[:64] for line in listed.splitlines()}

    def book(self, tenant: str) -> dict:
        """The tenant's line in the book."""
        rows = self.query()(f"SELECT state, server, held, wwwroot FROM moodle_fleet.tenants WHERE name = '{tenant}'")
        return rows[0] if rows else {}


@pytest.fixture(name="life", scope="module")
def make_life(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """The fleet; afterwards it has its own tenants again and no others."""
    life = Life(fleet, tmp_path_factory.mktemp("life"))
    # Cron writes into the sites whenever it likes.
    life.sh("jobs", "systemctl stop moodle-fleet-cron")
    yield life
    life.tenants = {
        name: entry(name) if name in TENANTS else {**one, "state": "absent"} for name, one in life.tenants.items()
    }
    life.run(tenants_remove=[name for name in life.tenants if name not in TENANTS])
    life.tenants = {name: entry(name) for name in TENANTS}
    life.more = {}
    life.run()
    life.sh("jobs", f"rm -rf {STORE}; systemctl start moodle-fleet-cron")


def test_a_failing_tenant_is_named_at_the_end_and_the_others_are_served(life: Life) -> None:
    """Two sites installed in full, two copies, and one whose database holds something else."""
    life.query()("CREATE DATABASE moodle_broken CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
    life.query()("CREATE TABLE moodle_broken.mdl_other (id INT)")
    life.tenants |= {name: entry(name) for name in ("fulla", "broken", "fullb")}
    done = life.run(check=False, tenants_clone=False)
    assert done.returncode != 0
    assert "1 of 5 tenants failed" in done.stdout
    assert "broken: the database moodle_broken holds tables but no finished site" in done.stdout
    life.query()("DROP DATABASE moodle_broken")
    del life.tenants["broken"]
    life.tenants |= {name: entry(name, settings={"theme": "classic"}) for name in ("copya", "copyb")}
    life.run()
    for name in ("fulla", "fullb", "copya", "copyb"):
        page = life.get(f"{name}.localhost")
        assert (page.status_code, f"Site of {name}" in page.text) == (200, True), page.text[-500:]
    assert life.query()("SELECT value FROM moodle_copya.mdl_config WHERE name = 'theme'") == [{"value": "classic"}]


def test_copies_share_no_more_than_full_installations_do(life: Life) -> None:
    query = life.query()
    cells = {name: likeness.cells(query, f"moodle_{name}") for name in ("fulla", "fullb", "copya", "copyb")}
    full = cells["fulla"], cells["fullb"]
    differing = likeness.differing(cells, "fulla", "fullb")
    assert ("config", "siteidentifier", "value") in differing
    assert ("config_plugins", "mod_lti", "privatekey", "value") in differing
    assert likeness.shared(cells["copya"], cells["copyb"], full) == {}
    for name in ("copya", "copyb"):
        assert likeness.traces(cells[name], ("moodle-fleet", "-template")) == {}
        assert likeness.unexplained(cells[name], cells["fulla"]) <= {("config", "theme", "name"), ("config", "theme", "value")}
    # And the comparison would see it.
    same = copy.deepcopy(cells["copya"])
    assert ("config_plugins", "mod_lti", "privatekey", "value") in likeness.shared(cells["copya"], same, full)


def test_a_copy_that_was_broken_off_is_made_again(life: Life) -> None:
    query = life.query()
    before = query("SELECT value FROM moodle_copya.mdl_config WHERE name = 'siteidentifier'")
    query("UPDATE moodle_fleet.tenants SET state = 'cloning' WHERE name = 'copya'")
    # And a template that is not complete.
    life.sh("jobs", "truncate --size -1 /var/lib/moodle-fleet/templates/*/dump.sql")
    life.run()
    assert life.book("copya")["state"] == "installed"
    assert query("SELECT value FROM moodle_copya.mdl_config WHERE name = 'siteidentifier'") != before
    assert life.sh("jobs", "stat -c '%a %U' /var/lib/moodle-fleet/templates") == "700 root\n"
    assert life.sh("jobs", "ls -d /srv/moodledata/-template /run/moodle-fleet-* 2>/dev/null | wc -l") == "0\n"


def test_states_addresses_and_servers_change(life: Life) -> None:
    second_server(life)
    query = life.query()
    query("UPDATE moodle_copyb.mdl_course SET summary = 'see https://copyb.localhost:18443/x'")
    life.tenants["fulla"]["state"] = "suspended"
    life.tenants["fullb"]["state"] = "maintenance"
    life.tenants["copyb"]["hosts"] = ["new.localhost", "copyb.localhost"]
    life.tenants["copya"]["database"] = "second"
    life.more["tenants_database_servers"] = {"second": {"host": life.fleet.addresses("database")[life.node("database")], "port": 3307}}
    moved = query("SELECT id, fullname FROM moodle_copya.mdl_course")
    life.run()

    page = life.get("fulla.localhost", "/login/index.php")
    assert (page.status_code, page.headers["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert "This site is suspended" in page.text
    assert "MoodleSession" not in page.headers.get("Set-Cookie", "")
    page = life.get("fullb.localhost")
    assert (page.status_code, "Maintenance" in page.text) == (503, True)

    assert query("SELECT summary FROM moodle_copyb.mdl_course WHERE summary <> ''") == [{"summary": f"see https://new.localhost:{life.fleet.port}/x"}]
    assert life.get("new.localhost").status_code == 200
    page = life.get("copyb.localhost", "/course/view.php?id=2")
    assert (page.status_code, page.headers["Location"]) == (301, f"https://new.localhost:{life.fleet.port}/course/view.php?id=2")
    assert life.get("copyb.localhost", "/local/write.php", method="POST", data={"client": "x"}).status_code == 308

    assert life.book("copya") == {"state": "installed", "server": "second", "held": "", "wwwroot": f"https://copya.localhost:{life.fleet.port}"}
    assert life.get("copya.localhost").status_code == 200
    assert life.query(3307)("SELECT id, fullname FROM moodle_copya.mdl_course") == moved
    life.get("copya.localhost", "/local/write.php", method="POST", data={"client": "moved", "number": 1})
    assert life.query(3307)("SELECT client FROM moodle_copya.mdl_standin_writes") == [{"client": "moved"}]
    assert query("SELECT client FROM moodle_copya.mdl_standin_writes") == []

    again = changed(life.run())
    assert not any(again.values()), again
    life.tenants["fulla"]["state"] = life.tenants["fullb"]["state"] = "active"
    life.run()
    for name in ("fulla", "fullb"):
        assert life.get(f"{name}.localhost").status_code == 200


def second_server(life: Life) -> None:
    """A second MariaDB on the database node."""
    password = derive(SECRET, "db-root", "fleet")
    life.sh("database", f"""
        mariadb-install-db --user=mysql --datadir={SECOND} --skip-test-db >/dev/null 2>&1
        systemd-run --quiet --unit=mariadb-second --uid=mysql mariadbd --no-defaults --datadir={SECOND} --port=3307 \
            --bind-address=0.0.0.0 --socket=/run/mysqld/second.sock --pid-file=/run/mysqld/second.pid --server-id=2
        for i in $(seq 100); do [ -S /run/mysqld/second.sock ] && break; sleep 0.2; done
        sleep 1
        mariadb --no-defaults --socket=/run/mysqld/second.sock -e "CREATE USER fleet_admin@'%' IDENTIFIED BY '{password}';
            GRANT ALL ON *.* TO fleet_admin@'%' WITH GRANT OPTION" """)


def test_every_pair_is_denied_and_seeded_leaks_are_found(life: Life) -> None:
    report = life.file.with_name("report.json")

    def check() -> list[tuple[str, str, str]]:
        life.run("tenants_check", check=False, tenants_report=str(report))
        found = json.loads(report.read_text())
        return [(one["kind"], one["tenant"], one["other"]) for one in found["findings"]]

    assert check() == []
    number = len(life.tenants)
    assert json.loads(report.read_text())["pairs"] == dict.fromkeys(("files", "rows", "keys", "sessions"), number * (number - 1))

    query = life.query()
    host = query("SELECT Host FROM mysql.user WHERE User = 'moodle_acme_g1'")[0]["Host"]
    query(f"GRANT SELECT ON `moodle\\_globex`.* TO moodle_acme_g1@'{host}'")
    life.sh("jobs", f"chmod 0755 {FOLDER}/acme/data; ln -s {FOLDER}/globex/data {FOLDER}/fulla/data/filedir/link")
    cache = life.fleet.addresses("cache")[life.node("cache")]
    with Connection(cache, 6379, "fleet_admin", derive(SECRET, "redis-admin", "fleet")) as redis:
        redis.call("ACL", "SETUSER", "t:fulla:g1", "~t:fullb:s:*")
        redis.call("ACL", "SETUSER", "t:fullb:g1", "~t:copyb:m:*")
    sed = "sed -i \"s/'confine' => true/'confine' => false/; s/mysql_lock_factory/file_lock_factory/\" /etc/moodle-fleet/tenants.php"
    life.sh("jobs", sed)
    found = check()
    for leak in (
        ("rows", "acme", "globex"), ("permissions", "acme", ""), ("files", "fulla", "globex"), ("sessions", "fulla", "fullb"),
        ("keys", "fullb", "copyb"), ("files", "copya", "acme"), ("lock", "fleet", ""),
    ):
        assert leak in found, leak
    assert ("rows", "globex", "acme") not in found

    query(f"REVOKE SELECT ON `moodle\\_globex`.* FROM moodle_acme_g1@'{host}'")
    life.sh("jobs", f"rm {FOLDER}/fulla/data/filedir/link")
    # What is left, the apply puts right by itself.
    life.run()
    assert check() == []


def test_backed_up_removed_and_restored_a_tenant_is_the_same(life: Life) -> None:
    life.tenants["fulla"]["state"] = "absent"
    refused = life.run(check=False)
    assert refused.returncode != 0
    assert f"fulla: it is not removed, for {STORE} has no backup of it" in refused.stdout
    assert life.book("fulla")["state"] == "installed"
    life.tenants["fulla"]["state"] = "active"
    life.run()

    life.run("backup", backup_only=["fulla", "fullb"])
    life.run("backup", backup_only=["fulla", "fullb"], backup_drill=True)
    before = life.content("fulla")
    assert len(before[0]) >= 5
    assert len(before[2]) >= 1
    assert life.sh("jobs", f"stat -c %a {STORE}; find {STORE} -perm /077 -type f | wc -l").split() == ["700", "0"]
    assert life.sh("jobs", f"grep -rl 'Site of fulla' {STORE} | wc -l") == "0\n"

    life.tenants["fulla"]["state"] = "absent"
    life.run()
    assert life.book("fulla") == {}
    assert life.query()("SHOW DATABASES LIKE 'moodle\\_fulla'") == []
    assert life.sh("jobs", f"ls {FOLDER} | grep -c fulla || true") == "0\n"
    assert life.get("fulla.localhost").status_code == 404

    life.tenants["fulla"]["state"] = "active"
    life.run("restore", restore_tenant="fulla")
    assert life.content("fulla") == before
    assert life.get("fulla.localhost").status_code == 200

    # Beside itself, as a tenant of its own.
    life.tenants["twin"] = entry("twin")
    life.run("restore", restore_tenant="twin", restore_from="fulla")
    query = life.query()
    one, other = (likeness.cells(query, f"moodle_{name}") for name in ("fulla", "twin"))
    for place in (("config", "siteidentifier", "value"), ("config", "calendar_exportsalt", "value"), ("config_plugins", "mod_lti", "privatekey", "value")):
        assert one[place] != other[place]
    assert life.get("twin.localhost").status_code == 200
    refused = life.run("restore", check=False, restore_tenant="twin", restore_from="fullb")
    assert "twin has a site; give overwrite to replace it" in refused.stdout
    again = changed(life.run())
    assert not any(again.values()), again


def test_a_damaged_backup_fails_the_drill(life: Life) -> None:
    """A byte of the largest pack is changed, as a disk would."""
    largest = f"$(find {STORE}/fullb/data -type f -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2)"
    life.sh("jobs", f"printf x | dd of={largest} bs=1 seek=700 conv=notrunc status=none")
    done = life.run("backup", check=False, backup_only=["fullb"], backup_drill=True)
    assert done.returncode != 0
    assert "1 of 1 tenants failed: " in " ".join(done.stdout.split())
