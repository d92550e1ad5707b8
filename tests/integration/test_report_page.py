# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report in a real browser: it draws itself, quickly and without the network, answers the mouse, and runs nothing foreign."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import Ledger
from ansible_collections.elearning.moodle_fleet.tests.unit.trigger import ledgers
from ansible_collections.elearning.moodle_fleet.trigger import cli

pytestmark = pytest.mark.slow
EVIL = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'</script>"
# Enough colours in what a canvas shows that something was drawn in it.
COLOURS = """
const found = new Set(), canvas = document.querySelectorAll('canvas')[arguments[0]];
const pixels = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer);
for (const one of pixels) found.add(one);
return found.size;
"""


@pytest.fixture(name="browser", scope="module")
def _browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        assert not os.environ.get("CI"), "chromium and chromium-driver are missing"
        pytest.skip("no browser: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,900", "hide-scrollbars"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture(name="pages", scope="module")
def _pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a day (page.html, with names that try to be markup), and an empty ledger's page (empty.html)."""
    folder = tmp_path_factory.mktemp("pages")
    fleet = folder / "moodle_fleet.yml"
    fleet.write_text(ledgers.FLEET.format(name="campus"), encoding="utf-8")
    ledgers.build(folder / "day.sqlite", 1, interval=30, node=EVIL)
    with Ledger(folder / "day.sqlite") as ledger:
        ledger.pause("all", EVIL, ledgers.BEGIN + 60, ledgers.BEGIN + 600)
    Ledger(folder / "empty.sqlite").close()
    logs = folder / "tenants.log"
    logs.write_text("".join(
        f'{{"time":"2026-11-09T08:00:00+01:00","tenant":"{name}","status":200,"seconds":{seconds}}}\n'
        for name, seconds in (("acme", 0.2), ("acme", 0.3), (EVIL.replace("'", "`"), 4.0))
    ), encoding="utf-8")
    for name, ledger_name in (("page", "day"), ("empty", "empty")):
        assert cli.main(["--fleet", str(fleet), "report", "--ledger", str(folder / f"{ledger_name}.sqlite"), "--logs", str(logs),
                         "--out", str(folder / f"{name}.html")]) == 0
    return folder


def show(browser: webdriver.Chrome, page: Path, scheme: str = "light") -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(page.as_uri())
    WebDriverWait(browser, 20).until(lambda one: one.execute_script("return document.documentElement.dataset.drawn"))


def text(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.ID, "main").text


def test_it_draws_every_part_and_nothing_foreign_runs(browser: webdriver.Chrome, pages: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    show(browser, pages / "page.html")
    said = text(browser)
    for words in ("node-hours", "saved against", "Load", "Nodes", "Schedule, events, brakes", "Steps and what they took", "verify",
                  "Decisions and their reasons", "workers busy", "acme"):
        assert words in said, words
    assert EVIL in said
    assert browser.title == "Fleet campus"
    assert browser.execute_script("return document.images.length + document.querySelectorAll('script').length") == 2
    assert [browser.execute_script(COLOURS, index) > 20 for index in range(3)] == [True] * 3
    assert browser.get_log("browser") == []
    asked = [entry["message"] for entry in browser.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]]
    assert len([one for one in asked if '"url":"http' in one]) == 0 and asked


def test_light_and_dark_as_the_system_has_it_and_by_the_switch(browser: webdriver.Chrome, pages: Path) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    show(browser, pages / "page.html", "dark")
    dark = browser.execute_script(colour)
    show(browser, pages / "page.html", "light")
    light = browser.execute_script(colour)
    assert dark != light
    switch = browser.find_element(By.ID, "theme")
    seen = []
    for _press in range(3):
        switch.click()
        seen.append((switch.text.split()[-1], browser.execute_script(colour)))
    assert seen == [("Light", light), ("Dark", dark), ("Auto", light)]


def test_reasons_on_hover_and_filters_by_time(browser: webdriver.Chrome, pages: Path) -> None:
    show(browser, pages / "page.html")
    nodes = browser.find_elements(By.TAG_NAME, "canvas")[1]
    x = browser.execute_script(
        "const width = document.querySelectorAll('canvas')[1].clientWidth;"
        "return LEFT + (width - LEFT - RIGHT) * data.decisions[3].at / (data.end - data.begin) - width / 2")
    ActionChains(browser).move_to_element_with_offset(nodes, round(x), 0).perform()
    tip = browser.find_element(By.ID, "tip")
    assert tip.is_displayed() and "→" in tip.text and "workers busy" in tip.text
    before = browser.find_elements(By.CSS_SELECTOR, ".tile b")[0].text
    browser.find_element(By.XPATH, "//button[text()='6 hours']").click()
    after = browser.find_elements(By.CSS_SELECTOR, ".tile b")[0].text
    assert 0 < float(after) < float(before)
    ActionChains(browser).move_to_element_with_offset(nodes, -200, 0).click_and_hold().move_by_offset(150, 0).release().perform()
    assert "6.0 h shown" not in browser.find_element(By.ID, "shown").text
    assert browser.find_element(By.ID, "from").get_attribute("value") > "2026-11-09T18:00"
    ActionChains(browser).double_click(nodes).perform()
    assert "24.0 h shown" in browser.find_element(By.ID, "shown").text


def test_a_narrow_screen_has_no_sideways_scrolling(browser: webdriver.Chrome, pages: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True})
    try:
        show(browser, pages / "page.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert browser.execute_script(COLOURS, 0) > 20
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_empty_ledger_says_so(browser: webdriver.Chrome, pages: Path) -> None:
    show(browser, pages / "empty.html")
    assert "holds no check yet" in text(browser)
    assert not browser.find_elements(By.TAG_NAME, "canvas")
