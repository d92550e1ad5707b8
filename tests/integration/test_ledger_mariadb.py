# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The ledger and its lock in a real MariaDB over TLS: what every ledger does, and what can happen to a server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _ledger_mariadb
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger_mariadb import Access
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import Server
from ansible_collections.elearning.moodle_fleet.plugins.modules import ledger_database
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils.ledger_contract import *  # noqa: F403
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils.ledger_contract import opened

from . import managed

ADMIN, PASSWORD = "Admin-password-0123456789", "Ledger-password-0123456789"
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A MariaDB that refuses connections without TLS; its certificate is trusted while these tests run."""
    folder = tmp_path_factory.mktemp("mariadb")
    certificate = managed.Certificate.make(folder)
    with pytest.MonkeyPatch.context() as patch, managed.database(folder, certificate, ADMIN) as port:
        patch.setenv("SSL_CERT_FILE", str(certificate.certificate))
        yield port


@pytest.fixture(scope="module")
def admin(port: int) -> Iterator[Server]:
    """The server's administrator."""
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
