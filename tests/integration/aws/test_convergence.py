# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A fleet that grows under bad conditions; tests/benchmarks/aws_launch.py goes through every call of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.tests.integration.aws.fleets import cloud_settings
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.growth import MODES, Growth
from ansible_collections.elearning.moodle_fleet.tests.integration.aws.server import AwsServer, Fault

pytestmark = pytest.mark.slow
# With all that is known beforehand: two looks (nodes, announced events) at each of seven checks, five of which grow the
# fleet, one joins the last nodes and one finds nothing to do; and one launch for each step and zone that has room.
FEWEST = 7 * 2 + 5 * 2


def grow(server: AwsServer, folder: Path, size: int = 2, goal: int = 40) -> Growth:
    return Growth(server, folder, cloud_settings(server), size=size, goal=goal)


def exhaust(server: AwsServer, zone: str) -> None:
    server.capacity |= {(zone, kind): 0 for kind in ("m7i.large", "m6i.large")}


def test_from_2_to_40_in_few_calls_with_throttling_and_a_zone_without_room(aws: AwsServer, tmp_path: Path) -> None:
    fleet = grow(aws, tmp_path)
    exhaust(aws, "eu-central-1c")
    aws.faults = [Fault("*", "RequestLimitExceeded", 503, times=None, every=4)]
    fleet.finish()
    answered = [call for call in aws.calls if call.outcome != "RequestLimitExceeded"]
    # The last look of finish() is the test's own.
    assert len(answered) - 1 <= 1.2 * FEWEST, aws.counts()
    assert any(call.outcome == "RequestLimitExceeded" for call in aws.calls)
    zones = fleet.by_zone()
    assert set(zones) == {"eu-central-1a", "eu-central-1b"} and max(zones.values()) - min(zones.values()) <= 1


def test_zones_are_even_when_all_have_room(aws: AwsServer, tmp_path: Path) -> None:
    fleet = grow(aws, tmp_path)
    fleet.finish()
    assert sorted(fleet.by_zone().values()) == [13, 13, 14]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [3, 5])
def test_interrupted_at_a_call_it_converges(aws: AwsServer, tmp_path: Path, number: int, mode: str) -> None:
    fleet = grow(aws, tmp_path, goal=7)
    exhaust(aws, "eu-central-1c")
    aws.hidden_calls = 1
    fleet.interrupt(number, mode)
    fleet.finish()
    assert fleet.interrupted
