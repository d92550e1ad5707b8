# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from ansible_collections.elearning.moodle_fleet.plugins.modules import session_locks


class Redis:
    """As much of a server as the module asks for, in steps of two keys."""

    def __init__(self, values):
        self.values = dict(values)
        self.patterns = []

    def call(self, command, *words):
        if command == "SCAN":
            start, keys = int(words[0]), sorted(self.values)
            self.patterns.append(words[2])
            return [str(start + 2) if start + 2 < len(keys) else "0", keys[start:start + 2]]
        assert command == "MGET"
        return [self.values.get(key) for key in words]

    def pipeline(self, commands):
        answers = []
        for _eval, _script, _count, key, value in commands:
            answers.append(int(self.values.get(key) == value))
            if answers[-1]:
                del self.values[key]
        return answers


LOCKS = {
    "t:acme:s:1.lock": "[pid 7] w1:/course/view.php?id=3",
    "t:acme:s:2.lock": "\udc80\x11[pid 8] w1:/",
    "t:acme:s:3.lock": "[pid 9] w11:/",
    "t:globex:s:4.lock": "[pid 7] w2:/w1:/",
    "t:globex:s:5.lock": "something else",
}


def test_only_the_locks_of_these_nodes_are_found():
    redis = Redis(LOCKS)
    assert {key: holder for key, (_value, holder) in session_locks.held(redis, {"w1"}).items()} == {
        "t:acme:s:1.lock": "w1",
        "t:acme:s:2.lock": "w1",
    }
    assert set(redis.patterns) == {"t:*:s:*.lock"}


def test_locks_are_released_and_counted():
    redis = Redis(LOCKS)
    assert session_locks.release(redis, session_locks.held(redis, {"w1", "w2"})) == {"w1": 2, "w2": 1}
    assert sorted(redis.values) == ["t:acme:s:3.lock", "t:globex:s:5.lock"]


def test_a_lock_that_changed_hands_stays():
    redis = Redis(LOCKS)
    locks = session_locks.held(redis, {"w1"})
    redis.values["t:acme:s:1.lock"] = "[pid 1] w2:/"
    assert session_locks.release(redis, locks) == {"w1": 1}
    assert "t:acme:s:1.lock" in redis.values


def test_a_lock_that_expired_meanwhile_is_passed_over():
    redis = Redis(LOCKS)
    call = redis.call
    redis.call = lambda command, *words: [None] * len(words) if command == "MGET" else call(command, *words)
    assert session_locks.held(redis, {"w1"}) == {}
