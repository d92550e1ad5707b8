# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tenant's way to a release, and an import, over a real MariaDB with its dumps; only Moodle's own scripts are played."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._releases import lane, plan, table
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, database, definition, dumps, importing, site

SECRET, PASSWORD = "a-secret-for-tests-alone-0123456789abcdef", "the-administrators-password"
OLD, NEW = "a" * 40, "b" * 40
SCHEMA = """
CREATE TABLE mdl_config (name VARCHAR(191) PRIMARY KEY, value TEXT) ENGINE=InnoDB;
CREATE TABLE mdl_config_plugins (plugin VARCHAR(90), name VARCHAR(90), value TEXT) ENGINE=InnoDB;
CREATE TABLE mdl_user (id INT PRIMARY KEY, lastaccess INT, lastlogin INT) ENGINE=InnoDB;
CREATE TABLE mdl_course (id INT PRIMARY KEY, fullname VARCHAR(250)) ENGINE=InnoDB;
CREATE TABLE mdl_files (id INT PRIMARY KEY, contenthash CHAR(40), filesize INT) ENGINE=InnoDB;
CREATE TABLE mdl_task_scheduled (id INT PRIMARY KEY, timestarted INT, hostname VARCHAR(9), pid INT) ENGINE=InnoDB;
INSERT INTO mdl_task_scheduled VALUES (1, 1, 'gone', 7);
CREATE TABLE mdl_sessions (id INT PRIMARY KEY) ENGINE=InnoDB;
INSERT INTO mdl_config VALUES ('allversionshash', '%s'), ('version', '2026010100.00'), ('release', '4.5'), ('rolesactive', '1'), ('siteidentifier', 'mine');
INSERT INTO mdl_course VALUES (1, 'Kept');
"""


@pytest.fixture(scope="module", name="server")
def make_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dumps.Account]:
    """A MariaDB of the test's own."""
    folder = tmp_path_factory.mktemp("mariadb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    me = f"--user={os.environ.get('USER') or 'root'}"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", me, f"--datadir={folder / 'data'}", "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True, capture_output=True,
    )
    (folder / "init.sql").write_text(f"CREATE USER admin@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO admin@'%' WITH GRANT OPTION;\n")
    process = subprocess.Popen(
        [shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults", me, f"--datadir={folder / 'data'}", f"--port={port}",
         "--bind-address=127.0.0.1", f"--socket={folder / 's'}", f"--init-file={folder / 'init.sql'}", "--innodb-buffer-pool-size=16M"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            database.Server("127.0.0.1", port, "admin", PASSWORD).close()
            break
        except database.DatabaseError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
    yield dumps.Account("127.0.0.1", port, "admin", PASSWORD)
    process.terminate()
    process.wait(30)


class Killed(Exception):
    """The process is no more."""


class Scripts:
    """Moodle's scripts, as far as they change the database; ``trouble`` says what goes wrong with which."""

    def __init__(self, server: dumps.Account) -> None:
        self.server = server
        self.trouble: dict[str, str] = {}
        self.called: list[str] = []
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], data: str = "", environ_update: Mapping[str, str] | None = None, **_more: object) -> tuple[int, str, str]:
        call = json.loads(data)
        name = os.path.basename(str(call.get("script") or command[-1]))
        words = [name, *(word.split("=", 1)[0] for word in call.get("args", []))]
        self.called.append(" ".join(words))
        self.commands.append(command)
        trouble = self.trouble.get(name, "")
        if trouble == "kill before":
            raise Killed
        connection = database.Server(self.server.host, self.server.port, self.server.user, self.server.password)
        schema = f"moodle_{(environ_update or {})['MOODLE_TENANT']}"
        if "--disable-wait" in words:
            connection.query(f"REPLACE INTO `{schema}`.mdl_config VALUES ('cron_enabled', '0')")
        elif "--enable" in words:
            connection.query(f"REPLACE INTO `{schema}`.mdl_config VALUES ('cron_enabled', '1')")
        elif name == "upgrade.php":
            connection.query(f"ALTER TABLE `{schema}`.mdl_course ADD COLUMN torn INT")
            if trouble == "kill within":
                raise Killed
            if trouble:
                return 1, trouble, ""
            connection.query(f"UPDATE `{schema}`.mdl_config SET value = %s WHERE name = 'allversionshash'", (NEW,))
        connection.close()
        return 0, json.dumps({"checks": [trouble] if trouble else [], "environment": [], "page": []}) if name == "probe.php" else "", ""


