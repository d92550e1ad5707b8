# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tenants' background tasks: each in its turn, by one node at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive

from .conftest import SECRET, TENANTS, LocalFleet

sys.path.insert(0, str(Path(__file__).parents[2] / "roles/jobs/files"))

import lease

pytestmark = pytest.mark.slow

UNIT = "moodle-fleet-cron"
SETTINGS = "/etc/moodle-fleet/cron.json"


class Node:
    """The jobs node."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.name = next(iter(fleet.addresses("jobs")))
        self.database = next(iter(fleet.addresses("database").values()))

    def sh(self, script: str) -> str:
        done = subprocess.run(["podman", "exec", self.name, "bash", "-ec", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def connect(self, user: str, password: str, **more: object) -> pymysql.Connection:
        return pymysql.connect(host=self.database, user=user, password=password, autocommit=True, **more)

    def runs(self, tenant: str) -> int:
        """How often the stand-in site's cron has run."""
        with self.connect("fleet_admin", derive(SECRET, "db-root", "fleet")) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM moodle_{tenant}.mdl_task_log")
            return cursor.fetchone()[0]


def wait_for(what: str, ready: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)


@pytest.fixture(name="node", scope="module")
def make_node(fleet: LocalFleet) -> Iterator[Node]:
    """The jobs node, whose minute takes five seconds meanwhile."""
    node = Node(fleet)
    kept = node.sh(f"cat {SETTINGS}")
    settings = json.loads(kept)
    settings["limits"]["interval"] = 5
    subprocess.run(["podman", "exec", "-i", node.name, "sh", "-c", f"cat > {SETTINGS}"], input=json.dumps(settings), text=True, check=True)
    node.sh(f"systemctl restart {UNIT}")
    yield node
    subprocess.run(["podman", "exec", "-i", node.name, "sh", "-c", f"cat > {SETTINGS}"], input=kept, text=True, check=True)
    node.sh(f"systemctl restart {UNIT}")


def test_every_tenant_has_its_turn_again_and_again(node):
    before = {tenant: node.runs(tenant) for tenant in TENANTS}
    wait_for("three turns each", lambda: all(node.runs(tenant) >= before[tenant] + 3 for tenant in TENANTS))


def test_what_compiles_may_die(node):
    """A new one takes its place, and nobody's turn is lost for long."""
    node.sh("pkill -KILL -f '[r]unner.php'")
    before = {tenant: node.runs(tenant) for tenant in TENANTS}
    wait_for("two turns each", lambda: all(node.runs(tenant) >= before[tenant] + 2 for tenant in TENANTS))


def test_a_site_in_maintenance_rests_and_is_said_to(node):
    closed = f"/srv/moodledata/{TENANTS[0]}/data/climaintenance.html"
    node.sh(f"touch {closed}")
    try:
        time.sleep(1)
        before, other = node.runs(TENANTS[0]), node.runs(TENANTS[1])
        wait_for("the other's turns", lambda: node.runs(TENANTS[1]) >= other + 2)
        assert node.runs(TENANTS[0]) == before
        wait_for("the status", lambda: "maintenance" in json.loads(node.sh(f"cat /run/{UNIT}/status.json"))["tenants"][TENANTS[0]].get("resting", ""))
        metrics = node.sh(f"cat /run/{UNIT}/jobs.prom")
        assert f'moodle_jobs_tenant_resting{{tenant="{TENANTS[0]}"}} 1' in metrics and "\nmoodle_jobs_active 1\n" in metrics
    finally:
        node.sh(f"rm -f {closed}")


