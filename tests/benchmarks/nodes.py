# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The running local fleet as the benchmarks see it, and the containers they add beside it."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.podman import mac_address
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.resp import Connection
from measure import run, say, wait_for

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LOAD = ROOT / "tests/load"


class Fleet:
    """Facts of the fleet, asked for once through Ansible; learners and a course exist afterwards."""

    def __init__(self, fleet_file: str, learners: int = 10):
        self.file = Path(fleet_file).absolute()
        with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
            target = Path(folder) / "facts.json"
            say("Asking the fleet, and making a course and learners …")
            self.playbook(LOAD / "prepare.yml", load_facts=str(target), load_learners=learners, load_admins=True)
            facts = json.loads(target.read_text(encoding="utf-8"))
        self.name: str = facts["name"]
        self.state = Path(facts["state_dir"])
        self.port: int = facts["public_port"]
        self.tenants: list[dict] = facts["tenants"]
        self.nodes: list[dict] = facts["nodes"]
        self.redis: dict = facts["redis"]
        self.standin: bool = self.tenants[0]["site"]["standin"]
        self.network = ipaddress.ip_network(facts["network"])
        if len(self.of("web")) < 1:
            raise SystemExit("The fleet has no web node: run scripts/demo first")

    @property
    def what(self) -> str:
        """What was measured, for the reports."""
        return "the stand-in site" if self.standin else f"Moodle {self.tenants[0]['site']['release']}"

    def playbook(self, path: Path, **variables: object) -> str:
        """Run a playbook with the fleet's inventory."""
        with tempfile.NamedTemporaryFile("w", prefix="moodle-fleet-", suffix=".json") as file:
            json.dump(variables, file)
            file.flush()
            return run("ansible-playbook", "-i", str(self.file.parent), str(path), "-e", f"@{file.name}", cwd=ROOT)

    def of(self, role: str) -> list[dict]:
        """Nodes of a role."""
        return [node for node in self.nodes if node["role"] == role]

    def names(self, *roles: str) -> list[str]:
        """Names, which are those of the containers too."""
        return [node["name"] for node in self.nodes if node["role"] in roles]

    def address(self, index: int) -> str:
        """An address at the far end of the fleet's network, for a benchmark's own container."""
        return str(self.network.broadcast_address - index)

    def redis_commands(self) -> int:
        """Commands that both Redis instances have executed."""
        total = 0
        for port in self.redis["ports"]:
            with Connection(self.redis["host"], port, self.redis["user"], self.redis["password"]) as connection:
                text = str(connection.call("INFO", "stats"))
                total += int(text.split("total_commands_processed:", 1)[1].split()[0])
        # AUTH and INFO of this reading and of the one before.
        self._own = getattr(self, "_own", 0) + 2 * len(self.redis["ports"])
        return total - self._own

    def queries(self, container: str) -> int:
        """Statements that the database in a container has executed."""
        text = run("podman", "exec", container, "mariadb", "-N", "-e", "SHOW GLOBAL STATUS LIKE 'Questions'")
        return int(text.split()[1])

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Without the jobs nodes, whose cron would be counted in the database and in Redis."""
        jobs = self.names("jobs")
        for name in jobs:
            run("podman", "pause", name, check=False)
        try:
            yield
        finally:
            for name in jobs:
                run("podman", "unpause", name, check=False)


def pipe(source: list[str], target: list[str]) -> None:
    """source | target"""
    with subprocess.Popen(source, stdout=subprocess.PIPE) as first:
        done = subprocess.run(target, stdin=first.stdout, check=False)
    if first.returncode or done.returncode:
        raise SystemExit(f"{' '.join(source[:4])} … | {' '.join(target[:4])} … failed")


class Container:
    """A container that a benchmark adds to the fleet's network. It is no node: no inventory lists it."""

    def __init__(self, fleet: Fleet, name: str, index: int, image: str, shared: bool = False):
        self.fleet = fleet
        self.name = f"{fleet.name}-bench-{name}"
        self.address = fleet.address(index)
        self.image = image
        self.shared = shared

    def start(self) -> bool:
        """Start it, anew where its image has changed; tells whether it is new."""
        wanted = run("podman", "image", "inspect", "--format", "{{.Id}}", self.image).strip()
        found = run("podman", "ps", "--all", "--no-trunc", "--filter", f"name=^{self.name}$", "--format", "{{.ImageID}}").strip()
        if found and found != wanted:
            self.remove()
        state = run("podman", "ps", "--all", "--filter", f"name=^{self.name}$", "--format", "{{.State}}").strip()
        if state:
            if state != "running":
                run("podman", "start", self.name)
            return False
        command = ["podman", "run", "--detach", "--systemd=always", "--name", self.name, "--hostname", self.name]
        command += [f"--network=moodle-fleet-{self.fleet.name}", f"--ip={self.address}"]
        command += [f"--mac-address={mac_address(self.address)}", "--label=moodle_fleet.fleet=", "--label=moodle_fleet.bench=1"]
        if self.shared:
            command.append(f"--volume=moodle-fleet-{self.fleet.name}-files:/srv/moodledata")
        run(*command, self.image, "/sbin/init")
        return True

    def remove(self) -> None:
        """Take it away."""
        run("podman", "rm", "--force", "--time", "2", "--volumes", self.name, check=False)

    def sh(self, script: str, stdin: str | None = None, check: bool = True) -> str:
        """Run a shell script inside."""
        return run("podman", "exec", "-i", self.name, "sh", "-ec", script, stdin=stdin, check=check)


