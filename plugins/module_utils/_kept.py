# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Small things that one run leaves to the next: files beside the ledger, or in it where controllers keep no disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import LedgerError, open_ledger

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

# The image that new web nodes start from; as a file it holds nothing but the id.
CHOSEN_IMAGE = "image"


class KeptError(Exception):
    """Something can't be kept. The message names it and what to do."""


def load(fleet: Fleet, name: str) -> dict[str, Any]:
    """What was kept under a name; empty where there is nothing, or nothing that can be used."""
    try:
        if _in_ledger(fleet):
            with open_ledger(fleet, trace=False) as ledger:
                found = ledger.state(name)
        else:
            found = json.loads((fleet.state_dir / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, LedgerError):
        return {}
    return found if isinstance(found, dict) else {}


def write(fleet: Fleet, name: str, data: Mapping[str, Any]) -> None:
    """Replace what is kept under a name at once: whoever reads has the old or the new.

    :raises KeptError: when it can't be written.
    """
    if _in_ledger(fleet):
        _remember(fleet, name, data)
    else:
        _replace(fleet, name, json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def chosen_image(fleet: Fleet) -> str:
    """Id of the image that the last bake settled on; empty where none has. After a rollback it isn't the newest one.

    :raises LedgerError: when it is in a ledger that can't be read.
    """
    if _in_ledger(fleet):
        with open_ledger(fleet, trace=False) as ledger:
            return str(ledger.state(CHOSEN_IMAGE) or "")
    try:
        return (fleet.state_dir / CHOSEN_IMAGE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def choose_image(fleet: Fleet, image: str) -> None:
    """Let new web nodes start from this image.

    :raises KeptError: when it can't be written.
    """
    if _in_ledger(fleet):
        _remember(fleet, CHOSEN_IMAGE, image)
    else:
        _replace(fleet, CHOSEN_IMAGE, f"{image}\n")


def _in_ledger(fleet: Fleet) -> bool:
    return fleet.ledger.get("driver") == "mariadb"


def _remember(fleet: Fleet, name: str, value: Any) -> None:
    try:
        with open_ledger(fleet) as ledger:
            ledger.remember(name, value)
    except LedgerError as exc:
        raise KeptError(str(exc)) from exc


def _replace(fleet: Fleet, name: str, text: str) -> None:
    folder = fleet.state_dir
    new = folder / f"{name}.{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # The names of a course's quizzes are nobody else's business.
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(new, folder / name)
        finally:
            new.unlink(missing_ok=True)
    except OSError as exc:
        raise KeptError(f"{folder / name}: {exc.strerror}: check the folder, its room and its permissions") from exc
