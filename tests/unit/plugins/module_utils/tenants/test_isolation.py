# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One seeded leak of each kind, and the finding it must give."""
from __future__ import annotations

import copy
import os
import re
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import definition, isolation, render, site, trial

FLEET = {"dbhost": "db", "dbport": 3306, "balancer_networks": ["10.0.0.4", "10.1.0.0/24"], "lock_factory": "\\core\\lock\\mysql_lock_factory"}
TENANTS = definition.load([
    {"name": name, "hosts": [f"{name}.example.org"], "title": name, "admin": {"email": "a@b"}} for name in ("acme", "globex", "initech")
])


@pytest.fixture(name="data")
def make_data():
    return render.tenants_data(TENANTS, "s" * 40, FLEET)


@pytest.fixture(name="configurations")
def make_configurations():
    return {
        name: {
            "wwwroot": f"https://{name}.example.org", "dbhost": "db", "dbname": f"moodle_{name}", "dbuser": f"moodle_{name}_g1",
            "session_redis_prefix": f"t:{name}:s:", "cache_prefix": f"t:{name}:m:", "cache_localprefix": f"t:{name}:r:",
            "session_handler_class": "moodle_fleet_session", "lock_factory": "\\core\\lock\\mysql_lock_factory",
            "sslproxy": True, "reverseproxy": False, "getremoteaddrconf": 1, "preventexecpath": True, "disableupdateautodeploy": True,
            "uninstallclionly": True,
            **{key: f"/srv/{key}/{name}" for key in isolation.FOLDERS},
        }
        for name in ("acme", "globex", "initech")
    }


def test_a_map_as_we_write_it_has_no_finding(data):
    assert isolation.of_map(data) == []


MAP_LEAKS = [
    (("tenants", "globex", "wwwroot"), "https://acme.example.org", "host"),
    (("tenants", "globex", "wwwroot"), "http://globex.example.org", "proxy"),
    (("tenants", "globex", "database"), "moodle_acme", "database"),
    (("tenants", "globex", "database"), "MOODLE_acme", "database"),
    (("tenants", "globex", "database_user"), "moodle_acme_g1", "database"),
    (("tenants", "globex", "redis_user"), "t:acme:g1", "redis"),
    (("tenants", "globex", "redis_user"), "", "redis"),
    (("tenants", "globex", "uid"), 1_900_000_000, "user"),
    (("tenants", "globex", "state"), "open", "state"),
    (("hosts", "other.example.org"), "nobody", "host"),
    (("fleet", "balancer_networks"), ["0.0.0.0/0"], "proxy"),
    (("fleet", "balancer_networks"), ["::/0"], "proxy"),
    (("fleet", "lock_factory"), "\\core\\lock\\file_lock_factory", "lock"),
    (("fleet", "lock_factory"), "", "lock"),
]


@pytest.mark.parametrize(("path", "value", "kind"), MAP_LEAKS)
def test_a_leak_in_the_map_is_found_and_refused(data, path, value, kind):
    data["tenants"]["acme"]["uid"] = 1_900_000_000
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert {finding.kind for finding in isolation.of_map(data)} == {kind}
    with pytest.raises(isolation.UnsafeError, match=kind):
        isolation.refuse(data)


def test_a_password_in_common_is_found_and_not_told(data):
    data["tenants"]["globex"]["database_password"] = data["tenants"]["acme"]["database_password"]
    (finding,) = isolation.of_map(data)
    assert (finding.tenant, finding.other) == ("globex", "acme")
    assert data["tenants"]["acme"]["database_password"] not in str(finding)


def test_the_same_database_on_two_servers_is_none(data):
    data["tenants"]["globex"] |= {"database": "moodle_acme", "dbhost": "db2"}
    assert isolation.of_map(data) == []


def test_configurations_as_we_make_them_have_no_finding(configurations):
    assert isolation.of_configurations(configurations) == []


CONFIGURATION_LEAKS = [
    ({"reverseproxy": True}, "proxy"),
    ({"sslproxy": False}, "proxy"),
    ({"getremoteaddrconf": 0}, "proxy"),
    ({"wwwroot": "http://globex.example.org"}, "proxy"),
    ({"preventexecpath": False}, "flag"),
    ({"disableupdateautodeploy": False}, "flag"),
    ({"uninstallclionly": False}, "flag"),
    ({"lock_factory": None}, "lock"),
    ({"lock_factory": "\\core\\lock\\file_lock_factory"}, "lock"),
    ({"session_handler_class": "\\core\\session\\file"}, "session"),
    ({"session_redis_prefix": "t:acme:s:"}, "session"),
    ({"session_redis_prefix": ""}, "session"),
    ({"session_redis_prefix": "t:acme:s:x"}, "session"),
    ({"cache_prefix": "t:acme:m:"}, "cache"),
    ({"cache_localprefix": "t:acme:r:"}, "cache"),
    ({"dbname": "moodle_acme"}, "database"),
    ({"dbuser": "moodle_acme_g1"}, "database"),
    ({"dataroot": "/srv/dataroot/acme"}, "directory"),
    ({"dataroot": "/srv/dataroot/acme/"}, "directory"),
    ({"cachedir": "/srv/dataroot/acme/cache"}, "directory"),
    ({"tempdir": ""}, "directory"),
]


