# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Real Moodle on a fleet of its own, where MOODLE_SOURCE says where its code is; all other tests use the stand-in site."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mechanicalsoup
import pymysql
import pytest

from . import likeness
from .conftest import SECRET, TENANTS, LocalFleet, changed, derive, new_fleet
from .test_tenants import STORE, Life, entry

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("MOODLE_SOURCE"), reason="MOODLE_SOURCE is not set: needs Moodle's code"),
]


@pytest.fixture(scope="module")
def moodle(tmp_path_factory: pytest.TempPathFactory, podman: Path | None) -> Iterator[LocalFleet]:
    """A fleet of real Moodle sites."""
    for fleet in new_fleet(
        tmp_path_factory.mktemp("moodle"), podman, name="e2e-moodle", subnet="10.89.93.0/24", port=18444,
        source=os.environ["MOODLE_SOURCE"],
    ):
        fleet.playbook("site", "-e", f"moodle_version={os.environ.get('MOODLE_VERSION', '')}")
        yield fleet


def administrator(fleet: LocalFleet, tenant: str) -> mechanicalsoup.StatefulBrowser:
    """A browser in which the administrator of a tenant is logged in."""
    browser = mechanicalsoup.StatefulBrowser(session=fleet.visitor())
    browser.open(fleet.url(tenant, "/login/index.php"), timeout=60)
    browser.select_form("form#login")
    browser["username"], browser["password"] = "admin", derive(SECRET, "admin", tenant)
    browser.submit_selected(timeout=60)
    assert "/login/logout.php" in str(browser.page), browser.page.text[-2000:]
    return browser


def test_courses_outlive_the_node_that_served_them(moodle: LocalFleet) -> None:
    browsers = {tenant: administrator(moodle, tenant) for tenant in TENANTS}
    for tenant, browser in browsers.items():
        browser.open(moodle.url(tenant, "/course/edit.php?category=1"), timeout=60)
        browser.select_form("form.mform")
        browser["fullname"], browser["shortname"] = f"Course of {tenant}", "C1"
        browser.submit_selected(btnName="saveanddisplay", timeout=60)
        assert browser.page.title.text.startswith(f"Course: Course of {tenant}")
    # Whoever served the last page goes without a word.
    logs = next(iter(moodle.addresses("logs")))
    lines = subprocess.run(
        ["podman", "exec", logs, "sh", "-c", "grep -H 'POST.*/course/edit.php' /var/log/moodle-fleet/*-web-*/nginx-access.log"],
        capture_output=True, text=True, check=True,
    ).stdout
    served = re.search(r"moodle-fleet/([^/]+)/nginx-access.log", lines.splitlines()[-1])[1]
    subprocess.run(["podman", "kill", "--signal", "KILL", served], check=True, capture_output=True)
    for tenant, browser in browsers.items():
        browser.open(moodle.url(tenant, "/course/index.php?categoryid=1"), timeout=60)
        assert f"Course of {tenant}" in browser.page.text
        assert "/login/logout.php" in str(browser.page), "the session is lost"
        other = "globex" if tenant == "acme" else "acme"
        assert f"Course of {other}" not in browser.page.text


def test_page_templates_come_with_the_release_and_no_site_makes_its_own(moodle: LocalFleet) -> None:
    served = 0
    for node in moodle.addresses("web"):
        found = moodle.cloud._podman_checked(
            "look for templates", "exec", node, "sh", "-c",
            "find /var/cache/moodle-fleet/*/localcache/mustache -name '*.php'; ls /var/cache/moodle-fleet/*/localcache | wc -l;"
            " ls /var/cache/moodle-fleet/component/*/output | wc -l",
        ).split()
        assert len(found) == 2, found
        served += int(found[0])
        assert int(found[1]) > 1000
    assert served > 0


STRINGS = r"""
define("CLI_SCRIPT", true);
require "/srv/moodle/current/config.php";
$manager = get_string_manager();
$other = [];
foreach ($files = glob("$CFG->moodle_fleet_strings/en_*.php") as $file) {
    $component = substr(basename($file, ".php"), strlen("en_"));
    if ((require $file) !== $manager->load_component_strings($component, "en", true)) {
        $other[] = $component;
    }
}
echo json_encode([count($files), $other]);
"""


def test_strings_come_with_the_release_as_moodle_puts_them_together(moodle: LocalFleet) -> None:
    jobs = next(iter(moodle.addresses("jobs")))
    answer = moodle.cloud._podman_checked(
        "compare strings", "exec", "--user", "www-data", "--env", "MOODLE_TENANT=acme", jobs, "php", "-r", STRINGS,
    )
    count, other = json.loads(answer)
    assert count > 400
    assert other == []


def test_a_second_run_brings_the_node_back_and_a_third_changes_nothing(moodle: LocalFleet) -> None:
    moodle.playbook("site", "-e", f"moodle_version={os.environ.get('MOODLE_VERSION', '')}")
    assert len(moodle.addresses("web")) == 2
    again = changed(moodle.playbook("site", "-e", f"moodle_version={os.environ.get('MOODLE_VERSION', '')}"))
    assert again
    assert not any(again.values()), again


