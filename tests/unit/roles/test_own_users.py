# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Unix users of tenants' own, on a node: their maps and folders."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import stat
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.filter.tenants_files import tenants_files
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import definition, site

FILE = Path(__file__).parents[3] / "roles" / "tenants" / "files" / "own_users.py"
SECRET = "x" * 40

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files are given to other users, which root alone may do")


def entry(name: str, **more: object) -> dict:
    return {"name": name, "hosts": [f"{name}.example"], "title": name, "admin": {"email": "a@b.example"}, **more}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A node on which nothing but the users themselves is imagined."""
    spec = importlib.util.spec_from_file_location("own_users", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CONFIG, module.SYSUSERS = tmp_path / "etc", tmp_path / "sysusers" / "moodle-fleet.conf"
    module.CONFIG.mkdir()
    (tmp_path / "cache").mkdir()
    made: dict[str, int] = {}

    def sysusers(command: list[str], **_more: object) -> None:
        for line in Path(command[1]).read_text().splitlines():
            words = line.split()
            if words[0] == "u":
                made.setdefault(words[1], int(words[2]))

    def known(name: str) -> SimpleNamespace:
        return SimpleNamespace(pw_uid=made[name], pw_gid=made[name])

    monkeypatch.setattr(module.subprocess, "run", sysusers)
    monkeypatch.setattr(module.pwd, "getpwnam", known)
    module.made = made
    return module


def tell(node: ModuleType, *tenants: dict) -> str:
    """What the role writes; returns the shared map."""
    files = tenants_files(list(tenants), SECRET, {"local_root": str(node.CONFIG.parent / "cache"), "dbhost": "it's a \\ host"})
    (node.CONFIG / "tenants.own").write_text(files["own"])
    node.main()
    return files["php"]


def test_each_has_a_map_and_a_folder_that_nobody_else_can_read(node: ModuleType, tmp_path: Path) -> None:
    shared = tell(node, entry("acme", own_user=True), entry("globex", own_user=True, uid=4000), entry("umbrella"))
    acme, globex, _umbrella = definition.load([entry("acme", own_user=True), entry("globex", own_user=True, uid=4000), entry("umbrella")])
    assert node.made == {"moodle-web": site.WEB_GID, "t-acme": acme.uid, "t-globex": 4000}
    assert acme.uid in definition.UIDS
    assert (node.CONFIG / "tenants.users").read_text() == f"acme {acme.uid};\nglobex 4000;\n"
    found = (node.CONFIG / "tenants" / "acme.php").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, acme.uid, 0o640)
    found = (tmp_path / "cache" / "globex").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4000, site.WEB_GID, 0o710)
    # Passwords: each in its own map alone.
    passwords = {name: one["database_password"] for name, one in json.loads((node.CONFIG / "tenants.own").read_text())["tenants"].items()}
    text = (node.CONFIG / "tenants" / "acme.php").read_text()
    assert passwords["acme"] in text and passwords["globex"] not in text
    assert "umbrella" in shared and not any(password in shared for password in passwords.values())
    assert "globex" not in shared
    assert node.WEB_ID == site.WEB_GID
    assert globex.unix_user == "t-globex"


def test_who_has_no_user_any_more_leaves_nothing_behind(node: ModuleType, tmp_path: Path) -> None:
    tell(node, entry("acme", own_user=True))
    (tmp_path / "cache" / "acme" / "localcache").mkdir()
    shared = tell(node, entry("acme"))
    assert not (tmp_path / "cache" / "acme").exists()
    assert list((node.CONFIG / "tenants").iterdir()) == []
    assert (node.CONFIG / "tenants.users").read_text() == ""
    assert "'acme'" in shared


def test_a_folder_or_link_of_somebody_elses_is_not_taken_over(node: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "cache" / "acme").symlink_to(tmp_path / "other")
    tell(node, entry("acme", own_user=True))
    assert not (tmp_path / "cache" / "acme").is_symlink()
    assert (tmp_path / "other").stat().st_uid == 0
    assert (tmp_path / "other").is_dir() and list((tmp_path / "other").iterdir()) == []


def test_a_user_with_another_number_is_refused(node: ModuleType) -> None:
    node.made["t-acme"] = 1001
    with pytest.raises(SystemExit, match="has the number 1001 on this node, not 20"):
        tell(node, entry("acme", own_user=True))
    assert not (node.CONFIG / "tenants.users").exists()


def test_the_map_is_what_php_expects(node: ModuleType, tmp_path: Path) -> None:
    tell(node, entry("acme", own_user=True))
    text = (node.CONFIG / "tenants" / "acme.php").read_text()
    literal = text.split("json_decode('", 1)[1].rsplit("', true)", 1)[0]
    data = json.loads(literal.replace("\\'", "'").replace("\\\\", "\\"))
    assert data["fleet"]["dbhost"] == "it's a \\ host"
    assert data["hosts"] == {"acme.example": "acme"}
    assert list(data["tenants"]) == ["acme"]


def test_a_closed_site_changes_its_user_and_its_gate_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=4001, pw_gid=4001))
    base = tmp_path / "acme"
    shared = site.Sites(site.Places("/nowhere", str(tmp_path), "www-data", "/nowhere/cli.php", ["php"]), None)
    own = site.Sites(site.Places("/nowhere", str(tmp_path), "www-data", "/nowhere/cli.php", ["php"], {"acme": 4002}), None)
    shared.settle("acme")
    (base / "data" / "filedir").mkdir(mode=0o750)
    (base / "data" / "filedir" / "x").write_text("x")
    (base / "data" / "filedir" / "x").chmod(0o640)
    os.symlink("/etc/passwd", base / "data" / "link")
    (base / "data" / "other").write_text("")
    os.link(base / "data" / "other", tmp_path / "somebody else's")
    before = os.stat("/etc/passwd")

    def seen(path: Path) -> tuple[int, int, int]:
        found = os.lstat(path)
        return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)

    assert not shared.other_owner("acme") and own.other_owner("acme")
    own.close("acme")
    own.change_owner("acme")
    # Its old user still sees that it is closed.
    assert seen(base)[2] & 1 and seen(base / "data")[2] & 1
    assert stat.S_IMODE((base / site.CLOSED).stat().st_mode) == 0o644
    own.settle("acme")
    assert seen(base) == (4002, site.WEB_GID, 0o710)
    assert seen(base / "data" / "filedir" / "x") == (4002, 4002, 0o644)
    assert own.wrong_folders("acme") == []
    # And back.
    shared.change_owner("acme")
    shared.settle("acme")
    assert seen(base) == (4001, 4001, 0o750)
    assert seen(base / "data" / "filedir" / "x") == (4001, 4001, 0o640)
    assert seen(tmp_path / "somebody else's")[0] == 0
    after = os.stat("/etc/passwd")
    assert (before.st_uid, before.st_mode) == (after.st_uid, after.st_mode)


def test_two_tenants_cannot_have_one_user() -> None:
    with pytest.raises(definition.TenantError, match="uid: 4000 is not allowed: tenant acme has this number"):
        definition.load([entry("acme", own_user=True, uid=4000), entry("globex", own_user=True, uid=4000)])
    with pytest.raises(definition.TenantError, match="own_user: 'yes'"):
        definition.load([entry("acme", own_user="yes")])
    with pytest.raises(definition.TenantError, match="uid: 0"):
        definition.load([entry("acme", own_user=True, uid=0)])
    with pytest.raises(definition.TenantError, match="use a shorter name"):
        definition.load([entry("a" * 31, own_user=True)])
    assert definition.load([entry("acme", uid=4000)])[0].uid == 0
