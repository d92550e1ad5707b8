# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading events and the tiers' state from a real MariaDB and a real Redis, as users with hardly any rights. The shapes of the tables are
those of Moodle 4.5, cut down to what matters; test_moodle.py reads those of a real site."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pymysql
import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import accounts, reader, tiers
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Event
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import database, resp

from .managed import free_port, wait_for

PASSWORD = "reader-password-0123456789"
NOW = 1_800_000_000
HOUR, DAY = 3600, 86400
TABLES = """
CREATE TABLE mdl_modules (id BIGINT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(20), KEY (name));
CREATE TABLE mdl_course (id BIGINT PRIMARY KEY AUTO_INCREMENT, visible TINYINT DEFAULT 1, fullname VARCHAR(254) DEFAULT '');
CREATE TABLE mdl_course_modules (id BIGINT PRIMARY KEY AUTO_INCREMENT, course BIGINT, module BIGINT, instance BIGINT,
  visible TINYINT DEFAULT 1, deletioninprogress TINYINT DEFAULT 0, KEY (course), KEY (module), KEY (instance));
CREATE TABLE mdl_quiz (id BIGINT PRIMARY KEY AUTO_INCREMENT, course BIGINT, name VARCHAR(255), intro LONGTEXT, timeopen BIGINT,
  timeclose BIGINT, password VARCHAR(255) DEFAULT 'exam-key', KEY (course));
CREATE TABLE mdl_assign (id BIGINT PRIMARY KEY AUTO_INCREMENT, course BIGINT, name VARCHAR(255), intro LONGTEXT, duedate BIGINT,
  allowsubmissionsfromdate BIGINT, KEY (course));
CREATE TABLE mdl_enrol (id BIGINT PRIMARY KEY AUTO_INCREMENT, courseid BIGINT, status BIGINT DEFAULT 0, password VARCHAR(50),
  KEY (courseid));
CREATE TABLE mdl_user_enrolments (id BIGINT PRIMARY KEY AUTO_INCREMENT, enrolid BIGINT, userid BIGINT, status BIGINT DEFAULT 0,
  timeend BIGINT DEFAULT 2147483647, UNIQUE KEY (enrolid, userid), KEY (userid));
CREATE TABLE mdl_quiz_attempts (id BIGINT PRIMARY KEY AUTO_INCREMENT, quiz BIGINT, userid BIGINT, attempt INT DEFAULT 1,
  preview SMALLINT DEFAULT 0, timestart BIGINT, timefinish BIGINT, sumgrades DECIMAL(10,5), UNIQUE KEY (quiz, userid, attempt));
CREATE TABLE mdl_assign_submission (id BIGINT PRIMARY KEY AUTO_INCREMENT, assignment BIGINT, userid BIGINT, timecreated BIGINT,
  timemodified BIGINT, KEY (assignment), KEY (userid));
CREATE TABLE mdl_quiz_overrides (id BIGINT PRIMARY KEY AUTO_INCREMENT, quiz BIGINT, groupid BIGINT, userid BIGINT, timeopen BIGINT,
  timeclose BIGINT, timelimit BIGINT, password VARCHAR(255), KEY (quiz), KEY (groupid), KEY (userid));
CREATE TABLE mdl_assign_overrides (id BIGINT PRIMARY KEY AUTO_INCREMENT, assignid BIGINT, groupid BIGINT, userid BIGINT,
  allowsubmissionsfromdate BIGINT, duedate BIGINT, cutoffdate BIGINT, KEY (assignid), KEY (groupid), KEY (userid));
CREATE TABLE mdl_groups_members (id BIGINT PRIMARY KEY AUTO_INCREMENT, groupid BIGINT, userid BIGINT, UNIQUE KEY (userid, groupid),
  KEY (groupid));
CREATE TABLE mdl_user (id BIGINT PRIMARY KEY, password VARCHAR(255));
INSERT INTO mdl_modules (name) VALUES ('assign'), ('quiz');
"""


