# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A site that ran elsewhere, with another prefix, character set and address, becomes a tenant of the fleet."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import TENANTS, LocalFleet

pytestmark = [
    pytest.mark.slow,
    # Not part of the whole suite: it takes a minute.
    pytest.mark.skipif(not os.environ.get("MOODLE_FLEET_TEST_RELEASE"), reason="MOODLE_FLEET_TEST_RELEASE is not set"),
]

# From the jobs node: another site's dump, made into one of an old server; its files; and rows that an attacker would hide in a dump.
PREPARE = """
set -e
rm -rf /srv/import && mkdir -p /srv/import/data/cache /srv/import/data/muc
cp -a /srv/moodledata/acme/data/filedir /srv/import/data/
echo cached > /srv/import/data/cache/x
"""


def sh(node: str, script: str) -> str:
    """Run a script on a node."""
    done = subprocess.run(["podman", "exec", "-i", node, "bash", "-e"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(name="bring", scope="module")
def make_bring(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """What runs import.yml for a further tenant."""
    file = tmp_path_factory.mktemp("import") / "variables.json"
    listed = [
        {"name": name, "hosts": [f"{name}.localhost"], "title": f"Site of {name}", "admin": {"user": "admin", "email": f"admin@{name}.example"}}
        for name in (*TENANTS, "college")
    ]

    def bring(*words: str, check: bool = True, playbook: str = "import", **more: object) -> subprocess.CompletedProcess[str]:
        values = {
            "moodle_tenants": listed, "import_tenant": "college", "import_dump": "/srv/import/old.sql.gz", "import_data": "/srv/import/data",
            "import_wwwroot": "https://moodle.college.example/site", "import_old_data": "/var/moodledata", **more,
        }
        file.write_text(json.dumps(values))
        return fleet.playbook(playbook, "-e", f"@{file}", *words, check=check)

    return bring


def test_a_site_from_elsewhere_is_examined_refused_and_then_taken_over(
    fleet: LocalFleet, bring: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (jobs,), (database,) = fleet.addresses("jobs"), fleet.addresses("database")
    sh(jobs, PREPARE)
    sh(database, """
        mariadb -e "DROP DATABASE IF EXISTS elsewhere; CREATE DATABASE elsewhere CHARACTER SET utf8mb4"
        mariadb-dump moodle_acme | sed 's/`mdl_/`old_/g' | mariadb elsewhere
        mariadb elsewhere -e "CREATE TABLE wordpress (id INT);
            ALTER TABLE old_course CONVERT TO CHARACTER SET utf8mb3;
            UPDATE old_course SET summary = 'see https://moodle.college.example/site/course/view.php?id=2 – ä', fullname = 'The College';
            UPDATE old_config SET value = '/var/moodledata/geoip/x.mmdb' WHERE name = 'geoip2file';
            UPDATE old_config SET value = 'it@moodle.college.example' WHERE name = 'supportemail';
            UPDATE old_config SET value = 'kept-identifier' WHERE name = 'siteidentifier'"
        mariadb-dump elsewhere | gzip > /tmp/old.sql.gz
        { zcat /tmp/old.sql.gz | sed '$d'; echo 'DELETE FROM moodle_acme.mdl_user;'; echo '-- Dump completed'; } > /tmp/hostile.sql
        zcat /tmp/old.sql.gz | sed '$d' > /tmp/cut.sql
    """)
    for name in ("old.sql.gz", "hostile.sql", "cut.sql"):
        subprocess.run(["podman", "cp", f"{database}:/tmp/{name}", str(tmp_path / name)], check=True)
        subprocess.run(["podman", "cp", str(tmp_path / name), f"{jobs}:/srv/import/{name}"], check=True)

    for refused, why in (
        ({"import_dump": "/srv/import/cut.sql"}, "does not end with"),
        ({"import_dump": "/srv/import/hostile.sql"}, "denied"),
        ({"import_data": "/srv/import"}, "has no folder filedir"),
        ({"import_tenant": "acme"}, "acme has a site"),
        ({"import_prefix": "mdl_"}, "no tables of Moodle"),
    ):
        done = bring(check=False, **refused)
        assert (done.returncode != 0, why in done.stdout) == (True, True), done.stdout[-2000:]
    sh(jobs, "mv /srv/import/data/filedir /srv/import/data/elsewhere; mkdir /srv/import/data/filedir")
    assert "1 of 1 files that the database speaks of are not in" in bring(check=False).stdout
    sh(jobs, "rmdir /srv/import/data/filedir; mv /srv/import/data/elsewhere /srv/import/data/filedir")
    predicted = bring("--check")
    assert "https://moodle.college.example/site" in predicted.stdout
    left = sh(database, "mariadb -Ne \"SHOW DATABASES LIKE '%college%'; SELECT User FROM mysql.user WHERE User LIKE '%import'\"")
    assert left == ""

    # Broken off half way, then repeated.
    sh(database, "mariadb -e \"INSERT INTO moodle_fleet.tenants (name, state) VALUES ('college', 'importing')\"")
    bring()
    page = fleet.at_node(fleet.visitor(), next(iter(fleet.addresses("web").values())), "college", "/")
    assert (page.status_code, "The College" in page.text) == (200, True)
    told = sh(database, """mariadb -N moodle_college -e "SELECT summary FROM mdl_course WHERE format = 'site';
        SELECT value FROM mdl_config WHERE name IN ('siteidentifier', 'geoip2file', 'supportemail') ORDER BY name;
        SELECT DISTINCT TABLE_COLLATION LIKE 'utf8mb4%' FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'moodle_college';
        SHOW TABLES LIKE 'wordpress'" """)
    assert told.splitlines() == [
        f"see https://college.localhost:{fleet.port}/course/view.php?id=2 – ä", "/srv/moodledata/college/data/geoip/x.mmdb", "kept-identifier",
        "it@moodle.college.example", "1",
    ]
    files = sh(jobs, "cd /srv/moodledata/college/data && ls && stat -c '%U %a' filedir && ls -d /srv/moodledata/.import* 2>/dev/null || true")
    assert files.split() == ["filedir", "www-data", "750"]

    bring(playbook="tenants", moodle_tenants=[{
        "name": "college", "hosts": ["college.localhost"], "title": "x", "state": "absent", "admin": {"email": "a@b.example"},
    }, *({"name": name, "hosts": [f"{name}.localhost"], "title": f"Site of {name}", "admin": {"user": "admin", "email": f"admin@{name}.example"}}
         for name in TENANTS)], tenants_remove=["college"])
    sh(jobs, "rm -rf /srv/import")
