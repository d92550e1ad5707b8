# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What playbooks and roles use of other collections is declared, or an installation from Galaxy lacks it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
# Of ansible-core itself, of this collection, and Python's.
OWN = {"ansible.builtin", "elearning.moodle_fleet", "ansible.module_utils", "ansible.plugins", "ansible.errors"}


def test_every_collection_that_is_used_is_a_dependency() -> None:
    declared = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))["dependencies"]
    required = yaml.safe_load((ROOT / "requirements.yml").read_text(encoding="utf-8"))["collections"]
    assert {one["name"]: one["version"] for one in required} == declared
    files = [path for folder in ("playbooks", "roles") for path in (ROOT / folder).rglob("*.yml")]
    used = {
        name for path in files
        for name in re.findall(r"\b((?:ansible|amazon|community|containers)\.[a-z_]+)\.[a-z_0-9]+", path.read_text(encoding="utf-8"))
    }
    assert used - OWN == set(declared)