class Site:
    """One tenant's database, filled by the test."""

    def __init__(self, server: database.Server, name: str) -> None:
        self.server, self.name = server, f"moodle_{name}"
        server.query(f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4")
        server.query(f"USE {self.name}")
        for statement in TABLES.split(";\n"):
            if statement.strip():
                server.query(statement)

    def add(self, table: str, **values: object) -> int:
        """Insert a row; returns its id."""
        marks = ", ".join(["%s"] * len(values))
        self.server.query(f"INSERT INTO {self.name}.mdl_{table} ({', '.join(values)}) VALUES ({marks})", values.values())
        return int(self.server.query("SELECT LAST_INSERT_ID()")[0][0])

    def course(self, people: int, visible: int = 1) -> int:
        """A course with active enrolments by two ways, and some that do not count."""
        course = self.add("course", visible=visible)
        ways = [self.add("enrol", courseid=course, status=0), self.add("enrol", courseid=course, status=0)]
        off = self.add("enrol", courseid=course, status=1)
        for user in range(people):
            self.add("user_enrolments", enrolid=ways[user % 2], userid=user)
        if people:
            self.add("user_enrolments", enrolid=ways[1], userid=0)  # enrolled twice, comes once
        self.add("user_enrolments", enrolid=ways[0], userid=9001, status=1)
        self.add("user_enrolments", enrolid=ways[0], userid=9002, timeend=NOW - 1)
        self.add("user_enrolments", enrolid=off, userid=9003)
        return course

    def activity(self, kind: str, course: int, visible: int = 1, **values: object) -> int:
        """A quiz or assignment with its place in the course."""
        made = self.add(kind, course=course, **values)
        self.add("course_modules", course=course, module=2 if kind == "quiz" else 1, instance=made, visible=visible)
        return made


@pytest.fixture(name="admin", scope="module")
def start_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[database.Server, int]]:
    """An administrator's connection, and the port."""
    folder, port = tmp_path_factory.mktemp("events"), free_port()
    data, log = folder / "data", folder / "log"
    me = f"--user={os.environ.get('USER') or 'root'}" if os.geteuid() else "--user=root"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", me, f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True, capture_output=True,
    )
    (folder / "init.sql").write_text(
        "CREATE USER fleet_admin@'127.0.0.1' IDENTIFIED BY 'admin-password';\n"
        "GRANT ALL ON *.* TO fleet_admin@'127.0.0.1' WITH GRANT OPTION;\n"
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults", me, f"--datadir={data}", f"--port={port}",
             "--bind-address=127.0.0.1", f"--socket={folder / 's'}", f"--init-file={folder / 'init.sql'}", "--skip-name-resolve",
             "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"],
            stdout=output, stderr=output,
        )
    login = ("127.0.0.1", port, "fleet_admin", "admin-password")
    wait_for(lambda: pymysql.connect(host=login[0], port=port, user=login[2], password=login[3]).close(), process, Path(log))
    server = database.Server(*login)
    yield server, port
    server.close()
    process.terminate()
    process.wait(30)


@pytest.fixture(name="site")
def make_site(admin: tuple[database.Server, int]) -> Iterator[Site]:
    """A tenant that the reader may read."""
    site = Site(admin[0], "acme")
    allow(admin[0], [site.name])
    yield site
    admin[0].query(f"DROP DATABASE {site.name}")
    allow(admin[0], [])


def allow(server: database.Server, databases: list[str], password: str = PASSWORD) -> list[str]:
    """Give the reader the rights it needs, as the module does; returns the statements."""
    found = accounts.database_statements(server, databases, password, "127.0.0.1")
    for statement, values in found:
        server.query(statement, values)
    return [statement for statement, _values in found]


def access(port: int, *tenants: str, password: str = PASSWORD, servers: Mapping[str, int] | None = None) -> reader.Access:
    """What the playbooks would have written."""
    places = {"default": {"host": "127.0.0.1", "port": port, "tls": False}}
    places |= {name: {"host": "127.0.0.1", "port": other, "tls": False} for name, other in (servers or {}).items()}
    listed = [{"name": name.partition("@")[0], "database": f"moodle_{name.partition('@')[0]}", "server": name.partition("@")[2] or "default"}
              for name in tenants]
    return reader.Access(password, places, listed)


