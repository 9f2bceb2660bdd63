"""The web app of `vip2clip app` in a real browser, with a separate server."""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from helpers.browser import missing, open_browser
from helpers.tiny import EXAMPLES


MISSING = missing()
if importlib.util.find_spec("gradio") is None:
    MISSING.append("gradio (pip install 'vip2clip_hf[app]')")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the browser test of the web app needs {', '.join(MISSING)}"),
]
PATIENCE = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`vip2clip app` with separate home, working and temporary folders, to check which files it writes."""

    def __init__(self, root: Path, *arguments: str):
        self.port, self.folders = free_port(), {name: root / name for name in ("home", "work", "tmp")}
        for folder in self.folders.values():
            folder.mkdir()
        self.log = root / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        environment.update(HOME=str(self.folders["home"]), TMPDIR=str(self.folders["tmp"]), HF_HUB_OFFLINE="1")
        environment.pop("HF_HOME", None)
        command = [sys.executable, "-m", "vip2clip_hf", "app", "--port", str(self.port), "--device", "cpu"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--no-browser", *arguments],
                cwd=self.folders["work"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.address = f"http://127.0.0.1:{self.port}/"

    def wait(self):
        end = time.monotonic() + 2 * PATIENCE
        while "Serving on" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"), "--max-file-size", "2", "--max-pixels", "1000000")
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    logs = {"browser": "ALL", "performance": "ALL"}
    with open_browser(tmp_path_factory.mktemp("profile"), "--window-size=1440,1300", logs=logs) as driver:
        yield driver


class Page:
    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get(address)
        self.until(lambda: self.find("#files input[type=file]"), "the page to load")

    def find(self, selector: str):
        return next(iter(self.driver.find_elements("css selector", selector)), None)

    def text(self, selector: str) -> str:
        # In one call: the page may replace the element between finding and reading it.
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def source(self, selector: str) -> str:
        return self.driver.execute_script("return document.querySelector(arguments[0])?.src ?? ''", f"{selector} img")

    def picture(self, selector: str) -> Image.Image:
        with urllib.request.urlopen(self.source(selector), timeout=PATIENCE) as answer:
            return Image.open(io.BytesIO(answer.read())).convert("RGB")

    def until(self, condition, what: str, patience: float = PATIENCE):
        end = time.monotonic() + patience
        while not (found := condition()):
            assert time.monotonic() < end, f"waited for {what}; the page says: {self.text('body')[:2000]}"
            time.sleep(0.1)
        return found

    def upload(self, *paths: Path):
        self.find("#files input[type=file]").send_keys("\n".join(map(str, paths)))

    def set_slider(self, name: str, value: float):
        """Fire the events of a slider that is dragged and released."""
        self.driver.execute_script(
            "const slider = document.querySelector(arguments[0]);"
            "slider.value = arguments[1];"
            "for (const name of ['input', 'change', 'pointerup'])"
            "  slider.dispatchEvent(new Event(name, {bubbles: true}));",
            f"#{name} input[type=range]",
            str(value),
        )

    def link(self) -> str:
        return self.driver.execute_script("return document.querySelector('#download a[href]')?.href ?? ''")

    def open(self, title: str):
        """Open a part of the page that is folded."""
        buttons = self.driver.find_elements("css selector", "button.label-wrap")
        button = next(one for one in buttons if title in one.text)
        if "open" not in button.get_attribute("class").split():
            button.click()

    def rows(self) -> list[list[str]]:
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#results tbody tr')]"
            ".map(row => [...row.children].map(cell => cell.innerText.trim()))"
        )


@pytest.fixture
def page(server, browser):
    browser.get_log("browser")
    browser.get_log("performance")
    page = Page(browser, server.address)
    yield page
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    # The browser logs the HTTP error of a refused upload; the tests check its message.
    assert not [message for message in severe if "/upload" not in message]


def test_a_photo_and_its_thresholds(page, tmp_path):
    assert "No photos to check yet." in page.text("#status")
    assert "the small bundled checkpoint" in page.text("#introduction")
    assert "--model" in page.text("#introduction")
    page.upload(EXAMPLES / "hazelnut_damaged_1.jpg")
    page.until(lambda: "hazelnut_damaged_1.jpg" in page.text("#summary"), "the result")
    assert "1 photo analysed" in page.text("#status")
    assert "anomalous" in page.text("#summary")
    marked = int(page.text("#marked").replace(",", ""))
    assert 0 < marked < 256 * 256
    before = {name: page.picture(f"#{name}") for name in ("photo", "heatmap", "mask")}
    assert {picture.size for picture in before.values()} == {(256, 256)}

    shown = page.source("#mask"), page.source("#heatmap")
    page.open("Thresholds and heatmap")
    page.until(lambda: page.find("#pixel_threshold input[type=range]"), "the sliders")
    page.set_slider("pixel_threshold", 0.95)
    page.until(lambda: page.text("#marked") not in ("", f"{marked:,}"), "another mask")
    assert int(page.text("#marked").replace(",", "")) < marked
    page.until(lambda: page.source("#mask") != shown[0], "the image of the new mask")
    assert np.abs(np.asarray(page.picture("#mask"), int) - np.asarray(before["mask"], int)).max() > 50
    assert page.source("#heatmap") == shown[1]

    page.set_slider("image_threshold", 1)
    page.until(lambda: "normal" in page.text("#summary").split(), "another decision")
    page.find("#reset").click()
    page.until(lambda: page.text("#marked") == f"{marked:,}", "the thresholds of the checkpoint")
    page.until(lambda: "anomalous" in page.text("#summary").split(), "the first decision")


def test_layers(page):
    page.upload(EXAMPLES / "hazelnut_damaged_1.jpg")
    page.until(lambda: page.source("#heatmap"), "the result")
    before, mask = page.source("#heatmap"), page.source("#mask")
    page.open("Thresholds and heatmap")
    page.until(lambda: page.find("#layer input"), "the choice of a layer").click()
    options = page.until(lambda: page.driver.find_elements("css selector", "[role=option]"), "the choice of layers")
    assert "all layers" in options[0].text
    options[1].click()
    page.until(lambda: page.source("#heatmap") != before, "the map of one layer")
    assert page.source("#mask") == mask


def test_several_photos_a_wrong_file_and_the_download(page, tmp_path):
    wrong, large = tmp_path / "wrong.png", tmp_path / "large.png"
    wrong.write_text("this is not an image")
    Image.new("1", (2000, 1000)).save(large)
    photos = [EXAMPLES / "hazelnut_normal_1.jpg", EXAMPLES / "hazelnut_damaged_2.jpg"]
    page.upload(photos[0], wrong, large, photos[1])
    page.until(lambda: "2 photos analysed" in page.text("#status"), "the results")
    assert "No result for 2 files" in page.text("#status")
    assert "'wrong.png' cannot be read as an image" in page.text("#results")
    assert "expected at most 1,000,000 pixels" in page.text("#results")
    assert "--max-pixels" in page.text("#results")
    assert "Traceback" not in page.text("body")
    assert "/tmp" not in page.text("body")
    rows = page.until(page.rows, "the table")
    assert [row[1] for row in rows] == [photos[1].name, photos[0].name, "wrong.png", "large.png"]
    assert [row[3].split()[-1] for row in rows[:2]] == ["anomalous", "normal"]
    assert all(float(row[2]) <= 1 for row in rows[:2])
    colors = [
        page.driver.execute_script("return getComputedStyle(arguments[0]).backgroundColor", cell)
        for cell in page.driver.find_elements("css selector", "#results .label")
    ]
    assert colors[0] != colors[1]
    pictures = page.driver.find_elements("css selector", "#results .thumb img")
    assert [page.driver.execute_script("return arguments[0].naturalWidth", one) for one in pictures] == [112, 112]

    assert photos[1].name in page.text("#summary")
    next(row for row in page.driver.find_elements("css selector", "tr.photo") if photos[0].name in row.text).click()
    page.until(lambda: photos[0].name in page.text("#summary"), "the second photo")
    # Sorting stays when the table is drawn again.
    page.find("#results button[data-column='2']").click()
    page.find("#results button[data-column='2']").click()
    assert [row[1] for row in page.rows()][:2] == [photos[0].name, photos[1].name]
    page.find("#next").click()
    page.until(lambda: photos[1].name in page.text("#summary"), "the next photo")
    assert [row[1] for row in page.rows()][:2] == [photos[0].name, photos[1].name]

    page.find("#csv").click()
    link = page.until(lambda: page.find("#download a[href]"), "the link").get_attribute("href")
    with urllib.request.urlopen(link, timeout=PATIENCE) as answer:
        lines = answer.read().decode("utf-8-sig").splitlines()
    assert lines[0] == "id,score,label,p_value,anomalous_area,error"
    assert len(lines) == 5
    page.find("#report").click()
    page.until(lambda: "report.html" in page.link(), "the report")
    with urllib.request.urlopen(page.link(), timeout=PATIENCE) as answer:
        assert photos[0].name in answer.read().decode()
    page.find("#pack").click()
    page.until(lambda: ".zip" in page.link(), "the link")
    with urllib.request.urlopen(page.link(), timeout=PATIENCE) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    assert archive.testzip() is None
    content = json.loads(archive.read("results.json"))
    assert [entry["image"] for entry in content["results"]] == [photo.name for photo in photos] + [
        "wrong.png",
        "large.png",
    ]
    assert Image.open(io.BytesIO(archive.read(content["results"][1]["mask"]))).size == (256, 256)
    page.open("Thresholds and heatmap")
    page.until(lambda: page.find("#pixel_threshold input[type=range]"), "the sliders")
    page.set_slider("pixel_threshold", 0.9)
    page.until(lambda: not page.find("#download a[href]"), "the old download to vanish")


def test_wrong_files_only(page, tmp_path):
    wrong = tmp_path / "wrong.png"
    wrong.write_text("this is not an image")
    page.upload(wrong)
    page.until(lambda: "'wrong.png' cannot be read as an image" in page.text("#status"), "the message")
    assert not page.find("#summary") or not page.find("#summary").is_displayed()


def test_a_file_over_the_limit(page, tmp_path):
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(os.urandom(3 * 1024**2))
    page.upload(heavy)
    page.until(lambda: "maximum allowed size" in page.text("body"), "the message")
    assert "heavy.png" in page.text("body")
    # The server checks the size too.
    boundary = "x"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="heavy.png"\r\n\r\n'.encode()
        + heavy.read_bytes()
        + f"\r\n--{boundary}--\r\n".encode()
    )
    request = urllib.request.Request(
        f"{page.driver.current_url}gradio_api/upload",
        body,
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE)
    assert refused.value.code == 413


def test_nothing_is_loaded_from_other_servers(page):
    page.upload(EXAMPLES / "hazelnut_damaged_1.jpg")
    page.until(lambda: page.source("#mask"), "the result")
    asked = set()
    for entry in page.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(urlparse(message["params"]["request"]["url"]).hostname)
    assert asked - {None} == {"127.0.0.1"}


def test_files_of_the_server_are_not_served(server):
    for path in (str(EXAMPLES / "hazelnut_normal_1.jpg"), "/etc/passwd", str(server.log)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.address}gradio_api/file={path}", timeout=PATIENCE)
        assert refused.value.code in (403, 404)


def test_loopback_only(server):
    """The app does not listen on other addresses of this machine."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE):
        pass
    with pytest.raises(OSError):  # noqa: PT011 - the message depends on the system
        socket.create_connection(("127.0.0.2", server.port), timeout=2).close()
    outside = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in outside - {"127.0.0.1"}:
        with pytest.raises(OSError):  # noqa: PT011
            socket.create_connection((address, server.port), timeout=2).close()