class Fleet:
    """One tenant, and what brings it to a release or into being."""

    def __init__(self, server: dumps.Account, folder: Path) -> None:
        self.folder, self.account, self.scripts = folder, server, Scripts(server)
        for name in ("old", "new"):
            (folder / "releases" / name).mkdir(parents=True)
            (folder / "releases" / name / "version.php").write_text("<?php\n$version = 2026020200.00;\n$release = '4.5.1';\n$branch = '405';\n")
        places = site.Places(str(folder / "releases" / "old"), str(folder / "shared"), "root", "/lib/cli.php", ["php"])
        self.sites = site.Sites(places, self.scripts)
        self.applier = apply.Applier({"default": apply.DatabaseServer(server)}, [], self.sites, SECRET)
        (self.tenant,) = definition.load([{"name": "acme", "hosts": ["acme.example"], "title": "Acme", "state": "active", "admin": {"email": "a@b.c"}}])
        self.query = self.connect().query
        self.connect().make_book()
        self.query("DROP TABLE IF EXISTS moodle_fleet.upgrades")
        self.lane = plan.OLD

    def connect(self) -> database.Server:
        return self.applier.servers["default"].connect()

    def make_site(self) -> None:
        self.connect().recreate("moodle_acme")
        for statement in (SCHEMA % OLD).split(";\n"):
            if statement.strip():
                self.query(statement.replace("mdl_", "moodle_acme.mdl_"))
        self.sites.settle("acme")
        self.connect().note("acme", state="installed", release_name="old", wwwroot="https://acme.example")

    def go(self, run: str) -> plan.Seen:
        """One run of the release; the playbook's part, leading, included."""
        releases = [lane.Release(name, str(self.folder / "releases" / name), versions) for name, versions in (("old", OLD), ("new", NEW))]
        course = lane.Course(*releases, run, str(self.folder / "dumps"), jobs_patience=1, quiet_patience=0.1)
        table.make(self.connect())
        for _number in range(4):
            way = lane.Lane(self.applier, course, self.tenant, self.lane, self.connect(), self.connect())
            wanted = plan.go_on(way)
            if not wanted:
                return way.see()
            assert self.sites.closed("acme")
            self.lane = wanted
        raise AssertionError("it never ends")

    def state(self) -> tuple[object, ...]:
        """Whose database it is, its own rows, what the book says, whether it is closed, whether jobs run."""
        config = dict(self.query("SELECT name, value FROM moodle_acme.mdl_config"))
        book = self.connect().observe().book["acme"]
        return (
            config["allversionshash"][0], self.query("SELECT fullname FROM moodle_acme.mdl_course"), book.state, book.release,
            self.sites.closed("acme"), config.get("cron_enabled", "1"), self.lane,
        )


