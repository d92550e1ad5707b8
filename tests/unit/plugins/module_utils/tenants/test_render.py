# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import time

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import definition, render

SECRET = "s3cret-" * 6


def tenants(count):
    return definition.load(
        {"name": f"t{n}", "hosts": [f"t{n}.example.org", f"www.t{n}.example.org"], "title": "T", "admin": {"email": "a@b"}}
        for n in range(count)
    )


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (None, "null"),
        (True, "true"),
        (7, "7"),
        ("it's \\ $x", "'it\\'s \\\\ $x'"),
        ([1, "a"], "[1, 'a']"),
        ({"a": {"b": []}}, "['a' => ['b' => []]]"),
    ],
)
def test_php_literals(value, literal):
    assert render.php(value) == literal


def test_address_has_the_port_visitors_use():
    tenant = tenants(1)[0]
    assert render.wwwroot(tenant) == "https://t0.example.org"
    assert render.wwwroot(tenant, 8443) == "https://t0.example.org:8443"


def test_map_names_every_host():
    assert render.tenants_map(tenants(2)).splitlines()[1:] == [
        "t0.example.org t0;", "www.t0.example.org t0;", "t1.example.org t1;", "www.t1.example.org t1;",
    ]


def test_five_thousand_tenants_take_no_time():
    began = time.process_time()
    text = render.tenants_php(tenants(5000), SECRET, {"dbhost": "db"})
    assert text.count("'wwwroot'") == 5000
    assert time.process_time() - began < 5
