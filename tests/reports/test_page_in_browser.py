"""The page in a real browser: headless Chromium through its driver."""

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from synthetic_runs import every_defense, every_status

from reports.report import write_run_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE, DESKTOP = 375, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["complete", "published", "incomplete"])
def page(request, browser, tmp_path_factory):
    run = {
        "complete": every_defense,
        "published": lambda: every_defense(dataset="mnist"),
        "incomplete": every_status,
    }[request.param]()
    index = write_run_report(run, tmp_path_factory.mktemp("report"))
    shutil.move(index, index.parent.with_suffix(".html"))  # alone: nothing beside it to load
    browser.get(index.parent.with_suffix(".html").as_uri())
    return browser


def widen(browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_the_console_is_silent(page):
    assert page.get_log("browser") == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_juts_out_of_the_window(page, width):
    widen(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_wide_tables_scroll_within_their_container_and_by_keyboard(page):
    widen(page, PHONE)
    region = page.find_element(By.CSS_SELECTOR, ".scroll:has(#summary_L2), .scroll:has(#published_L2)")
    assert region.get_attribute("scrollWidth") > region.get_attribute("clientWidth")
    assert region.get_attribute("tabIndex") == "0"


def test_curves_and_galleries_are_drawn(page):
    assert len(page.find_elements(By.CSS_SELECTOR, "img.curves")) == 3
    assert len(page.find_elements(By.CSS_SELECTOR, "table.gallery")) == 6
    drawn = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert page.execute_script(drawn)


def test_footnotes_lead_to_their_text(page):
    for link in page.find_elements(By.CSS_SELECTOR, "sup a"):
        assert page.find_element(By.ID, link.get_attribute("hash")[1:]).text