def test_what_a_quiz_and_an_assignment_say(admin: tuple[database.Server, int], site: Site) -> None:
    course = site.course(30)
    site.activity("quiz", course, name="Final exam", timeopen=NOW + HOUR, timeclose=NOW + 3 * HOUR)
    site.activity("assign", course, name="Essay ü", duedate=NOW + DAY, allowsubmissionsfromdate=0)
    # None of these is coming, or shown.
    site.activity("quiz", course, name="hidden", visible=0, timeopen=NOW + HOUR, timeclose=0)
    site.activity("quiz", site.course(5, visible=0), name="in a hidden course", timeopen=NOW + HOUR, timeclose=0)
    site.activity("quiz", course, name="next year", timeopen=NOW + 300 * DAY, timeclose=0)
    site.activity("quiz", course, name="always", timeopen=0, timeclose=0)
    found, failures = reader.read(access(admin[1], "acme"), NOW)
    assert failures == {}
    assert sorted(found, key=lambda one: one.name) == [
        Event("acme", "assignment", "Essay ü", 0, NOW + DAY, 30), Event("acme", "quiz", "Final exam", NOW + HOUR, NOW + 3 * HOUR, 30),
    ]


def test_times_of_single_people_and_groups(admin: tuple[database.Server, int], site: Site) -> None:
    course = site.course(40)
    opens, closes = NOW + HOUR, NOW + 3 * HOUR
    quiz = site.activity("quiz", course, name="Final exam", timeopen=opens, timeclose=closes)
    for user in (*range(10), 777):  # a group of ten, and one who is not enrolled any more
        site.add("groups_members", groupid=5, userid=user)
    site.add("quiz_overrides", quiz=quiz, groupid=5, timeopen=NOW + DAY, timeclose=NOW + DAY + 2 * HOUR)
    # Two of the group, and one other, have more time; their own override goes before the group's.
    for user in (8, 9, 20):
        site.add("quiz_overrides", quiz=quiz, userid=user, timeclose=closes + HOUR)
    site.add("quiz_overrides", quiz=quiz, userid=7, timelimit=60)  # no time of its own: the group's holds
    site.add("quiz_overrides", quiz=quiz, userid=21, timeopen=opens)  # the same as for all
    # Open at any time, but one group has a date.
    essay = site.activity("assign", course, name="Essay", allowsubmissionsfromdate=0, duedate=NOW + 300 * DAY)
    site.add("groups_members", groupid=6, userid=30)
    site.add("assign_overrides", assignid=essay, groupid=6, duedate=NOW + 2 * DAY)
    hidden = site.activity("quiz", course, name="hidden", visible=0, timeopen=0, timeclose=0)
    site.add("quiz_overrides", quiz=hidden, userid=1, timeopen=opens)
    found, failures = reader.read(access(admin[1], "acme"), NOW)
    assert failures == {}
    assert sorted(found, key=lambda one: (one.kind, -one.enrolled)) == [
        Event("acme", "assignment", "Essay", 0, NOW + 2 * DAY, 1),
        Event("acme", "quiz", "Final exam", opens, closes, 29),
        Event("acme", "quiz", "Final exam", NOW + DAY, NOW + DAY + 2 * HOUR, 8),
        Event("acme", "quiz", "Final exam", opens, closes + HOUR, 3),
    ]


def test_who_came_to_what_is_over(admin: tuple[database.Server, int], site: Site) -> None:
    course = site.course(40)
    opens, closes = NOW - DAY, NOW - DAY + HOUR
    quiz = site.activity("quiz", course, name="Last exam", timeopen=opens, timeclose=closes)
    for user in range(25):
        site.add("quiz_attempts", quiz=quiz, userid=user, timestart=opens + 10 * user, timefinish=closes - 250 if user < 10 else 0)
    site.add("quiz_attempts", quiz=quiz, userid=3, attempt=2, timestart=opens + 400, timefinish=0)
    site.add("quiz_attempts", quiz=quiz, userid=98, preview=1, timestart=opens + 5, timefinish=0)
    site.add("quiz_attempts", quiz=quiz, userid=30, timestart=opens + 2000, timefinish=0)
    essay = site.activity("assign", course, name="Essay", allowsubmissionsfromdate=opens - 10 * DAY, duedate=opens)
    for user in range(7):
        site.add("assign_submission", assignment=essay, userid=user, timecreated=opens - DAY, timemodified=opens - 60 * user)
    found = {one.name: one for one in reader.read(access(admin[1], "acme"), NOW)[0]}
    assert (found["Last exam"].came, found["Last exam"].handed) == (25, 10)
    assert (found["Essay"].came, found["Essay"].handed) == (0, 7)


