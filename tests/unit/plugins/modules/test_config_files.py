# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module of config_files on a real folder: what it writes, what it refuses, and that refusing changes nothing."""

from __future__ import annotations

import base64
import json
import os
import stat
import zlib

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.elearning.moodle_fleet.plugins.modules import config_files


def run(capsys, files, check=False, diff=True, no_diff=()):
    contents = {}
    entries = []
    for index, entry in enumerate(files):
        entry = dict(entry)
        if "content" in entry:
            data = entry.pop("content")
            contents[str(index)] = base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()
        entries.append(entry)
    packed = base64.b64encode(zlib.compress(json.dumps(contents).encode())).decode()
    args = {
        "files": entries,
        "no_diff": list(no_diff),
        "_contents": packed,
        "_ansible_check_mode": check,
        "_ansible_diff": diff,
    }
    capsys.readouterr()
    with patch_module_args(args), pytest.raises(SystemExit):
        config_files.main()
    return json.loads(capsys.readouterr().out)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(name="files")
def fixture_files(tmp_path):
    return [
        {"path": str(tmp_path / "conf.d"), "state": "directory", "mode": "0750"},
        {"path": str(tmp_path / "conf.d/a.conf"), "content": "a\n", "mode": "0600"},
        {"path": str(tmp_path / "conf.d/b.bin"), "content": b"\x00\xff"},
        {"path": str(tmp_path / "link"), "state": "link", "target": "conf.d/a.conf"},
        {"path": str(tmp_path / "old"), "state": "absent"},
    ]


def test_everything_is_made_once(capsys, tmp_path, files):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/inside").write_text("x")
    first = run(capsys, files)
    assert first["changed_paths"] == [entry["path"] for entry in files]
    assert (tmp_path / "conf.d/a.conf").read_text() == "a\n"
    assert (tmp_path / "conf.d/b.bin").read_bytes() == b"\x00\xff"
    assert os.readlink(tmp_path / "link") == "conf.d/a.conf"
    assert not (tmp_path / "old").exists()
    assert mode(tmp_path / "conf.d") == 0o750
    assert mode(tmp_path / "conf.d/a.conf") == 0o600
    assert mode(tmp_path / "conf.d/b.bin") == 0o644
    again = run(capsys, files)
    assert (again["changed"], again["changed_paths"], again["diff"]) == (False, [], [])


def test_check_mode_predicts_and_changes_nothing(capsys, tmp_path, files):
    files[1]["owner"] = "user-of-a-package-that-is-not-installed"
    predicted = run(capsys, files, check=True)
    assert predicted["changed_paths"] == [entry["path"] for entry in files[:4]]
    assert list(tmp_path.iterdir()) == []
    del files[1]["owner"]
    run(capsys, files)
    assert run(capsys, files, check=True)["changed"] is False


def test_a_new_content_keeps_the_mode_and_shows_a_diff(capsys, tmp_path):
    path = tmp_path / "a"
    path.write_text("old\n")
    path.chmod(0o640)
    result = run(capsys, [{"path": str(path), "content": "new\n"}])
    assert (path.read_text(), mode(path)) == ("new\n", 0o640)
    assert result["diff"] == [
        {"before": "old\n", "after": "new\n", "before_header": str(path), "after_header": str(path)}
    ]


def test_a_mode_alone_is_a_change(capsys, tmp_path):
    path = tmp_path / "a"
    path.write_text("same\n")
    path.chmod(0o644)
    entries = [{"path": str(path), "content": "same\n", "mode": "0600"}]
    assert run(capsys, entries, check=True)["changed_paths"] == [str(path)]
    assert mode(path) == 0o644
    assert run(capsys, entries)["changed_paths"] == [str(path)]
    assert mode(path) == 0o600


def test_a_secret_is_never_open_to_others(capsys, tmp_path, monkeypatch):
    """Neither while the file is new nor while its permissions become tighter."""
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_text("old")
    old.chmod(0o644)
    seen = []
    rename = os.rename

    def watch(source, target):
        rename(source, target)
        seen.append((os.path.basename(os.fsdecode(target)), mode(target)))

    monkeypatch.setattr(config_files.os, "rename", watch)
    run(capsys, [{"path": str(p), "content": "secret", "mode": "0600"} for p in (new, old)])
    assert seen == [("new", 0o600), ("old", 0o600)]


def test_no_diff_and_no_content_in_the_result(capsys, tmp_path):
    path = str(tmp_path / "a")
    result = run(capsys, [{"path": path, "content": "topsecret\n"}], no_diff=[path])
    assert result["changed"] is True
    assert "topsecret" not in json.dumps(result)
    assert path in result["diff"][0]["prepared"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"content": "x", "mode": 420}, "quote it"),
        ({"content": "x", "owner": "nobody-has-this-name"}, "there is no user 'nobody-has-this-name'"),
        ({"content": "x", "validate": "false %s"}, "refused the new content"),
        ({"content": "x", "validate": "true"}, "%s where the path"),
        ({"content": "x", "target": "/x"}, "the key target belongs to state link"),
        ({"state": "link"}, "state link needs it"),
        ({"state": "absent", "mode": "0644"}, "remove the key mode"),
        ({}, "there is no content"),
    ],
)
def test_a_wrong_entry_is_named_and_nothing_is_changed(capsys, tmp_path, second, message):
    first = tmp_path / "first"
    entries = [{"path": str(first), "content": "x"}, {"path": str(tmp_path / "second"), **second}]
    result = run(capsys, entries)
    assert result["failed"] is True
    assert result["msg"].startswith("files[1] (%s):" % (tmp_path / "second"))
    assert message in result["msg"]
    assert not first.exists()


def test_paths_are_absolute_and_named_once(capsys, tmp_path):
    assert "must be absolute" in run(capsys, [{"path": "relative", "content": "x"}])["msg"]
    assert "must be absolute" in run(capsys, [{"path": "/", "state": "absent"}])["msg"]
    twice = {"path": str(tmp_path / "a"), "content": "x"}
    assert "named twice" in run(capsys, [twice, twice])["msg"]


def test_one_kind_is_not_replaced_by_another(capsys, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("x")
    assert "there is a directory where a file" in run(capsys, [{"path": str(tmp_path / "d"), "content": "x"}])["msg"]
    assert "there is a file where a directory" in run(capsys, [{"path": str(tmp_path / "f"), "state": "directory"}])["msg"]
    link = {"path": str(tmp_path / "f"), "state": "link", "target": "/x"}
    assert "there is a file where a link" in run(capsys, [link])["msg"]


def test_a_link_gives_way_to_a_file_and_its_target_stays(capsys, tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    assert run(capsys, [{"path": str(tmp_path / "a"), "content": "new"}])["changed"] is True
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "target").read_text() == "kept"


def test_a_missing_folder_is_explained(capsys, tmp_path):
    result = run(capsys, [{"path": str(tmp_path / "no/file"), "content": "x"}])
    assert "add an entry with state directory before it" in result["msg"]
