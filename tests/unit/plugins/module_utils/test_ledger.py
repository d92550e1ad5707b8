# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A ledger in a file of SQLite: what every ledger does, and what can happen to a file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _ledger_mariadb
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger, LedgerError, access, open_ledger, single_flight
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_sqlite import SQLite
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils.ledger_contract import LedgerContract, commit, hour, opened


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "ledger.sqlite")


@pytest.fixture(name="ledger")
def _ledger_fixture(place: str) -> Iterator[Ledger]:
    with opened(place) as ledger:
        yield ledger


class TestSQLite(LedgerContract):
    """What every ledger does."""


def test_files_are_for_their_owner_alone(ledger: Ledger) -> None:
    assert os.stat(ledger.name).st_mode & 0o077 == 0
    assert os.stat(os.path.dirname(ledger.name)).st_mode & 0o077 == 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is no ledger" * 999)
    with pytest.raises(LedgerError, match="ledger.sqlite.*move it away"):
        Ledger(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="check folder"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_full_disk_is_said_in_plain_words_and_loses_nothing(ledger: Ledger) -> None:
    commit(ledger)
    pages = ledger._store._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(LedgerError, match="the disk is full; make room"):
        for _index in range(2000):
            commit(ledger)
    count = len(ledger.checks(9999))
    ledger._store._db.execute("PRAGMA max_page_count=100000")
    commit(ledger)
    assert len(ledger.checks(9999)) == count + 1


def test_a_lock_held_for_too_long_is_said(ledger: Ledger) -> None:
    other = sqlite3.connect(ledger.name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Ledger(SQLite(ledger.name, timeout=0.1)) as second, pytest.raises(LedgerError, match="another process"):
        commit(second)


def test_an_older_ledger_is_brought_up_with_its_weeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    hour(Ledger(path), 999_899.0, [1.0, 2.0, 3.0, 4.0, 5.0, 10.0])
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE slots")
        db.execute("ALTER TABLE checks DROP COLUMN inputs")
        db.execute("PRAGMA user_version = 2")
    with Ledger(path) as ledger:
        assert ledger.slots([(0, 2_000_000)]) == (999_900, {999_900: 3.0, 1_000_200: 10.0})
        assert [row["inputs"] for row, _sample in ledger.recorded()] == [None] * 6


@pytest.fixture(name="remote")
def _remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a fleet whose ledger is in MariaDB."""
    monkeypatch.delenv("MOODLE_FLEET_LEDGER_PASSWORD", raising=False)
    file = tmp_path / "moodle_fleet.yml"
    file.write_text(yaml.safe_dump({
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "x", "state_dir": "state", "cloud": {"driver": "podman"},
        "ledger": {"driver": "mariadb", "endpoint": "127.0.0.1:1"},
    }, sort_keys=False))
    return file


def test_the_password_is_taken_from_who_gives_it_the_environment_or_a_file(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError, match="ledger fleet_ledger at 127.0.0.1:1: no password: set MOODLE_FLEET_LEDGER_PASSWORD.*ledger.password"):
        open_ledger(load(remote))
    (remote.parent / "state").mkdir()
    (remote.parent / "state" / "ledger.password").write_text("of the file\n")
    assert access(load(remote)).password == "of the file"
    monkeypatch.setenv("MOODLE_FLEET_LEDGER_PASSWORD", "of the environment")
    assert access(load(remote)).password == "of the environment"
    given = load(remote, "given")
    assert access(given).password == "given"
    for shown in (repr(given), repr(access(given))):
        assert "given" not in shown


def test_another_file_may_hold_the_password(remote: Path) -> None:
    remote.write_text(remote.read_text() + "  password_file: secret/ledger\n")
    (remote.parent / "secret").mkdir()
    (remote.parent / "secret" / "ledger").write_text("elsewhere")
    assert access(load(remote)).password == "elsewhere"


@pytest.mark.parametrize("use", [open_ledger, lambda fleet: single_flight(fleet, "check").__enter__()])
def test_a_server_that_is_away_or_a_library_that_is_missing_is_said(use: Any, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError, match="fleet_ledger at 127.0.0.1:1: .*see whether the server runs"):
        use(load(remote, "given"))
    assert not (remote.parent / "state").exists()
    monkeypatch.setattr(_ledger_mariadb, "pymysql", None)
    with pytest.raises(LedgerError, match="PyMySQL is missing: pip install"):
        use(load(remote, "given"))
