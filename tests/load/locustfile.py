# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Learners: they log in once, then read their course and write a numbered post again and again.

scripts/load starts this with the fleet's facts in MOODLE_LOAD_FACTS; what was seen is written to MOODLE_LOAD_SEEN.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import time
from pathlib import Path

import gevent.socket
import gevent.ssl
from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task
from locust.exception import StopUser

FACTS = json.loads(Path(os.environ["MOODLE_LOAD_FACTS"]).read_text(encoding="utf-8"))
RUN = os.environ["MOODLE_LOAD_RUN"]
# Requests a second of one learner.
PACE = float(os.environ["MOODLE_LOAD_PACE"])
PORT = "" if FACTS["public_port"] == 443 else f":{FACTS['public_port']}"

TOKEN = re.compile(r'name="logintoken" value="([^"]+)"')
SESSKEY = re.compile(r'"sesskey":"([^"]+)"')

FOLLOW = os.environ.get("MOODLE_LOAD_FOLLOW")

numbers = itertools.count(1)
marks = itertools.count(1)
learners = itertools.count(0)
seen: dict = {"sent": {}, "acknowledged": {}, "marks": [], "lost_sessions": 0, "failures": [], "slowest": ["", 0.0], "requests": 0}

# Sites are reached at the balancer, whatever DNS says of their names.
_balancer = (os.environ["MOODLE_LOAD_BALANCER"], int(os.environ["MOODLE_LOAD_BALANCER_PORT"]))
_hosts = {tenant["host"] for tenant in FACTS["tenants"]}
_resolve = gevent.socket.getaddrinfo


def _to_balancer(host, port, *arguments, **options):
    name = host.decode() if isinstance(host, bytes) else host
    return _resolve(*(_balancer if name in _hosts else (host, port)), *arguments, **options)


gevent.socket.getaddrinfo = _to_balancer
__import__("socket").getaddrinfo = _to_balancer


def _context():
    return gevent.ssl.create_default_context(cafile=os.environ.get("MOODLE_LOAD_CA") or None)


@events.request.add_listener
def _count(request_type, name, response_time, exception, **_more):
    seen["requests"] += 1
    if response_time > seen["slowest"][1]:
        seen["slowest"] = [f"{request_type} {name}", response_time]
    if exception and len(seen["failures"]) < 1000:
        seen["failures"].append([time.time(), f"{request_type} {name}", str(exception)[:300]])


@events.quitting.add_listener
def _write(**_more):
    Path(os.environ["MOODLE_LOAD_SEEN"]).write_text(json.dumps(seen), encoding="utf-8")


if FOLLOW:

    class Follow(LoadTestShape):
        """As many learners as a file says at each moment; the end when it says 0."""

        def tick(self) -> tuple[int, float] | None:
            users = int(Path(FOLLOW).read_text(encoding="ascii") or 0)
            return (users, max(1.0, users / 5)) if users else None


def mark() -> str:
    """A browser's name that is found again in the access log of the node that answered."""
    return f"{RUN}-{next(marks)}."


