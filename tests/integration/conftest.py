# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def podman() -> Path | None:
    """The containers.conf that this machine's podman needs, if it needs one (scripts/test finds out)."""
    path = os.environ.get("CONTAINERS_CONF")
    return Path(path) if path else None
