# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.modules import log_delivery


@pytest.fixture(name="journal", autouse=True)
def fixture_journal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log_delivery.syslog, "syslog", lambda _level, text: lines.append(text))
    return lines


def test_each_existing_file_and_the_journal_are_marked(tmp_path: Path, journal: list[str]) -> None:
    (tmp_path / "a-1.log").write_text("whole\n")
    (tmp_path / "a-2.log").write_text("half a li")
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"files": [{"tag": "app", "path": f"{tmp_path}/a-*.log"}, {"tag": "none", "path": f"{tmp_path}/none"}]})
    )
    marker, channels = log_delivery.mark(log_delivery.forwarded(str(config)))
    assert channels == ["app.0", "app.1", "moodle-fleet-delivery"]
    assert (tmp_path / "a-1.log").read_text() == f"whole\n{log_delivery.text_of(marker, 'app.0')}\n"
    assert (tmp_path / "a-2.log").read_text() == f"half a li\n{log_delivery.text_of(marker, 'app.1')}\n"
    assert journal == [log_delivery.text_of(marker, "moodle-fleet-delivery")]


def test_confirmed_when_every_mark_is_there(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("time app " + log_delivery.text_of("m1", "app.0") + "\n")
    (tmp_path / "moodle-fleet-delivery.log-20261122-1").write_text(log_delivery.text_of("m1", "moodle-fleet-delivery") + "\n")
    missing, _seconds = log_delivery.confirm(str(tmp_path), "m1", ["app.0", "moodle-fleet-delivery"], 0)
    assert missing == []


@pytest.mark.parametrize("content", ["", "moodle-fleet delivery mark m2 app.1\n", "moodle-fleet delivery mark m1 app.10\n"])
def test_another_mark_confirms_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "app.log").write_text(content)
    missing, seconds = log_delivery.confirm(str(tmp_path), "m1", ["app.1"], 0.2)
    assert missing == ["app.1"] and seconds >= 0.2
