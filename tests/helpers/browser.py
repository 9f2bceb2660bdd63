"""Chromium without a window, for tests of pages."""

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def missing() -> list[str]:
    """Return what a test in a browser needs and is not installed."""
    needed = (
        ("selenium (pip install 'vip2clip_hf[dev]')", importlib.util.find_spec("selenium")),
        ("chromium", CHROMIUM),
        ("chromedriver (Debian: chromium-driver)", shutil.which("chromedriver")),
    )
    return [name for name, found in needed if not found]


@contextlib.contextmanager
def open_browser(profile: Path, *arguments: str, logs: dict[str, str] | None = None) -> Iterator[Any]:
    """Start a browser with a new profile and further arguments. Yields the driver of selenium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    if logs is not None:
        options.set_capability("goog:loggingPrefs", logs)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()
