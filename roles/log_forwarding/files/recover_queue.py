# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes the index of rsyslog's disk queue anew where a forwarder was killed while it wrote it.

rsyslog 8 overwrites the index in place, and starts an empty queue where it is cut off: every line in the queue's files would be
lost. Run before rsyslog starts. What was delivered already is sent once more then, for nothing else says how far it was.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RECORD = re.compile(rb"^>End\n\.\n", re.M)
# The queue itself, where it writes, where it reads.
SECTIONS = 3


def main(folder: Path, name: str) -> int:
    """Look at the index, and mend it if need be."""
    index, files = folder / f"{name}.qi", sorted(folder.glob(f"{name}.[0-9]*"))
    if not files or index.exists() and len(RECORD.findall(index.read_bytes())) == SECTIONS:
        return 0
    ends: list[int] = []
    count = 0
    for path in files:
        ends = [match.end() for match in RECORD.finditer(path.read_bytes())]
        count += len(ends)
    # A line that was cut off itself still is where it came from.
    whole = ends[-1] if ends else 0
    with files[-1].open("r+b") as stream:
        stream.truncate(whole)
    size = sum(path.stat().st_size for path in files)
    first, last = (int(path.suffix[1:]) for path in (files[0], files[-1]))
    index.write_text(
        "<OPB:1:qqueue:1:\n" + number("iQueueSize", count) + number("tVars.disk.sizeOnDisk", size) + ">End\n.\n"
        + position(name, last, whole, writes=True) + position(name, first, 0, writes=False), encoding="ascii",
    )
    print(f"the queue's index was broken; {count} lines are sent, some of them perhaps once more")
    return 0


def number(key: str, value: int) -> str:
    """A number as rsyslog keeps it: its type, its length, itself."""
    return f"+{key}:2:{len(str(value))}:{value}:\n"


def position(name: str, file: int, offset: int, *, writes: bool) -> str:
    """Where the queue writes or reads. What has been read is deleted."""
    numbers = {
        "iMaxFiles": 10_000_000, "bDeleteOnClose": int(not writes), "sType": 1, "tOperationsMode": 2 if writes else 1,
        "tOpenMode": 0o600, "iCurrOffs": offset, "inode": 0, "strtOffs": 0, "bPrevWasNL": 0,
    }
    return (
        "<Obj:1:strm:1:\n" + number("iCurrFNum", file) + f"+pszFName:1:{len(name)}:{name}:\n"
        + "".join(number(key, value) for key, value in numbers.items()) + ">End\n.\n"
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
