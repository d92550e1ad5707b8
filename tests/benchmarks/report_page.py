# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long the report takes to be made and to be seen: 14 days of minutes, from disk, in Debian's Chromium.

Seen: from the begin of the navigation until the page is loaded, drawn and painted. Where plotly is installed, its page of the
same load and nodes is loaded in turn with ours.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.tests.unit.trigger import ledgers
from ansible_collections.elearning.moodle_fleet.trigger import cli
from measure import median, report, say

DAYS = 14
SEEN = """
const done = arguments[0];
requestAnimationFrame(() => requestAnimationFrame(() => done(Math.max(performance.getEntriesByType('navigation')[0].loadEventEnd,
  ...performance.getEntriesByType('paint').map(one => one.startTime)))));
"""


def rival(data: dict[str, Any]) -> str | None:
    """The same load and nodes by plotly with its bundle in the page, or None where it is not installed."""
    try:
        import plotly.graph_objects as graph
    except ImportError:
        return None
    times = [data["begin"] + data["load"]["width"] * (index + 0.5) for index in range(len(data["load"]["mean"]))]
    drawn = graph.Figure([graph.Scatter(x=[one * 1000 for one in times], y=data["load"]["mean"], name="load")])
    for name, points in data["groups"].items():
        drawn.add_scatter(x=[(data["begin"] + at) * 1000 for at, _count in points], y=[count for _at, count in points], name=name,
                          stackgroup="nodes", line={"shape": "hv"})
    return str(drawn.to_html(include_plotlyjs=True))


def main(_fleet: object, given: argparse.Namespace) -> None:
    """The benchmark `report-page`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{option}")
    with tempfile.TemporaryDirectory() as folder:
        fleet, out = Path(folder) / "moodle_fleet.yml", Path(folder) / "report.html"
        fleet.write_text(ledgers.FLEET.format(name="campus"), encoding="utf-8")
        say(f"  filling a ledger with {DAYS} days …")
        ledgers.build(Path(folder) / "ledger.sqlite", DAYS)
        begun = time.perf_counter()
        cli.main(["--fleet", str(fleet), "report", "--ledger", f"{folder}/ledger.sqlite", "--out", str(out), "--json"])
        made = time.perf_counter() - begun
        pages = {"moodle-fleet report": out}
        other = rival(json.loads(out.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0]))
        if other is not None:
            pages["plotly, the load and the nodes alone"] = Path(folder) / "plotly.html"
            pages["plotly, the load and the nodes alone"].write_text(other, encoding="utf-8")
        seen: dict[str, list[float]] = {name: [] for name in pages}
        for _round in range(3 * given.rounds):
            for name, path in pages.items():
                # A browser of its own each time: nothing is warm but the disk.
                browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
                try:
                    browser.get(path.as_uri())
                    seen[name].append(float(browser.execute_async_script(SEEN)) / 1000)
                finally:
                    browser.quit()
        rows = [{"page": name, "seen after s": median(times), "longest s": max(times), "MB": pages[name].stat().st_size / 1e6, "runs": len(times)}
                for name, times in seen.items()]
    report("report_page", f"The report of {DAYS} days of minutes, opened from disk", rows, [f"Making it took {made:.1f} s."])