@pytest.mark.parametrize(("changes", "kind"), CONFIGURATION_LEAKS)
def test_a_leak_in_a_configuration_is_found(configurations, changes, kind):
    configurations["globex"] |= changes
    assert {finding.kind for finding in isolation.of_configurations(configurations)} == {kind}


class World(trial.Trial):
    """Trials of which PHP's part is played."""

    def __init__(self, data, root, readable=()):
        places = site.Places("/nowhere", str(root), "nobody", "/nowhere/cli.php", ["php"])
        places.account = lambda _tenant="": (os.getuid(), os.getgid())
        super().__init__(copy.deepcopy(data), site.Sites(places, None), 1)
        self.seen = {name: {"config": {}, "readable": list(readable) if name == "acme" else []} for name in self.tenants}
        for name in self.tenants:
            for part in ("", *site.FOLDERS):
                path = root / name / part
                path.mkdir(exist_ok=True)
                path.chmod(0o750)


def test_folders_as_we_make_them_have_no_finding(data, tmp_path):
    assert list(World(data, tmp_path)._permissions()) == []


def test_open_folders_and_links_that_lead_out_are_found(data, tmp_path):
    world = World(data, tmp_path)
    (tmp_path / "acme" / "data").chmod(0o755)
    (tmp_path / "globex" / "cache").rmdir()
    (tmp_path / "initech" / "data" / "filedir").symlink_to(tmp_path / "acme" / "data")
    (tmp_path / "initech" / "data" / "inside").symlink_to(tmp_path / "initech" / "temp")
    found = [(finding.kind, finding.tenant, finding.other) for finding in world._permissions()]
    assert found == [("permissions", "acme", ""), ("permissions", "globex", ""), ("files", "initech", "acme")]


@pytest.mark.parametrize(("file", "mode"), [("tenants.php", 0o644), ("tenants.php", 0o660), ("tenants.own", 0o640)])
def test_a_map_that_others_can_read_is_found(data, tmp_path, file, mode):
    world = World(data, tmp_path)
    (tmp_path / ".fleet").mkdir()
    for name, tight in (("tenants.php", 0o640), ("tenants.own", 0o600)):
        (tmp_path / ".fleet" / name).touch()
        (tmp_path / ".fleet" / name).chmod(tight)
    assert list(world._permissions()) == []
    (tmp_path / ".fleet" / file).chmod(mode)
    assert [(finding.kind, finding.tenant) for finding in world._permissions()] == [("permissions", "fleet")]


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to other users, which root alone may do")
@pytest.mark.parametrize(("path", "mode", "owner"), [("", 0o755, 4000), ("", 0o710, 4001), ("data", 0o777, 4000)])
def test_an_open_gate_is_found(tmp_path, path, mode, owner):
    tenants = definition.load([{"name": "acme", "hosts": ["a.example"], "title": "a", "admin": {"email": "a@b"}, "own_user": True, "uid": 4000}])
    places = site.Places("/nowhere", str(tmp_path), "nobody", "/nowhere/cli.php", ["php"], {"acme": 4000})
    world = trial.Trial(render.tenants_data(tenants, "s" * 40, FLEET), site.Sites(places, None), 1)
    world.sites.settle("acme")
    assert list(world._permissions()) == []
    os.chown(tmp_path / "acme" / path, owner, -1)
    (tmp_path / "acme" / path).chmod(mode)
    assert [(finding.kind, finding.tenant) for finding in world._permissions()] == [("permissions", "acme")]


def test_what_php_could_read_is_found(data, tmp_path):
    world = World(data, tmp_path, [str(tmp_path / "globex" / "data"), str(tmp_path / "globex" / "temp"), trial.MAP])
    found = [(finding.kind, finding.tenant, finding.other) for finding in world._files(world.seen)]
    assert found == [("files", "acme", "globex"), ("files", "acme", "all")]
    assert world.pairs == {"files": 6}


class Redis:
    """A Redis that keeps to no rule, or refuses."""

    opened: dict[str, str] = {}

    def __init__(self, _host, _port, user, _password, _tls=False):
        self.user = user
        if self.opened.get(user) == "no account":
            raise trial.resp.RedisError("WRONGPASS")

    def __enter__(self):
        return self

    def __exit__(self, *_ended):
        return None

    def answers(self, commands):
        me = self.user.split(":")[1]
        answers = []
        for _command, key in commands:
            _t, owner, part, _name = key.split(":")
            what = self.opened.get(f"{me} {owner} {part}", "NOPERM no access to this key")
            answers.append(None if owner == me or what == "open" else trial.resp.RedisError(what))
        return answers


KEY_LEAKS = [
    ({}, []),
    ({"acme globex s": "open"}, ["sessions"]),
    ({"acme globex m": "open"}, ["keys"]),
    ({"acme globex m": "LOADING"}, ["trial"]),
    ({"t:acme:g1": "no account"}, ["trial"]),
]