@pytest.fixture(name="fleet")
def make_fleet(server: dumps.Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(lane, "ask", lambda *_arguments: "")
    fleet = Fleet(server, tmp_path)
    fleet.make_site()
    return fleet


ARRIVED = ("b", [("Kept",)], "installed", "new", False, "1", plan.NEXT)
BACK = ("a", [("Kept",)], "installed", "old", False, "1", plan.OLD)


def test_a_tenant_arrives(fleet: Fleet) -> None:
    fleet.go("1")
    assert fleet.state() == ARRIVED
    line = table.lines(fleet.connect())["acme"]
    assert (line.phase, line.ours, line.error) == (plan.DONE, 0, "")
    assert line.began <= line.closed < line.opened <= line.ended
    assert (fleet.folder / "shared/.fleet/lanes/acme").read_text() == "new\n"
    assert os.stat(fleet.folder / "dumps").st_mode & 0o777 == 0o700
    called = len(fleet.scripts.called)
    fleet.go("2")
    assert (fleet.state(), len(fleet.scripts.called)) == (ARRIVED, called)


@pytest.mark.parametrize("script", ["probe.php", "cron.php", "upgrade.php"])
@pytest.mark.parametrize("when", ["kill before", "kill within"])
def test_killed_with_any_script_it_goes_on(fleet: Fleet, script: str, when: str) -> None:
    fleet.scripts.trouble = {script: when}
    if script == "upgrade.php" or when == "kill before":
        with pytest.raises(Killed):
            fleet.go("1")
    fleet.scripts.trouble = {}
    fleet.go("2")
    assert fleet.state() == ARRIVED


def test_jobs_that_somebody_else_stopped_rest_afterwards_too(fleet: Fleet) -> None:
    fleet.query("REPLACE INTO moodle_acme.mdl_config VALUES ('cron_enabled', '0')")
    fleet.go("1")
    assert fleet.state() == (*ARRIVED[:5], "0", plan.NEXT)
    assert not any("cron.php" in called for called in fleet.scripts.called)


def test_a_site_that_somebody_closed_stays_closed(fleet: Fleet) -> None:
    fleet.sites.close("acme")
    fleet.go("1")
    assert fleet.state() == (*ARRIVED[:4], True, "1", plan.NEXT)
    assert table.lines(fleet.connect())["acme"].downtime == 0


def test_a_failed_upgrade_is_sent_back_and_a_later_run_tries_again(fleet: Fleet) -> None:
    fleet.scripts.trouble = {"upgrade.php": "this site cannot be upgraded"}
    fleet.go("1")
    assert fleet.state() == BACK
    assert fleet.query("SHOW COLUMNS FROM moodle_acme.mdl_course LIKE 'torn'") == []
    line = table.lines(fleet.connect())["acme"]
    assert line.phase == plan.FAILED
    assert "this site cannot be upgraded" in line.error
    assert not (fleet.folder / "shared/.fleet/lanes/acme").exists()
    called = len(fleet.scripts.called)
    fleet.go("1")
    assert len(fleet.scripts.called) == called, "not twice in one run"
    fleet.scripts.trouble = {}
    fleet.go("2")
    assert fleet.state() == ARRIVED


def test_a_page_that_fails_at_once_sends_back_what_a_later_one_does_not(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(lane, "ask", lambda *_arguments: "answered with 500")
    original = lane.Lane.__init__

    def with_balancer(self: lane.Lane, *arguments: object) -> None:
        original(self, *arguments)
        self.course = lane.replace(self.course, balancers=["10.0.0.1"])

    monkeypatch.setattr(lane.Lane, "__init__", with_balancer)
    fleet.go("1")
    assert fleet.state() == BACK
    assert "answered with 500" in table.lines(fleet.connect())["acme"].error


def test_a_dump_that_was_changed_is_not_loaded(fleet: Fleet) -> None:
    fleet.scripts.trouble = {"upgrade.php": "kill within"}
    with pytest.raises(Killed):
        fleet.go("1")
    with open(fleet.folder / "dumps/new/acme.sql", "a", encoding="utf-8") as stream:
        stream.write("-- touched\n")
    fleet.scripts.trouble = {}
    fleet.go("2")
    assert fleet.sites.closed("acme")
    assert "is not the one that was made" in table.lines(fleet.connect())["acme"].error


def import_request(fleet: Fleet, **more: object) -> importing.Request:
    """The same site, as a dump with another prefix, and its files."""
    content = fleet.folder / "data" / "filedir" / "ab" / "cd"
    content.mkdir(parents=True, exist_ok=True)
    (content / ("abcd" + "0" * 36)).write_text("content")
    fleet.query(f"REPLACE INTO moodle_acme.mdl_files VALUES (1, 'abcd{'0' * 36}', 7)")
    fleet.query("REPLACE INTO moodle_acme.mdl_sessions VALUES (1)")
    path = fleet.folder / "old.sql"
    path.unlink(missing_ok=True)
    dumps.dump(fleet.account, "moodle_acme", str(path))
    text = path.read_text(encoding="utf-8").replace("`mdl_", "`m_")
    path.write_text(str(more.pop("before", "")) + text + str(more.pop("after", "")) + "-- Dump completed on 2026-01-01\n", encoding="utf-8")
    return importing.Request(fleet.tenant, str(path), str(fleet.folder / "data"), "https://old.example", overwrite=True, **more)


def test_an_import_takes_over_tables_files_and_identity(fleet: Fleet) -> None:
    request = import_request(fleet, after="CREATE TABLE wordpress (id INT);\nALTER TABLE m_course CONVERT TO CHARACTER SET latin1;\n")
    fleet.query("UPDATE moodle_acme.mdl_course SET fullname = 'Replaced'")
    predicted = importing.bring_in(fleet.applier, request, [], True)
    assert (predicted["prefix"], predicted["left_out"], predicted["converted"]) == ("m_", ["wordpress"], ["m_course"])
    assert fleet.query("SELECT fullname FROM moodle_acme.mdl_course") == [("Replaced",)]
    done = importing.bring_in(fleet.applier, request, [], False)
    assert done["files"] == 1
    assert fleet.query("SELECT fullname FROM moodle_acme.mdl_course") == [("Kept",)]
    assert fleet.query("SELECT value FROM moodle_acme.mdl_config WHERE name = 'siteidentifier'") == [("mine",)]
    assert fleet.query("SELECT COUNT(*) FROM moodle_acme.mdl_sessions") == [(0,)]
    assert fleet.query("SELECT timestarted, hostname, pid FROM moodle_acme.mdl_task_scheduled") == [(None, None, None)]
    assert fleet.query("SELECT DISTINCT TABLE_COLLATION FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'moodle_acme'") == [("utf8mb4_unicode_ci",)]
    assert fleet.query("SHOW DATABASES LIKE '%%import%%'") == []
    assert fleet.query("SELECT User FROM mysql.user WHERE User LIKE '%%import'") == []
    assert not fleet.sites.closed("acme")
    assert (fleet.folder / "shared/acme/data/filedir/ab/cd" / ("abcd" + "0" * 36)).read_text() == "content"
    assert fleet.connect().observe().book["acme"].state == "installed"
    assert "replace.php --search --replace --shorten --non-interactive" in fleet.scripts.called


def test_an_import_needs_no_table_that_it_would_empty(fleet: Fleet) -> None:
    request = import_request(fleet, after="DROP TABLE m_sessions;\nDROP TABLE m_task_scheduled;\n")
    importing.bring_in(fleet.applier, request, [], False)
    assert fleet.connect().observe().book["acme"].state == "installed"
    assert fleet.query("SELECT fullname FROM moodle_acme.mdl_course") == [("Kept",)]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"before": "CREATE DATABASE elsewhere;\n"}, "denied"),
        ({"after": "UPDATE mysql.user SET User = 'x';\n"}, "denied"),
        ({"after": "UPDATE m_config SET value = '2027010100' WHERE name = 'version';\n"}, "newer than the fleet's"),
        ({"after": "UPDATE m_config SET value = '0' WHERE name = 'rolesactive';\n"}, "never finished"),
        ({"after": "INSERT INTO m_files VALUES (2, REPEAT('f', 40), 9);\n"}, "1 of 2 files"),
        ({"after": "INSERT INTO m_config_plugins VALUES ('mod_gone', 'version', '1');\n"}, "lacks 1 of its plugins, mod_gone"),
        ({"prefix": "other_"}, "no tables of Moodle"),
    ],
)
def test_what_cannot_be_imported_is_said_and_nothing_is_touched(fleet: Fleet, more: dict[str, object], why: str) -> None:
    with pytest.raises(importing.ImportRefused, match=why):
        importing.bring_in(fleet.applier, import_request(fleet, **more), ["mod_quiz"], False)
    assert fleet.state()[:5] == BACK[:5]
    assert fleet.query("SHOW DATABASES LIKE '%%import%%'") == []
    assert fleet.scripts.called == []


