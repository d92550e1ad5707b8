# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A fleet's objects in AWX, made by the real playbook and awx.awx over HTTP; then the trigger launches what was made. And a template's
job in the folders that AWX prepares for ansible-runner."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.elearning.moodle_fleet.tests.integration.awx_server import ADMIN, AUDITOR, HIDDEN, AWXServer
from ansible_collections.elearning.moodle_fleet.trigger.awx import AWX

ROOT = Path(__file__).parents[2]
PLAYBOOKS = {f"playbooks/{path.name}" for path in (ROOT / "playbooks").glob("*.yml")}
KEY = "a-private-key-of-the-test"
VARIABLES = {
    "awx_fleet": "prod",
    "awx_project_url": "https://git.example.org/moodle-fleet.git",
    "awx_fleet_file": "inventories/aws/moodle_fleet.yml",
    "awx_execution_environment": "registry.example.org/moodle-fleet-ee:1.0.0",
    "awx_cloud": {"username": "an-id", "password": "a-cloud-password"},
    "awx_ssh_key": KEY,
    "awx_vault_password": "a-vault-password",
    "awx_fleet_secret": "a-secret-of-the-fleet",
    "awx_notifications": [
        {
            "name": "operators",
            "type": "webhook",
            "configuration": {"url": "https://chat.example.org/hook", "http_method": "POST", "disable_ssl_verification": False, "headers": {}},
        },
    ],
}


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[AWXServer]:
    # Small pages, so that whoever reads the first page alone is found out.
    server = AWXServer(PLAYBOOKS, page_size=2)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module", name="collection")
def _collection() -> None:
    """The modules are somebody else's."""
    found = subprocess.run(["ansible-doc", "--list", "awx.awx"], capture_output=True, text=True, check=False).stdout
    if "awx.awx.job_template" not in found:
        pytest.skip("the collection awx.awx is not installed: ansible-galaxy collection install awx.awx")