def test_nothing_is_written_elsewhere_or_left(browser, tmp_path):
    server = Server(tmp_path)
    try:
        server.wait()
        page = Page(browser, server.address)
        page.upload(EXAMPLES / "hazelnut_damaged_1.jpg")
        page.until(lambda: page.source("#mask"), "the result")
        page.find("#pack").click()
        page.until(lambda: page.find("#download a[href]"), "the link")
        # Importing torch creates an empty folder.
        inductor = [path for path in server.folders["tmp"].glob("torchinductor_*") if not any(path.iterdir())]
        (temporary,) = set(server.folders["tmp"].iterdir()) - set(inductor)
        assert temporary.name.startswith("vip2clip-app-")
        assert temporary.stat().st_mode & 0o077 == 0
        assert {".jpg", ".zip"} <= {path.suffix for path in temporary.rglob("*")}
    finally:
        server.stop()
    assert server.process.returncode == 128 + signal.SIGTERM
    left = {name: list(folder.rglob("*")) for name, folder in server.folders.items()}
    assert left == {"home": [], "work": [], "tmp": inductor}
    assert "Traceback" not in server.log.read_text()


# Good photos, phones, colors and keyboard

TOYS = EXAMPLES / "toys"
PICTURES = Path(__file__).parents[2] / "docs" / "images"


