# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The index of the forwarder's queue, after the forwarder was killed while it wrote it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "roles/log_forwarding/files/recover_queue.py"
_spec = importlib.util.spec_from_file_location("recover_queue", SCRIPT)
assert _spec and _spec.loader
recover_queue = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recover_queue)

LINE = "<Obj:1:msg:1:\n+pszRawMsg:1:6:line 5:\n>End\n.\n"


@pytest.fixture(name="queue")
def _queue(tmp_path: Path) -> Path:
    (tmp_path / "forward.00000003").write_text(LINE * 3)
    (tmp_path / "forward.00000004").write_text(LINE * 2 + LINE[:20])
    return tmp_path


def values(queue: Path, key: str) -> list[str]:
    return re.findall(rf"^\+{re.escape(key)}:\d:\d+:(.*):$", (queue / "forward.qi").read_text(), re.M)


@pytest.mark.parametrize("index", [None, "", "<OPB:1:qqueue:1:\n+iQueueSize:2:1:5:\n>End\n.\n<Obj:1:strm"])
def test_a_broken_index_is_written_anew_from_the_first_line_to_the_last_whole_one(queue: Path, index: str | None) -> None:
    if index is not None:
        (queue / "forward.qi").write_text(index)
    assert recover_queue.main(queue, "forward") == 0
    assert values(queue, "iQueueSize") == ["5"]
    assert values(queue, "iCurrFNum") == ["4", "3"]
    assert values(queue, "iCurrOffs") == [str(2 * len(LINE)), "0"]
    assert (queue / "forward.00000004").read_text() == LINE * 2
    before = (queue / "forward.qi").read_bytes()
    recover_queue.main(queue, "forward")
    assert (queue / "forward.qi").read_bytes() == before


def test_without_a_queue_there_is_nothing_to_mend(tmp_path: Path) -> None:
    assert recover_queue.main(tmp_path, "forward") == 0
    assert list(tmp_path.iterdir()) == []