def test_the_large_tables_are_reached_by_their_indexes_alone(admin: tuple[database.Server, int], site: Site) -> None:
    server, _port = admin
    course = site.course(10)
    for number in range(20):
        site.activity("quiz", course, name=str(number), timeopen=NOW - number * DAY, timeclose=NOW - number * DAY + HOUR)
        site.activity("assign", course, name=str(number), duedate=NOW - number * DAY, allowsubmissionsfromdate=0)
    name = site.name
    server.query(f"INSERT INTO {name}.mdl_user_enrolments (enrolid, userid) SELECT 100 + MOD(seq, 300), seq FROM seq_1_to_30000")
    server.query(f"INSERT INTO {name}.mdl_enrol (courseid) SELECT 100 + seq FROM seq_1_to_2000")
    server.query(f"INSERT INTO {name}.mdl_quiz_attempts (quiz, userid, timestart) SELECT 100 + MOD(seq, 300), seq, 1 FROM seq_1_to_30000")
    server.query(f"INSERT INTO {name}.mdl_assign_submission (assignment, userid) SELECT 100 + MOD(seq, 300), seq FROM seq_1_to_30000")
    for table, of in (("quiz_overrides", "quiz"), ("assign_overrides", "assignid")):
        server.query(f"INSERT INTO {name}.mdl_{table} ({of}, userid) SELECT 100 + MOD(seq, 300), seq FROM seq_1_to_5000")
        server.query(f"INSERT INTO {name}.mdl_{table} ({of}, groupid) SELECT MOD(seq, 20) + 1, seq FROM seq_1_to_50")
    server.query(f"INSERT INTO {name}.mdl_groups_members (groupid, userid) SELECT 100 + MOD(seq, 300), seq FROM seq_1_to_30000")
    server.query(f"ANALYZE TABLE {name}.mdl_quiz_overrides, {name}.mdl_assign_overrides, {name}.mdl_groups_members")
    server.query(f"ANALYZE TABLE {name}.mdl_user_enrolments, {name}.mdl_enrol, {name}.mdl_quiz_attempts, {name}.mdl_assign_submission")
    with pymysql.connect(host="127.0.0.1", port=admin[1], user=reader.USER, password=PASSWORD) as connection, connection.cursor() as cursor:
        statement = reader.query(name)
        assert statement.count(";") == 0
        cursor.execute("EXPLAIN " + statement.partition(" FOR ")[2], {"now": NOW, "since": NOW - 60 * DAY, "until": NOW + 14 * DAY})
        plan = {row[2:4] for row in cursor.fetchall() if row[2] in ("ue", "e", "a", "s", "o", "gm")}
        cursor.execute(statement, {"now": NOW, "since": NOW - 60 * DAY, "until": NOW + 14 * DAY})
        assert cursor.rowcount == 40
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        reads = sum(int(value) for _name, value in cursor.fetchall())
    assert {table for table, _how in plan} == {"ue", "e", "a", "s", "o", "gm"} and "ALL" not in {how for _table, how in plan}
    # Rows that were touched, of 132,000 that there are.
    assert reads < 10_000


def test_the_reader_sees_a_few_columns_and_no_password(admin: tuple[database.Server, int], site: Site) -> None:
    with pymysql.connect(host="127.0.0.1", port=admin[1], user=reader.USER, password=PASSWORD) as connection, connection.cursor() as cursor:
        for refused in (
            f"SELECT password FROM {site.name}.mdl_quiz", f"SELECT * FROM {site.name}.mdl_quiz", f"SELECT password FROM {site.name}.mdl_enrol",
            f"SELECT id FROM {site.name}.mdl_user", f"SELECT sumgrades FROM {site.name}.mdl_quiz_attempts",
            f"UPDATE {site.name}.mdl_quiz SET timeopen = 0", f"DELETE FROM {site.name}.mdl_modules", "SELECT User FROM mysql.user",
        ):
            with pytest.raises(pymysql.MySQLError, match="denied"):
                cursor.execute(refused)
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Threads_running'")
        assert cursor.fetchone() is not None


