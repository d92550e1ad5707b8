# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import subprocess
import tarfile

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import source

VERSION = "<?php\n$version  = 2024100706.00;  // x\n$release  = '4.5.6+ (Build: 1)';\n$branch   = '405';\n$maturity = MATURITY_STABLE;\n"
ENVIRONMENT = """<?xml version="1.0"?><COMPATIBILITY_MATRIX>
<MOODLE version="4.4"><PHP version="8.0.0" level="required"></PHP></MOODLE>
<MOODLE version="4.5"><PHP version="8.1.0" level="required"><RESTRICT function="restrict_php_version_84"/></PHP></MOODLE>
</COMPATIBILITY_MATRIX>"""


@pytest.fixture(name="tree")
def make_tree(tmp_path):
    root = tmp_path / "moodle"
    for name, text in {
        "version.php": VERSION, "admin/environment.xml": ENVIRONMENT, "index.php": "<?php", "config.php": "secret",
        ".git/HEAD": "x", "mod/node_modules/a.js": "x", "local/config.php": "kept",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "index.php").chmod(0o755)
    return root


@pytest.fixture(name="builder")
def make_builder(tmp_path):
    return source.Builder(str(tmp_path / "cache"), timeout=5)


def test_says_what_the_code_is(tree):
    assert source.describe(str(tree)) == {
        "release": "4.5.6", "version": "2024100706.00", "branch": "405", "public_root": False,
        "php": {"minimum": "8.1.0", "below": "8.4"},
    }


def test_leaves_out_what_is_no_code(tree, builder):
    found, made = builder.build(str(tree))
    with tarfile.open(found["artifact"]) as archive:
        files = {info.name: oct(info.mode) for info in archive if info.isfile()}
    assert made
    assert files == {
        "version.php": "0o644", "admin/environment.xml": "0o644", "index.php": "0o755", "local/config.php": "0o644",
    }


def test_second_run_makes_nothing(tree, builder):
    first, made = builder.build(str(tree))
    assert builder.build(str(tree)) == (first, False)
    (tree / "index.php").write_text("<?php echo 1;")
    other, made = builder.build(str(tree))
    assert made and other["name"] != first["name"]


def test_same_code_gives_the_same_artifact_wherever_it_comes_from(tree, builder, tmp_path):
    from_folder = builder.build(str(tree))[0]
    packed = tmp_path / "moodle.tgz"
    subprocess.run(["tar", "-czf", packed, "-C", tmp_path, "moodle"], check=True)
    for path in (tree / ".git" / "HEAD", tree / "config.php"):
        path.unlink()
    (tree / ".git").rmdir()
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "--all", "--force"], ["commit", "-q", "-m", "x"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    from_git = builder.build(f"file://{tree}", "v1")[0]
    assert [from_folder["name"], from_folder["digest"]] == [from_git["name"], from_git["digest"]]
    assert builder.build(str(packed))[0]["digest"] == from_folder["digest"]


def test_a_broken_off_run_leaves_no_artifact(tree, builder, monkeypatch):
    def broken(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "_add", broken)
    with pytest.raises(KeyboardInterrupt):
        builder.build(str(tree))
    assert os.listdir(builder.cache) == []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("/nowhere/at/all", "neither a git URL nor"),
        ("file:///nowhere/at/all", "cannot reach file:///nowhere/at/all"),
    ],
)
def test_one_line_says_what_cannot_be_had(builder, where, message):
    with pytest.raises(source.SourceError, match=message) as caught:
        builder.build(where, "v1")
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_moodle(builder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(source.SourceError, match="no Moodle code"):
        builder.build(str(tmp_path / "empty"))


def test_refuses_links_that_lead_out(tree, builder):
    (tree / "evil").symlink_to("../../etc")
    with pytest.raises(source.SourceError, match="leads out"):
        builder.build(str(tree))


def test_no_file_has_the_time_that_opcache_never_keeps():
    assert source.MODIFIED > 0
    info = tarfile.TarInfo("lib")
    assert info.mtime == 0, "tarfile's default, which is why a time is set"
