# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs playbooks/scale.yml on this machine through ansible-runner."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import RunResult

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Plan

COLLECTION = Path(__file__).parent.parent
KEPT_RUNS = 20
# What of a step is what to launch.
LAUNCH = ("count", "token", "image", "release", "zones", "tags")


def run_playbook(
    playbook: Path,
    inventory: Path,
    extra_vars: Mapping[str, Any],
    folder: Path,
    *,
    lock: int | None = None,
    timeout: float = 3600.0,
    meanwhile: Callable[[], object] = lambda: None,
) -> RunResult:
    """Run the playbook in a process of its own, which inherits the lock, and read what became of it.

    Its whole output is kept in ``folder``, the last :data:`KEPT_RUNS` beside each other. ``meanwhile`` is called while Ansible
    starts.
    """
    if not playbook.is_file():
        return RunResult("failed", f"{playbook} does not exist; give another by --playbook")
    variables = folder / "env" / "extravars"
    variables.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(variables, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as handle:
        json.dump(dict(extra_vars), handle)
    command = [
        sys.executable, "-m", "ansible_runner", "run", str(folder), "--playbook", str(playbook.resolve()),
        "--inventory", str(inventory.resolve()), "--project-dir", str(COLLECTION.resolve()), "--ident", "run",
    ]
    # Modules and plugins find the collection where this very file was found.
    environment = dict(os.environ)
    environment.setdefault("ANSIBLE_COLLECTIONS_PATH", str(_collections_root()))
    environment["PATH"] = os.path.dirname(sys.executable) + os.pathsep + environment.get("PATH", os.defpath)
    with open(folder / "output.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            pass_fds=(lock,) if lock is not None else (), start_new_session=True,
        )
        beside = threading.Thread(target=meanwhile, daemon=True)
        beside.start()
        code = _wait(process, timeout)
        beside.join(60)
    _forget_old(folder.parent)
    if code is None:
        return RunResult("failed", f"stopped after {timeout:.0f} s; see {folder}/output.log")
    if code == 0:
        return RunResult("done")
    return RunResult("failed", _failures(folder) or f"{_last_error(folder)}ended with {code}; see {folder}/output.log")


def launch_at_once(fleet: Fleet, plan: Plan, answer: Path) -> None:
    """Ask a quick cloud for the plan's nodes, and write down what it answered, as the playbook's module ``node`` would.

    Where it does not answer in time, or not with all of them, the playbook asks for the same, and says what went wrong.
    """
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import LaunchSpec
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import cloud_driver

    with contextlib.suppress(Exception):
        cloud = cloud_driver(fleet)
        results = []
        for step in plan.to_data()["steps"] if cloud.at_once else ():
            if step["action"] == "launch":
                nodes = cloud.launch(LaunchSpec("web", **{key: step[key] for key in LAUNCH if key in step}))
                results.append({"step": step, "changed": True, "nodes": [cloud.as_result(node) for node in nodes]})
        if results:
            fresh = answer.with_suffix(".new")
            fresh.write_text(json.dumps(results), encoding="utf-8")
            fresh.replace(answer)


def _wait(process: subprocess.Popen[bytes], timeout: float) -> int | None:
    """The exit code; None when time ran out. Being ended ourselves ends the run too."""

    def forward(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        signal.signal(signal.SIGTERM, previous)
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def _failures(folder: Path) -> str:
    """The failed tasks in one line, from the run's events."""
    found = []
    for path in sorted((folder / "artifacts" / "run" / "job_events").glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            event = json.loads(path.read_text(encoding="utf-8"))
            if event.get("event") in ("runner_on_failed", "runner_on_unreachable"):
                data = event.get("event_data", {})
                if not data.get("ignore_errors"):
                    text = str(data.get("res", {}).get("msg", "")).strip().replace("\n", " ")
                    found.append(f"{data.get('host')}: {data.get('task')}: {text[:300]}")
    return "; ".join(found[:3])


def _last_error(folder: Path) -> str:
    """The last error before any task ran, for example an inventory that cannot be read."""
    text = (folder / "output.log").read_text(encoding="utf-8", errors="replace")
    found = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if "ERROR" in line]
    return f"{found[-1].strip()[:300]}; " if found else ""


def _forget_old(folder: Path) -> None:
    runs: Sequence[Path] = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda p: p.stat().st_mtime)
    for path in runs[:-KEPT_RUNS]:
        shutil.rmtree(path, ignore_errors=True)


def _collections_root() -> Path:
    """The folder that holds ansible_collections, as Python found it (a link is not followed)."""
    return Path(__file__).parents[4]