def test_rights_are_given_once_completed_and_taken_back(admin: tuple[database.Server, int], site: Site) -> None:
    server, _port = admin
    assert allow(server, [site.name]) == []
    server.query(f"DROP TABLE {site.name}.mdl_quiz")
    server.query(f"REVOKE SELECT (timeopen) ON {site.name}.mdl_quiz FROM fleet_reader@'127.0.0.1'")
    # A table that is not there needs no right, and is no error.
    assert allow(server, [site.name]) == []
    server.query(f"CREATE TABLE {site.name}.mdl_quiz (id BIGINT, course BIGINT, name TEXT, timeopen BIGINT, timeclose BIGINT)")
    assert allow(server, [site.name]) == [f"GRANT SELECT (timeopen) ON `{site.name}`.`mdl_quiz` TO %s@%s"]
    # Nor does a column that another version of Moodle has: who reads it is told.
    server.query(f"ALTER TABLE {site.name}.mdl_course DROP COLUMN visible")
    server.query(f"REVOKE SELECT (visible) ON {site.name}.mdl_course FROM fleet_reader@'127.0.0.1'")
    assert allow(server, [site.name]) == []
    assert "a site without quizzes or assignments" in reader.read(access(admin[1], "acme"), NOW)[1]["acme"]
    server.query(f"GRANT SELECT (course), SELECT (visible) ON {site.name}.mdl_course_modules TO fleet_reader@'127.0.0.1'")
    server.query(f"CREATE TABLE {site.name}.mdl_other (secret INT)")
    server.query(f"GRANT SELECT (secret) ON {site.name}.mdl_other TO fleet_reader@'127.0.0.1'")
    assert allow(server, [site.name]) == [f"REVOKE SELECT (secret) ON `{site.name}`.`mdl_other` FROM %s@%s"]
    assert allow(server, [site.name], password="another-password") == ["ALTER USER %s@%s IDENTIFIED BY %s"]
    assert len(allow(server, [], password="another-password")) == len(reader.COLUMNS)
    assert server.query("SELECT COUNT(*) FROM mysql.columns_priv WHERE User = 'fleet_reader'") == [(0,)]
    assert allow(server, [site.name]) != []


def test_one_tenants_failure_is_named_and_stops_nobody(admin: tuple[database.Server, int], site: Site) -> None:
    site.activity("quiz", site.course(9), name="Exam", timeopen=NOW + HOUR, timeclose=NOW + 2 * HOUR)
    begun = time.monotonic()
    tenants = ["acme", "gone", *[f"lost{number}@second" for number in range(20)], "nowhere@third"]
    found, failures = reader.read(access(admin[1], *tenants, servers={"second": free_port()}), NOW)
    assert [one.name for one in found] == ["Exam"]
    assert set(failures) == {name.partition("@")[0] for name in tenants} - {"acme"}
    assert "run playbooks/tenants.yml" in failures["gone"]
    assert "cannot connect" in failures["lost7"] and "not one of the servers" in failures["nowhere"]
    assert time.monotonic() - begun < 30
    nobody, failures = reader.read(access(admin[1], "acme", password="wrong"), NOW)
    assert nobody == [] and "denied" in failures["acme"]


