# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""site.yml on a fleet that is already as it should be: seconds, tasks, ssh executions."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from measure import median, report, run, say
from nodes import ROOT

# Stands in ssh's place, writes a line for each start and becomes ssh.
WRAPPER = """#!/bin/sh
echo x >> {log}
exec {ssh} "$@"
"""


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `no-change`."""
    rows = []
    rounds = min(given.rounds, 3)
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
        log, ssh = Path(folder) / "log", Path(folder) / "ssh"
        ssh.write_text(WRAPPER.format(log=log, ssh=shutil.which("ssh")), encoding="utf-8")
        ssh.chmod(0o755)
        environment = os.environ | {
            "ANSIBLE_SSH_EXECUTABLE": str(ssh), "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "0",
        }
        command = ("ansible-playbook", "-i", str(Path(given.fleet_file).absolute().parent), "playbooks/site.yml")
        for number in range(rounds + 1):
            say(f"  run {number} of {rounds} …" if number else "  a run before, so that there is nothing left to do …")
            log.write_text("", encoding="utf-8")
            start = time.perf_counter()
            output = run(*command, env=environment, cwd=ROOT)
            seconds = time.perf_counter() - start
            if not number:
                continue
            recap = output.split("PLAY RECAP", 1)[1]
            rows.append({
                "run": str(number), "seconds": seconds,
                "tasks": len(re.findall(r"^(?:TASK|RUNNING HANDLER) \[", output, re.MULTILINE)),
                "task results": sum(int(value) for value in re.findall(r"\bok=(\d+)", recap)),
                "ssh executions": len(log.read_text(encoding="utf-8").splitlines()),
                "hosts": len(re.findall(r"\bok=", recap)),
                "changed": sum(int(value) for value in re.findall(r"\bchanged=(\d+)", recap)),
            })
            if rows[-1]["changed"]:
                say("\n".join(re.findall(r"^changed: .*$", output, re.MULTILINE)))
    rows.append({"run": "median", **{key: median([row[key] for row in rows]) for key in rows[0] if key != "run"}})
    report("no-change", "site.yml with nothing to change", rows)
