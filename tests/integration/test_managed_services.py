# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tenants on a database and a cache that somebody else manages, as RDS and ElastiCache do.

A real MariaDB that refuses connections without TLS, whose administrator has what RDS gives and no more; a real Redis with TLS
and one password that knows no ACL command.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pymysql
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, database, definition, dumps, render, resp, site, trial

SECRET = "a-secret-for-tests-alone-0123456789abcdef"
PASSWORD = derive(SECRET, "db-root", "fleet")
CACHE_PASSWORD = derive(SECRET, "redis-admin", "fleet")
# What AWS documents for the master user of MariaDB at RDS: neither SUPER nor FILE, SHUTDOWN or the system schema.
MASTER_RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, PROCESS, REFERENCES, INDEX, ALTER, SHOW DATABASES, "
    "CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, REPLICATION SLAVE, REPLICATION CLIENT, CREATE VIEW, SHOW VIEW, "
    "CREATE ROUTINE, ALTER ROUTINE, CREATE USER, EVENT, TRIGGER"
)
TENANTS = definition.load(
    {"name": name, "hosts": [f"{name}.example.org"], "title": name, "admin": {"email": "a@b"}} for name in ("acme", "globex")
)


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            what()
            return
        except (OSError, pymysql.MySQLError, resp.RedisError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)


@dataclass(frozen=True)
class Certificate:
    """A certificate for localhost and its key."""

    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))
    return Certificate(folder / "cert.pem", folder / "cert.pem", folder / "key.pem")


@pytest.fixture
def trusted(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust it, as base_ca_certificates lets a node do."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))


@pytest.fixture(scope="module")
def rds(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a MariaDB whose owner keeps its root account."""
    folder = tmp_path_factory.mktemp("rds")
    data, log, port = folder / "data", folder / "log", free_port()
    me = f"--user={os.environ.get('USER') or 'root'}" if os.geteuid() else "--user=root"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", me, f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True, capture_output=True,
    )
    (folder / "init.sql").write_text(
        f"CREATE USER fleet_admin@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT {MASTER_RIGHTS} ON *.* TO fleet_admin@'%' WITH GRANT OPTION;\n"
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults", me, f"--datadir={data}", f"--port={port}",
             "--bind-address=127.0.0.1", f"--socket={folder / 's'}", f"--init-file={folder / 'init.sql'}",
             f"--ssl-cert={certificate.certificate}", f"--ssl-key={certificate.key}", "--require-secure-transport=ON",
             "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M"],
            stdout=output, stderr=output,
        )
    context = ssl.create_default_context(cafile=str(certificate.authority))
    login = {"host": "localhost", "port": port, "user": "fleet_admin", "password": PASSWORD, "ssl": context}
    wait_for(lambda: pymysql.connect(**login).close(), process, log)
    yield port
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def elasticache(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis with TLS and a password alone, where nobody can make users."""
    folder = tmp_path_factory.mktemp("elasticache")
    log, port = folder / "log", free_port()
    # Debian ships one program under several names.
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--tls-cert-file",
             str(certificate.certificate), "--tls-key-file", str(certificate.key), "--tls-auth-clients", "no", "--requirepass",
             CACHE_PASSWORD, "--rename-command", "ACL", "", "--save", "", "--dir", str(folder)],
            executable=program, stdout=output, stderr=output,
        )
    wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), process, log)
    yield port
    process.terminate()
    process.wait(30)


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