def test_a_tenant_whose_runs_fail_backs_off_alone(node):
    """Its database refuses it; the other goes on, and so does it once that is over."""
    with node.connect("fleet_admin", derive(SECRET, "db-root", "fleet")) as connection, connection.cursor() as cursor:
        account = f"moodle_{TENANTS[0]}_g1"
        cursor.execute("SELECT Host FROM mysql.user WHERE User = %s", (account,))
        [(host,)] = cursor.fetchall()
        cursor.execute(f"ALTER USER '{account}'@'{host}' ACCOUNT LOCK")
        try:
            other = node.runs(TENANTS[1])
            wait_for("the other's turns", lambda: node.runs(TENANTS[1]) >= other + 4)
            wait_for("failures", lambda: json.loads(node.sh(f"cat /run/{UNIT}/status.json"))["failures"].get(TENANTS[0], 0) >= 2)
        finally:
            cursor.execute(f"ALTER USER '{account}'@'{host}' ACCOUNT UNLOCK")
    before = node.runs(TENANTS[0])
    wait_for("its turn", lambda: node.runs(TENANTS[0]) > before, 60)


def test_connections_of_a_node_that_lost_the_lease_are_ended(node):
    """Those of each tenant, and from that node alone."""
    account = {"user": f"moodle_{TENANTS[0]}_g1", "password": derive(SECRET, "db", TENANTS[0], 1)}
    with node.connect(**account) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT SUBSTRING_INDEX(USER(), '@', -1)")
        [(address,)] = cursor.fetchall()
        fence = "runuser -u www-data -- php /usr/lib/moodle-fleet/jobs/tenants.php fence"
        assert json.loads(node.sh(f"{fence} 192.0.2.7")) == {}
        cursor.execute("SELECT 1")
        assert json.loads(node.sh(f"{fence} {address}")) == {TENANTS[0]: {"ended": 1}}
        with pytest.raises(pymysql.MySQLError):
            cursor.execute("SELECT 1")


class Contender(lease.Lease):
    """A dispatcher's lease that can be frozen."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__({"host": node.database, "port": 3306, "user": "moodle_fleet_jobs", "tls": False,
                          "password": derive(SECRET, "db-jobs", "fleet")}, name)
        self.frozen = False
        self.pulse = float("inf")

    def _beat(self) -> None:
        if not self.frozen:
            super()._beat()


def test_one_node_at_a_time_holds_the_lease(node, monkeypatch):
    """Handed over at once when it is given back, after its time when its holder is silent; who comes back knows that it lost it."""
    monkeypatch.setattr(lease, "TTL", 3)
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "MARGIN", 0.5)
    node.sh(f"systemctl stop {UNIT}")
    one, two = Contender(node, "one"), Contender(node, "two")
    try:
        one.start()
        wait_for("the lease that the node gave back", one.held, 2)
        assert one.fence == ()
        two.start()
        time.sleep(4)
        assert one.held() and not two.held() and two.holder == "one"
        # The silent one stops by itself before the other may begin.
        one.frozen = True
        wait_for("its end", lambda: not one.held(), 4)
        assert not two.held()
        wait_for("another holder", two.held, 2)
        assert len(two.fence) == 1 and not two.lost
        two.fenced()
        wait_for("the fence is forgotten", lambda: two.fence == (), 2)
        one.frozen = False
        wait_for("the loss", lambda: one.lost and one.holder == "two", 2)
        assert not one.held()
        epoch = two.epoch
        two.stop()
        assert not two.held()
        wait_for("the lease that was given back", one.held, 2)
        assert one.epoch == epoch + 1 and one.fence == ()
    finally:
        for contender in (one, two):
            if contender.is_alive():
                contender.stop()
        node.sh(f"systemctl start {UNIT}")


def test_a_drained_node_gives_the_lease_back(node):
    node.sh(f"systemctl stop {UNIT}")
    with node.connect("moodle_fleet_jobs", derive(SECRET, "db-jobs", "fleet")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT holder FROM moodle_fleet.jobs_lease")
        assert cursor.fetchall() == (("",),)
        with pytest.raises(pymysql.MySQLError):
            cursor.execute("SELECT COUNT(*) FROM moodle_fleet.tenants")
    node.sh(f"systemctl start {UNIT}")