# What a web node has beyond its image, and where its compiled list of components lies.
CONFIGURATION = ["etc/moodle-fleet", "usr/lib/moodle-fleet"]


class WebNode(Container):
    """A web node from the fleet's image with the fleet's configuration, that the balancer does not know."""

    def __init__(self, fleet: Fleet, number: int):
        web = fleet.of("web")[0]
        image = run("podman", "inspect", "--format", "{{.Image}}", web["name"]).strip()
        super().__init__(fleet, f"web-{number}", 3 + number, image, shared=True)
        self.model = web["name"]

    def start(self) -> bool:
        fresh = super().start()
        if fresh:
            wait_for(f"{self.name} boots", lambda: run("podman", "exec", self.name, "systemctl", "is-system-running", check=False)
                     .strip() in ("running", "degraded"))
            self.configure()
        return fresh

    def configure(self) -> None:
        """Give it what the fleet's own web nodes have, and wait until it is warm."""
        pipe(["podman", "exec", self.model, "tar", "-C", "/", "-c", *CONFIGURATION],
             ["podman", "exec", "-i", self.name, "tar", "-C", "/", "-x"])
        self.restart_php()
        self.sh("systemctl reload nginx")

    def restart_php(self) -> None:
        """Restart PHP-FPM and wait for the warm-up."""
        self.sh("systemctl restart php-fpm.service")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the node calls itself ready."""
        from site_client import health

        wait_for(f"{self.name} is ready", lambda: health(self.address), 120)

    def agent(self) -> Agent:
        """Requests to PHP-FPM of this node, past nginx."""
        return Agent(self.name)


class Agent:
    """A small process inside a container that sends requests to PHP-FPM and answers with what came back."""

    def __init__(self, container: str):
        source = (HERE / "fcgi_agent.py").read_text(encoding="utf-8")
        self._process = subprocess.Popen(
            ["podman", "exec", "-i", container, "python3", "-c", source],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ,
        )

    def call(self, script: str, host: str, body: object = None, **headers: str) -> dict:
        """The JSON that a PHP script on the node answers."""
        self._process.stdin.write(json.dumps({"script": script, "host": host, "body": body, "headers": headers}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or "null")
        if answer is None or "error" in answer:
            raise SystemExit(f"{script}: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
