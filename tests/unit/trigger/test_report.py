# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""moodle-fleet report: what goes into the page, that nothing of it is lost or taken for markup, and clear errors."""

from __future__ import annotations

import gzip
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Decision, Plan, Reason, Sample
from ansible_collections.elearning.moodle_fleet.tests.unit.trigger import ledgers
from ansible_collections.elearning.moodle_fleet.trigger import cli
from ansible_collections.elearning.moodle_fleet.trigger.report.page import page
from ansible_collections.elearning.moodle_fleet.trigger.report.series import Band, Spans, Steps, bucket_seconds, thinned
from ansible_collections.elearning.moodle_fleet.trigger.report.story import Story
from ansible_collections.elearning.moodle_fleet.trigger.report.tenants import collect

EVIL = "</script><img src=x onerror=alert(1)>&\u2028'\""


def drawn(path: Path) -> dict[str, Any]:
    """The data of a page."""
    return json.loads(path.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])


@pytest.fixture(name="fleet", scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet file beside the ledger of a day."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "moodle_fleet.yml").write_text(ledgers.FLEET.format(name="campus"), encoding="utf-8")
    ledgers.build(folder / "state" / "ledger.sqlite", 1, interval=30)
    return folder / "moodle_fleet.yml"


def report(fleet: Path, out: Path, *arguments: str) -> int:
    return cli.main(["--fleet", str(fleet), "report", "--out", str(out), *arguments])


def own(fleet: Path) -> list[str]:
    """Options that make the fleet's ledger one that was put away."""
    return ["--ledger", str(fleet.parent / "state" / "ledger.sqlite")]


# -- series ---------------------------------------------------------------------------------------------------------
def test_buckets_keep_every_extreme_and_the_mean() -> None:
    band = Band(0, 600)
    chance = random.Random(1)
    values = [(15.0 * (i + 1), chance.uniform(0, 100)) for i in range(40)]
    for moment, value in values:
        band.add(moment, value, 15)
    data = band.to_data()
    for index in range(10):
        here = [value for moment, value in values if index * 60 < moment <= index * 60 + 60]
        assert data["low"][index] == pytest.approx(min(here), abs=0.05)
        assert data["high"][index] == pytest.approx(max(here), abs=0.05)
        assert data["mean"][index] == pytest.approx(sum(here) / 4, abs=0.05)


def test_one_value_a_minute_needs_no_band_and_gaps_stay_gaps() -> None:
    band = Band(0, 180)
    band.add(60, 5.0, 60)
    band.add(180, 7.0, 60)
    assert band.to_data() == {"width": 60, "mean": [5, None, 7]}


def test_buckets_grow_with_the_time() -> None:
    assert bucket_seconds(0, 14 * 86400) == 60
    assert bucket_seconds(0, 366 * 86400) % 60 == 0
    assert 366 * 86400 / bucket_seconds(0, 366 * 86400) <= 20_160


def test_thinned_steps_keep_the_extremes() -> None:
    chance = random.Random(2)
    points = [(float(i), chance.randint(10, 20)) for i in range(50_000)]
    points[31_337] = (31_337.0, 99)
    points[41_337] = (41_337.0, 0)
    kept = thinned(points, 0, 50_000)
    assert len(kept) <= 6_000
    assert (31_337.0, 99) in kept and (41_337.0, 0) in kept and kept[0] == points[0] and kept[-1] == points[-1]
    assert [moment for moment, _value in kept] == sorted({moment for moment, _value in kept})


def test_steps_keep_changes_and_spans_bridge_short_pauses() -> None:
    steps = Steps()
    for moment, value in ((0, 1), (1, 1), (2, 2), (3, None), (4, None)):
        steps.add(moment, value)
    assert steps.to_data(0, 5) == [[0, 1], [2, 2], [3, None]]
    spans = Spans(60)
    for moment in (0, 50, 200, 210):
        spans.add(moment, moment, f"at {moment}")
    assert spans.to_data(0, 9) == [[0, 50, "at 0"], [200, 210, "at 200"]]


# -- the story ------------------------------------------------------------------------------------------------------
def sample(moment: float, load: float, up: int, trusted: bool = True) -> Sample:
    return Sample(moment, 60, load, 0, 0, up * 4, up, 100, trusted)


def decision(size: int, desired: int, *reasons: tuple[str, str, int]) -> dict[str, Any]:
    direction = "out" if desired > size else "in" if desired < size else "none"
    return Decision(desired, direction, size, desired, True, tuple(Reason(*one) for one in reasons)).to_data()


def test_a_story_knows_phases_lanes_needs_and_silences() -> None:
    story = Story(Policy(), 0, 3600, interval=60)
    story.check(60, sample(60, 5, 2), decision(2, 3, ("tracking", "busy", 2), ("schedule", "floor", 3)), {"in_service": 2})
    story.check(120, sample(120, 9, 2), decision(3, 3, ("tracking", "busy", 3)), {"in_service": 2, "building": 1}, [8.0, 9.5])
    story.check(1800, sample(1800, 1, 3, trusted=False), decision(3, 3, ("metrics_missing", "no answer", 3)), {"in_service": 2, "sick": 1})
    data = story.to_data()
    assert data["groups"]["serving"] == [[60, 2], [420, None], [1800, 2]]
    assert data["groups"]["coming"] == [[60, 0], [120, 1], [420, None], [1800, 0]]
    assert data["groups"]["trouble"][-1] == [1800, 1]
    assert data["existing"] == [[60, 2], [120, 3], [420, None], [1800, 3]]
    assert dict(data["lanes"]) == {
        "Schedule": [[60, 60, "floor"]], "Metrics doubted": [[1800, 1800, "no answer"]],
        "No check": [[120, 1800, "no check for 1680 s"]],
    }
    assert data["floor"][:2] == [[60, 3], [120, None]]
    # 9 requests in service by 4 workers × 0.85: three nodes.
    assert data["needed"][:3] == [[0, 2], [60, 3], [120, None]]
    assert data["decisions"] == [{"at": 60, "size": 2, "desired": 3, "why": [["busy", 2], ["floor", 3]]}]
    assert [120, 8.0, 9.5] in data["expected"]


def test_a_ledger_from_before_phases_still_shows_nodes(tmp_path: Path) -> None:
    story = Story(Policy(), 0, 600, interval=60)
    story.check(60, sample(60, 5, 2), decision(3, 3), None)
    assert story.to_data()["groups"]["serving"] == [[60, 2]] and story.to_data()["groups"]["coming"] == [[60, 1]]


# -- the page -------------------------------------------------------------------------------------------------------
def test_a_page_holds_everything_and_asks_for_nothing(fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert report(fleet, out, *own(fleet), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    data, text = drawn(out), out.read_text(encoding="utf-8")
    assert told["checks"] == data["checks"] > 2000 and told["bytes"] == out.stat().st_size < 400_000
    assert told["decisions"] == len(data["decisions"]) > 20 and told["activities"] == len(data["activities"]) > 50
    assert {one["action"] for one in data["activities"]} == {"launch", "join", "drain", "retire"}
    assert data["costs"] == {"node_hour": 0.096, "currency": "EUR"}
    assert {name for name, _spans in data["lanes"]} >= {"Schedule", "Metrics doubted", "Paused, scaling in"}
    assert "No data" in data["tenants"]["note"]
    assert not re.search(r"(?:https?:)?//[a-z]|@import|<link|<img|src=", text)
    assert "default-src &#x27;none&#x27;" in text
    assert out.stat().st_mode & 0o777 == 0o644


def test_the_costs_are_those_of_the_recorded_phases(fleet: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report(fleet, out, *own(fleet), "--price", "2") == 0
    data = drawn(out)
    hours, points = 0.0, [*data["existing"], [data["end"] - data["begin"], None]]
    for (begin, count), (end, _next) in zip(points, points[1:]):
        hours += (count or 0) * (end - begin) / 3600
    # Two nodes at night, up to eight at noon.
    assert 2 * 24 < hours < 8 * 24
    assert data["costs"]["node_hour"] == 2


def test_names_from_a_cloud_are_never_markup() -> None:
    story = Story(Policy(), 0, 600, interval=60)
    story.check(60, sample(60, 5, 2), decision(2, 3, ("tracking", EVIL, 3)), {EVIL: 2})
    story.pause("all", 10, 20, EVIL)
    story.activity({"action": EVIL, "node": EVIL, "status": "failed", "reason": EVIL, "message": EVIL, "planned": 5.0, "started": None,
                    "finished": None, "seconds": None, "steps": {EVIL: 3.0}})
    data = {**story.to_data(), "title": EVIL + "@data@@script@", "tenants": {"rows": [{"tenant": EVIL}], "note": EVIL}}
    text = page(data)
    assert "<img" not in text and text.count("</script>") == 2
    inside = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert inside == json.loads(json.dumps(data))


def test_a_range(fleet: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report(fleet, out, *own(fleet), "--since", "2026-11-09T08:00+01:00", "--until", "2026-11-09T10:00+01:00") == 0
    data = drawn(out)
    assert (data["begin"], data["end"]) == (ledgers.BEGIN + 8 * 3600, ledgers.BEGIN + 10 * 3600)
    assert 200 < data["checks"] <= 241
    assert all(0 <= one["at"] <= 7200 for one in data["decisions"])


def test_an_empty_ledger_and_an_empty_range_say_so(fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert report(fleet, out, *own(fleet), "--until", "2020-01-01") == 0
    assert "No check was made from" in capsys.readouterr().out and "the ledger goes from" in drawn(out)["empty"]
    empty = tmp_path / "empty.sqlite"
    Ledger(empty).close()
    assert report(fleet, out, "--ledger", str(empty)) == 0
    assert "holds no check yet" in capsys.readouterr().out and drawn(out)["checks"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ledger", "/nowhere/ledger.sqlite"], "/nowhere/ledger.sqlite: does not exist"),
        (["--since", "2026-11-10", "--until", "2026-11-09"], "is not before"),
        (["--logs", "/nowhere/tenants"], "/nowhere/tenants: does not exist"),
        (["--price", "-1"], "--price -1"),
    ],
)
def test_bad_input_gets_one_error(
    fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    if "--ledger" not in arguments:
        arguments = [*own(fleet), *arguments]
    assert report(fleet, tmp_path / "report.html", *arguments) == 2
    told = capsys.readouterr()
    assert words in told.err and told.err.count("\n") == 1 and not told.out
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_is_named(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(fleet, Path("/nowhere/report.html"), *own(fleet)) == 2
    assert "/nowhere/report.html: can't be written" in capsys.readouterr().err


# -- tenants --------------------------------------------------------------------------------------------------------
NGINX = ('2026-11-09T08:00:01+01:00 nginx: {"time":"2026-11-09T08:00:0%d+01:00","tenant":"%s","host":"x","method":"GET","path":"/","status":%d,'
         '"bytes":1,"seconds":%s,"php":"0.1","id":"i","agent":"a"}\n')
HAPROXY = ('Nov  9 08:00:01 lb haproxy[1]: 10.0.0.1:50000 [09/Nov/2026:08:00:01.500] public~ web/web-1 0/0/1/250/%d 200 1234 - - ---- 1/1/0/0/0 0/0 '
           '6f1c %s "GET /my/ HTTP/1.1"\n')


def test_tenants_from_the_central_logs(tmp_path: Path) -> None:
    begin = ledgers.BEGIN + 8 * 3600
    (tmp_path / "acme.log").write_text("".join(NGINX % (i, "acme", 200, "0.100") for i in range(9)) + "an error of nginx's own\n")
    with gzip.open(tmp_path / "globex.log.gz", "wt") as file:
        file.write(NGINX % (1, "globex", 502, "2.000") + NGINX % (2, "globex", 200, "1.000") + NGINX % (9, "", 404, "1.000"))
    rows, useless = collect([tmp_path], begin, begin + 60)
    assert useless == 1
    assert [(row["tenant"], row["requests"], row["errors"], row["busy"]) for row in rows] == [("globex", 2, 1, 3.0), ("acme", 9, 0, 0.9)]
    assert rows[0]["mean"] == 1.5 and 2.0 <= rows[0]["p95"] <= 2.5 and 0.1 <= rows[1]["p95"] <= 0.125
    assert collect([tmp_path], begin + 5, begin + 5.5)[0] == [
        {"tenant": "acme", "requests": 1, "errors": 0, "busy": 0.1, "mean": 0.1, "p95": rows[1]["p95"]}]


def test_tenants_from_haproxys_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Bratislava")
    time.tzset()
    try:
        path = tmp_path / "haproxy.log"
        path.write_text(HAPROXY % (250, "acme.example:443") + HAPROXY % (750, "acme.example") + HAPROXY % (10, "-"))
        rows, useless = collect([path], ledgers.BEGIN + 8 * 3600, ledgers.BEGIN + 8 * 3600 + 60)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [(row["tenant"], row["requests"], row["busy"]) for row in rows] == [("acme.example", 2, 1.0)] and useless == 0


def test_reading_many_checks_keeps_their_plans(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for moment in range(5):
            ledger.commit(moment * 60.0 + 60, "check", sample(moment * 60, 1, 2), Decision.from_data(decision(2, 2)), Plan(), ledger.mark())
        assert [row["started"] for row, _taken in ledger.recorded(batch=2, since=100, until=250)] == [120.0, 180.0, 240.0]
        assert ledger.span() == (60.0, 300.0) and ledger.usual_interval(0, 1e9) == 60.0
