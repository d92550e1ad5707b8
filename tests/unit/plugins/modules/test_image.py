# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A rollback: the image that was asked for last is the one that new nodes start from, whatever is newer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _fleet, _kept
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import sources_of
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import load
from ansible_collections.elearning.moodle_fleet.plugins.modules import image

RECIPE = image.fingerprint([], {})


class Cloud:
    """A cloud with images alone, newest first."""

    settle = 0.0

    def __init__(self) -> None:
        self.known = [
            {"id": f"image-{release}", "role": "web", "release": release, "recipe": RECIPE, "created": 0.0}
            for release in ("4.5.6", "4.5.5")
        ]

    def images(self) -> list[dict[str, Any]]:
        return self.known

    def zones(self) -> list[str]:
        return []

    def hear(self, nodes: list[Any]) -> None:
        """It tells nothing."""


@pytest.fixture(name="file")
def fixture_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "moodle_fleet.yml"
    path.write_text(
        "plugin: elearning.moodle_fleet.fleet\nfleet: test\nstate_dir: state\ncloud: {driver: podman}\n"
        "scaling: {min_nodes: 2, max_nodes: 4}\n"
    )
    cloud = Cloud()
    monkeypatch.setattr(_fleet, "cloud_driver", lambda _fleet: cloud)
    monkeypatch.setattr(image, "cloud_driver", lambda _fleet: cloud)
    return path


def ask(file: Path, release: str, capsys: pytest.CaptureFixture[str], check: bool = False) -> dict[str, Any]:
    """Run the module."""
    with patch_module_args({"fleet_file": str(file), "release": release, "_ansible_check_mode": check}), pytest.raises(SystemExit):
        image.main()
    return json.loads(capsys.readouterr().out)


def test_the_release_that_was_asked_for_last_is_launched(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sources_of(load(file)).image("") == ("image-4.5.6", "4.5.6")
    assert ask(file, "4.5.6", capsys)["changed"]
    assert not ask(file, "4.5.6", capsys)["changed"]
    looked = ask(file, "4.5.5", capsys, check=True)
    assert looked["changed"] and looked["diff"] == {"before": "image image-4.5.6\n", "after": "image image-4.5.5\n"}
    assert sources_of(load(file)).image("") == ("image-4.5.6", "4.5.6")
    assert ask(file, "4.5.5", capsys)["image"] == "image-4.5.5"
    assert sources_of(load(file)).image("") == ("image-4.5.5", "4.5.5")


def test_a_chosen_image_that_is_gone_gives_way_to_the_newest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (load(file).state_dir).mkdir()
    (load(file).state_dir / _kept.CHOSEN_IMAGE).write_text("image-gone\n")
    assert sources_of(load(file)).image("") == ("image-4.5.6", "4.5.6")
    assert capsys.readouterr().out == ""
