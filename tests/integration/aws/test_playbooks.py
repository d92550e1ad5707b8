# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""scale.yml with EC2 and an ALB: what the APIs show. The instances have addresses of this machine and answer their health check."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.loadbalancer import LoadBalancer
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
Playbook = Callable[..., subprocess.CompletedProcess[str]]


@contextlib.contextmanager
def living(server: AwsServer, answer: dict[str, object]) -> Iterator[None]:
    """Give each instance a web server that says it is healthy, at its own address."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    running: dict[str, http.server.ThreadingHTTPServer] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            for address in {one.private_ip for one in server.instances()} - set(running):
                running[address] = http.server.ThreadingHTTPServer((address, 80), Handler)
                threading.Thread(target=running[address].serve_forever, daemon=True).start()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for one in running.values():
            one.shutdown()
            one.server_close()


@pytest.fixture(name="balancer")
def fixture_balancer(aws: AwsServer) -> Iterator[LoadBalancer]:
    balancer = LoadBalancer(aws)
    aws.targets.initial_seconds, aws.targets.drain_seconds = 0.5, 1.0
    aws.targets.probe = lambda _target: True
    yield balancer
    balancer.close()


@pytest.fixture(name="playbook")
def fixture_playbook(aws: AwsServer, balancer: LoadBalancer, tmp_path: Path) -> Playbook:
    """Runs scale.yml with an inventory of its own; every service is managed elsewhere."""
    if os.geteuid():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("port 80 of the nodes' addresses needs root")
    endpoint = {"endpoint": "service.example:1234"}
    values = {
        "plugin": "elearning.moodle_fleet.fleet", "fleet": "aws", "state_dir": str(tmp_path / "state"),
        "cloud": cloud_settings(aws, network="127.20.0.0/16"), "balancer": balancer.settings(),
        "services": {"database": endpoint, "cache": endpoint, "logs": endpoint, "jobs": {"count": 0}},
        "scaling": {"min_nodes": 2, "max_nodes": 4, "workers": 4},
    }
    inventory = tmp_path / "inventory"
    (inventory / "group_vars").mkdir(parents=True)
    (inventory / "moodle_fleet.yml").write_text(yaml.safe_dump(values))
    (inventory / "group_vars/all.yml").write_text("moodle_fleet_secret: a-secret-for-tests-alone-0123456789abcdef\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["ansible-playbook", "-i", str(inventory), str(ROOT / "playbooks/scale.yml"), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        return done

    return run


def changed(done: subprocess.CompletedProcess[str]) -> int:
    return sum(int(count) for count in re.findall(r"changed=(\d+)", done.stdout))


def test_scale_goes_out_and_in(aws: AwsServer, balancer: LoadBalancer, playbook: Playbook, tmp_path: Path) -> None:
    fingerprint: dict[str, object] = {"release": "", "workers": 6}
    assert "launch" in playbook("--check", "--diff", "-e", "fleet_desired=2").stdout
    assert aws.instances() == []
    with living(aws, fingerprint):
        fingerprint["tenants"] = tenants_of(tmp_path)
        playbook("-e", "fleet_desired=2")
        assert len(aws.instances()) == 2
        states = [aws.targets.state(balancer.group, one)[0] for one in aws.targets.current(balancer.group)]
        assert states == ["healthy", "healthy"]
        tags = [{one["key"]: one["value"] for one in instance.get_tags()} for instance in aws.instances()]
        assert [one["moodle_fleet:tag:workers"] for one in tags] == ["6", "6"]
        assert changed(playbook("-e", "fleet_desired=2")) == 0
        assert len(aws.instances()) == 2

        name = f"{tags[0]['Name']}-1"
        step = {"action": "retire", "node": name, "reason": "by hand", "deadline": time.time() - 1, "forced": True}
        playbook("-e", json.dumps({"fleet_plan": [step], "scale_patience": 1}))
        assert len(aws.instances()) == 1
        assert len(aws.targets.current(balancer.group)) == 1
    actions = [call.action for call in aws.calls]
    assert actions.index("DeregisterTargets") < actions.index("TerminateInstances")


def tenants_of(tmp_path: Path) -> str:
    """The fingerprint of no tenants, as the role works it out."""
    play = tmp_path / "fingerprint.yml"
    role = {"name": "elearning.moodle_fleet.tenants", "tasks_from": "fingerprint"}
    answer = {"content": "{{ tenants_fingerprint }}", "dest": str(tmp_path / "fingerprint"), "mode": "0600"}
    tasks = [{"ansible.builtin.import_role": role}, {"ansible.builtin.copy": answer}]
    play.write_text(yaml.safe_dump([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]))
    wiring = f"@{ROOT / 'playbooks/group_vars/all/wiring.yml'}"
    command = ["ansible-playbook", "-i", str(tmp_path / "inventory"), "-e", wiring, str(play)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return (tmp_path / "fingerprint").read_text()
