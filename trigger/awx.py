# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs the same playbook as a job template of AWX (or its commercial sibling), over REST."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import RunResult

ACTIVE = frozenset({"new", "pending", "waiting", "running"})


class AWXError(Exception):
    """AWX refused or did not answer. The message says what was tried and what to do."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to wherever it points."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class AWX:
    """One AWX server and the job template to launch; ``template`` is its number or its name."""

    url: str
    token: str
    template: str
    timeout: float = 20.0
    tries: int = 4
    poll: float = 2.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def run(self, extra_vars: Mapping[str, Any], *, limit: float = 3600.0) -> RunResult:
        """Launch the template, wait for its job, and say what became of it."""
        try:
            number = self._template()
            job = self._launch(number, extra_vars)
            return self._wait(job, limit)
        except AWXError as exc:
            return RunResult("failed", f"AWX {self.url}: {exc}")

    def _template(self) -> int:
        path = f"job_templates/{urllib.parse.quote(self.template)}/"
        if not self.template.isdigit():
            found = self._call("GET", "job_templates/?" + urllib.parse.urlencode({"name": self.template}))
            if found.get("count") != 1:
                raise AWXError(f"{found.get('count', 0)} job templates are named {self.template!r}; give its number")
            path = f"job_templates/{int(found['results'][0]['id'])}/"
        template = self._call("GET", path)
        if not template.get("ask_variables_on_launch"):
            raise AWXError(
                f"job template {self.template!r} does not accept variables: tick 'Prompt on launch' beside its "
                "variables, or the plan would be lost"
            )
        return int(template["id"])

    def _launch(self, template: int, extra_vars: Mapping[str, Any]) -> int:
        try:
            answer = self._call("POST", f"job_templates/{template}/launch/", {"extra_vars": dict(extra_vars)})
        except AWXError as exc:
            if exc.status and exc.status < 500:
                raise
            # The answer is lost, the job may well run: look for it rather than launch a second one.
            job = self._find(template, extra_vars.get("fleet_check_id"))
            if job is None:
                raise
            return job
        job = int(answer.get("job") or answer.get("id") or 0)
        if not job:
            raise AWXError("the launch was answered without a job number")
        ignored = answer.get("ignored_fields") or {}
        if ignored.get("extra_vars") or any(key in ignored for key in extra_vars):
            self._cancel(job)
            raise AWXError(f"job {job} was launched without the plan (variables were ignored) and is being cancelled")
        return job

    def _find(self, template: int, check: Any) -> int | None:
        query = urllib.parse.urlencode({"order_by": "-id", "page_size": 10})
        for job in self._call("GET", f"job_templates/{template}/jobs/?{query}").get("results", []):
            try:
                if check is not None and json.loads(job.get("extra_vars") or "{}").get("fleet_check_id") == check:
                    return int(job["id"])
            except (ValueError, KeyError, TypeError):
                continue
        return None

    def _cancel(self, job: int) -> None:
        try:
            self._call("POST", f"jobs/{job}/cancel/", {})
        except AWXError:
            pass  # it may have ended by itself; what matters is told by the caller

    def _wait(self, job: int, limit: float) -> RunResult:
        end = self.clock() + limit
        pause = self.poll
        while True:
            data = self._call("GET", f"jobs/{job}/")
            state = str(data.get("status", ""))
            if state == "successful":
                return RunResult("done", f"AWX job {job}", _activities(data))
            if state not in ACTIVE:
                words = {"canceled": "was cancelled", "error": "could not run", "failed": "failed"}
                why = " ".join(str(data.get(key) or "") for key in ("job_explanation", "result_traceback")).strip()
                text = f"AWX job {job} {words.get(state, f'ended as {state!r}')}"
                return RunResult("failed", f"{text}: {why[:500]}" if why else text, _activities(data))
            if self.clock() >= end:
                return RunResult("failed", f"AWX job {job} still {state} after {limit:.0f} s; it goes on by itself")
            self.sleep(pause)
            pause = min(pause * 1.5, 15.0)

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One request; reads are tried again, launches never."""
        for attempt in range(1, self.tries + 1):
            try:
                return self._once(method, path, body)
            except AWXError as exc:
                if method != "GET" or 0 < exc.status < 500 or attempt == self.tries:
                    raise
                self.sleep(min(2.0 ** attempt, 20.0))
        raise AWXError("not tried")

    def _once(self, method: str, path: str, body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/api/v2/{path}",
            data=None if body is None else json.dumps(body).encode("utf-8"),
            method=method,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json",
                     "Accept": "application/json"},
        )
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                text = answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as exc:
            detail = exc.read(2000).decode("utf-8", "replace").strip()
            raise AWXError(_meaning(exc.code, method, path, detail), exc.code) from exc
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "reason", exc)
            raise AWXError(f"no answer to {method} {path}: {reason}: check the address and the network") from exc
        try:
            data = json.loads(text or "{}")
        except ValueError as exc:
            raise AWXError(f"{method} {path} was not answered in JSON: is this the address of AWX?") from exc
        return data if isinstance(data, dict) else {}


def _activities(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What became of the plan's steps, as scale.yml leaves it in the job's artifacts."""
    artifacts = job.get("artifacts")
    found = artifacts.get("fleet_activities") if isinstance(artifacts, dict) else None
    return [{**one, "message": one.get("note", "")} for one in found if "action" in one] if isinstance(found, list) else []


def _meaning(code: int, method: str, path: str, detail: str) -> str:
    hints = {
        301: "the address redirects; give the address it points to",
        302: "the address redirects; give the address it points to",
        400: "the job template refuses the launch or its variables",
        401: "the token is wrong or has expired; make a new one and give it by --awx-token-file",
        403: "the token's user may not execute this job template",
        404: "not found; check the address and the job template",
        405: "not allowed; check the address",
    }
    hint = hints.get(code, "AWX is in trouble; the next check tries again" if code >= 500 else "refused")
    return f"{method} {path} gave {code}: {hint}" + (f" ({detail[:300]})" if detail else "")