def start_example(page):
    page.until(lambda: page.find("#example button"), "the example")
    page.find("#example button").click()
    page.until(lambda: "5 photos analysed" in page.text("#status"), "the example", 5 * PATIENCE)
    page.until(lambda: page.source("#heatmap") and "Threshold" in page.text("#references"), "the heatmap")


@contextlib.contextmanager
def screen(driver, width: int, height: int, *, dark: bool = False, phone: bool = False):
    """Emulate a screen. The pictures in the docs have two pixels per point."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": phone},
    )
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def picture(driver, name: str):
    """Save a picture of the screen for the docs: VIP2CLIP_PICTURES=1 pytest tests/integration/test_app_browser.py."""
    if os.environ.get("VIP2CLIP_PICTURES"):
        image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(PICTURES / name, optimize=True)


# Contrast of each text with the color behind it, by the definition of WCAG 2.
CONTRASTS = """
const parse = text => { const found = text.match(/[\\d.]+/g).map(Number);
  return text.startsWith('color(srgb') ? [...found.slice(0, 3).map(v => 255 * v), found[3] ?? 1]
    : [...found.slice(0, 3), found[3] ?? 1]; };
const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
const behind = element => {
  const layers = [];
  for (let one = element; one; one = one.parentElement) {
    const color = parse(getComputedStyle(one).backgroundColor);
    if (color[3] > 0) layers.push(color);
    if (color[3] === 1) break;
  }
  const page = matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
  return layers.reverse().reduce((below, top) => over(top, below), page);
};
const light = color => { const [r, g, b] = color.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
  if (!text || ['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(element.tagName) || !element.checkVisibility(
      {opacityProperty: true, visibilityProperty: true})) continue;
  if (element.closest('button:disabled') || parseFloat(getComputedStyle(element).fontSize) === 0) continue;
  const back = behind(element), front = over(parse(getComputedStyle(element).color), back);
  const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
  found.push([text.slice(0, 40), (high + 0.05) / (low + 0.05)]);
}
return found;
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(server, browser, dark):
    """All texts are readable in the light and in the dark theme: a contrast of at least 4.5."""
    with screen(browser, 1440, 1000, dark=dark):
        page = Page(browser, server.address)
        empty = browser.execute_script(CONTRASTS)
        start_example(page)
        page.open("Thresholds and heatmap")
        time.sleep(1)
        contrasts = [*empty, *browser.execute_script(CONTRASTS)]
        assert len(contrasts) > 60
        assert {text: round(ratio, 1) for text, ratio in contrasts if ratio < 4.5} == {}
        page.open("Thresholds and heatmap")
        body = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", body)[:3])) < 150) == dark
        browser.execute_script("window.scrollTo(0, 0)")
        picture(browser, "app-dark.png" if dark else "app.png")


