# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every balancer driver must do. A driver is added to ``BALANCERS``, with what it is able to show.

Tests that ask for more than every balancer has (gauges of this moment, weights, a process that is restarted, a file) name the
drivers that have it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import (
    BalancerError,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.gate import Wanted
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import (
    StillBusy,
)
from ansible_collections.elearning.moodle_fleet.tests.integration.contracts.balancers import Balancer, alb, haproxy, until

BALANCERS = ["haproxy", "alb"]
only_haproxy = pytest.mark.parametrize("balancer", ["haproxy"], indirect=True)


@pytest.fixture(name="balancer", params=BALANCERS)
def fixture_balancer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Balancer]:
    started = haproxy(tmp_path) if request.param == "haproxy" else alb(tmp_path, request.getfixturevalue("aws"))
    with started as balancer:
        yield balancer
        for node in balancer.nodes:
            node.stop()


def test_a_balancer_without_members_answers_503(balancer: Balancer) -> None:
    assert balancer.get() == 503
    reading = balancer.reader.read()
    assert reading.members == [] and reading.waiting == 0


@only_haproxy
def test_a_member_that_was_added_gets_nothing_before_it_is_healthy(balancer: Balancer) -> None:
    node = balancer.node(2)
    node.healthy = False
    assert balancer.members.join("n2", node.address, node.port, 2) is True
    time.sleep(0.5)
    assert balancer.get() == 503 and node.hits == 0
    assert balancer.state("n2") in ("starting", "down")


def test_a_member_serves_after_it_joined_and_not_before(balancer: Balancer) -> None:
    node = balancer.node(2)
    node.healthy = False
    waiting = threading.Thread(target=lambda: balancer.join("n2", node))
    waiting.start()
    time.sleep(0.5)
    assert balancer.get() == 503 and node.hits == 0
    node.healthy = True
    waiting.join()
    assert balancer.get() == 200
    (member,) = balancer.reader.read().members
    assert (member.name, member.address, member.state, member.capacity) == ("n2", node.address, "up", 2)


def test_joining_again_changes_nothing(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    (outcome,) = balancer.steps(5).join([Wanted("n2", node.address, node.port)])
    assert outcome.changed is False and outcome.state == "up"
    assert balancer.members.join("n2", node.address, node.port, 2) is False


def test_a_member_that_stays_unhealthy_is_reported_and_taken_out(balancer: Balancer) -> None:
    node = balancer.node(2)
    node.healthy = False
    (outcome,) = balancer.steps(1).join([Wanted("n2", node.address, node.port)])
    assert "503" in outcome.error and outcome.ended_by_deadline
    assert balancer.state("n2") == "absent"


def test_another_release_does_not_join(balancer: Balancer) -> None:
    node = balancer.node(2)
    (outcome,) = balancer.steps(0.5).join([Wanted("n2", node.address, node.port)], release="r2")
    assert "'r1'" in outcome.error and "'r2'" in outcome.error
    assert node.hits == 0 and balancer.get() == 503


def test_each_member_may_have_a_release_of_its_own(balancer: Balancer) -> None:
    new, old = balancer.node(2), balancer.node(3)
    wanted = [Wanted("n2", new.address, new.port, release="r1"), Wanted("n3", old.address, old.port, release="r0")]
    # The one that is refused waits for the whole of it; the other must be found healthy by then, on a busy machine as well.
    outcomes = balancer.steps(3).join(wanted)
    assert [bool(outcome.error) for outcome in outcomes] == [False, True]
    assert (balancer.state("n2"), balancer.state("n3")) == ("up", "absent")


def test_a_node_that_knows_other_tenants_is_refused_at_once(balancer: Balancer) -> None:
    node = balancer.node(2)
    began = time.monotonic()
    (outcome,) = balancer.steps(30).join([Wanted("n2", node.address, node.port)], tenants="t2")
    assert time.monotonic() - began < 10
    assert outcome.stale and "other tenants" in outcome.error
    assert node.hits == 0 and balancer.state("n2") == "absent"
    (outcome,) = balancer.steps(5).join([Wanted("n2", node.address, node.port)], tenants="t1")
    assert not outcome.stale and balancer.state("n2") == "up"


@only_haproxy
def test_members_survive_restart_and_reload(balancer: Balancer) -> None:
    nodes = [balancer.node(last) for last in (2, 3)]
    for node in nodes:
        balancer.join(f"n{node.address[-1]}", node)
    balancer.members.drain("n3")
    for again in (balancer.restart, balancer.reload):
        again()
        until(lambda: balancer.state("n2") == "up")
        assert balancer.state("n3") == "drained"
        hits = nodes[1].hits
        assert {balancer.get() for dummy in range(10)} == {200}
        assert nodes[1].hits == hits


@only_haproxy
def test_draining_waits_for_the_requests_under_way(balancer: Balancer) -> None:
    nodes = [balancer.node(last) for last in (2, 3)]
    for node in nodes:
        balancer.join(f"n{node.address[-1]}", node)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(balancer.get("/slow"))) for dummy in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: balancer.reader.read().in_service == 4)
    (early,) = balancer.steps(0).drain(["n2"])
    assert early.ended_by_deadline and early.in_service == 2 and early.state == "draining"
    (outcome,) = balancer.steps(10).drain(["n2"])
    assert not outcome.ended_by_deadline and outcome.state == "drained" and outcome.in_service == 0
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    hits = nodes[0].hits
    assert {balancer.get() for dummy in range(6)} == {200} and nodes[0].hits == hits


