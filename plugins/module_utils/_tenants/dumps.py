# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Databases as text, by the server's own programs: a dump is the same, byte for byte, for the same content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.database import DatabaseError

# One transaction, so that a site in use is dumped as of one moment; no date, no comment, rows in the order of their key.
DUMP = (
    "mariadb-dump", "--single-transaction", "--quick", "--skip-lock-tables", "--skip-add-locks", "--skip-comments",
    "--skip-dump-date", "--order-by-primary", "--hex-blob", "--no-tablespaces", "--default-character-set=utf8mb4",
    "--max-allowed-packet=1G",
)
LOAD = ("mariadb", "--batch", "--default-character-set=utf8mb4", "--max-allowed-packet=1G")


@dataclass(frozen=True)
class Account:
    """Where a server is and who asks."""

    host: str
    port: int
    user: str
    password: str
    tls: bool = False


@contextlib.contextmanager
def _options(account: Account) -> Iterator[str]:
    """A file with the password, for root alone: arguments can be read by everybody on the node."""
    handle, path = tempfile.mkstemp(prefix="moodle-fleet-", dir="/run" if os.access("/run", os.W_OK) else None)
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            word = account.password.replace("\\", "\\\\").replace('"', '\\"')
            stream.write(f'[client]\nhost={account.host}\nport={account.port}\nprotocol=tcp\nuser={account.user}\npassword="{word}"\n')
            if account.tls:
                # Whom Python trusts. Asked to verify, the programs refuse a server without TLS.
                authorities = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
                stream.write(f"ssl\nssl-ca={authorities}\nssl-verify-server-cert\n")
        yield path
    finally:
        os.unlink(path)


def _run(account: Account, command: Iterable[str], what: str, **streams: object) -> None:
    words = list(command)
    with _options(account) as options:
        words.insert(1, f"--defaults-extra-file={options}")
        try:
            done = subprocess.run(words, stderr=subprocess.PIPE, check=False, **streams)
        except FileNotFoundError as exc:
            raise DatabaseError(f"the program {words[0]} is missing: install the package mariadb-client") from exc
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise DatabaseError(f"{what}: {(lines or ['no reason given'])[-1]}")


def dump(account: Account, database: str, path: str, without_rows: Iterable[str] = ()) -> None:
    """Write a database into a new file that only its owner can read; of some tables the structure alone."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        left_out = [f"--ignore-table-data={database}.{table}" for table in without_rows]
        _run(account, [*DUMP, *left_out, database], f"cannot dump {database}", stdout=stream)
        stream.flush()
        os.fsync(stream.fileno())


def load(account: Account, database: str, path: str) -> None:
    """Run a dump in a database that is empty."""
    with open(path, "rb") as stream:
        _run(account, [*LOAD, database], f"cannot load {database}", stdin=stream, stdout=subprocess.DEVNULL)


def digest(path: str) -> str:
    """Return a file's SHA-256."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
