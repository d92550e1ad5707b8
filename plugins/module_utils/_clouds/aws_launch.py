# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Driver ``aws``: one launch, which may be interrupted at any call and repeated.

Each call of RunInstances is written down, word for word, before it is sent: a repeated launch sends those whose answer is
unknown, or whose nodes are not seen, again with the same client token, and EC2 launches nothing twice. Only then does it
ask for what is still missing, with new parameters and so with a new client token.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._aws import error_code
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import aws_parts as parts
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import ssh
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError

# AWS's words for: not of this kind, here, now. A quota (of a family, in the whole region) counts as such.
LACKING = frozenset({
    "InsufficientInstanceCapacity", "InsufficientHostCapacity", "Unsupported", "SpotMaxPriceTooLow",
    "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "InstanceLimitExceeded", "InsufficientFreeAddressesInSubnet",
})
# For so many seconds a kind that was lacking in a zone is not asked for again.
REMEMBERED = 300.0
GONE = ("shutting-down", "terminated")


@dataclass
class Attempt:
    """One call of RunInstances. ``alive`` are the indices that became instances; None until an answer is known."""

    indices: list[int]
    zone: str
    kind: str
    spot: bool
    request: dict[str, Any]
    alive: list[int] | None = None
    refused: bool = False


@dataclass
class Capacity:
    """What lacked lately, kept in the state directory: ``zone/kind/spot`` with the time at which it is asked for again."""

    path: Path
    clock: Callable[[], float] = time.time
    until: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self.path.read_text(encoding="utf-8"))
            self.until = {key: float(value) for key, value in known.items() if float(value) > self.clock()}

    def lacks(self, zone: str, kind: str, spot: bool) -> bool:
        return self.until.get(f"{zone}/{kind}/{'spot' if spot else 'on-demand'}", 0.0) > self.clock()

    def remember(self, zone: str, kind: str, spot: bool) -> None:
        self.until[f"{zone}/{kind}/{'spot' if spot else 'on-demand'}"] = self.clock() + REMEMBERED
        ssh.write(self.path, json.dumps(self.until, sort_keys=True))

    def zones(self, zones: Sequence[str], kinds: Sequence[str]) -> list[str]:
        """Zones with at least one kind that is not known to lack; all of them where there is none."""
        return [zone for zone in zones if not all(self.lacks(zone, kind, False) for kind in kinds)] or list(zones)


@dataclass
class Journal:
    """The calls of one launch."""

    folder: Path
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / "calls.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the launch for this process; True when it was begun before."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            begun = self.path.exists()
            if begun:
                self.attempts = [Attempt(**one) for one in json.loads(self.path.read_text(encoding="utf-8"))]
            yield begun

    def save(self) -> None:
        ssh.write(self.path, json.dumps([asdict(one) for one in self.attempts]))


class Launch:
    """Carries out one launch: ``run`` is EC2's RunInstances, ``load`` counts the fleet's nodes by zone."""

    def __init__(
        self,
        journal: Journal,
        capacity: Capacity,
        *,
        zones: Mapping[str, str],
        kinds: Sequence[str],
        run: Callable[[dict[str, Any]], list[dict[str, Any]]],
        request: Callable[[Sequence[int], str, str, bool], dict[str, Any]],
        load: Callable[[], Counter[str]],
    ):
        self.journal = journal
        self.capacity = capacity
        self.zones = zones
        self.kinds = kinds
        self._run = run
        self._request = request
        self._load = load
        self.instances: dict[int, dict[str, Any]] = {}
        self.refusals: dict[str, str] = {}

    def again(self, wanted: set[int]) -> None:
        """Ask once more about calls whose answer or whose nodes were not seen; ``self.instances`` gets who is there."""
        for attempt in self.journal.attempts:
            if not attempt.refused and wanted & set(attempt.indices if attempt.alive is None else attempt.alive):
                self._send(attempt)

    def fill(self, places: Mapping[int, str], spot: int) -> None:
        """Launch the indices that are missing: ``places`` has the zone each is meant for, ``spot`` so many as spot."""
        missing = [index for index in sorted(places) if index not in self.instances]
        asked: set[tuple[str, str, bool]] = set()
        places = dict(places)
        while missing:
            market = spot > 0
            group = self._group(missing, places, asked, market)
            if group is None and market:
                # No spot capacity anywhere: what is left is on demand.
                spot = 0
                continue
            if group is None:
                raise CloudError(self._complaint(len(missing)))
            indices, zone, kind = group
            if market:
                indices = indices[: math.ceil(spot / max(1, len({places[i] for i in missing})))]
            attempt = Attempt(indices, zone, kind, market, {})
            attempt.request = self._with_token(self._request(indices, zone, kind, market))
            self.journal.attempts.append(attempt)
            self._send(attempt)
            if len(attempt.alive or ()) < len(indices):
                asked.add((zone, kind, market))
            spot -= len(attempt.alive or ()) if market else 0
            missing = [index for index in missing if index not in self.instances]

    def _group(
        self, missing: Sequence[int], places: dict[int, str], asked: set[tuple[str, str, bool]], spot: bool
    ) -> tuple[list[int], str, str] | None:
        """The next call: the missing nodes of one zone and the first kind that may be had there."""
        def kinds(zone: str) -> list[str]:
            return [k for k in self.kinds if (zone, k, spot) not in asked and not self.capacity.lacks(zone, k, spot)]

        open_zones = [zone for zone in self.zones if kinds(zone)]
        if not open_zones:
            return None
        homeless = [index for index in missing if places[index] not in open_zones]
        if homeless:
            # Their zones have nothing left: each goes where the fleet has the fewest.
            load = self._load() + Counter(places[index] for index in missing if index not in homeless)
            load += Counter(places[index] for index in self.instances if index in places)
            for index in homeless:
                places[index] = min(open_zones, key=lambda zone: (load[zone], zone))
                load[places[index]] += 1
        zone = places[missing[0]]
        return [i for i in missing if places[i] == zone][: parts.MOST_AT_ONCE], zone, kinds(zone)[0]

    def _with_token(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same parameters at the same place of the same launch have the same client token."""
        return {**request, "ClientToken": parts.fingerprint([len(self.journal.attempts), request])}

    def _send(self, attempt: Attempt) -> None:
        """Send a call that is written down, and write down what became of it."""
        self.journal.save()
        try:
            found = self._run(attempt.request)
        except Exception as exc:
            code = error_code(exc)
            if code not in LACKING:
                raise
            attempt.refused, attempt.alive = True, []
            self.refusals[f"{attempt.kind} in {attempt.zone}{' (spot)' if attempt.spot else ''}"] = code
            found = []
        else:
            there = {attempt.indices[int(one["AmiLaunchIndex"])]: one for one in found}
            attempt.alive = sorted(index for index, one in there.items() if one["State"]["Name"] not in GONE)
            self.instances.update({index: there[index] for index in attempt.alive})
        if len(found) < len(attempt.indices):
            self.capacity.remember(attempt.zone, attempt.kind, attempt.spot)
        self.journal.save()

    def _complaint(self, missing: int) -> str:
        why = "; ".join(f"{what}: {code}" for what, code in sorted(self.refusals.items()))
        why = why or f"{', '.join(self.kinds)} lacked in {', '.join(self.zones)} a moment ago"
        return (
            f"Failed to launch {missing} of the nodes: {why}: name more kinds in cloud.instance_types or more zones in "
            f"cloud.zones; it is asked for again in {REMEMBERED / 60:g} min at the latest"
        )