@pytest.mark.parametrize(("opened", "expected"), KEY_LEAKS)
def test_keys_that_can_be_read_are_found(data, tmp_path, monkeypatch, opened, expected):
    data["fleet"] |= {"redis_host": "r", "redis_port": 1, "muc_host": "r", "muc_port": 1}
    monkeypatch.setattr(Redis, "opened", opened)
    monkeypatch.setattr(trial.resp, "Connection", Redis)
    world = World(data, tmp_path)
    found = [(finding.kind, finding.tenant) for name in world.tenants for finding in world._keys(name)]
    assert found == [(kind, "acme") for kind in expected]
    if not expected:
        assert world.pairs == {"sessions": 6, "keys": 6}


ROW_LEAKS = [("SELECT command denied to user", []), (None, ["rows"]), ("table is marked as crashed", ["trial"])]


@pytest.mark.parametrize(("answer", "expected"), ROW_LEAKS)
def test_rows_that_can_be_read_are_found(data, tmp_path, monkeypatch, answer, expected):
    class Server:
        def __init__(self, _host, _port, user, *_more):
            self.user = user

        def query(self, statement):
            other = "moodle_globex" in statement
            if self.user == "moodle_acme_g1" and other and answer:
                raise trial.database.DatabaseError(answer)
            if not other and self.user not in statement.replace("`.", "_g1`."):
                raise trial.database.DatabaseError("SELECT command denied")
            if other and self.user == "moodle_initech_g1":
                raise trial.database.DatabaseError("SELECT command denied")

        def close(self):
            pass

    monkeypatch.setattr(trial.database, "Server", Server)
    world = World(data, tmp_path)
    assert [(finding.kind, finding.tenant, finding.other) for name in world.tenants for finding in world._rows(name)] == [
        (kind, "acme", "globex") for kind in expected
    ]


def test_a_cache_with_one_user_is_never_called_tried(data, tmp_path, monkeypatch):
    data["fleet"]["cache_password"] = "one for all"
    world = World(data, tmp_path)
    monkeypatch.setattr(world, "_keys", lambda name: pytest.fail("was tried"))
    monkeypatch.setattr(world, "_rows", lambda name: [])
    assert world.rows_and_keys("acme") == []
    assert "keys" not in world.pairs and "sessions" not in world.pairs
    assert world.notes == [trial.SHARED_USER]
    assert World(render.tenants_data(TENANTS, "s" * 40, FLEET), tmp_path).notes == []


@pytest.mark.parametrize(("fleet", "entry", "tls"), [(False, None, False), (True, None, True), (True, False, False), (False, True, True)])
def test_rows_are_tried_as_moodle_would_reach_them(data, tmp_path, monkeypatch, fleet, entry, tls):
    data["fleet"]["database_tls"] = fleet
    if entry is not None:
        for one in data["tenants"].values():
            one["database_tls"] = entry
    asked = []

    class Server:
        def __init__(self, *arguments):
            asked.append(arguments[-1])

        def query(self, statement):
            if "moodle_acme" not in statement:
                raise trial.database.DatabaseError("SELECT command denied")

        def close(self):
            pass

    monkeypatch.setattr(trial.database, "Server", Server)
    world = World(data, tmp_path)
    assert world._rows("acme") == [] and world.pairs == {"rows": 2}
    assert asked == [tls]


@pytest.mark.parametrize(("server", "tls"), [({}, True), ({"tls": False}, False), ({"tls": "no"}, False), ({"tls": "yes"}, True)])
def test_a_further_server_is_reached_as_it_says_or_as_the_first(server, tls):
    tenants = definition.load([
        {"name": "acme", "hosts": ["a.example.org"], "title": "A", "admin": {"email": "a@b"}, "database": "second"}
    ])
    made = render.tenants_data(tenants, "s" * 40, {**FLEET, "database_tls": True}, servers={"second": {"host": "db2", **server}})
    assert made["tenants"]["acme"]["database_tls"] is tls


def test_a_further_server_that_says_nonsense_is_refused():
    with pytest.raises(definition.TenantError, match="second.tls: 'perhaps' is not allowed: say true or false"):
        definition.uses_tls("second", {"tls": "perhaps"}, False)


def test_a_leak_of_each_kind_that_the_documentation_names_is_seeded():
    source = Path(__file__).parents[5] / "plugins" / "modules" / "tenants_check.py"
    described = source.read_text(encoding="utf-8").split("    kind:\n", 1)[1].split("type: str", 1)[0]
    seeded = {kind for _path, _value, kind in MAP_LEAKS} | {kind for _changes, kind in CONFIGURATION_LEAKS}
    seeded |= {kind for _what, kinds in (*KEY_LEAKS, *ROW_LEAKS) for kind in kinds}
    # By the tests of folders, links, maps and of what PHP can read.
    assert seeded | {"permissions", "files"} == set(re.findall(r"V\((\w+)\)", described))
