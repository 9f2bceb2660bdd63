"""The report of `vip2clip report` in a real browser: sorting, filters, keyboard, dark mode, phone and print.

Set `VIP2CLIP_SCREENSHOTS` to a folder to keep the screenshots; docs/images/report.png is `light.png`.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.browser import missing, open_browser
from helpers.reports import EVIL, write_results
from helpers.tiny import EXAMPLES


MISSING = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the browser test of reports needs {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    logs = {"browser": "ALL", "performance": "ALL"}
    with open_browser(tmp_path_factory.mktemp("profile"), "--window-size=1280,1250", logs=logs) as driver:
        yield driver


def vip2clip(*arguments, cwd: Path):
    done = subprocess.run(
        [sys.executable, "-m", "vip2clip_hf", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        timeout=600, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> Path:
    """A report with file names that would be markup."""
    root = tmp_path_factory.mktemp("evil")
    vip2clip("report", write_results(root, 30, names=EVIL), "--output", root / "report.html", cwd=root)
    return root / "report.html"


class Report:
    def __init__(self, driver, file: Path):
        self.driver = driver
        driver.get_log("browser")
        driver.get_log("performance")
        driver.get(file.as_uri())

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def names(self) -> list[str]:
        """Names of the rows that are shown, in order."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#rows tbody tr')].filter(row => row.offsetParent)"
            ".map(row => row.querySelector('.name').textContent)"
        )

    def values(self, key: str) -> list[str]:
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#rows tbody tr')].filter(row => row.offsetParent)"
            f".map(row => row.dataset.{key})"
        )

    def scores(self) -> list[float]:
        return [float(value) for value in self.values("score")]

    def head(self, key: str):
        return self.find(f"th[data-key={key}] button")


@pytest.fixture
def report(browser, evil):
    report = Report(browser, evil)
    yield report
    assert [entry["message"] for entry in browser.get_log("browser")] == []  # no error, nothing was blocked
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            assert message["params"]["request"]["url"].startswith(("file:", "data:"))


def test_names_are_text(report, browser):
    """No alert, no element and no attribute from a file name."""
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        browser.switch_to.alert.dismiss()
    assert set(EVIL) < set(report.names())
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return document.querySelectorAll('td b:not(.wrong), [onerror]').length") == 0
    # The policy of the page stops scripts that somebody adds.
    browser.execute_script(
        "const added = document.createElement('script');"
        "added.textContent = 'window.added = 1'; document.body.append(added)"
    )
    assert browser.execute_script("return window.added ?? null") is None
    browser.get_log("browser")


def test_sorting(report):
    scores = report.scores()
    assert len(scores) == 30
    assert scores == sorted(scores, reverse=True)
    assert report.find("th[data-key=score]").get_attribute("aria-sort") == "descending"
    report.head("score").click()
    assert report.scores() == sorted(scores)
    assert report.find("th[data-key=score]").get_attribute("aria-sort") == "ascending"
    report.head("name").click()
    numbered = [name for name in report.names() if name.startswith("part")]
    assert numbered == sorted(numbered)
    assert report.find("th[data-key=score]").get_attribute("aria-sort") is None
    report.head("name").click()
    assert [name for name in report.names() if name.startswith("part")] == numbered[::-1]
    report.head("p").click()
    values = [float(value) for value in report.values("p")]
    assert values == sorted(values)
    report.head("area").click()
    values = [float(value) for value in report.values("area")]
    assert values == sorted(values, reverse=True)


def test_filters(report, browser):
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def reset():
        report.find("#filters button[type=reset]").click()
        WebDriverWait(browser, 20).until(lambda _: report.find("#found").text == "30 of 30 photos")

    expected = [name for name in report.names() if name.startswith("part") and "01" in name]
    report.find("#search").send_keys("PART 01")  # both words
    assert report.names() == expected
    assert report.find("#found").text == f"{len(expected)} of 30 photos"
    assert len(expected) == 11
    Select(report.find("#label")).select_by_value("normal")
    assert set(report.values("kind")) <= {"normal"}
    reset()
    Select(report.find("#label")).select_by_value("anomalous")
    assert set(report.values("kind")) == {"anomalous"}
    assert len(report.names()) == 15
    reset()
    report.find("#least").send_keys("0.2")
    report.find("#most").send_keys("0.4")
    assert report.scores()
    assert all(0.2 <= score <= 0.4 for score in report.scores())
    # Filtered rows stay filtered when the table is sorted.
    count = len(report.names())
    report.head("name").click()
    assert len(report.names()) == count
    report.find("#search").send_keys("<script>")
    assert report.names() == []
    assert report.find("#found").text == "0 of 30 photos"