def test_copies_share_no_more_than_full_installations_do(moodle: LocalFleet, tmp_path: Path) -> None:
    life = Life(moodle, tmp_path)
    life.tenants |= {name: entry(name) for name in ("fulla", "fullb")}
    life.run(tenants_clone=False)
    query = life.query()
    # What an installation leaves to background tasks is done by all of them: one that alone has done it differs by that.
    deadline = time.monotonic() + 900
    due = "SELECT 1 FROM moodle_{}.mdl_task_adhoc WHERE nextruntime <= UNIX_TIMESTAMP() LIMIT 1"
    while waiting := [name for name in (*TENANTS, "fulla", "fullb") if query(due.format(name))]:
        assert time.monotonic() < deadline, waiting
        time.sleep(2)
    for name in ("fulla", "fullb"):
        warned = life.sh("jobs", f"journalctl --output cat --priority warning MOODLE_TENANT={name}")
        assert "being upgraded" not in warned, f"cron ran while the site was being made: {warned}"
    cells = {name: likeness.cells(query, f"moodle_{name}") for name in (*TENANTS, "fulla", "fullb")}
    assert len({place[0] for place in cells["fulla"]}) > 50
    assert likeness.shared(cells[TENANTS[0]], cells[TENANTS[1]], (cells["fulla"], cells["fullb"])) == {}
    for name in TENANTS:
        assert likeness.traces(cells[name], ("moodle-fleet", "-template")) == {}
    tasks = [
        {place[1:]: value for place, value in cells[name].items() if place[0] == "task_scheduled" and place[-1] == "minute"}
        for name in TENANTS
    ]
    drawn = {place for place in tasks[0] if cells["fulla"][("task_scheduled", *place)] != cells["fullb"][("task_scheduled", *place)]}
    alike = {place for place in drawn if tasks[0][place] == tasks[1][place]}
    assert len(alike) < len(drawn) / 2, "the copies run their tasks at the same minutes"


def test_backed_up_removed_and_restored_a_site_is_the_same(moodle: LocalFleet, tmp_path: Path) -> None:
    life = Life(moodle, tmp_path)
    life.sh("jobs", "systemctl stop moodle-fleet-cron")
    life.run("backup", backup_only=["globex"])
    life.run("backup", backup_only=["globex"], backup_drill=True)
    before = life.content("globex")
    life.tenants["globex"]["state"] = "absent"
    life.run()
    assert life.get("globex.localhost").status_code == 404
    life.tenants["globex"]["state"] = "active"
    life.run("restore", restore_tenant="globex")
    assert life.content("globex") == before
    assert life.get("globex.localhost", "/login/index.php").status_code == 200
    life.run("tenants_check")
    life.sh("jobs", f"rm -rf {STORE}; systemctl start moodle-fleet-cron")


def test_a_quiz_that_opens_soon_raises_the_floor(moodle: LocalFleet) -> None:
    moodle.playbook("tenants")
    database = moodle.addresses("database")
    opens = int(time.time()) + 300
    with pymysql.connect(
        host=next(iter(database.values())), user="fleet_admin", password=derive(SECRET, "db-root", "fleet"), autocommit=True,
        database="moodle_acme",
    ) as connection, connection.cursor() as cursor:
        # What the forms of a course would have stored; the tables are the site's own.
        cursor.execute("SET sql_mode = ''")
        cursor.execute("INSERT INTO mdl_course (category, fullname, shortname, visible) VALUES (1, 'Anatomy', 'anatomy', 1)")
        course = cursor.lastrowid
        cursor.execute("INSERT INTO mdl_quiz (course, name, intro, timeopen, timeclose, password) VALUES (%s, 'Final exam', '', %s, %s, 'key')",
                       (course, opens, opens + 3600))
        quiz = cursor.lastrowid
        cursor.execute("INSERT INTO mdl_course_modules (course, module, instance, visible) SELECT %s, id, %s, 1 FROM mdl_modules"
                       " WHERE name = 'quiz'", (course, quiz))
        cursor.execute("INSERT INTO mdl_enrol (enrol, status, courseid) VALUES ('manual', 0, %s)", (course,))
        cursor.execute("INSERT INTO mdl_user_enrolments (status, enrolid, userid) SELECT 0, %s, 1000 + seq FROM seq_1_to_3000", (cursor.lastrowid,))
        # A group begins later; one of it has more time instead.
        cursor.execute("INSERT INTO mdl_groups (courseid, name) VALUES (%s, 'Second sitting')", (course,))
        group = cursor.lastrowid
        cursor.execute("INSERT INTO mdl_groups_members (groupid, userid) SELECT %s, 1000 + seq FROM seq_1_to_800", (group,))
        cursor.execute("INSERT INTO mdl_quiz_overrides (quiz, groupid, timeopen) VALUES (%s, %s, %s)", (quiz, group, opens + 1800))
        cursor.execute("INSERT INTO mdl_quiz_overrides (quiz, userid, timeclose) VALUES (%s, 1001, %s)", (quiz, opens + 5400))
    done = moodle.command("events", "--json", events="{tenants: true}")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["failures"] == {}, found["failures"]
    starts: Counter[float] = Counter()
    for one in found["moments"]:
        if (one["tenant"], one["name"], one["kind"]) == ("acme", "Final exam", "exam_start"):
            starts[one["at"]] += one["people"]
    assert starts == {opens: 2201, opens + 1800: 799}
    # The check reads what was kept; its floor is bounded by the policy.
    checked = json.loads(moodle.command("check", "--dry-run", "--json", events="{tenants: true}").stdout)
    reasons = {reason["code"]: reason for reason in checked["decision"]["reasons"]}
    assert "acme: 'Final exam' opens" in reasons["events"]["text"] and reasons["events"]["desired"] >= 4
    assert checked["decision"]["desired"] == 4
