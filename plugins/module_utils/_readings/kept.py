# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was read outside of the check, kept in files beside the ledger: a check reads these and asks nobody."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.events import Foreseen

EVENTS = "events.json"
TIERS = "tiers.json"


class KeptError(Exception):
    """A file can't be written. The message names it and what to do."""


def load(folder: Path, name: str) -> dict[str, Any]:
    """The content of a file; empty where there is none, or none that can be used."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(folder: Path, name: str, data: Mapping[str, Any]) -> None:
    """Replace a file at once: whoever reads sees the old content or the new one.

    :raises KeptError: when the folder can't be written.
    """
    new = folder / f"{name}.{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # The names of a course's quizzes are nobody else's business.
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
            os.replace(new, folder / name)
        finally:
            new.unlink(missing_ok=True)
    except OSError as exc:
        raise KeptError(f"{folder / name}: {exc.strerror}: check the folder, its room and its permissions") from exc


def foreseen(folder: Path, until: float = math.inf) -> Foreseen:
    """What begins before ``until``; nothing, read never, where the file is missing or damaged."""
    try:
        return Foreseen.from_data(load(folder, EVENTS), until)
    except (KeyError, TypeError, ValueError):
        return Foreseen()


def saturated(folder: Path, now: float) -> dict[str, str]:
    """The tiers that are full, for the check's brake. A reading that is missing, old or odd never holds anything back."""
    data = load(folder, TIERS)
    if not data:
        return {}
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import tiers

    try:
        return tiers.saturated(data, now)
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
