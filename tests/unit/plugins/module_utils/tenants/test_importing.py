# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import gzip
import os

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import importing

DUMP = b"-- MariaDB dump 10.19\n\nCREATE TABLE `mdl_config` (`id` int);\n%s-- Dump completed on 2026-01-01  1:00:00\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (DUMP % b"", ""),
        (DUMP % (b"INSERT INTO `mdl_x` VALUES (1);\n" * 9000), ""),
        (DUMP.split(b"-- Dump completed", maxsplit=1)[0] % b"", "does not end with '-- Dump completed'"),
        (b"--\n-- PostgreSQL database dump\n--\nCREATE TABLE x ();\n", "is of PostgreSQL"),
        (b"\x00\x01\x02 something else", "is no dump"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_dump_is_judged_by_its_beginning_and_its_end(tmp_path, content, problem, packed):
    path = tmp_path / "dump"
    path.write_bytes(gzip.compress(content) if packed else content)
    found = importing.dump_problems(str(path))
    assert len(found) == bool(problem)
    assert problem in "".join(found)


def test_a_packed_dump_that_was_cut_off_is_told(tmp_path):
    path = tmp_path / "dump.gz"
    path.write_bytes(gzip.compress(DUMP % os.urandom(100000))[:-5000])
    assert "cannot be read to its end" in importing.dump_problems(str(path))[0]


@pytest.mark.parametrize(
    ("tables", "prefix"),
    [
        (["mdl_config", "mdl_config_plugins", "mdl_course", "mdl_user", "wp_posts"], "mdl_"),
        (["m45_config", "m45_config_plugins", "m45_course", "m45_user"], "m45_"),
        (["config", "config_plugins", "course", "user"], ""),
        (["wp_config_plugins", "wp_posts"], None),
        ([], None),
    ],
)
def test_the_prefix_is_found(tables, prefix):
    assert importing.find_prefix(tables) == prefix


def test_files_are_copied_once_and_links_never(tmp_path):
    origin, target = tmp_path / "origin", tmp_path / "target"
    for path in ("filedir/ab/cd/abcd", "lang/de/moodle.php", "cache/x", "muc/config.php", "sub/cache/kept"):
        (origin / path).parent.mkdir(parents=True, exist_ok=True)
        (origin / path).write_text(path)
    (origin / "climaintenance.html").write_text("closed")
    (origin / "link").symlink_to("/etc/shadow")
    (origin / "folder").symlink_to("/etc")
    owner = (os.getuid(), os.getgid())
    assert importing.copy_data(str(origin), str(target), owner) == {"files": 3, "bytes": 50}
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == [
        "filedir/ab/cd/abcd", "lang/de/moodle.php", "sub/cache/kept",
    ]
    kept = os.stat(target / "filedir/ab/cd/abcd").st_ino
    (target / "lang/de/moodle.php").write_text("cut")
    importing.copy_data(str(origin), str(target), owner)
    assert os.stat(target / "filedir/ab/cd/abcd").st_ino == kept
    assert (target / "lang/de/moodle.php").read_text() == "lang/de/moodle.php"
    assert os.stat(target / "lang/de/moodle.php").st_mode & 0o777 == 0o640