def test_keyboard(report, browser):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()
        return browser.switch_to.active_element

    assert press(Keys.TAB).text == "Skip to the photos"
    press(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "photos"
    seen = []
    while len(seen) < 20:
        active = press(Keys.TAB)
        seen.append(active.get_attribute("id") or active.text or active.get_attribute("aria-label"))
        if (seen[-1] or "").startswith("Enlarge"):
            break
    assert seen[:4] == ["search", "label", "least", "most"]
    assert {"Name", "Score", "Label", "p-value"} < set(seen)
    first, second = report.names()[:2]
    press(Keys.ENTER)
    dialog = report.find("#large")
    assert dialog.is_displayed()
    assert report.find("#large-name").text == first
    assert len(dialog.find_elements("css selector", "img")) == 2
    press(Keys.ARROW_RIGHT)
    assert report.find("#large-name").text == second
    press(Keys.ARROW_LEFT)
    assert report.find("#large-name").text == first
    press(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert browser.switch_to.active_element.get_attribute("class") == "zoom"


def luminance(color: str) -> float:
    values = [float(value) / 255 for value in color[color.index("(") + 1 : -1].split(",")[:3]]
    values = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * values[0] + 0.7152 * values[1] + 0.0722 * values[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(scheme, report, browser):
    """The contrast of all text is at least 4.5 to 1."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        found = browser.execute_script(
            "const back = (node) => { for (; node; node = node.parentElement) {"
            "  const color = getComputedStyle(node).backgroundColor;"
            "  if (color !== 'rgba(0, 0, 0, 0)') return color; } return 'rgb(255, 255, 255)'; };"
            "return [...document.querySelectorAll('body *')].filter(node => node.offsetParent &&"
            "  [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()))"
            "  .map(node => [node.tagName + '.' + node.className, getComputedStyle(node).color, back(node)])"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(found) > 100
    page = luminance(found[0][2])
    assert (page < 0.1) == (scheme == "dark")
    for name, *colors in found:
        low, high = sorted(map(luminance, colors))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, colors)


def test_phone(report, browser):
    """Nothing is wider than the screen; rows are cards."""
    metrics = {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 375
        assert report.find("#rows tbody tr").value_of_css_property("display") == "block"
        report.head("name").click()
        assert report.names()[0] != "part 029.jpg"
        report.find("#search").send_keys("part 010")
        assert report.names() == ["part 010.jpg"]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print(report, browser):
    """Only the filtered rows are printed, in light colours, without controls."""
    everything = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    report.find("#search").send_keys("part 010")
    some = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(some)[:5] == b"%PDF-"
    assert len(some) < len(everything) / 2
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not report.find("#filters").is_displayed()
        assert not report.find("#print").is_displayed()
        assert report.find("#rows tbody tr:not([hidden])").value_of_css_property("display") == "table-row"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_real_photos(browser, tmp_path):
    """References, prediction and report of the bundled photos, and screenshots of the report."""
    toys = EXAMPLES / "toys"
    vip2clip("adapt", toys / "good", "--output", "detector", "--device", "cpu", cwd=tmp_path)
    shutil.copytree(toys / "test", tmp_path / "toys")
    vip2clip(
        "predict", "toys", "--model", "detector", "--output", "predictions", "--maps", "--device", "cpu", cwd=tmp_path
    )
    vip2clip("report", "predictions", "--output", "report.html", cwd=tmp_path)
    browser.set_window_size(1280, 1760)
    report = Report(browser, tmp_path / "report.html")
    assert report.names()[0] == "toy_damaged_2.jpg"
    assert [name for name in report.names() if "damaged" in name] == report.names()[:3]
    loaded = browser.execute_script("return [...document.images].every(image => image.complete && image.naturalWidth)")
    assert loaded
    folder = Path(os.environ.get("VIP2CLIP_SCREENSHOTS", tmp_path))
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.save_screenshot(str(folder / f"{scheme}.png"))
        with Image.open(folder / f"{scheme}.png") as picture:
            corner = picture.convert("L").getpixel((2, 2))
        assert (corner < 64) == (scheme == "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    # The report of the adaptation has the same frame.
    report = Report(browser, tmp_path / "detector" / "report.html")
    assert report.find("h1").text == "Adapted detector"
    assert browser.execute_script("return document.scripts.length") == 0
    browser.save_screenshot(str(folder / "adapted.png"))
    assert [entry["message"] for entry in browser.get_log("browser")] == []