def test_phone(server, browser):
    """On a phone, the result is on the first screen once it is there, and nothing is wider than the screen."""
    with screen(browser, 390, 844, phone=True):
        page = Page(browser, server.address)
        page.until(lambda: page.find("#inputs > input[type=file][capture=environment]"), "the camera")
        assert page.find("#camera").is_displayed()
        assert page.find("#files input[type=file]").get_attribute("accept") == "image/*"
        start_example(page)
        box = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
        page.until(lambda: -20 <= browser.execute_script(box, "#summary .verdict")["top"] < 100, "the result in view")
        for selector in ("#summary .verdict", "#heatmap img"):
            found = browser.execute_script(box, selector)
            assert found["bottom"] <= 844
            assert 0 <= found["left"] < found["right"] <= 390
        assert browser.execute_script(box, "#results table")["right"] <= 390
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        picture(browser, "app-phone.png")


def test_keyboard(server, browser):
    """Every control is reached by the tab key, has a name, and shows that it has the focus."""
    from selenium.webdriver import ActionChains, Keys

    page = Page(browser, server.address)
    start_example(page)
    # The place of the last click is where the tab key starts.
    browser.execute_script("const top = document.getElementById('introduction'); top.tabIndex = -1; top.focus()")
    seen = []
    for _ in range(200):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        found = browser.execute_script(
            "const one = document.activeElement, style = getComputedStyle(one);"
            "const label = one.closest('label'), shown = label ? getComputedStyle(label) : style;"
            "return {html: one.outerHTML.slice(0, 200), place: one.closest('[id]')?.id ?? '',"
            " within: [...(function*(e) { for (; e; e = e.parentElement) if (e.id) yield e.id; })(one)],"
            " name: (one.ariaLabel || one.innerText || one.title || one.closest('label')?.innerText ||"
            "   one.labels?.[0]?.innerText || '').trim(),"
            " outline: [style, shown].some(s => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2)}"
        )
        if found["html"].startswith("<body"):
            break
        seen.append(found)
    reached = [place for one in seen for place in one["within"]]
    for wanted in (
        "files",
        "previous",
        "next",
        "results",
        "report",
        "csv",
        "pack",
        "good",
        "use",
        "rate",
        "remove",
        "save",
    ):
        assert wanted in reached, wanted
    assert reached.index("files") < reached.index("results") < reached.index("good")
    assert [one["html"] for one in seen if not one["name"]] == []
    assert [one["html"] for one in seen if not one["outline"]] == []
    # A row is selected with the keyboard, and the focus stays on it.
    button = page.driver.find_elements("css selector", "#results .open")[-1]
    name = button.text
    browser.execute_script("arguments[0].focus()", button)
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    page.until(lambda: name in page.text("#summary"), "the selected photo", 3 * PATIENCE)
    page.until(lambda: browser.execute_script("return document.activeElement.innerText") == name, "the focus")


