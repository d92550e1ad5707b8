# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A visitor of a site: one connection that is kept, cookies, a login. Small, so that the client costs little CPU."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
import urllib.parse
from dataclasses import dataclass, field

TOKEN = re.compile(r'name="logintoken" value="([^"]+)"')


@dataclass(frozen=True)
class Target:
    """Where requests go: a node's plain port, or the balancer with TLS."""

    name: str
    address: str
    host: str
    port: int = 80
    ca: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        if not self.ca:
            return http.client.HTTPConnection(self.address, self.port, timeout=120)
        context = ssl.create_default_context(cafile=self.ca)
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=120, context=context)
        # The certificate is for the host name, the address is the balancer's.
        connection._create_connection = lambda _address, *more: _connect((self.address, self.port), *more)
        return connection


def _connect(address, timeout, source=None):
    import socket

    return socket.create_connection(address, timeout, source)


class Visitor:
    """One browser."""

    def __init__(self, target: Target):
        self.target = target
        self.cookies: dict[str, str] = {}
        self._connection = target.connect()

    def get(self, path: str, cookies: bool = True) -> tuple[int, bytes, float]:
        """Status, body and seconds."""
        return self.request("GET", path, cookies=cookies)

    def request(self, method: str, path: str, form: dict | None = None, cookies: bool = True) -> tuple[int, bytes, float]:
        headers = dict(self.target.headers)
        port = "" if self.target.port in (80, 443) else f":{self.target.port}"
        headers.setdefault("Host", self.target.host + port)
        if cookies and self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        body = None
        if form is not None:
            body = urllib.parse.urlencode(form)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        start = time.perf_counter()
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - start
        if cookies:
            for line in answer.headers.get_all("Set-Cookie") or []:
                name, _equals, value = line.split(";", 1)[0].partition("=")
                self.cookies[name] = value
        self.location = answer.headers.get("Location", "")
        return answer.status, content, seconds

    def log_in(self, user: str, password: str) -> None:
        """Log in; leaves with a session or an error."""
        status, page, _seconds = self.get("/login/index.php")
        token = TOKEN.search(page.decode("utf-8", "replace"))
        if status != 200 or not token:
            raise SystemExit(f"{self.target.name}: /login/index.php answered {status} and no login form: {page[:300]!r}")
        form = {"username": user, "password": password, "logintoken": token[1], "anchor": ""}
        status, page, _seconds = self.request("POST", "/login/index.php", form)
        for _hop in range(4):
            if status not in (301, 302, 303):
                break
            target = urllib.parse.urlsplit(self.location)
            status, page, _seconds = self.get(target.path + (f"?{target.query}" if target.query else ""))
        if status != 200 or b'name="logintoken"' in page:
            raise SystemExit(f"{self.target.name}: {user} can't log in (status {status})")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def health(address: str) -> dict | None:
    """What the node says of itself when it is ready."""
    connection = http.client.HTTPConnection(address, 80, timeout=2)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        content = answer.read()
        return json.loads(content) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
