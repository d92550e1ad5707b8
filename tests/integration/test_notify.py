# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Notifications over real HTTP and SMTP: what arrives, and that no secret stays anywhere."""

from __future__ import annotations

import datetime
import email
import email.policy
import http.server
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger

SECRET, PASSWORD = "hook-secret-83hf2", "mail-secret-91kd7"
FLEET = """plugin: elearning.moodle_fleet.fleet
fleet: campus
state_dir: state
cloud: {driver: podman}
notifications:
  webhook: {url_file: %(folder)s/webhook}
  chat: {url_env: CHAT_URL}
  mail: {server: "localhost:%(smtp)d", from: fleet@example.org, to: [night@example.org, day@example.org], user: fleet, password_env: MAIL_PASSWORD}
"""


class Hook(http.server.BaseHTTPRequestHandler):
    """Takes what is posted; /slow answers after the time that anybody waits, /broken with 500, /away leads elsewhere."""

    taken: list[tuple[str, dict]] = []

    def do_POST(self) -> None:
        Hook.taken.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        if "/slow" in self.path:
            time.sleep(15)
        self.send_response(500 if "/broken" in self.path else 302 if "/away" in self.path else 200)
        if "/away" in self.path:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        Hook.taken.append((self.path, {}))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_given: object) -> None:
        """Nothing to say."""


@pytest.fixture(name="hooks")
def _hooks() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hook.taken = []
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class Letters:
    """What the mail server took."""

    def __init__(self) -> None:
        self.taken: list[tuple[list[str], email.message.EmailMessage]] = []

    async def handle_DATA(self, _server: object, session: object, envelope: object) -> str:
        letter = email.message_from_bytes(envelope.content, policy=email.policy.default)  # type: ignore[attr-defined]
        self.taken.append((envelope.rcpt_tos, letter))  # type: ignore[attr-defined]
        return "250 OK"


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of localhost that is its own authority."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    )
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    return chain, context


@pytest.fixture(name="smtp")
def _smtp(tmp_path: Path) -> Iterator[tuple[Letters, int, Path]]:
    """A mail server that wants STARTTLS and a password."""
    chain, context = certificate(tmp_path)
    letters = Letters()

    def login(_server: object, _session: object, _envelope: object, _mechanism: str, given: object) -> AuthResult:
        return AuthResult(success=(given.login, given.password) == (b"fleet", PASSWORD.encode()))  # type: ignore[attr-defined]
    controller = Controller(letters, hostname="localhost", port=_free(), tls_context=context, require_starttls=True, authenticator=login, auth_required=True)
    controller.start()
    yield letters, controller.port, chain
    controller.stop()


def _free() -> int:
    """A free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def notify(folder: Path, chain: Path, hooks: str, *arguments: str, chat: str = "/chat/", password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    """Run the command as the timer does."""
    environment = {**os.environ, "CHAT_URL": f"{hooks}{chat}{SECRET}", "MAIL_PASSWORD": password, "SSL_CERT_FILE": str(chain),
                   "no_proxy": "127.0.0.1,localhost"}
    return subprocess.run([sys.executable, "-m", "ansible_collections.elearning.moodle_fleet.trigger", "--fleet", str(folder / "moodle_fleet.yml"),
                           "notify", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_each_channel_hears_of_it_once_and_of_its_end(tmp_path: Path, hooks: str, smtp: tuple[Letters, int, Path]) -> None:
    letters, port, chain = smtp
    (tmp_path / "moodle_fleet.yml").write_text(FLEET % {"folder": tmp_path, "smtp": port})
    (tmp_path / "webhook").write_text(f"{hooks}/hook/{SECRET}\n")
    (tmp_path / "state").mkdir()
    with Ledger(tmp_path / "state" / "ledger.sqlite") as ledger:
        ledger.pause("all", "works <!channel>", time.time() - 3 * 3600)
    done = notify(tmp_path, chain, hooks)
    assert (done.returncode, done.stderr) == (0, ""), done
    (hook, said), (chat, spoken) = Hook.taken
    assert hook == f"/hook/{SECRET}" and chat == f"/chat/{SECRET}"
    assert {key: said[key] for key in ("fleet", "alert", "state", "title")} == {
        "fleet": "campus", "alert": "paused", "state": "firing", "title": "Scaling is still paused"}
    assert datetime.datetime.fromisoformat(said["since"]).tzinfo is not None and "resume" in said["remedy"]
    assert list(spoken) == ["text"] and "works &lt;!channel&gt;" in spoken["text"] and "Fleet campus: Scaling is still paused" in spoken["text"]
    ((to, letter),) = letters.taken
    assert to == ["night@example.org", "day@example.org"]
    assert letter["Subject"] == "Fleet campus: Scaling is still paused" and "works <!channel>" in letter.get_content()

    assert notify(tmp_path, chain, hooks).stdout == "Nothing new to tell.\n"
    assert (len(Hook.taken), len(letters.taken)) == (2, 1)
    with Ledger(tmp_path / "state" / "ledger.sqlite") as ledger:
        ledger.resume(time.time())
    assert "resolved" in notify(tmp_path, chain, hooks).stdout
    assert [body.get("state") for path, body in Hook.taken if path.startswith("/hook")] == ["firing", "resolved"]
    assert letters.taken[1][1]["Subject"] == "Fleet campus: over: Scaling is still paused"

    for secret in (SECRET, PASSWORD):
        kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        assert kept == [] and secret not in done.stdout + done.stderr


def test_what_fails_is_named_without_its_secret_and_holds_no_other_up(tmp_path: Path, hooks: str, smtp: tuple[Letters, int, Path]) -> None:
    letters, port, chain = smtp
    (tmp_path / "moodle_fleet.yml").write_text(FLEET % {"folder": tmp_path, "smtp": port})
    (tmp_path / "webhook").write_text(f"{hooks}/away/{SECRET}")
    done = notify(tmp_path, chain, hooks, "--test", chat="/broken/", password="wrong-secret-17ab")
    assert done.returncode == 5 and letters.taken == []
    webhook, chat, mail = done.stderr.splitlines()
    assert webhook == "moodle-fleet: webhook: test could not be told: answered with 302"
    assert chat == "moodle-fleet: chat: test could not be told: answered with 500"
    assert mail.startswith("moodle-fleet: mail: test could not be told: the mail server ")
    assert not any(path == "/elsewhere" for path, _body in Hook.taken)
    (tmp_path / "webhook").write_text(f"http://127.0.0.1:1/{SECRET}")
    begun = time.monotonic()
    done = notify(tmp_path, chain, hooks, "--test", chat="/slow/")
    assert "webhook: test could not be told: not reached" in done.stderr and "chat: test could not be told: no" in done.stderr
    assert len(letters.taken) == 1 and time.monotonic() - begun < 20
    assert SECRET not in done.stdout + done.stderr and "wrong-secret" not in done.stdout + done.stderr


def test_a_mail_server_without_a_known_certificate_gets_no_password(tmp_path: Path, hooks: str, smtp: tuple[Letters, int, Path]) -> None:
    letters, port, _chain = smtp
    (tmp_path / "moodle_fleet.yml").write_text(FLEET % {"folder": tmp_path, "smtp": port})
    (tmp_path / "webhook").write_text(f"{hooks}/hook/{SECRET}")
    done = notify(tmp_path, Path("/etc/ssl/certs/ca-certificates.crt"), hooks, "--test")
    assert "mail: test could not be told: the mail server could not be used" in done.stderr and letters.taken == []
