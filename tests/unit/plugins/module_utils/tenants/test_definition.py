# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import definition

GOOD = {"name": "physics", "hosts": ["physics.example.org"], "title": "Physics", "admin": {"email": "a@example.org"}}


def test_completes_what_is_left_out():
    tenant = definition.load([GOOD])[0]
    assert (tenant.shortname, tenant.admin_user, tenant.state, tenant.generation) == ("physics", "admin", "active", 1)
    assert (tenant.database, tenant.database_user(), tenant.redis_user()) == ("moodle_physics", "moodle_physics_g1", "t:physics:g1")


def test_settings_become_moodles_text():
    tenant = definition.load([{**GOOD, "settings": {"a": True, "quiz/b": False, "c": 7, "d": None, "e": "x"}}])[0]
    assert tenant.settings == {"a": "1", "quiz/b": "0", "c": "7", "d": None, "e": "x"}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": "Physics"}, "name"),
        ({"name": "a" * 32}, "name"),
        ({"name": "x\n"}, "name"),
        ({"hosts": []}, "hosts"),
        ({"hosts": "physics.example.org"}, "hosts"),
        ({"hosts": ["Physics.example.org"]}, "hosts"),
        ({"hosts": ["physics.example.org:8443"]}, "hosts"),
        ({"hosts": ["a b; } server {"]}, "hosts"),
        ({"title": ""}, "title"),
        ({"title": "two\nlines"}, "title"),
        ({"admin": {"email": "nobody"}}, "admin.email"),
        ({"admin": {"email": "a@b", "password": "x"}}, "admin.password"),
        ({"state": "gone"}, "state"),
        ({"settings": {"a b": 1}}, "settings"),
        ({"settings": {"a": [1]}}, "settings.a"),
        ({"generation": 0}, "generation"),
        ({"colour": "red"}, "colour"),
        ({"name": "fleet"}, "name"),
        ({"database": "DB 2"}, "database"),
        ({"settings": {"reverseproxy": 1}}, "settings.reverseproxy"),
        ({"settings": {"session_redis_prefix": ""}}, "settings.session_redis_prefix"),
    ],
)
def test_names_what_is_wrong(change, key):
    with pytest.raises(definition.TenantError) as caught:
        definition.load([{**GOOD, **change}])
    message = str(caught.value)
    assert f": {key}: " in message and "is not allowed: " in message
    assert "\n" not in message


def test_refuses_a_host_of_two_tenants():
    with pytest.raises(definition.TenantError, match="belongs to tenant physics"):
        definition.load([GOOD, {**GOOD, "name": "arts"}])


def test_refuses_a_name_twice():
    with pytest.raises(definition.TenantError, match="used once"):
        definition.load([GOOD, {**GOOD, "hosts": ["other.example.org"]}])
