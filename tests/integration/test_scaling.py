# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A whole fleet grows, shrinks, loses a node and a controller, while learners go on working."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import requests

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import balancer_reader, load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.resp import Connection

from .conftest import ROOT, SECRET, LocalFleet
from .crash_points import points

pytestmark = pytest.mark.slow


def members(fleet: LocalFleet, *addresses: str) -> dict[str, str]:
    """State of each member at these balancers, or at all."""
    reader = balancer_reader(load(fleet.file), addresses or list(fleet.addresses("balancer").values()))
    return {member.name: member.state for member in reader.read().members}


def check(fleet: LocalFleet, *arguments: str) -> dict:
    """One check by the command, as the timer takes it."""
    command = [sys.executable, "-m", "ansible_collections.elearning.moodle_fleet.trigger", "--fleet", str(fleet.file)]
    done = subprocess.run(
        [*command, "check", "--json", *arguments], capture_output=True, text=True, check=False, timeout=300, cwd=ROOT
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def settle(fleet: LocalFleet, wanted: Callable[[], bool], *arguments: str) -> list[dict]:
    """Check again and again, as the timer does, until what is wanted is there."""
    checks = []
    for _index in range(10):
        if wanted():
            return checks
        checks.append(check(fleet, *arguments))
        time.sleep(0.5)
    pytest.fail(f"not reached after {len(checks)} checks: {json.dumps(checks[-1])[:3000]}")


def serves(fleet: LocalFleet, number: int) -> bool:
    """Whether this many nodes exist and all of them, and nothing else, serve."""
    states = members(fleet)
    return set(states) == set(fleet.addresses("web")) and list(states.values()) == ["up"] * number


@dataclass
class Learners:
    """What became of the requests of a few learners; ``lines`` are the marks that each node's log must have."""

    pages: int = 0
    written: int = 0
    nodes: dict[str, float] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    longest: float = 0.0
    failures: list[str] = field(default_factory=list)


@contextmanager
def learners(fleet: LocalFleet, writers: int = 2) -> Iterator[Learners]:
    """A light load: each learner reads a page and writes a numbered line, again and again. No write may be lost or doubled."""
    stop, seen, lock = threading.Event(), Learners(), threading.Lock()
    clients = [uuid.uuid4().hex for _index in range(writers)]

    def work(client: str) -> None:
        session, number = fleet.visitor(), 0
        while not stop.is_set():
            began = time.monotonic()
            try:
                page = session.get(fleet.url("acme"), timeout=30)
                number += 1
                post = session.post(
                    fleet.url("acme", "/local/write.php"), data={"client": client, "number": number, "ms": 50}, timeout=30,
                    headers={"User-Agent": f"{client}-{number}."},
                )
                with lock:
                    seen.pages += 1
                    seen.written += 1
                    seen.longest = max(seen.longest, time.monotonic() - began)
                    if page.status_code != 200 or post.status_code != 200:
                        seen.failures.append(f"{page.status_code} {post.status_code} {post.text[:100]}")
                    else:
                        node = re.search(r'id="node">([^<]+)', page.text)[1]
                        seen.nodes.setdefault(node, time.time())
                        seen.lines.setdefault(post.json()["node"], []).append(f"{client}-{number}.")
            except requests.RequestException as exc:
                with lock:
                    seen.failures.append(repr(exc))
            time.sleep(0.1)

    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    counts: dict[str, int] = {}
    for client in clients:
        stored = fleet.visitor().get(fleet.url("acme", "/local/write.php"), params={"client": client}, timeout=30).json()
        counts |= {f"{client}:{number}": times for number, times in stored.items()}
    assert not [key for key, times in counts.items() if times != 1], "a line was written twice"
    assert len(counts) >= seen.written - len(seen.failures)


def activity(result: dict, action: str) -> dict:
    """What was recorded of one kind of step."""
    found = [one for one in result["activities"] if one["action"] == action]
    assert found, result
    return found[-1]


def lock_of(fleet: LocalFleet, node: str) -> Callable[[], bool]:
    """Lock a session in the name of a node, as Moodle does; returns whether the lock is still there."""
    password = derive(SECRET, "redis-admin", "fleet")
    address = next(iter(fleet.addresses("cache").values()))
    key = f"t:acme:s:{uuid.uuid4().hex}.lock"
    with Connection(address, 6379, "fleet_admin", password) as redis:
        redis.call("SET", key, f"[pid 7] {node}:/course/view.php?id=2", "EX", "300")

    def held() -> bool:
        with Connection(address, 6379, "fleet_admin", password) as redis:
            return bool(redis.call("EXISTS", key))

    return held


@pytest.fixture(scope="module", autouse=True)
def _two_nodes_serve(fleet: LocalFleet) -> None:
    """Tests before these may have left a dead node behind."""
    settle(fleet, lambda: serves(fleet, 2), "--desired", "2")


def test_check_mode_shows_the_plan_and_changes_nothing(fleet: LocalFleet) -> None:
    before = fleet.addresses("web"), members(fleet)
    done = fleet.playbook("scale", "--check", "-e", "fleet_desired=3")
    assert "action: launch" in done.stdout
    assert "3 nodes asked for by hand" in done.stdout
    assert (fleet.addresses("web"), members(fleet)) == before


def test_a_new_node_takes_requests_and_knows_the_tenants_without_being_told(fleet: LocalFleet) -> None:
    before = set(fleet.addresses("web"))
    with learners(fleet) as seen:
        done = fleet.playbook("scale", "-e", "fleet_desired=3")
        new = set(fleet.addresses("web")) - before
        deadline = time.monotonic() + 30
        while not new & set(seen.nodes) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert len(new) == 1
    assert serves(fleet, 3)
    assert new <= set(seen.nodes)
    assert seen.failures == []
    assert not re.search(rf"^(ok|changed): \[{new.pop()}\]", done.stdout, re.M), "the new node was logged into"
    assert not serves(fleet, 2)


def test_a_balancer_that_was_away_gets_the_members_it_lacks(fleet: LocalFleet) -> None:
    first, second = sorted(fleet.addresses("balancer"))
    fleet.cloud._podman_checked("stop a balancer", "exec", second, "systemctl", "stop", "haproxy")
    with learners(fleet) as seen:
        settle(fleet, lambda: serves(fleet, 4), "--desired", "4")
    assert seen.failures == []
    addresses = fleet.addresses("balancer")
    fleet.cloud._podman_checked("start a balancer", "exec", second, "systemctl", "start", "haproxy")
    settle(fleet, lambda: members(fleet, addresses[second]) == members(fleet, addresses[first]), "--desired", "4")
    assert serves(fleet, 4)
    settle(fleet, lambda: serves(fleet, 3), "--desired", "3")
    assert len(members(fleet, addresses[second])) == 3


def test_a_node_leaves_with_nothing_lost(fleet: LocalFleet) -> None:
    before = set(fleet.addresses("web"))
    with learners(fleet) as seen:
        time.sleep(2)
        checks = settle(fleet, lambda: serves(fleet, 2), "--desired", "2")
    assert seen.failures == []
    gone = before - set(fleet.addresses("web"))
    assert len(gone) == 1
    left = activity(checks[-1], "drain")
    assert left["status"] == "done"
    assert set(left["steps"]) == {"requests", "idle", "tasks", "stop", "logs"}
    # Every line that the node logged is at the log server, once.
    name = gone.pop()
    logs = next(iter(fleet.addresses("logs")))
    read = ["exec", logs, "cat", f"/var/log/moodle-fleet/{name}/nginx-access.log"]
    lines = fleet.cloud._podman_checked("read the logs", *read)
    assert len(seen.lines[name]) > 3
    assert [mark for mark in seen.lines[name] if lines.count(mark) != 1] == []


def test_a_killed_node_is_replaced_and_its_locks_are_released(fleet: LocalFleet) -> None:
    victim = sorted(fleet.addresses("web"))[0]
    held = lock_of(fleet, victim)
    with learners(fleet) as seen:
        fleet.cloud._podman_checked("kill a node", "kill", "--signal", "KILL", victim)
        time.sleep(2)
        settle(fleet, lambda: victim not in fleet.addresses("web") and serves(fleet, 2), "--desired", "2")
        settle(fleet, lambda: victim not in {node.name for node in fleet.cloud.nodes()}, "--desired", "2")
    assert not held()
    # A POST that was under way on the dead node may fail and is never sent twice; pages do not fail.
    assert len(seen.failures) <= 2, seen.failures
    assert serves(fleet, 2)


# A sample; the benchmark `crashes` takes every point.
GROWING = ("begin Launch from the image", "end Launch from the image", "begin Join")
SHRINKING = ("end Mark them", "begin Drain", "end Let the node finish and stop it", "end Forget them")


@pytest.mark.parametrize(("wanted", "at"), [(3, GROWING), (2, SHRINKING)], ids=["growing", "shrinking"])
def test_a_controller_that_dies_is_made_good_by_the_next(fleet: LocalFleet, wanted: int, at: tuple[str, ...]) -> None:
    names = {node.name for node in fleet.cloud.nodes()}
    with learners(fleet) as seen:
        for point in at:
            settle(fleet, lambda: serves(fleet, 5 - wanted), "--desired", str(5 - wanted))
            points(fleet.inventory, wanted, point)
            most = 0

            def there() -> bool:
                nonlocal most
                most = max(most, sum(node.role == "web" for node in fleet.cloud.nodes()))
                return serves(fleet, wanted)

            settle(fleet, there, "--desired", str(wanted))
            assert most <= 3, f"{point}: {most} nodes existed"
    assert seen.failures == []
    # No tier lost a node, and no node is left over.
    assert {name for name in names if "-web-" not in name} == {
        node.name for node in fleet.cloud.nodes() if node.role != "web"
    }


def test_a_person_drains_a_node_and_keeps_another_for_a_look(fleet: LocalFleet) -> None:
    first, second = sorted(fleet.addresses("web"))
    refused = fleet.playbook("drain", "-e", json.dumps({"nodes": [first]}), check=False)
    assert refused.returncode
    assert "1 nodes would be left in service" in refused.stdout + refused.stderr
    fleet.playbook("scale", "-e", "fleet_desired=3")
    # A node that was not ready in time joins at the next check.
    settle(fleet, lambda: serves(fleet, 3), "--desired", "3")
    fleet.playbook("drain", "-e", json.dumps({"nodes": [first], "hold": "a look at its disk"}))
    node = next(one for one in fleet.cloud.nodes() if one.name == first)
    assert node.tags["held"] == "a look at its disk"
    assert first not in members(fleet)
    assert second in members(fleet)
    fleet.cloud.terminate([first])
    settle(fleet, lambda: serves(fleet, 2), "--desired", "2")
