# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What all benchmarks share: CPU seconds of containers, medians, tables and CSV files."""

from __future__ import annotations

import csv
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CGROUPS = Path("/sys/fs/cgroup")


def say(text: str) -> None:
    """Progress goes to standard error, results to standard output."""
    print(text, file=sys.stderr, flush=True)


def run(*command: str, stdin: str | None = None, check: bool = True, **options) -> str:
    """Run a command and return what it printed; its own message is the error."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        output = (done.stdout + done.stderr).strip()
        raise SystemExit(f"{' '.join(command[:4])} … failed ({done.returncode}):\n{output[-4000:]}")
    return done.stdout


class Cpu:
    """CPU seconds that containers have used, from their control groups (version 1 or 2)."""

    def __init__(self, containers: Iterable[str]):
        self.files = {name: self._file(name) for name in containers}

    @staticmethod
    def _file(name: str) -> Path:
        path = run("podman", "inspect", "--format", "{{.State.CgroupPath}}", name).strip().lstrip("/")
        for file in (
            CGROUPS / "cpuacct" / path / "cpuacct.usage",
            CGROUPS / "cpu,cpuacct" / path / "cpuacct.usage",
            CGROUPS / path / "cpu.stat",
        ):
            if file.exists():
                return file
        raise SystemExit(f"the control group of container {name} has no CPU account below {CGROUPS}")

    def read(self) -> dict[str, float]:
        """Seconds for each container."""
        seconds = {}
        for name, file in self.files.items():
            text = file.read_text(encoding="ascii")
            if file.name == "cpuacct.usage":
                seconds[name] = int(text) / 1e9
            else:
                seconds[name] = int(text.split("usage_usec", 1)[1].split()[0]) / 1e6
        return seconds

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds used since an earlier reading."""
        return {name: value - before[name] for name, value in self.read().items()}


def median(values: Sequence[float]) -> float:
    """Median; not a number when there is nothing."""
    return statistics.median(values) if values else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def show(value: object) -> str:
    """A cell of a table: few digits, always readable."""
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)


def report(name: str, title: str, rows: Sequence[Mapping[str, object]], notes: Sequence[str] = ()) -> None:
    """Print a table, and write it with full precision to results/NAME.csv."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (RESULTS / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    cells = [columns] + [[show(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(not isinstance(row.get(column, 0), str) for row in rows) for column in columns]
    print(f"\n## {title}\n")
    for number, line in enumerate(cells):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("| " + " | ".join(padded) + " |")
        if number == 0:
            rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
            print("| " + " | ".join(rule) + " |")
    for note in notes:
        print(f"\n{note}")
    print(f"\n(written to {os.path.relpath(RESULTS / name)}.csv)", flush=True)


def wait_for(what: str, ready, seconds: float = 60, pause: float = 0.02):
    """Call until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while True:
        value = ready()
        if value:
            return value
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)
