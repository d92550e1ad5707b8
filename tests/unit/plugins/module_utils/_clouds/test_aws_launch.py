# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One launch against a cloud that is a function: every order of refusals, and a death at every step."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.aws_launch import (
    Capacity,
    Journal,
    Launch,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError

ZONES = {"a": "subnet-a", "b": "subnet-b", "c": "subnet-c"}
KINDS = ["big", "old"]


class Refused(Exception):
    response = {"Error": {"Code": "InsufficientInstanceCapacity"}}


class Died(BaseException):
    pass


class Ec2:
    """Launches by client token; ``room`` limits a zone and kind; dies at a call, before or after it."""

    def __init__(self, room: dict[tuple[str, str], int]):
        self.room = room
        self.tokens: dict[str, list[dict[str, Any]]] = {}
        self.calls = 0
        self.die: tuple[int, str] = (0, "")

    def run(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        self.calls += 1
        if self.die == (self.calls, "before"):
            raise Died
        token = request["ClientToken"]
        if token not in self.tokens:
            place = (request["zone"], request["kind"])
            count = min(len(request["indices"]), self.room.get(place, 99))
            if not count:
                raise Refused
            if place in self.room:
                self.room[place] -= count
            self.tokens[token] = [
                {"AmiLaunchIndex": i, "State": {"Name": "pending"}, "index": request["indices"][i], "zone": place[0]}
                for i in range(count)
            ]
        if self.die == (self.calls, "after"):
            raise Died
        return self.tokens[token]

    @property
    def instances(self) -> list[dict[str, Any]]:
        return [one for made in self.tokens.values() for one in made if one["State"]["Name"] == "pending"]


def launch(folder: Path, ec2: Ec2, count: int, zones: str = "abc", spot: int = 0) -> Launch:
    journal = Journal(folder)
    with journal.locked():
        one = Launch(
            journal, Capacity(folder / "capacity.json"), zones=ZONES, kinds=KINDS, run=ec2.run,
            request=lambda indices, zone, kind, market: {"indices": list(indices), "zone": zone, "kind": kind, "spot": market},
            load=Counter,
        )
        one.again(set(range(count)))
        one.fill({i: zones[i % len(zones)] for i in range(count)}, spot)
    return one


@pytest.mark.parametrize("lacking", [set(some) for n in range(4) for some in itertools.combinations(itertools.product("abc", KINDS), n)])
def test_whatever_lacks_all_nodes_come(tmp_path: Path, lacking: set[tuple[str, str]]) -> None:
    ec2 = Ec2(dict.fromkeys(lacking, 0))
    done = launch(tmp_path, ec2, 7)
    assert sorted(one["index"] for one in ec2.instances) == sorted(done.instances) == list(range(7))
    zones = Counter(one["zone"] for one in ec2.instances)
    open_zones = [zone for zone in "abc" if not {(zone, kind) for kind in KINDS} <= lacking]
    assert set(zones) == set(open_zones) and max(zones.values()) - min(zones.values()) <= 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("room", [{}, {("a", "big"): 0}, {("a", "big"): 1, ("b", "big"): 0, ("b", "old"): 0}])
def test_a_launch_that_dies_at_any_call_is_completed_and_never_doubled(
    tmp_path: Path, when: str, room: dict[tuple[str, str], int]
) -> None:
    for number in itertools.count(1):
        ec2 = Ec2(dict(room))
        ec2.die = (number, when)
        folder = tmp_path / f"{number}"
        try:
            launch(folder, ec2, 6)
        except Died:
            ec2.die = (0, "")
            # The zones are spread anew in a later check.
            launch(folder, ec2, 6, "cb")
        else:
            # A refusal is not a call after which somebody can die in between; past the last call it is over.
            if number > ec2.calls:
                break
        assert sorted(one["index"] for one in ec2.instances) == list(range(6))
    assert number > 3


def test_a_node_that_has_gone_is_launched_anew(tmp_path: Path) -> None:
    ec2 = Ec2({})
    launch(tmp_path, ec2, 3)
    ec2.instances[1]["State"]["Name"] = "terminated"
    done = launch(tmp_path, ec2, 3)
    assert sorted(one["index"] for one in ec2.instances) == sorted(done.instances) == [0, 1, 2]


def test_nothing_anywhere_is_an_error_and_is_not_asked_again_at_once(tmp_path: Path) -> None:
    ec2 = Ec2(dict.fromkeys(itertools.product("abc", KINDS), 0))
    for calls in (6, 6):
        with pytest.raises(CloudError, match="Failed to launch 2 of the nodes"):
            launch(tmp_path, ec2, 2)
        assert ec2.calls == calls


def test_what_is_spread_over_zones_is_so_for_spot_too(tmp_path: Path) -> None:
    ec2 = Ec2({})
    done = launch(tmp_path, ec2, 9, spot=5)
    markets = Counter(a.spot for a in done.journal.attempts for _index in a.alive or ())
    assert markets == {True: 5, False: 4}


def test_the_memory_of_what_lacks_ends(tmp_path: Path) -> None:
    now = [1000.0]
    capacity = Capacity(tmp_path / "capacity.json", clock=lambda: now[0])
    capacity.remember("a", "big", False)
    capacity.remember("a", "old", False)
    assert Capacity(tmp_path / "capacity.json", clock=lambda: now[0]).zones(["a", "b"], KINDS) == ["b"]
    now[0] += 301
    assert Capacity(tmp_path / "capacity.json", clock=lambda: now[0]).zones(["a", "b"], KINDS) == ["a", "b"]
