# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The job template over REST, against a stand-in server that speaks AWX's API."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.trigger.awx import AWX

TOKEN = "a-token-of-the-test"


class StandIn(http.server.ThreadingHTTPServer):
    """Launches jobs that walk through ``states``; ``broken`` answers are (method, path part, status) once each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prompts = True
        self.ignored: dict[str, Any] = {}
        self.states = ["pending", "running", "successful"]
        self.explanation = ""
        self.artifacts: Any = {}
        self.broken: list[tuple[str, str, int]] = []
        self.lose_launch = False
        self.jobs: dict[int, dict[str, Any]] = {}
        self.cancelled: list[int] = []
        self.seen: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        self.server.seen.append((self.command, self.path))
        for fault in self.server.broken:
            if fault[0] == self.command and fault[1] in self.path:
                self.server.broken.remove(fault)
                return self._send(fault[2], {"detail": "broken on purpose"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"detail": "Authentication credentials were not provided."})
        path = self.path.removeprefix("/api/v2/")
        template = {"id": 7, "ask_variables_on_launch": self.server.prompts}
        if path.startswith("job_templates/?"):
            found = [template] if "name=scale" in path else []
            return self._send(200, {"count": len(found), "results": found})
        if path == "job_templates/7/":
            return self._send(200, template)
        if path == "job_templates/7/launch/":
            number = len(self.server.jobs) + 100
            self.server.jobs[number] = {"id": number, "extra_vars": json.dumps(body["extra_vars"]), "step": 0}
            if self.server.lose_launch:
                return self._send(502, {})
            return self._send(201, {"job": number, "ignored_fields": self.server.ignored})
        if path.startswith("job_templates/7/jobs/"):
            return self._send(200, {"results": sorted(self.server.jobs.values(), key=lambda job: -job["id"])})
        if path.startswith("jobs/") and path.endswith("/cancel/"):
            self.server.cancelled.append(int(path.split("/")[1]))
            return self._send(202, {})
        if path.startswith("jobs/"):
            job = self.server.jobs[int(path.split("/")[1])]
            state = self.server.states[min(job["step"], len(self.server.states) - 1)]
            job["step"] += 1
            return self._send(200, {"status": state, "job_explanation": self.server.explanation, "artifacts": self.server.artifacts})
        return self._send(404, {"detail": "Not found."})

    def _send(self, status: int, data: Any) -> None:
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())

    def log_message(self, *_args: Any) -> None:
        """Quiet."""


@pytest.fixture(name="server")
def _server() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def launched(server: StandIn, template: str = "7", token: str = TOKEN, **more: Any) -> Any:
    awx = AWX(server.url, token, template, sleep=lambda _seconds: None, timeout=5)
    return awx.run({"fleet_check_id": 12, "fleet_plan": []}, **more)


@pytest.mark.parametrize("template", ["7", "scale"])
def test_a_job_is_launched_and_awaited(server: StandIn, template: str) -> None:
    result = launched(server, template)
    assert (result.status, result.message) == ("done", "AWX job 100")
    assert json.loads(server.jobs[100]["extra_vars"])["fleet_check_id"] == 12


@pytest.mark.parametrize(
    ("state", "words"), [("failed", "failed"), ("error", "could not run"), ("canceled", "was cancelled")]
)
def test_a_job_that_ends_badly_is_told(server: StandIn, state: str, words: str) -> None:
    server.states, server.explanation = ["running", state], "because"
    result = launched(server)
    assert result.status == "failed"
    assert f"job 100 {words}: because" in result.message


@pytest.mark.parametrize(("state", "status"), [("successful", "done"), ("failed", "failed")])
def test_what_became_of_the_steps_comes_from_the_jobs_artifacts(server: StandIn, state: str, status: str) -> None:
    server.states = [state]
    server.artifacts = {"fleet_activities": [{"action": "launch", "node": "web-3", "status": "done", "seconds": 31.5, "note": "a note"}]}
    result = launched(server)
    assert result.status == status
    (activity,) = result.activities
    assert (activity["node"], activity["seconds"], activity["message"]) == ("web-3", 31.5, "a note")


@pytest.mark.parametrize("artifacts", ["$hidden due to Ansible no_log flag$", None, {"fleet_activities": "x"}])
def test_artifacts_that_say_nothing_are_no_fault(server: StandIn, artifacts: Any) -> None:
    server.artifacts = artifacts
    assert launched(server).activities == []


def test_a_template_that_takes_no_variables_is_not_launched(server: StandIn) -> None:
    server.prompts = False
    assert "Prompt on launch" in launched(server).message
    assert not server.jobs


def test_a_job_whose_variables_were_ignored_is_cancelled(server: StandIn) -> None:
    server.ignored = {"extra_vars": {"fleet_plan": []}}
    result = launched(server)
    assert result.status == "failed" and "ignored" in result.message
    assert server.cancelled == [100]


@pytest.mark.parametrize(
    ("status", "words"), [(400, "refuses"), (403, "may not execute"), (404, "not found"), (302, "redirects")]
)
def test_refusals_are_explained_and_not_tried_again(server: StandIn, status: int, words: str) -> None:
    server.broken = [("POST", "launch", status)]
    result = launched(server)
    assert result.status == "failed" and words in result.message
    assert sum(path.endswith("/launch/") for _method, path in server.seen) == 1


def test_a_wrong_token_is_said_without_showing_it(server: StandIn) -> None:
    result = launched(server, token="some-wrong-token")
    assert "401" in result.message and "token is wrong" in result.message
    assert "some-wrong-token" not in result.message


def test_an_unknown_template_name(server: StandIn) -> None:
    assert "0 job templates are named 'other'" in launched(server, "other").message


def test_passing_trouble_while_polling_is_waited_out(server: StandIn) -> None:
    server.broken = [("GET", "jobs/100/", 502), ("GET", "jobs/100/", 503)]
    assert launched(server).status == "done"


def test_lasting_trouble_is_told(server: StandIn) -> None:
    server.broken = [("GET", "jobs/100/", 502)] * 4
    assert "502" in launched(server).message


def test_a_lost_answer_to_a_launch_finds_the_job_and_launches_no_second(server: StandIn) -> None:
    server.lose_launch = True
    assert launched(server).status == "done"
    assert len(server.jobs) == 1


def test_a_launch_that_never_arrived_fails(server: StandIn) -> None:
    server.broken = [("POST", "launch", 503)]
    result = launched(server)
    assert result.status == "failed" and "503" in result.message
    assert not server.jobs


def test_a_job_that_takes_too_long_is_left_to_itself(server: StandIn) -> None:
    server.states = ["running"]
    assert "still running after 0 s" in launched(server, limit=0.0).message


def test_nobody_answers() -> None:
    result = AWX("http://127.0.0.1:1", TOKEN, "7", sleep=lambda _seconds: None, timeout=1).run({})
    assert result.status == "failed" and "no answer" in result.message
