# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The store behind Moodle's caches, on two nodes: a copy in one node's memory never outlives what the other changed."""

from __future__ import annotations

import json
import random
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive

from .conftest import SECRET, LocalFleet

pytestmark = pytest.mark.slow


class Store:
    """The store in a PHP process on a node; each call names one of its methods."""

    def __init__(self, node: str, configuration: dict, definition: str) -> None:
        source = (Path(__file__).parent / "cache_store.php").read_text(encoding="utf-8")
        command = ["podman", "exec", "--interactive", node, "php", "-d", "apc.enable_cli=1", "-d", "display_errors=stderr"]
        # The program comes first, its orders follow on the same stream.
        subprocess.run(["podman", "exec", "--interactive", node, "tee", "/tmp/cache_store.php"], input=source, text=True, check=True, stdout=subprocess.DEVNULL)
        self._process = subprocess.Popen([*command, "/tmp/cache_store.php"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.asked = 0
        self._do({"do": "open", "configuration": configuration, "definition": definition})

    def _do(self, job: dict) -> object:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.asked = answer["asked"]
        return answer["value"]

    def request(self) -> None:
        """A new request begins."""
        self._do({"do": "request"})

    def release(self, name: str, value: object) -> None:
        """The release brings this from now on."""
        self._do({"do": "release", "name": name, "value": value})

    def raw(self, call: str, *arguments: object) -> object:
        """Something that happens in Redis itself."""
        return self._do({"do": "raw", "call": call, "with": arguments})

    def call(self, method: str, *arguments: object) -> object:
        """A method of the store."""
        return self._do({"do": method, "with": arguments})

    def set(self, key: str, value: object) -> None:
        """Set one value."""
        assert self.call("set", key, value) is True

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def connection(fleet: LocalFleet) -> dict:
    """How a store reaches Redis, with a prefix of its own there."""
    [address] = fleet.addresses("cache").values()
    return {
        "host": address, "port": 6380,
        "auth": ["fleet_admin", derive(SECRET, "redis-admin", "fleet")], "prefix": f"t:test-{uuid.uuid4().hex}:",
    }


@pytest.fixture(name="stores")
def _stores(fleet: LocalFleet) -> Iterator[tuple[Store, Store]]:
    """The store on two nodes, with one definition of its own in Redis."""
    configuration = connection(fleet)
    stores = [Store(node, configuration, "definition") for node in sorted(fleet.addresses("web"))[:2]]
    # The definition is named by the first who asks; copies are kept from the next request on.
    stores[0].call("get", "any")
    yield stores[0], stores[1]
    stores[0].raw("del", "definition", "generations")
    for store in stores:
        store.close()


def filled(store: Store, *keys: str) -> None:
    """Redis has these, and the node has copies."""
    store.request()
    for key in keys:
        if store.call("get", key) is False:
            store.set(key, f"{key} 1")
            store.call("get", key)


def test_a_value_is_fetched_once(stores: tuple[Store, Store]) -> None:
    filled(stores[0], "a", "b")
    stores[0].request()
    assert stores[0].call("get", "a") == "a 1"
    assert stores[0].call("get_many", ["b", "a", "none"]) == {"b": "b 1", "a": "a 1", "none": False}
    assert stores[0].asked == 1
    assert stores[0].call("get_many", ["a", "b"]) == {"a": "a 1", "b": "b 1"}
    assert stores[0].asked == 0


def test_filling_a_gap_leaves_the_other_copies_alone(stores: tuple[Store, Store]) -> None:
    filled(stores[0], "a")
    filled(stores[1], "b")
    stores[0].request()
    assert (stores[0].call("get", "a"), stores[0].asked) == ("a 1", 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("set", "a", "a 2"), "a 2"), (("set_many", [{"key": "a", "value": "a 3"}]), "a 3"), (("delete", "a"), False),
        (("delete_many", ["a"]), False), (("purge",), False),
    ],
)
def test_a_change_is_seen_by_the_next_request(stores: tuple[Store, Store], change: tuple, expected: object) -> None:
    one, other = stores
    filled(one, "a")
    filled(other, "a")
    one.request()
    one.call(*change)
    other.request()
    assert other.call("get", "a") == expected
    assert one.call("get", "a") == expected


def test_who_locks_sees_what_was_changed_while_it_waited(stores: tuple[Store, Store]) -> None:
    one, other = stores
    filled(one, "a")
    filled(other, "a")
    other.request()
    other.call("get", "a")
    one.set("a", "a 2")
    other.call("acquire_lock", "a-lock", "me")
    assert other.call("get", "a") == "a 2"


@pytest.mark.parametrize("dropped", [["generations"], ["definition"], ["definition", "generations"]])
def test_what_redis_drops_does_not_come_back_to_life(stores: tuple[Store, Store], dropped: list[str]) -> None:
    one, other = stores
    filled(one, "a")
    filled(other, "a")
    one.raw("del", *dropped)
    one.request()
    one.set("a", "a 2")
    for _request in range(3):
        other.request()
        assert other.call("get", "a") == "a 2"


def test_strings_that_the_release_brings_are_not_copied(fleet: LocalFleet) -> None:
    store = Store(min(fleet.addresses("web")), connection(fleet), "strings")
    try:
        ours, changed, slovak = "en_core_17-f00", "en_mod_forum_17-f00", "sk_core_17-f00"
        for name in ("en_core", "en_mod_forum", "sk_core"):
            store.release(name, {"day": "day"})
        store.call("get", "any")
        values = {ours: {"day": "day"}, changed: {"day": "Tag"}, slovak: {"day": "day"}}
        for key, value in values.items():
            store.set(key, value)
        store.request()
        assert {key: store.call("get", key) for key in values} == values
        for name in ("en_core", "en_mod_forum", "sk_core"):
            store.release(name, {"day": "read from the release"})
        store.request()
        assert store.call("get", ours) == {"day": "read from the release"}
        assert store.call("get_many", [changed, ours]) == {changed: {"day": "Tag"}, ours: {"day": "read from the release"}}
        assert store.call("get", slovak) == {"day": "day"}
        assert store.asked == 0
        # What a site changes from now on is its own.
        store.set(ours, {"day": "Tag"})
        for _request in range(2):
            store.request()
            assert store.call("get", ours) == {"day": "Tag"}
    finally:
        store.raw("del", "strings", "generations")
        store.close()


def test_any_history(stores: tuple[Store, Store]) -> None:
    chance = random.Random(20)
    keys = ["a", "b", "c"]
    for step in range(600):
        store = chance.choice(stores)
        store.request()
        for key in chance.sample(keys, 2):
            assert store.call("get", key) == store.raw("hGet", "definition", key), f"step {step}"
        key = chance.choice(keys)
        action = chance.choice(["set", "set", "read", "read", "delete", "purge", "drop", "fill"])
        if action == "set":
            store.set(key, step)
        elif action == "delete":
            store.call("delete", key)
        elif action == "purge":
            store.call("purge")
        elif action == "drop":
            store.raw("del", chance.choice(["definition", "generations"]))
            # A value that Redis dropped is in no database either: nobody may still have it. Moodle's own source of it is
            # unchanged, so a copy that lives on is right; here it is changed, as a write that everybody must see.
            store.call("purge")
        elif action == "fill" and store.call("get", key) is False:
            store.set(key, step)
