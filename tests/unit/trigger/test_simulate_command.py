# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""moodle-fleet simulate: traces and ledgers in, data, text and a page out, and one clear error for bad input."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.tests.unit.plugins.module_utils._scaling.world import World
from ansible_collections.elearning.moodle_fleet.trigger import cli, simulate

KEYS = {
    "under_provisioned_share", "over_provisioned_share", "under_provisioning_accuracy", "over_provisioning_accuracy",
    "instability", "node_hours", "oracle_node_hours", "decisions",
}


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path) -> str:
    path = tmp_path / "moodle_fleet.yml"
    path.write_text(
        "plugin: elearning.moodle_fleet.fleet\nfleet: sim\nstate_dir: state\ncloud: {driver: podman}\n"
        "scaling: {min_nodes: 2, max_nodes: 20, workers: 8, forecast: off}\n", encoding="utf-8",
    )
    return str(path)


@pytest.fixture(name="trace")
def _trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    lines = [f"{600 + 60 * m},{10 + 60 * math.exp(-0.5 * ((m - 300) / 80) ** 2):.3f}" for m in range(600)]
    path.write_text("\n".join(["time,load", *lines]) + "\n", encoding="utf-8")
    return path


def test_data(fleet: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "--fleet", fleet, "--trace", str(trace), "--json", "--price", "0.5"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert KEYS <= set(data)
    assert 0 < data["oracle_node_hours"] < data["node_hours"] < data["static_peak_node_hours"]
    assert data["cost"]["fleet"] == pytest.approx(data["node_hours"] / 2, abs=0.01)
    assert all(one["direction"] in ("in", "out") and one["reasons"] for one in data["decisions"])
    assert data["static_peak_nodes"] == 11
    assert data["waiting"]["requests"] > 0


def test_a_terminal_is_told_how_far_it_is_and_the_run_is_the_same(
    fleet: str, trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["simulate", "--fleet", fleet, "--trace", str(trace), "--json"]
    assert cli.main(command) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    seconds = iter(range(1_000_000))
    monkeypatch.setattr(simulate.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(command) == 0
    told = capsys.readouterr()
    assert told.out == quiet.out
    shares = [int(one) for one in re.findall(r"\r0\.\d of 0\.4 days, (\d+)% ", told.err)]
    assert len(shares) > 100 and shares == sorted(shares) and shares[-1] == 100 and told.err.endswith("\r\033[K")


def test_text_and_options(fleet: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--fleet", fleet, "simulate", "--trace", str(trace), "--launch-seconds", "300", "--interval", "60"]) == 0
    text = capsys.readouterr().out
    assert "launch 300 s, check every 60 s" in text
    assert "the oracle's" in text and "turned away" in text and "→" in text


def test_a_ledger_is_a_trace_and_its_decisions_are_made_again(
    fleet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        world = World(Policy(max_nodes=20, workers=8, forecast="off"), ledger, size=2, load=5.0)
        for load in (5.0, 6.0, 12.0, 12.0, 3.0, 3.0):
            world.load = load
            world.pass_time(60)
            world.check()
    assert cli.main(["simulate", "--fleet", fleet, "--trace", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["replay"] == {"checks": 6, "identical": 6, "skipped": 0, "differences": []}
    assert KEYS <= set(data)


def test_the_past_of_a_ledger_is_known_when_the_trace_begins(fleet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    with Ledger(tmp_path / "state/ledger.sqlite") as ledger:
        world = World(Policy(max_nodes=20, workers=8, forecast="off"), ledger, size=5, load=25.0)
        for _check in range(30):
            world.pass_time(60)
            world.check()
        begin = world.now + 60
    trace = tmp_path / "trace.csv"
    trace.write_text("time,load\n" + "".join(f"{begin + 60 * minute},{25 if minute < 3 else 70}\n" for minute in range(8)), encoding="utf-8")
    sizes = []
    for given in ((), ("--past", "ledger"), ("--past", str(tmp_path / "state/ledger.sqlite"))):
        assert cli.main(["--fleet", fleet, "simulate", "--trace", str(trace), "--json", *given]) == 0
        sizes.append([one["size"] for one in json.loads(capsys.readouterr().out)["decisions"]][:1])
    alone, known, named = sizes
    assert alone != known == named != []


@pytest.mark.parametrize(("name", "words"), [
    ("trace.csv", "is no ledger: give a ledger's file, or 'ledger'"),
    ("nothing.sqlite", "can't be read: No such file"),
    ("late.sqlite", "holds no check before 1970-01-12 13:46 UTC, and the trace begins at 1970-01-01 00:10 UTC: give a trace that begins later"),
    ("empty.sqlite", "holds no check, and the trace begins"),
])
def test_a_past_that_cannot_be_used_is_named(
    name: str, words: str, fleet: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path / "empty.sqlite").close()
    with Ledger(tmp_path / "late.sqlite") as ledger:
        World(Policy(workers=8), ledger, size=2, load=5.0).check()
    assert cli.main(["--fleet", fleet, "simulate", "--trace", str(trace), "--past", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


def test_a_page(fleet: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out.html"
    assert cli.main(["simulate", "--fleet", fleet, "--trace", str(trace), "--plot", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    drawn = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert drawn["kind"] == "simulation" and drawn["checks"] > 1000 and drawn["decisions"]
    assert len(drawn["load"]["mean"]) == 600
    assert "http://" not in text and "https://" not in text
    capsys.readouterr()
    assert cli.main(["simulate", "--fleet", fleet, "--trace", str(trace), "--plot", "/nowhere/out.html"]) == 2
    assert "/nowhere/out.html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"time,load\n0,1\n60,x\n", "line 3: load 'x'"),
        (b"\xff\xfe\x00", "not text"),
        (None, "can't be read"),
    ],
)
def test_bad_input_gets_one_error(
    fleet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["simulate", "--fleet", fleet, "--trace", str(path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err and str(path) in told.err
    assert told.err.count("\n") == 1


def test_a_wrong_option_is_named(fleet: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "--fleet", fleet, "--trace", str(trace), "--launch-failures", "2"]) == 2
    assert "give a number from 0 to 1" in capsys.readouterr().err
