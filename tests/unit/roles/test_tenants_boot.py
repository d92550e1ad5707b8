# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a node that boots takes from the shared file system."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.filter.tenants_files import tenants_files

SCRIPT = Path(__file__).parents[3] / "roles" / "tenants" / "files" / "boot.sh"
TENANT = {"name": "acme", "hosts": ["acme.example"], "title": "Acme", "admin": {"user": "admin", "email": "a@acme.example"}}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    files = tenants_files([TENANT], "x" * 40, {})
    (folder / "tenants.php").write_text(files["php"])
    (folder / "tenants.own").write_text(files["own"])
    (folder / "tenants.map").write_text(files["map"])
    (tmp_path / "wanted").write_text(files["fingerprint"])
    (tmp_path / "own").mkdir()
    # In the place of what makes the users.
    (tmp_path / "users.py").write_text(f"open({str(tmp_path / 'told')!r}, 'w').write(open({str(tmp_path / 'own' / 'tenants.own')!r}).read())")
    return folder


def boot(shared: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(SCRIPT), str(shared), grp.getgrgid(os.getgid()).gr_name, str(shared.parent / "own"), str(shared.parent / "users.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_fingerprint_is_the_one_the_controller_expects(shared: Path) -> None:
    assert boot(shared).returncode == 0
    own = shared.parent / "own"
    assert (own / "tenants.fingerprint").read_text().strip() == (shared.parent / "wanted").read_text()
    assert stat.S_IMODE((own / "tenants.php").stat().st_mode) == 0o640
    assert stat.S_IMODE((own / "tenants.own").stat().st_mode) == 0o600
    assert sorted(os.listdir(own)) == ["tenants.fingerprint", "tenants.map", "tenants.own", "tenants.php"]
    assert (shared.parent / "told").read_text() == (shared / "tenants.own").read_text()


def test_a_node_that_cannot_make_the_users_does_not_claim_to_know_its_tenants(shared: Path) -> None:
    (shared.parent / "users.py").write_text("raise SystemExit('no room')")
    assert boot(shared).returncode != 0
    assert not (shared.parent / "own" / "tenants.fingerprint").exists()


def test_half_of_a_change_is_not_taken_for_the_whole(shared: Path) -> None:
    (shared / "tenants.map").write_text("new.example new;\n")
    assert boot(shared).returncode == 0
    assert (shared.parent / "own" / "tenants.fingerprint").read_text().strip() != (shared.parent / "wanted").read_text()


def test_what_cannot_be_read_leaves_the_node_as_it_was(shared: Path) -> None:
    own = shared.parent / "own"
    (own / "tenants.php").write_text("old")
    (shared / "tenants.map").unlink()
    assert boot(shared).returncode != 0
    assert (own / "tenants.php").read_text() == "old"
    assert not (own / "tenants.fingerprint").exists()
