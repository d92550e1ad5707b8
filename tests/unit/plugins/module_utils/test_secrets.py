# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import re

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._secrets import derive

SECRET = "s3cret-" * 6


def test_is_stable_and_differs_by_every_part():
    assert derive(SECRET, "db", "physics") == derive(SECRET, "db", "physics", 1)
    others = {
        derive(SECRET, "db", "physics"),
        derive(SECRET, "db", "arts"),
        derive(SECRET, "admin", "physics"),
        derive(SECRET, "db", "physics", 2),
        derive(SECRET + "x", "db", "physics"),
    }
    assert len(others) == 5


def test_known_value():
    """A changed derivation would lock every fleet out of its databases."""
    assert derive("0123456789abcdef0123456789abcdef", "db", "physics") == "Cp6vJ29kb3Nh0hX2fquNwkZpsHKm5-"


def test_suits_moodles_password_policy():
    for number in range(300):
        password = derive(SECRET, "admin", f"t{number}")
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{29}", password)
        assert all(re.search(group, password) for group in ("[a-z]", "[A-Z]", "[0-9]", "[-_]"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("short", "db", "a"), "at least 32 characters"),
        ((SECRET, "db", "a:b"), "name 'a:b'"),
        ((SECRET, "", "a"), "purpose ''"),
        ((SECRET, "db", "a", 0), "generation 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        derive(*arguments)
