"""The web app of `vip2clip app` in a real browser, with a separate server."""

import importlib.util
import io
import json
import os
import shutil
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

from helpers.tiny import EXAMPLES


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [
    name
    for name, found in (
        ("gradio (pip install 'vip2clip_hf[app]')", importlib.util.find_spec("gradio")),
        ("selenium (pip install 'vip2clip_hf[dev]')", importlib.util.find_spec("selenium")),
        ("chromium", CHROMIUM),
        ("chromedriver (Debian: chromium-driver)", shutil.which("chromedriver")),
    )
    if not found
]
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
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1440,1300"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


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

    def until(self, condition, what: str):
        end = time.monotonic() + PATIENCE
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

    def rows(self) -> list[list[str]]:
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#results [role=row]')]"
            ".map(row => [...row.querySelectorAll('[role=gridcell]')].map(cell => cell.innerText.trim()))"
            ".filter(row => row.length)"
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
    assert "Add one or more photos to begin." in page.text("#status")
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
    page.find("#layer input").click()
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
    assert "'wrong.png' cannot be read as an image" in page.text("#status")
    assert "expected at most 1,000,000 pixels" in page.text("#status")
    assert "--max-pixels" in page.text("#status")
    assert "Traceback" not in page.text("body")
    assert "/tmp" not in page.text("body")
    rows = page.until(page.rows, "the table")
    assert [row[1] for row in rows] == [photo.name for photo in photos]
    assert [row[3] for row in rows] == ["normal", "anomalous"]

    assert "hazelnut_normal_1.jpg" in page.text("#summary")
    cells = page.driver.find_elements("css selector", "#results [role=gridcell]")
    next(cell for cell in cells if photos[1].name in cell.text).click()
    page.until(lambda: photos[1].name in page.text("#summary"), "the second photo")

    page.find("#pack").click()
    link = page.until(lambda: page.find("#download a[href]"), "the link").get_attribute("href")
    with urllib.request.urlopen(link, timeout=PATIENCE) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    assert archive.testzip() is None
    content = json.loads(archive.read("results.json"))
    assert [entry["image"] for entry in content["results"]] == [photo.name for photo in photos] + [
        "wrong.png",
        "large.png",
    ]
    assert Image.open(io.BytesIO(archive.read(content["results"][1]["mask"]))).size == (256, 256)
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