class Learner(FastHttpUser):
    """One learner of one tenant."""

    host = f"https://{FACTS['tenants'][0]['host']}{PORT}"
    insecure = False
    ssl_context_factory = staticmethod(_context)
    concurrency = 1
    connection_timeout = network_timeout = 120.0
    wait_time = constant_throughput(PACE)

    def on_start(self) -> None:
        number = next(learners)
        self.tenant = FACTS["tenants"][number % len(FACTS["tenants"])]
        self.site = self.tenant["site"]
        self.client.base_url = f"https://{self.tenant['host']}{PORT}"
        self.user = f"learner{number // len(FACTS['tenants']) % FACTS['learners'] + 1}"
        self.steps = itertools.cycle([self.read_course, self.read_page, self.write])
        self.sesskey = ""
        self.post_name = f"{self.tenant['name']}: write"
        # Not all at the same instant, and not all at the same step.
        gevent.sleep(random.uniform(0, 1 / PACE))
        for _skip in range(number % 3):
            next(self.steps)
        self.log_in()

    def log_in(self) -> None:
        """Log in; a learner who can't is a failure and goes away."""
        with self.client.get("/login/index.php", name="login form", catch_response=True) as answer:
            token = TOKEN.search(answer.text or "")
            if answer.status_code != 200 or not token:
                answer.failure(f"no login form (status {answer.status_code})")
                raise StopUser
        form = {"username": self.user, "password": self.tenant["learner_password"], "logintoken": token[1], "anchor": ""}
        with self.client.post("/login/index.php", data=form, name="log in", catch_response=True) as answer:
            text = answer.text or ""
            if answer.status_code != 200 or 'name="logintoken"' in text:
                answer.failure(f"{self.user} is not logged in (status {answer.status_code})")
                raise StopUser
            found = SESSKEY.search(text)
            self.sesskey = found[1] if found else ""

    def read(self, path: str, name: str) -> None:
        """A page for logged-in learners."""
        browser = mark()
        with self.client.get(path, name=name, headers={"User-Agent": browser}, catch_response=True) as answer:
            text = answer.text or ""
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
            elif 'name="logintoken"' in text or "notloggedin" in text:
                seen["lost_sessions"] += 1
                answer.failure("the session is lost: asked to log in again")
            elif "</html>" not in text:
                answer.failure("half a page")
            else:
                seen["marks"].append(browser)
                return
        if answer.status_code == 200:
            self.log_in()

    def read_course(self) -> None:
        """The course's page."""
        self.read(f"/course/view.php?id={self.site['course']}", "course")

    def read_page(self) -> None:
        """Something to read in it."""
        pages = self.site.get("pages")
        self.read(f"/mod/page/view.php?id={random.choice(pages)}" if pages else "/my/", "page")

    def write(self) -> None:
        """A numbered post: the number tells later whether it was lost or came twice."""
        number = next(numbers)
        seen["sent"][number] = self.tenant["name"]
        if self.site["standin"]:
            self.write_standin(number)
        else:
            self.write_moodle(number)

    def write_standin(self, number: int) -> None:
        """The stand-in site has a page for it."""
        data, browser = {"client": RUN, "number": number}, mark()
        with self.client.post(
            "/local/write.php", data=data, name="write", headers={"User-Agent": browser}, catch_response=True
        ) as answer:
            if answer.status_code != 200 or '"id"' not in (answer.text or ""):
                answer.failure(f"status {answer.status_code}: {(answer.text or '')[:100]}")
                return
            seen["acknowledged"][number] = self.tenant["name"]
            seen["marks"].append(browser)

    def write_moodle(self, number: int) -> None:
        """An answer in the course's forum, as Moodle's own page sends it."""
        method = "mod_forum_add_discussion_post"
        call = {"index": 0, "methodname": method, "args": {
            "postid": self.site["post"], "subject": f"load {RUN} {number}", "message": f"Post {number}", "messageformat": 1}}
        path = f"/lib/ajax/service.php?sesskey={self.sesskey}&info={method}"
        browser = mark()
        with self.client.post(path, json=[call], name="write", headers={"User-Agent": browser}, catch_response=True) as answer:
            try:
                result = json.loads(answer.text or "null")[0]
            except (ValueError, TypeError, KeyError, IndexError):
                answer.failure(f"status {answer.status_code}: {(answer.text or '')[:100]}")
                return
            if not result.get("error"):
                seen["acknowledged"][number] = self.tenant["name"]
                seen["marks"].append(browser)
                return
            code = (result.get("exception") or {}).get("errorcode", "unknown error")
            if code in ("servicerequireslogin", "requireloginerror", "invalidsesskey"):
                seen["lost_sessions"] += 1
            answer.failure(code)

    @task
    def next_step(self) -> None:
        """One request."""
        next(self.steps)()