def owners(folder: Path) -> dict[str, tuple[int, str]]:
    """User and mode of everything in a folder."""
    found = {path: path.lstat() for path in [folder, *folder.rglob("*")]}
    return {str(path.relative_to(folder)): (one.st_uid, f"{one.st_mode & 0o7777:o}") for path, one in found.items()}


def with_own_user(fleet: Fleet, own: bool) -> definition.Tenant:
    """The tenant as the list then has it, and the applier that knows it."""
    (fleet.tenant,) = definition.load([{
        "name": "acme", "hosts": ["acme.example"], "title": "Acme", "state": "active", "admin": {"email": "a@b.c"}, "own_user": own, "uid": 4000,
    }])
    fleet.sites.places.users = {"acme": 4000} if own else {}
    return fleet.tenant


def test_a_site_gets_a_user_of_its_own_and_loses_it_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    base = fleet.folder / "shared" / "acme"
    (base / "data" / "filedir").mkdir(mode=0o750)
    (base / "data" / "filedir" / "x").write_text("x")
    (base / "data" / "filedir" / "x").chmod(0o640)
    before = owners(base)

    def run() -> list[str]:
        works, _book = fleet.applier.plan([fleet.tenant], False)
        fleet.applier.act(works, False, 1)
        assert [work.error for work in works] == [""]
        return works[0].actions()

    with_own_user(fleet, True)
    # Broken off within, nobody is let in, and the next run goes on.
    give = site.Sites._give

    def die(*_arguments: object) -> None:
        raise Killed

    monkeypatch.setattr(site.Sites, "_give", die)
    with pytest.raises(Killed):
        run()
    monkeypatch.setattr(site.Sites, "_give", give)
    assert fleet.sites.closed("acme")
    assert "give the files to the user that PHP runs as" in run()
    # Until every node knows of it, the site is closed, and either user sees that.
    assert fleet.sites.closed("acme")
    assert owners(base)["."][1] == "711" and owners(base)["data/climaintenance.html"] == (4000, "644")
    fleet.applier.finish([fleet.tenant], False)
    assert not fleet.sites.closed("acme")
    found = owners(base)
    assert {uid for uid, _mode in found.values()} == {4000}
    assert (found["."][1], found["data"][1], found["data/filedir/x"][1]) == ("710", "755", "644")
    assert run() == []

    with_own_user(fleet, False)
    run()
    fleet.applier.finish([fleet.tenant], False)
    assert owners(base) == before
    assert run() == []


def test_an_imported_site_belongs_to_its_own_user(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    request = import_request(fleet)
    with_own_user(fleet, True)
    monkeypatch.setattr(site.pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name={4000: "t-acme"}[uid]))
    fleet.sites.places.php = ["php", "-d", "opcache.file_cache=/var/cache/moodle-fleet/opcache-cli"]
    importing.bring_in(fleet.applier, dataclasses.replace(request, tenant=fleet.tenant), [], False)
    # As that user, and with compiled code that nobody else wrote.
    started = ["runuser", "-u", "t-acme", "--", "php", "-d", "opcache.file_cache=/var/cache/moodle-fleet/acme/opcache-cli"]
    assert fleet.scripts.commands and all(command[:-1] == started for command in fleet.scripts.commands)
    found = owners(fleet.folder / "shared" / "acme")
    assert {uid for uid, _mode in found.values()} == {4000}
    assert (found["."][1], found["data/filedir/ab/cd/abcd" + "0" * 36][1]) == ("710", "644")
