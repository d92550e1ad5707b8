# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The ledger and its lock in a real MariaDB over TLS: what every ledger does, and what can happen to a server."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pymysql
import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _kept, _ledger_mariadb
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import Outcome, RunResult
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import run as run_check
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger, LedgerError, Locked
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_mariadb import Access, hold
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Plan
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import Server
from ansible_collections.elearning.moodle_fleet.plugins.modules import ledger_database, scale_check, scale_record
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.world import World
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils.ledger_contract import DRAIN, LedgerContract, commit, opened
from ansible_collections.elearning.moodle_fleet.trigger import cli, runner

from . import managed

ADMIN, PASSWORD = "Admin-password-0123456789", "Ledger-password-0123456789"
NUMBERS = itertools.count(1)
Root = Callable[[str], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its things."""
    return tmp_path_factory.mktemp("mariadb")


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """A MariaDB that refuses connections without TLS; its certificate is trusted while these tests run."""
    certificate = managed.Certificate.make(folder)
    with pytest.MonkeyPatch.context() as patch, managed.database(folder, certificate, ADMIN) as port:
        patch.setenv("SSL_CERT_FILE", str(certificate.certificate))
        yield port


@pytest.fixture(scope="module")
def root(port: int, folder: Path) -> Iterator[Root]:
    """Runs a statement as the server's owner, who comes by its socket."""
    with pymysql.connect(unix_socket=str(folder / "s"), user="root", autocommit=True) as connection:
        yield lambda statement: connection.query(statement) and None


@pytest.fixture(scope="module")
def admin(port: int) -> Iterator[Server]:
    """The server's administrator, with the rights that a hoster gives."""
    server = Server("localhost", port, "fleet_admin", ADMIN, tls=True)
    yield server
    server.close()


@pytest.fixture
def access(port: int, admin: Server) -> Access:
    """A database and an account for one test, as the module makes them."""
    name = f"ledger_{next(NUMBERS)}"
    for _words, statement, values in ledger_database.statements(admin, name, name, PASSWORD, ["%"]):
        admin.query(statement, values)
    return Access("localhost", port, name, name, PASSWORD, tls=True)


@pytest.fixture
def place(access: Access) -> str:
    """Where the ledger is, as other processes are told."""
    return json.dumps(asdict(access))


@pytest.fixture
def ledger(place: str) -> Iterator[Ledger]:
    """An empty ledger."""
    with opened(place) as ledger:
        yield ledger


class TestMariaDB(LedgerContract):
    """What every ledger does."""


def fleet_file(folder: Path, access: Access, **more: object) -> Path:
    """The file of a fleet whose database is managed elsewhere, and that keeps its ledger there."""
    folder.mkdir()
    file = folder / "moodle_fleet.yml"
    file.write_text(yaml.safe_dump({
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "test", "state_dir": "state", "cloud": {"driver": "podman"},
        "services": {"database": {"endpoint": f"localhost:{access.port}", "tls": True}},
        "ledger": {"driver": "mariadb", "database": access.database, "user": access.user, **more},
        # How many nodes a load asks for is tried elsewhere.
        "scaling": {"trend": "off"},
    }))
    return file


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A simulated cloud and balancer for the command and the modules."""
    world = World(Policy(), None, size=2, load=5.0)
    world.now = time.time() - 600
    monkeypatch.setattr(cli, "sources_of", lambda _fleet: world.sources)
    monkeypatch.setattr(scale_check, "sources_of", lambda _fleet: world.sources)
    monkeypatch.setenv("MOODLE_FLEET_LEDGER_PASSWORD", PASSWORD)
    return world


def grow(world: World, check: Callable[[], object]) -> None:
    """Let the next check find that the fleet has to grow."""
    check()
    world.load = 14.0
    world.pass_time(60)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the trigger would have carried out."""
    found: list[object] = []

    def run(*given: object, **_more: object) -> RunResult:
        found.append(given)
        return RunResult("done")

    monkeypatch.setattr(runner, "run_playbook", run)
    return found


def test_every_command_works_in_a_container_without_a_disk(
    access: Access, world: World, runs: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = fleet_file(tmp_path / "first", access), fleet_file(tmp_path / "second", access)

    def run(file: Path, *words: str) -> str:
        assert cli.main(["--fleet", str(file), *words]) == 0, capsys.readouterr()
        return capsys.readouterr().out

    # A look leaves no trace in the database either.
    assert "keeps its size of 2" in run(first, "check", "--dry-run")
    assert json.loads(run(first, "history", "--all", "--json")) == {"checks": []}
    for _minute in range(2):
        world.pass_time(60)
        run(first, "check")
    grow(world, lambda: run(first, "check"))
    assert "launch 3 nodes" in run(second, "check") and len(runs) == 1
    assert [row["status"] for row in json.loads(run(first, "history", "--all", "--json"))["checks"]] == ["done", "idle", "idle", "idle"]
    assert "should grow from 2 to 5" in run(first, "explain")
    run(second, "pause", "--in-only", "--reason", "exams")
    assert [one["reason"] for one in json.loads(run(first, "status", "--json"))["pauses"]] == ["exams"]
    assert "1 pause ended" in run(first, "resume")
    assert "moodle_fleet" in run(first, "metrics")
    run(first, "notify", "--dry-run")
    assert "4 checks" in run(first, "report", "--out", str(tmp_path / "report.html"))
    assert "at localhost" in (tmp_path / "report.html").read_text()
    replayed = json.loads(run(second, "simulate", "--trace", "ledger", "--json"))["replay"]
    assert (replayed["checks"], replayed["identical"]) == (4, 4)
    assert [sorted(path.name for path in file.parent.iterdir()) for file in (first, second)] == [["moodle_fleet.yml"]] * 2


def test_without_its_database_a_check_does_nothing_and_says_why(
    access: Access, world: World, runs: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fleet_file(tmp_path / "down", access, endpoint=f"localhost:{managed.free_port()}")
    world.load = 40.0
    for words in (["check"], ["check", "--dry-run"], ["status"], ["explain"], ["history"], ["pause"], ["resume"], ["metrics"], ["notify"],
                  ["report", "--out", str(tmp_path / "x")], ["simulate", "--trace", "ledger"]):
        assert cli.main(["--fleet", str(file), *words]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert f"ledger {access.database} at localhost" in line and "nothing is done without the ledger" in line
    assert not runs and not world.calls


def test_a_check_whose_record_is_lost_in_the_middle_does_not_act(ledger: Ledger, access: Access, world: World, root: Root) -> None:
    grow(world, lambda: run_check(Policy(), ledger, world.sources, lambda _outcome: pytest.fail("too soon")))
    run = ledger._store.run

    def cut_off(sql: str, *values: Any) -> Any:
        if "INSERT INTO activities" in sql:
            root(f"KILL USER '{access.user}'")
        return run(sql, *values)

    ledger._store.run = cut_off  # type: ignore[method-assign]
    with pytest.raises(LedgerError, match="the connection broke; nothing is done without the ledger"):
        run_check(Policy(), ledger, world.sources, lambda _outcome: pytest.fail("acted without a record"))
    ledger._store.run = run  # type: ignore[method-assign]
    assert len(ledger.checks(9)) == 1 and ledger.intents(0) == []
    acted = run_check(Policy(), ledger, world.sources, lambda _outcome: RunResult("done"))
    assert acted.status == "done"


def test_a_run_may_outlive_the_connection(ledger: Ledger, access: Access, world: World, root: Root) -> None:
    def act(outcome: Outcome) -> RunResult:
        root(f"KILL USER '{access.user}'")
        step = outcome.plan.steps[0]
        return RunResult("done", activities=[{"action": step.action, "token": step.token, "status": "done"}])

    grow(world, lambda: run_check(Policy(), ledger, world.sources, act))
    outcome = run_check(Policy(), ledger, world.sources, act)
    assert [one["status"] for one in outcome.activities] == ["done"]
    root(f"KILL USER '{access.user}'")
    assert ledger.checks(1)[0]["status"] == "done"


def test_the_lock_of_a_machine_that_vanished_is_free_after_a_while(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ledger_mariadb, "SILENCE", 1)
    with hold(access, "check"), pytest.raises(Locked, match="from "):
        hold(access, "check").__enter__()
    with hold(access, "check"):  # nothing is heard of it: its next sign of life would come after 15 s
        with hold(access, "check", wait=10):
            pass
    monkeypatch.setattr(_ledger_mariadb, "BEAT", 0.3)
    with hold(access, "check"), pytest.raises(Locked):
        hold(access, "check", wait=2.5).__enter__()
    with hold(access, "check"), hold(access, "notify"), hold(replace(access, database="mysql", user="fleet_admin", password=ADMIN), "check"):
        pass


def test_what_the_server_refuses_is_said_with_a_remedy(ledger: Ledger, access: Access, place: str, root: Root) -> None:
    for wrong, remedy in (
        (replace(access, password="wrong"), "run playbooks/site.yml"),
        (replace(access, database="nowhere"), "run playbooks/site.yml"),
        (replace(access, host="nowhere.invalid"), "see whether the server runs"),
    ):
        with pytest.raises(LedgerError, match=remedy) as caught:
            opened(json.dumps(asdict(wrong)))
        assert PASSWORD not in str(caught.value) and PASSWORD not in repr(wrong)
    with opened(place) as other:
        other._store.run("SET innodb_lock_wait_timeout = 1")
        with ledger._store.write(), pytest.raises(LedgerError, match="another process holds it for too long"):
            commit(other)
    root("SET GLOBAL read_only = 1")
    try:
        with pytest.raises(LedgerError, match="let ledger.endpoint name the primary"):
            commit(ledger, Plan((DRAIN,)))
        assert ledger.mark() == 0 and ledger.checks(1) == []
    finally:
        root("SET GLOBAL read_only = 0")


def test_the_account_may_use_its_own_ledger_alone(ledger: Ledger, access: Access, admin: Server) -> None:
    commit(ledger)
    like = access.database.replace("_", "x")
    admin.query(f"CREATE DATABASE {like}")
    for statement in ("SELECT User FROM mysql.user", f"CREATE TABLE {like}.t (a INT)", "CREATE DATABASE other", "DROP TABLE checks"):
        with pytest.raises(LedgerError, match="denied"):
            ledger._store.rows(statement)


def ask(module: Any, capsys: pytest.CaptureFixture[str], check: bool = False, **given: Any) -> dict[str, Any]:
    """Run a module."""
    with patch_module_args({**given, "_ansible_check_mode": check}), pytest.raises(SystemExit):
        module.main()
    return json.loads(capsys.readouterr().out)


def test_database_and_account_are_made_once(port: int, admin: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    access = Access("localhost", port, "made_ledger", "made_user", PASSWORD, tls=True)
    given = {"fleet_file": str(fleet_file(tmp_path / "f", access)), "admin_password": ADMIN, "ledger_password": PASSWORD, "hosts": ["%"]}
    made = ["create database made_ledger", "create user made_user@%", "grant on made_ledger to made_user@%"]
    assert ask(ledger_database, capsys, check=True, **given)["actions"] == made
    assert ask(ledger_database, capsys, check=True, **given)["actions"] == made
    answer = ask(ledger_database, capsys, **given)
    assert (answer["changed"], answer["actions"]) == (True, made) and answer["diff"]["after"].startswith("create database")
    assert not ask(ledger_database, capsys, **given)["changed"]
    with opened(json.dumps(asdict(access))) as ledger:
        number = commit(ledger)
    given |= {"hosts": ["%", "10.1.2.%"], "ledger_password": "Another-password-0123456789"}
    assert ask(ledger_database, capsys, **given)["actions"] == [
        "set the password of made_user@%", "create user made_user@10.1.2.%", "grant on made_ledger to made_user@10.1.2.%",
    ]
    given["hosts"] = ["%"]
    assert ask(ledger_database, capsys, **given)["actions"] == ["drop user made_user@10.1.2.%"]
    with pytest.raises(LedgerError):
        opened(json.dumps(asdict(access)))
    with opened(json.dumps(asdict(replace(access, password="Another-password-0123456789")))) as ledger:
        assert [row["id"] for row in ledger.checks(9)] == [number]
    wrong = ask(ledger_database, capsys, **{**given, "admin_password": "wrong"})
    assert wrong["failed"] and "cannot connect" in wrong["msg"]


def test_a_job_of_awx_checks_and_records_with_what_it_was_given(
    access: Access, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOODLE_FLEET_LEDGER_PASSWORD")
    file = str(fleet_file(tmp_path / "job", access))
    assert "set MOODLE_FLEET_LEDGER_PASSWORD, or run playbooks/site.yml" in ask(scale_check, capsys, fleet_file=file)["msg"]
    grow(world, lambda: ask(scale_check, capsys, fleet_file=file, ledger_password=PASSWORD))
    first = ask(scale_check, capsys, fleet_file=file, ledger_password=PASSWORD)
    assert [step["action"] for step in first["plan"]["steps"]] == ["launch"] and first["check_id"] == 2
    assert PASSWORD not in json.dumps(first)
    done = [{"action": "launch", "node": first["plan"]["steps"][0]["token"]}]
    record = {"fleet_file": file, "ledger_password": PASSWORD, "check_id": 2, "activities": done, "status": "done"}
    assert ask(scale_record, capsys, **record)["changed"] and not ask(scale_record, capsys, **record)["changed"]
    monkeypatch.setattr(scale_check, "PATIENCE", 0.3)
    with hold(access, "check"):
        refused = ask(scale_check, capsys, fleet_file=file, ledger_password=PASSWORD)
        assert "another check is under way" in refused["msg"] and "run this again" in refused["msg"]
        # Who only looks waits for nobody.
        assert ask(scale_check, capsys, fleet_file=file, ledger_password=PASSWORD, record=False)["check_id"] == 0


def test_small_things_are_kept_where_the_next_container_finds_them(access: Access, tmp_path: Path) -> None:
    here, there = (load(fleet_file(tmp_path / name, access), PASSWORD) for name in ("here", "there"))
    assert (_kept.load(here, "tiers.json"), _kept.chosen_image(here)) == ({}, "")
    _kept.write(here, "tiers.json", {"taken": 1.5})
    _kept.choose_image(here, "ami-1")
    assert (_kept.load(there, "tiers.json"), _kept.chosen_image(there)) == ({"taken": 1.5}, "ami-1")
    lost = replace(here, ledger={**here.ledger, "endpoint": f"localhost:{managed.free_port()}"})
    assert _kept.load(lost, "tiers.json") == {}
    with pytest.raises(_kept.KeptError, match="see whether the server runs"):
        _kept.write(lost, "tiers.json", {})
    # Another image than the chosen one would be another release.
    with pytest.raises(LedgerError):
        _kept.chosen_image(lost)


def test_a_check_with_nothing_to_do_asks_little_of_the_server(access: Access, world: World, tmp_path: Path, admin: Server) -> None:
    file = str(fleet_file(tmp_path / "quiet", access))
    for _first in range(2):
        world.pass_time(60)
        assert cli.main(["--fleet", file, "check"]) == 0

    def questions() -> int:
        return int(admin.query("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])

    world.pass_time(60)
    before = questions()
    assert cli.main(["--fleet", file, "check"]) == 0
    asked = questions() - before
    assert 10 < asked <= 45
