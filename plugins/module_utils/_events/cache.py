# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ``moodle-fleet events`` found, kept beside the ledger: a check reads this file and asks nobody."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen

FILE_NAME = "events.json"


def load(folder: Path) -> dict[str, Any]:
    """The whole content; empty where there is none, or none that can be used."""
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def foreseen(folder: Path) -> Foreseen:
    """What is known ahead; nothing, read never, where the file is missing or damaged."""
    try:
        return Foreseen.from_data(load(folder))
    except (KeyError, TypeError, ValueError):
        return Foreseen()


def write(folder: Path, data: Mapping[str, Any]) -> None:
    """Replace the file at once: a check sees the old content or the new one.

    :raises OSError: when the folder can't be written.
    """
    new = folder / f"{FILE_NAME}.{os.getpid()}"
    try:
        # Names of courses' quizzes are nobody else's business.
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
        os.replace(new, folder / FILE_NAME)
    finally:
        new.unlink(missing_ok=True)