def test_good_photos(page):
    good = page.find("#good input[type=file]")
    good.send_keys("\n".join(str(TOYS / "good" / f"toy_good_0{number}.jpg") for number in range(1, 6)))
    page.until(lambda: "compared with 5 good photos" in page.text("#references"), "learning", 3 * PATIENCE)
    assert "for at most 16.7 % false alarms" in page.text("#references")
    assert "Not guaranteed:" in page.text("#references")
    page.upload(TOYS / "test" / "toy_damaged_2.jpg")
    page.until(lambda: "p-value" in page.text("#summary"), "the result")
    assert "anomalous" in page.text("#summary")
    page.find("#save").click()
    address = "return document.querySelector('#detector a[href]')?.href ?? ''"
    page.until(lambda: page.driver.execute_script(address), "the detector")
    with urllib.request.urlopen(page.driver.execute_script(address), timeout=PATIENCE) as answer:
        names = zipfile.ZipFile(io.BytesIO(answer.read())).namelist()
    assert {"detector/decision.json", "detector/references.safetensors", "detector/model.safetensors"} <= set(names)
    page.find("#remove").click()
    page.until(lambda: "zero-shot" in page.text("#references"), "the note")
    page.until(lambda: "p-value" not in page.text("#summary"), "the zero-shot result")


def test_two_visitors(server, browser):
    """Good photos of one visitor do not change the results of another."""
    first = Page(browser, server.address)
    start_example(first)
    tab = browser.current_window_handle
    browser.switch_to.new_window("tab")
    try:
        second = Page(browser, server.address)
        assert "zero-shot" in second.text("#references")
        second.upload(TOYS / "test" / "toy_damaged_2.jpg")
        second.until(lambda: "toy_damaged_2.jpg" in second.text("#summary"), "the result")
        assert "p-value" not in second.text("#summary")
    finally:
        browser.close()
        browser.switch_to.window(tab)
    assert "5 photos analysed" in first.text("#status")


def test_urls_are_refused(server):
    for path in ("http://127.0.0.1:9/x", "https:/127.0.0.1:9/x", "http%3A%2F%2F127.0.0.1:9/x"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.address}gradio_api/file={path}", timeout=PATIENCE)
        assert refused.value.code == 403


@pytest.mark.parametrize("count", [20])
def test_parallel_clients(tmp_path, count):
    """Clients that call at the same time get the results of their own photos and references."""
    from gradio_client import Client, handle_file

    server = Server(tmp_path, "--api")
    try:
        server.wait()
        photos = [str(path) for path in sorted((TOYS / "test").glob("*.jpg"))]
        clients = [Client(server.address, verbose=False, download_files=str(tmp_path)) for _ in range(count)]
        good = [handle_file(str(path)) for path in sorted((TOYS / "good").glob("*.jpg"))[:3]]
        for client in clients[: count // 4]:
            client.predict(good, api_name="/good_photos")
        wanted = {}
        for client in (clients[0], clients[-1]):
            for photo in photos:
                wanted[client is clients[0], photo] = client.predict(handle_file(photo), api_name="/predict")
        start = time.monotonic()
        jobs = [
            (number, photo, client.submit(handle_file(photo), api_name="/predict"))
            for photo in photos
            for number, client in enumerate(clients)
        ]
        for number, photo, job in jobs:
            assert job.result(timeout=10 * PATIENCE) == wanted[number < count // 4, photo]
        seconds = time.monotonic() - start
        print(f"{len(jobs)} calls of {count} clients: {seconds:.1f} s, {len(jobs) / seconds:.1f} per second")
    finally:
        server.stop()
    assert "Traceback" not in server.log.read_text()