Play = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", name="play")
def _play(server: AWXServer, collection: None, tmp_path_factory: pytest.TempPathFactory) -> Play:
    home = tmp_path_factory.mktemp("controller")

    def play(*arguments: str, token: str = ADMIN, **more: Any) -> subprocess.CompletedProcess[str]:
        file = home / "awx.yml"
        file.write_text(yaml.safe_dump({**VARIABLES, **more}))
        environment = {**os.environ, "CONTROLLER_HOST": server.url, "CONTROLLER_OAUTH_TOKEN": token, "HOME": str(home)}
        command = ["ansible-playbook", "-i", "localhost,", str(ROOT / "playbooks" / "awx.yml"), "-e", f"@{file}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)

    return play


@pytest.fixture(scope="module", name="made")
def _made(server: AWXServer, play: Play) -> subprocess.CompletedProcess[str]:
    """The first run, into an AWX that knows nothing of the fleet."""
    done = play()
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def call(server: AWXServer, method: str, path: str, body: Any = None, token: str = ADMIN) -> tuple[int, Any]:
    """What somebody's own request is answered."""
    request = urllib.request.Request(
        f"{server.url}/api/v2/{path}", None if body is None else json.dumps(body).encode(), {"Authorization": f"Bearer {token}"}, method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as exc:
        return exc.code, json.loads(exc.read() or b"null")


def trigger(server: AWXServer, template: str, token: str = ADMIN) -> Any:
    """The plan of check 12, carried out as moodle-fleet does it."""
    return AWX(server.url, token, template, sleep=lambda _seconds: None).run({"fleet_check_id": 12, "fleet_plan": [{"action": "launch"}]})


def test_in_check_mode_nothing_is_written_to_an_empty_awx(server: AWXServer, play: Play) -> None:
    done = play("--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not server.writes


@pytest.mark.usefixtures("made")
class TestWhatIsMade:
    """In their order: the first run has made it all."""

    def test_a_second_run_changes_nothing(self, server: AWXServer, play: Play) -> None:
        server.writes.clear()
        done = play()
        assert done.returncode == 0 and re.search(r"changed=0 .*failed=0", done.stdout), done.stdout + done.stderr
        assert not server.writes

    def test_secrets_are_kept_and_never_shown(self, server: AWXServer, made: subprocess.CompletedProcess[str]) -> None:
        inputs = {item["name"]: item["inputs"] for item in server.items["credentials"].values()}
        assert inputs["prod: ssh"] == {"ssh_key_data": HIDDEN}
        assert server.secrets[server.find("credentials", "prod: ssh")["id"]] == {"ssh_key_data": KEY}
        assert KEY not in made.stdout and "a-vault-password" not in made.stdout

    def test_the_templates_fit_their_playbooks(self, server: AWXServer) -> None:
        templates = {item["name"].removeprefix("prod: "): item for item in server.items["job_templates"].values()}
        assert set(templates) == {"scale", "size", "bake", "tenants", "release", "drain", "backup", "restore"}
        for name, template in templates.items():
            assert not template["allow_simultaneous"]
            assert json.loads(template["extra_vars"])["moodle_fleet_file"] == "/runner/project/inventories/aws/moodle_fleet.yml"
            assert server.linked("job_templates", template["id"], "credentials") == ["prod: cloud", "prod: ssh", "prod: vault", "prod: secret"]
            assert server.linked("job_templates", template["id"], "notification_templates_error") == ["prod: operators"], name
            # A variable that a survey asks for is one that the playbook knows.
            for question in server.surveys.get(("job_templates", template["id"]), {}).get("spec", []):
                known = (ROOT / template["playbook"]).read_text() + (ROOT / "roles/tenants/tasks/restore.yml").read_text()
                assert question["variable"] in known

    def test_the_workflow_asks_before_it_releases(self, server: AWXServer) -> None:
        nodes = {item["identifier"]: item for item in server.items["workflow_job_template_nodes"].values()}
        after = {name: server.linked("workflow_job_template_nodes", node["id"], "success_nodes") for name, node in nodes.items()}
        assert after == {"backup": ["approve"], "approve": ["release"], "release": []}
        approval = server.all("unified_job_templates")[nodes["approve"]["unified_job_template"]]
        assert (approval["type"], approval["timeout"]) == ("workflow_approval_template", 86400)

    def test_the_trigger_launches_the_template_with_its_plan(self, server: AWXServer) -> None:
        result = trigger(server, "prod: scale")
        assert result.status == "done", result
        (job,) = server.items["jobs"].values()
        sent = json.loads(job["extra_vars"])
        assert (sent["fleet_check_id"], sent["fleet_plan"]) == (12, [{"action": "launch"}])
        assert sent["moodle_fleet_file"].startswith("/runner/project/")

    def test_a_template_that_asks_for_no_plan_is_not_launched_by_the_trigger(self, server: AWXServer) -> None:
        before = len(server.items["jobs"])
        assert "Prompt on launch" in trigger(server, "prod: size").message
        assert len(server.items["jobs"]) == before

    def test_who_may_only_read_can_neither_launch_nor_make(self, server: AWXServer, play: Play) -> None:
        assert "may not execute" in trigger(server, "prod: scale", AUDITOR).message
        done = play(token=AUDITOR, awx_fleet="other")
        assert done.returncode != 0 and "permission" in done.stdout

    def test_a_survey_lets_in_its_own_variables_alone(self, server: AWXServer) -> None:
        path = f"job_templates/{server.find('job_templates', 'prod: size')['id']}/launch/"
        assert call(server, "POST", path, {})[0] == 400
        status, answer = call(server, "POST", path, {"extra_vars": {"fleet_desired": 5, "moodle_fleet_file": "/tmp/other"}})
        assert (status, answer["ignored_fields"]) == (201, {"extra_vars": {"moodle_fleet_file": "/tmp/other"}})
        sent = json.loads(server.items["jobs"][answer["job"]]["extra_vars"])
        assert sent == {"fleet_desired": 5, "moodle_fleet_file": "/runner/project/inventories/aws/moodle_fleet.yml"}

    def test_a_second_job_of_a_template_waits_and_what_is_in_use_stays(self, server: AWXServer) -> None:
        path = f"job_templates/{server.find('job_templates', 'prod: scale')['id']}"
        first, second = (call(server, "POST", f"{path}/launch/", {"extra_vars": {}})[1]["job"] for _each in range(2))
        states = [call(server, "GET", f"jobs/{job}/")[1]["status"] for job in (second, first, second, first, second)]
        assert states == ["pending", "running", "pending", "successful", "running"]
        assert call(server, "DELETE", f"{path}/")[0] == 409
        call(server, "POST", f"jobs/{second}/cancel/", {})
        assert call(server, "GET", f"jobs/{second}/")[1]["status"] == "canceled"

    def test_a_change_of_the_data_changes_that_object_alone(self, server: AWXServer, play: Play) -> None:
        server.writes.clear()
        only = ("--start-at-task", "Schedules")
        done = play("--check", *only, awx_check_minutes=0)
        assert done.returncode == 0 and "changed=1" in done.stdout and not server.writes, done.stdout
        done = play(*only, awx_check_minutes=0)
        assert done.returncode == 0, done.stdout + done.stderr
        schedule = server.find("schedules", "prod: check")
        assert server.writes == [("PATCH", schedule["url"])] and not schedule["enabled"]


FLEET = """
plugin: elearning.moodle_fleet.fleet
fleet: awxjob
state_dir: ../state
cloud: {driver: podman, subnet: 10.89.97.0/24}
scaling: {min_nodes: 2, max_nodes: 4, workers: 4}
"""


def scale_job(home: Path, *options: str, **variables: Any) -> list[dict[str, Any]]:
    """The events of the scale template's job. AWX imports the inventory beforehand and gives jobs a script that prints it: there is no
    fleet file among the inventories, no group_vars beside it."""
    source, job = home / "source", home / "job"
    for folder in (source / "group_vars" / "all", job / "inventory", job / "env"):
        folder.mkdir(parents=True)
    (source / "moodle_fleet.yml").write_text(FLEET)
    (source / "group_vars" / "all" / "main.yml").write_text("moodle_fleet_secret: a-secret-for-tests-alone-0123456789abcdef\n")
    exported = subprocess.run(["ansible-inventory", "-i", str(source / "moodle_fleet.yml"), "--list", "--export"],
                              capture_output=True, text=True, check=True, cwd=ROOT).stdout
    (job / "project").symlink_to(ROOT)
    script = job / "inventory" / "hosts"
    script.write_text(f"#!{sys.executable}\nprint({exported!r})\n")
    script.chmod(0o700)
    (job / "env" / "extravars").write_text(json.dumps({"moodle_fleet_file": str(source / "moodle_fleet.yml"), **variables}))
    (job / "env" / "envvars").write_text(json.dumps({"ANSIBLE_INVENTORY_UNPARSED_FAILED": "True"}))
    environment = {name: value for name, value in os.environ.items() if name != "ANSIBLE_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-m", "ansible_runner", "run", str(job), "--playbook", "playbooks/scale.yml",
         "--inventory", str(script), "--ident", "1", *options],
        capture_output=True, text=True, env=environment, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(path.read_text()) for path in (job / "artifacts" / "1" / "job_events").glob("*.json")]


def test_in_check_mode_the_scale_template_shows_the_plan(tmp_path: Path) -> None:
    events = scale_job(tmp_path, "--cmdline=--check")
    # An empty fleet wants its minimum, and nothing was recorded or launched.
    (plan,) = [event["event_data"]["res"]["msg"]["plan"] for event in events
               if event["event"] == "runner_on_ok" and event["event_data"]["task"] == "Show the plan"]
    assert [(step["action"], step["count"]) for step in plan["steps"]] == [("launch", 2)]
    assert not (tmp_path / "state" / "ledger.sqlite").exists()


def test_a_plan_of_the_triggers_needs_no_ledger_and_tells_what_became_of_it(tmp_path: Path) -> None:
    plan = [{"action": "forget", "node": "awxjob-web-9", "reason": "gone"}]
    events = scale_job(tmp_path, fleet_plan=plan, fleet_check_id=12, fleet_record=False)
    # AWX keeps this as the job's artifacts.
    (stats,) = [event["event_data"]["artifact_data"] for event in events if event["event"] == "playbook_on_stats"]
    assert [(one["action"], one["node"]) for one in stats["fleet_activities"]] == [("forget", "awxjob-web-9")]
    assert not (tmp_path / "state" / "ledger.sqlite").exists()


def test_a_job_sees_the_nodes_that_were_made_meanwhile(tmp_path: Path) -> None:
    """Its inventory is a copy, so playbooks/tasks/see_nodes.yml reads the fleet file."""
    web = {"web": {"hosts": ["web-1"]}, "all": {"children": ["web"], "vars": {"ansible_connection": "local"}}}
    node = {"fleet_node": {"name": "web-1", "tags": {}}}
    changed = {"fleet_node": {"name": "web-1", "tags": {"lane": "next"}}}
    inventories = {
        "copy": {**web, "_meta": {"hostvars": {"web-1": node}}},
        "fleet": {**web, "builder": {"hosts": ["builder-1"]},
                  "_meta": {"hostvars": {"web-1": changed, "builder-1": {"fleet_node": {"name": "{{ 1 + 1 }}"}}}}},
    }
    for name, content in inventories.items():
        (tmp_path / name).write_text(f"#!{sys.executable}\nprint({json.dumps(content)!r})\n")
        (tmp_path / name).chmod(0o700)
    (tmp_path / "play.yml").write_text(f"""
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.include_tasks: {ROOT}/playbooks/tasks/see_nodes.yml
- hosts: builder
  gather_facts: false
  tasks:
    - ansible.builtin.assert:
        that:
          - group_names == ['builder']
          - groups.web == ['web-1']
          - hostvars['web-1'].fleet_node.tags.lane == 'next'
          # What comes from a cloud is never a template.
          - fleet_node.name is search('1 [+] 1')
""")
    done = subprocess.run(["ansible-playbook", "-i", str(tmp_path / "copy"), "-e", f"moodle_fleet_file={tmp_path}/fleet", "play.yml"],
                          capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0 and re.search(r"builder-1 +: ok=1", done.stdout), done.stdout + done.stderr
