# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Single flight: one check of a fleet at a time on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path


class Locked(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def hold_file(path: Path, wait: float = 0.0) -> Iterator[int]:
    """Hold the lock; yields its file descriptor.

    The kernel frees it when the last process that inherited the descriptor ends, however it ends: a dead holder keeps
    nothing. A playbook run inherits it, so a run that outlives a killed trigger still keeps others out.

    :raises Locked: with the holder's process number, when another process has it after ``wait`` seconds.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() >= end:
                    holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
                    raise Locked(f"another check is under way (process {holder or 'unknown'})") from exc
            time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
        yield handle
    finally:
        os.close(handle)
