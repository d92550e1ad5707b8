# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A role's argument_specs and its defaults say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted((Path(__file__).parents[3] / "roles").iterdir())


def read(path: Path) -> Any:
    """A YAML file's content; an empty mapping when there is none."""
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request: pytest.FixtureRequest) -> Path:
    return request.param


def options(role: Path) -> dict[str, dict[str, Any]]:
    """The options of the role's main entry point."""
    return read(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})


def test_every_default_is_specified_with_the_same_value(role: Path) -> None:
    specified = {name: spec["default"] for name, spec in options(role).items() if "default" in spec}
    assert read(role / "defaults" / "main.yml") == specified


def test_every_option_is_typed_described_and_has_the_roles_prefix(role: Path) -> None:
    for name, spec in options(role).items():
        assert name.startswith(f"{role.name}_"), name
        assert spec.get("type"), name
        assert spec.get("description"), name
        assert spec["type"] != "list" or spec.get("elements"), name


def test_a_secret_is_never_given_a_default(role: Path) -> None:
    for name, spec in options(role).items():
        if name.endswith(("_password", "_secret")):
            assert not spec.get("default"), name
            assert spec.get("no_log") is True, name


def test_the_role_is_described(role: Path) -> None:
    assert len((role / "README.md").read_text()) > 200
    info = read(role / "meta" / "main.yml")["galaxy_info"]
    assert info["min_ansible_version"] == "2.19"
    assert {version for entry in info["platforms"] for version in entry["versions"]} >= {"bookworm", "trixie"}
