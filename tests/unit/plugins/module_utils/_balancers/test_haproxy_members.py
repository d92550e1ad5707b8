# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.haproxy_members import (
    Line,
    MemberFile,
    RuntimeSocket,
)


class Check:
    """HAProxy's check of a configuration: remembers its commands and answers as it is told."""

    def __init__(self) -> None:
        self.status = 0
        self.commands: list[list[str]] = []

    def __call__(self, command):
        self.commands.append(list(command))
        return self.status, "bad line"


@pytest.fixture(name="check")
def fixture_check() -> Check:
    return Check()


@pytest.fixture(name="file")
def fixture_file(tmp_path: Path, check: Check) -> MemberFile:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "haproxy.cfg").write_text(
        "defaults common\n    default-server inter 9s\ndefaults web from common\n    default-server inter 1s fall 2\n"
    )
    return MemberFile(check, config_dir=str(tmp_path), lock=str(tmp_path / "lock"))


def test_a_new_file_holds_the_head_alone(file: MemberFile) -> None:
    with file.change():
        pass
    assert file.exists() and file.read() == {}
    assert Path(file.path).read_text().endswith("backend web from web\n")


def test_members_are_written_sorted_and_read_back(file: MemberFile) -> None:
    wanted = {"b": Line("10.0.0.2", 80, 4), "a": Line("fd00::1", 8080, 2, 0)}
    with file.change() as lines:
        lines.update(wanted)
    assert file.read() == wanted
    members = [raw.split()[1] for raw in Path(file.path).read_text().splitlines() if raw.startswith("    server")]
    assert members == ["a", "b"]


def test_no_change_writes_and_checks_nothing(file: MemberFile, check: Check) -> None:
    with file.change() as lines:
        lines["a"] = Line("10.0.0.1", 80, 4)
    before = Path(file.path).stat().st_mtime_ns, len(check.commands)
    with file.change():
        pass
    assert (Path(file.path).stat().st_mtime_ns, len(check.commands)) == before


def test_a_refused_file_leaves_the_old_one(file: MemberFile, check: Check) -> None:
    with file.change() as lines:
        lines["a"] = Line("10.0.0.1", 80, 4)
    check.status = 1
    with pytest.raises(BalancerError, match="bad line"), file.change() as lines:
        lines.clear()
    assert set(file.read()) == {"a"}
    assert sorted(path.name for path in Path(file.path).parent.iterdir()) == ["web.cfg"]


def test_the_check_sees_the_other_files_and_the_candidate(file: MemberFile, check: Check) -> None:
    other = Path(file.path).with_name("extra.cfg")
    other.write_text("")
    with file.change():
        pass
    (command,) = check.commands
    assert file.main in command and str(other) in command and file.path not in command


def test_a_line_of_somebody_else_is_refused_and_kept(file: MemberFile) -> None:
    Path(file.path).write_text("backend web from web\n    server x 1.2.3.4:80 backup\n")
    with pytest.raises(BalancerError, match="backup"), file.change() as lines:
        lines.clear()
    assert "backup" in Path(file.path).read_text()


def test_options_of_the_backend_are_found(file: MemberFile) -> None:
    assert file.server_options() == "inter 1s fall 2"


def test_a_socket_nobody_listens_on_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BalancerError, match="systemctl status haproxy"):
        RuntimeSocket(str(tmp_path / "none.sock"), timeout=0.2).ask("show info")