def test_a_query_that_takes_too_long_is_ended(admin: tuple[database.Server, int], site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = f"SET STATEMENT max_statement_time=0.2 FOR SELECT SUM(a.id * b.id) FROM {site.name}.mdl_modules a, {site.name}.mdl_modules b WHERE SLEEP(1) = 0"
    monkeypatch.setattr(reader, "query", lambda _database: slow)
    assert "was ended" in reader.read(access(admin[1], "acme"), NOW)[1]["acme"]


# -- the tiers' state ----------------------------------------------------------------------------------------------------


def test_waiting_for_row_locks_fills_a_database(admin: tuple[database.Server, int], site: Site) -> None:
    server, port = admin
    given = access(port, "acme")
    first = tiers.read(given, [], {})
    assert first["failures"] == {} and [one["name"] for one in first["tiers"]] == ["database"]
    assert first["tiers"][0]["share"] < 1 and first["full"] == {}
    server.query(f"CREATE TABLE {site.name}.counters (id INT PRIMARY KEY, value INT) ENGINE=InnoDB")
    server.query(f"INSERT INTO {site.name}.counters VALUES (1, 0)")
    login = {"host": "127.0.0.1", "port": port, "user": "fleet_admin", "password": "admin-password"}
    holder = pymysql.connect(**login)
    number = 2 * max(4, os.cpu_count() or 1) + 2

    def count() -> None:
        with pymysql.connect(**login, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(f"UPDATE {site.name}.counters SET value = value + 1 WHERE id = 1")

    with holder.cursor() as cursor:
        cursor.execute(f"UPDATE {site.name}.counters SET value = 0 WHERE id = 1")
        waiters = [threading.Thread(target=count) for _waiter in range(number)]
        for waiter in waiters:
            waiter.start()
        time.sleep(1.5)
        during = tiers.read(given, [], first)
        holder.commit()
    for waiter in waiters:
        waiter.join()
    holder.close()
    assert "threads run" in during["tiers"][0]["text"] and during["tiers"][0]["share"] >= 1
    assert during["full"] == {"database": during["taken"]}
    after = tiers.read(given, [], first)
    assert "wait for row locks" in after["tiers"][0]["text"]


@pytest.fixture(name="redis")
def start_redis(tmp_path: Path) -> Iterator[tuple[resp.Connection, dict[str, object]]]:
    """A Redis with users in a file, and where it is."""
    port = free_port()
    (tmp_path / "users.acl").write_text("user default on >admin-password ~* &* +@all\n")
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--aclfile", str(tmp_path / "users.acl"), "--save", "",
             "--maxmemory", "100mb", "--maxmemory-policy", "noeviction", "--dir", str(tmp_path)],
            executable=shutil.which("redis-server") or shutil.which("redis-check-rdb"), stdout=output, stderr=output,
        )
    wait_for(lambda: resp.Connection("127.0.0.1", port, "default", "admin-password").call("PING"), process, log)
    with resp.Connection("127.0.0.1", port, "default", "admin-password") as connection:
        yield connection, {"host": "127.0.0.1", "port": port, "tls": False}
    process.terminate()
    process.wait(30)


def test_redis_tells_its_state_to_a_user_that_reaches_no_key(redis: tuple[resp.Connection, dict[str, object]]) -> None:
    connection, place = redis
    given = reader.Access(PASSWORD, {}, [], [place])
    refused = tiers.read(given, [], {})
    assert "does not tell" in refused["failures"][f"cache 127.0.0.1:{place['port']}"] and refused["tiers"] == []
    connection.pipeline(accounts.redis_commands(connection, PASSWORD))
    resp.save(connection)
    assert accounts.redis_commands(connection, PASSWORD) == []
    assert accounts.redis_commands(connection, "another") != []
    first = tiers.read(given, [], {})
    assert first["failures"] == {}
    connection.pipeline([("SET", f"t:acme:{number}", "x" * 1000) for number in range(90_000)])
    time.sleep(1.0)
    second = tiers.read(given, [], first)
    assert second["tiers"][0]["share"] >= 0.9 and "nothing may go" in second["tiers"][0]["text"]
    with resp.Connection("127.0.0.1", int(str(place["port"])), reader.USER, PASSWORD) as user:
        for words in (("GET", "t:acme:1"), ("KEYS", "*"), ("ACL", "LIST"), ("CONFIG", "GET", "*"), ("FLUSHALL",)):
            with pytest.raises(resp.RedisError, match="NOPERM"):
                user.call(*words)


def test_tiers_that_do_not_answer_are_named_and_full_of_nothing() -> None:
    port = free_port()
    given = reader.Access(PASSWORD, {"default": {"host": "127.0.0.1", "port": port}}, [{"name": "acme", "database": "x", "server": "default"}],
                          [{"host": "127.0.0.1", "port": port}])
    found = tiers.read(given, ["127.0.0.1"], {"taken": time.time() - 30, "full": {"database": 1.0}})
    assert (found["tiers"], found["full"]) == ([], {})
    assert set(found["failures"]) == {"database", f"cache 127.0.0.1:{port}"}
