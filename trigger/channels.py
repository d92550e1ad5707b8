# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ways to reach people: a webhook, a chat's webhook, mail. No error ever holds an address or a password."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.trigger.notify import Alert

TIMEOUT = 10.0
CHANNELS = ("webhook", "chat", "mail")
_MARKS = {"firing": "🔴", "resolved": "🟢", "test": "🔵"}


class _Undelivered(Exception):
    """Why a message did not get there, without any secret."""


def configured(settings: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The channels that the fleet file names, with their settings."""
    return {name: (name, settings[name]) for name in CHANNELS if settings.get(name)}


def send(channel: tuple[str, Mapping[str, Any]], fleet: str, state: str, alert: Alert, now: float) -> str:
    """Deliver one message; returns why not, or nothing."""
    name, settings = channel
    try:
        if name == "mail":
            _mail(settings, fleet, state, alert, now)
        else:
            body = _payload(fleet, state, alert, now) if name == "webhook" else {"text": _chat_text(fleet, state, alert)}
            _post(_secret(settings, "url"), body)
    except _Undelivered as exc:
        return str(exc)
    except Exception as exc:  # noqa: BLE001 whatever a channel does, the others are told; the text may hold its address
        return type(exc).__name__
    return ""


def _secret(settings: Mapping[str, Any], name: str) -> str:
    """A secret from the environment or a file."""
    if settings.get(f"{name}_env"):
        value = os.environ.get(settings[f"{name}_env"], "").strip()
        if not value:
            raise _Undelivered(f"the environment variable {settings[f'{name}_env']} is empty")
        return value
    path = Path(settings[f"{name}_file"])
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise _Undelivered(f"{path} can't be read: {exc.strerror}") from None


def _payload(fleet: str, state: str, alert: Alert, now: float) -> dict[str, Any]:
    def iso(moment: float) -> str:
        return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")

    return {"fleet": fleet, "alert": alert.name, "state": state, "title": alert.title, "text": alert.text, "remedy": alert.remedy,
            "since": iso(alert.since), "time": iso(now)}


def _headline(fleet: str, state: str, alert: Alert) -> str:
    return f"Fleet {fleet}: {'over: ' if state == 'resolved' else ''}{alert.title}"


def _chat_text(fleet: str, state: str, alert: Alert) -> str:
    lines = [f"{_MARKS[state]} {_headline(fleet, state, alert)}", alert.text]
    if state == "firing":
        lines.append(alert.remedy)
    # The three characters with a meaning in Slack's and Mattermost's text; a node's name may hold "<!channel>".
    return "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _post(url: str, body: Mapping[str, Any]) -> None:
    import urllib.error
    import urllib.request

    class _Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_given: Any) -> None:
            """What was meant for one address goes to no other."""

    if not url.startswith(("http://", "https://")):
        raise _Undelivered("the address does not begin with https:// or http://")
    request = urllib.request.Request(url, json.dumps(body).encode("utf-8"), {"Content-Type": "application/json", "User-Agent": "moodle-fleet"})
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=TIMEOUT) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as exc:
        raise _Undelivered(f"answered with {exc.code}") from None
    except urllib.error.URLError as exc:
        raise _Undelivered(f"not reached: {exc.reason if isinstance(exc.reason, OSError) else 'no answer'}") from None
    except TimeoutError:
        raise _Undelivered(f"no answer within {TIMEOUT:g} s") from None


def _mail(settings: Mapping[str, Any], fleet: str, state: str, alert: Alert, now: float) -> None:
    import smtplib
    import ssl
    from email.message import EmailMessage
    from email.utils import format_datetime, make_msgid

    letter = EmailMessage()
    letter["From"], letter["To"] = settings["from"], ", ".join(settings["to"])
    letter["Subject"] = " ".join(_headline(fleet, state, alert).split())
    letter["Date"] = format_datetime(datetime.fromtimestamp(now, timezone.utc))
    letter["Message-ID"] = make_msgid(domain=settings["from"].rpartition("@")[2])
    letter["Auto-Submitted"] = "auto-generated"
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(alert.since))
    letter.set_content(f"{alert.text}\n\nSince {since}.\n" + (f"{alert.remedy}\n" if state == "firing" else ""))
    host, _colon, port = settings["server"].rpartition(":")
    password = _secret(settings, "password") if settings.get("user") else ""
    try:
        context = ssl.create_default_context()
        server: smtplib.SMTP
        if settings["tls"] == "tls":
            server = smtplib.SMTP_SSL(host, int(port), timeout=TIMEOUT, context=context)
        else:
            server = smtplib.SMTP(host, int(port), timeout=TIMEOUT)
        with server:
            if settings["tls"] == "starttls":
                server.starttls(context=context)
            if password:
                server.login(settings["user"], password)
            server.send_message(letter)
    except smtplib.SMTPResponseException as exc:
        raise _Undelivered(f"the mail server answered with {exc.smtp_code}") from None
    except smtplib.SMTPRecipientsRefused:
        raise _Undelivered("the mail server refused every recipient") from None
    except (OSError, smtplib.SMTPException) as exc:
        raise _Undelivered(f"the mail server could not be used: {getattr(exc, 'strerror', None) or type(exc).__name__}") from None