def test_a_draining_member_gets_no_more_requests_and_those_under_way_end_well(balancer: Balancer) -> None:
    nodes = [balancer.node(last) for last in (2, 3)]
    for node in nodes:
        balancer.join(f"n{node.address[-1]}", node)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(balancer.get("/slow"))) for dummy in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: nodes[0].hits + nodes[1].hits == 4)
    (early,) = balancer.steps(0).drain(["n2"])
    assert early.changed and early.ended_by_deadline and early.state == "draining"
    hits = nodes[0].hits
    assert {balancer.get() for dummy in range(6)} == {200} and nodes[0].hits == hits
    (outcome,) = balancer.steps(10).drain(["n2"])
    assert not outcome.changed and not outcome.ended_by_deadline and outcome.state == balancer.drained
    for thread in threads:
        thread.join()
    assert answers == [200] * 4


def test_a_drained_member_can_come_back(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    assert balancer.members.drain("n2") is True
    assert balancer.members.drain("n2") is False
    assert balancer.get() == 503
    balancer.join("n2", node)
    assert balancer.get() == 200


def test_removing_and_removing_again(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    (outcome,) = balancer.steps(5).remove(["n2"], force=True)
    assert outcome.changed and outcome.state == "absent" and not outcome.error
    assert balancer.members.remove("n2") is False
    balancer.restart()
    assert balancer.state("n2") == "absent"


@only_haproxy
def test_removal_under_way_ends_at_the_deadline_when_forced(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    thread = threading.Thread(target=lambda: balancer.get("/slow"))
    thread.start()
    until(lambda: balancer.reader.read().in_service == 1)
    with contextlib.suppress(StillBusy):
        balancer.members.remove("n2")
    (outcome,) = balancer.steps(0.2).remove(["n2"], force=True)
    thread.join()
    assert outcome.state == "absent" and not outcome.error


def test_a_name_with_another_address_is_another_node(balancer: Balancer) -> None:
    old = balancer.node(2, "n")
    balancer.join("n", old)
    new = balancer.node(3, "n")
    balancer.join("n", new)
    hits = old.hits
    assert {balancer.get() for dummy in range(4)} == {200}
    assert old.hits == hits and new.hits >= 4


@only_haproxy
def test_a_gentle_start_ends_at_the_full_share(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node, ramp_steps=2, ramp_interval=0.1)
    assert balancer.members.members()[0].ramp == 1.0
    assert balancer.members.ramp("n2", 0.5) is True and balancer.members.ramp("n2", 0.5) is False
    assert balancer.reader.read().members[0].ramp == 0.5


@only_haproxy
def test_waiting_requests_and_finished_ones_are_counted(balancer: Balancer) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    before = balancer.reader.read()
    threads = [threading.Thread(target=lambda: balancer.get("/slow")) for dummy in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: balancer.reader.read().waiting == 3)
    assert balancer.reader.read().in_service == 2
    for thread in threads:
        thread.join()
    after = balancer.reader.read()
    assert after.requests - before.requests == 5 and after.started == before.started
    assert after.waiting == after.in_service == 0


@only_haproxy
def test_counters_that_started_anew_are_seen(balancer: Balancer) -> None:
    before = balancer.reader.read().started
    time.sleep(1.1)
    balancer.restart()
    assert balancer.reader.read().started != before


def test_no_answer_is_an_error_and_never_zeros(balancer: Balancer) -> None:
    balancer.stop()
    began = time.monotonic()
    with pytest.raises(BalancerError, match=balancer.complaint):
        balancer.reader.read()
    with pytest.raises(BalancerError):
        balancer.members.members()
    assert time.monotonic() - began < balancer.patience


@pytest.mark.parametrize("name, address", [("a b", "127.0.0.2"), ("a\ndel server", "127.0.0.2"), ("a", "host; x"), ("", "127.0.0.2")])
def test_nothing_but_names_and_addresses_reaches_the_balancer(balancer: Balancer, name: str, address: str) -> None:
    with pytest.raises(BalancerError):
        balancer.members.join(name, address, 80, 1)
    assert balancer.members.members() == []


@only_haproxy
def test_a_file_the_balancer_refuses_is_not_put_in_place(balancer: Balancer, tmp_path: Path) -> None:
    node = balancer.node(2)
    balancer.join("n2", node)
    path = tmp_path / "conf.d" / "web.cfg"
    before = path.read_text()
    (tmp_path / "conf.d" / "broken.cfg").write_text("frontend nonsense\n    no such keyword\n")
    with pytest.raises(BalancerError, match="refuses"):
        balancer.members.remove("n2")
    assert path.read_text() == before and [name for name in os.listdir(path.parent) if name.startswith(".")] == []
    assert balancer.get() == 200
