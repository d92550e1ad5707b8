# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tenants on a database and a cache that somebody else manages, as RDS and ElastiCache do."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, database, definition, dumps, render, resp, site, trial

from . import managed

SECRET = "a-secret-for-tests-alone-0123456789abcdef"
PASSWORD = derive(SECRET, "db-root", "fleet")
CACHE_PASSWORD = derive(SECRET, "redis-admin", "fleet")
TENANTS = definition.load(
    {"name": name, "hosts": [f"{name}.example.org"], "title": name, "admin": {"email": "a@b"}} for name in ("acme", "globex")
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> managed.Certificate:
    """A certificate that signs itself."""
    return managed.Certificate.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusted(certificate: managed.Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust it, as base_ca_certificates lets a node do."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))


@pytest.fixture(scope="module")
def rds(certificate: managed.Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a MariaDB whose owner keeps its root account."""
    with managed.database(tmp_path_factory.mktemp("rds"), certificate, PASSWORD) as port:
        yield port


@pytest.fixture(scope="module")
def elasticache(certificate: managed.Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis with TLS and a password alone, where nobody can make users."""
    with managed.cache(tmp_path_factory.mktemp("elasticache"), certificate, CACHE_PASSWORD) as port:
        yield port


def account(port: int) -> dumps.Account:
    """The administrator's account, by TLS."""
    return dumps.Account("localhost", port, "fleet_admin", PASSWORD, True)


@pytest.fixture
def applier(rds: int, elasticache: int, tmp_path: Path) -> Callable[..., apply.Applier]:
    """What the module does for the tenants, with Moodle's scripts left out."""
    (tmp_path / "code").mkdir()

    places = site.Places(str(tmp_path / "code"), str(tmp_path), "root", "cli.php", ["php"])

    def make(shared_user: bool = True) -> apply.Applier:
        return apply.Applier(
            {definition.DEFAULT_SERVER: apply.DatabaseServer(account(rds))},
            [lambda: resp.Connection("localhost", elasticache, "default", CACHE_PASSWORD, True)],
            site.Sites(places, lambda *_arguments, **_more: (0, json.dumps({}), "")), SECRET, shared_user=shared_user,
        )

    return make


@pytest.mark.usefixtures("trusted")
def test_an_administrator_without_super_gives_each_tenant_its_own(applier: Callable[..., apply.Applier], rds: int) -> None:
    one = applier()
    works, make_book = one.plan(TENANTS, prune=False)
    assert make_book and all(work.sql for work in works)
    assert not any(command for work in works for command in work.redis)
    one.act(works, make_book, 2)
    assert [work.error for work in works] == ["", ""]

    # The login with which the fixture came in by TLS.
    with pytest.raises(pymysql.MySQLError, match="Access denied"):
        pymysql.connect(host="localhost", port=rds, user="fleet_admin", password=PASSWORD, ssl_disabled=True)
    login = {"host": "localhost", "port": rds, "ssl": ssl.create_default_context()}
    acme = TENANTS[0]
    tenant = pymysql.connect(user=acme.database_user(), password=derive(SECRET, "db", "acme"), database=acme.database, **login)
    with tenant.cursor() as cursor:
        cursor.execute("CREATE TABLE mdl_config (name VARCHAR(9))")
        with pytest.raises(pymysql.MySQLError, match="denied"):
            cursor.execute("CREATE TABLE moodle_globex.mdl_config (name VARCHAR(9))")
        cursor.execute("DROP TABLE mdl_config")
    tenant.close()

    works, make_book = one.plan(TENANTS, prune=True)
    assert not make_book
    assert [work.actions() for work in works] == [[], []]


@pytest.mark.usefixtures("trusted")
def test_a_tenants_connections_are_ended_without_the_right_to_do_so(applier: Callable[..., apply.Applier], rds: int) -> None:
    one = applier()
    one.act(*one.plan(TENANTS, prune=False), 2)
    acme = TENANTS[0]
    tenant = pymysql.connect(
        host="localhost", port=rds, user=acme.database_user(), password=derive(SECRET, "db", "acme"), ssl=ssl.create_default_context(),
    )
    server = apply.DatabaseServer(account(rds)).connect()
    with pytest.raises(database.DatabaseError, match="not owner of thread"):
        server.query("KILL %s", (tenant.thread_id(),))
    server.end_connections(acme.database_user())
    with pytest.raises(pymysql.MySQLError):
        tenant.ping(reconnect=False)
    server.end_connections(acme.database_user())
    server.close()


@pytest.mark.usefixtures("trusted")
def test_a_cache_that_makes_no_users_refuses_users_of_their_own(applier: Callable[..., apply.Applier]) -> None:
    with pytest.raises(resp.RedisError, match="unknown command"):
        applier(shared_user=False).plan(TENANTS, prune=False)


@pytest.mark.usefixtures("trusted")
def test_dumps_go_by_tls_as_well(rds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = apply.DatabaseServer(account(rds)).connect()
    try:
        server.recreate("moodle_dumped")
        (tmp_path / "rows.sql").write_text("CREATE TABLE mdl_config (name VARCHAR(9) PRIMARY KEY);\nINSERT INTO mdl_config VALUES ('a');\n")
        dumps.load(account(rds), "moodle_dumped", str(tmp_path / "rows.sql"))
        assert server.query("SELECT name FROM moodle_dumped.mdl_config") == [("a",)]
        dumps.dump(account(rds), "moodle_dumped", str(tmp_path / "dump.sql"))
        assert "INSERT INTO `mdl_config`" in (tmp_path / "dump.sql").read_text()
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(database.DatabaseError, match="(?i)certificate|TLS|SSL"):
            dumps.load(account(rds), "moodle_dumped", str(tmp_path / "rows.sql"))
        server.query("DROP DATABASE moodle_dumped")
    finally:
        server.close()


@pytest.mark.usefixtures("trusted")
def test_the_isolation_of_rows_is_tried_by_tls_and_that_of_a_shared_cache_is_not(
    applier: Callable[..., apply.Applier], rds: int, elasticache: int,
) -> None:
    one = applier()
    one.act(*one.plan(TENANTS, prune=False), 2)
    server = apply.DatabaseServer(account(rds)).connect()
    for tenant in TENANTS:
        server.query(f"CREATE TABLE IF NOT EXISTS {tenant.database}.mdl_config (name VARCHAR(9))")
    fleet = {
        "dbhost": "localhost", "dbport": rds, "database_tls": True, "cache_tls": True, "cache_password": CACHE_PASSWORD,
        "redis_host": "localhost", "redis_port": elasticache, "muc_host": "localhost", "muc_port": elasticache,
    }
    tried = trial.Trial(render.tenants_data(TENANTS, SECRET, fleet), one.sites, 1)
    assert [finding for name in tried.tenants for finding in tried.rows_and_keys(name)] == []
    assert tried.pairs == {"rows": 2}
    assert tried.notes == [trial.SHARED_USER]

    server.query(f"GRANT SELECT ON `{TENANTS[1].database}`.* TO %s@'%%'", (TENANTS[0].database_user(),))
    assert [(found.kind, found.tenant, found.other) for found in tried.rows_and_keys("acme")] == [("rows", "acme", "globex")]
    for tenant in TENANTS:
        server.query(f"DROP TABLE {tenant.database}.mdl_config")
    server.query("REVOKE SELECT ON `moodle_globex`.* FROM %s@'%%'", (TENANTS[0].database_user(),))
    server.close()


@pytest.mark.usefixtures("rds", "elasticache")
def test_a_certificate_that_is_not_trusted_is_refused(applier: Callable[..., apply.Applier], elasticache: int) -> None:
    with pytest.raises(database.DatabaseError, match="certificate"):
        applier().plan(TENANTS, prune=False)
    with pytest.raises(resp.RedisError, match="certificate"):
        resp.Connection("localhost", elasticache, "default", CACHE_PASSWORD, True)
