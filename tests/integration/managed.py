# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A database and a cache that somebody else manages, as RDS and ElastiCache do.

A real MariaDB that refuses connections without TLS, whose administrator has what RDS gives and no more; a real Redis with TLS
and one password that knows no ACL command.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
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
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import resp

# What AWS documents for the master user of MariaDB at RDS: neither SUPER nor FILE, SHUTDOWN or the system schema.
MASTER_RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, PROCESS, REFERENCES, INDEX, ALTER, SHOW DATABASES, "
    "CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, REPLICATION SLAVE, REPLICATION CLIENT, CREATE VIEW, SHOW VIEW, "
    "CREATE ROUTINE, ALTER ROUTINE, CREATE USER, EVENT, TRIGGER"
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
    """A certificate that signs itself, and its key."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, *addresses: str) -> Certificate:
        """One for localhost, 127.0.0.1 and these addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.timezone.utc)
        known = [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", *addresses)]
        made = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *known]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .sign(key, hashes.SHA256())
        )
        (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        (folder / "key.pem").write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ))
        return cls(folder / "cert.pem", folder / "key.pem")


@contextlib.contextmanager
def database(folder: Path, certificate: Certificate, password: str, address: str = "127.0.0.1") -> Iterator[int]:
    """The port of a MariaDB whose owner keeps its root account."""
    data, log, port = folder / "data", folder / "log", free_port()
    me = f"--user={os.environ.get('USER') or 'root'}" if os.geteuid() else "--user=root"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", me, f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True, capture_output=True,
    )
    # The procedure stands for the right to end other users' connections, which nobody has.
    (folder / "init.sql").write_text(
        "CREATE DEFINER=root@localhost PROCEDURE mysql.rds_kill(IN thread BIGINT) SQL SECURITY DEFINER KILL thread;\n"
        f"CREATE USER fleet_admin@'%' IDENTIFIED BY '{password}';\nGRANT {MASTER_RIGHTS} ON *.* TO fleet_admin@'%' WITH GRANT OPTION;\n"
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults", me, f"--datadir={data}", f"--port={port}",
             f"--bind-address={address}", f"--socket={folder / 's'}", f"--init-file={folder / 'init.sql'}",
             f"--ssl-cert={certificate.certificate}", f"--ssl-key={certificate.key}", "--require-secure-transport=ON",
             "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M"],
            stdout=output, stderr=output,
        )
    context = ssl.create_default_context(cafile=str(certificate.certificate))
    login = {"host": address, "port": port, "user": "fleet_admin", "password": password, "ssl": context}
    try:
        wait_for(lambda: pymysql.connect(**login).close(), process, log)
        yield port
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def cache(folder: Path, certificate: Certificate, password: str, address: str = "127.0.0.1") -> Iterator[int]:
    """The port of a Redis with TLS and a password alone, where nobody can make users."""
    log, port = folder / "log", free_port()
    # Debian ships one program under several names.
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["redis-server", "--port", "0", "--tls-port", str(port), "--bind", address, "--tls-cert-file",
             str(certificate.certificate), "--tls-key-file", str(certificate.key), "--tls-auth-clients", "no", "--requirepass",
             password, "--rename-command", "ACL", "", "--save", "", "--dir", str(folder)],
            executable=program, stdout=output, stderr=output,
        )
    try:
        wait_for(lambda: socket.create_connection((address, port), 1).close(), process, log)
        yield port
    finally:
        process.terminate()
        process.wait(30)
