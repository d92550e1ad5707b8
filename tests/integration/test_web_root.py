# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tree as Moodle has it from 5.1 on: what visitors may see is in public/, config.php beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import ROOT, LocalFleet

pytestmark = pytest.mark.slow


def test_a_tree_with_its_web_root_in_public_is_served(fleet: LocalFleet, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "standin", tmp_path / "tree" / "public")
    (tmp_path / "tree" / "public" / "config.php").write_text("<?php\nrequire_once __DIR__ . '/../config.php';\n")
    (tmp_path / "tree" / "notes.php").write_text("<?php echo 'outside of the web root';\n")
    fleet.playbook("site", "-e", f"moodle_source={tmp_path / 'tree'}", "-e", "release_in_place=true")
    for tenant in ("acme", "globex"):
        fleet.login(tenant)
    visitor = fleet.visitor()
    assert "Site of acme" in visitor.get(fleet.url("acme"), timeout=30).text
    for path in ("/notes.php", "/config.php", "/public/index.php", "/../notes.php"):
        assert visitor.get(fleet.url("acme", path), timeout=30).status_code == 404, path
