"""Pictures of every page at a desk's and a phone's width, for people to look at: `make screenshots`."""

import time

import pytest
from selenium.webdriver.support.select import Select

from tests import ROOT
from tests.web.test_studio import shards, studio  # noqa: F401

pytestmark = pytest.mark.slow
OUT = ROOT / "work" / "screenshots"
LOWEST = 640  # pixels; the pages before may have been taller
WIDTHS = {"wide": 1200, "phone": 360}


def picture(driver, name, width):
    """The whole page, which must not be wider than the screen."""
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"), name
    OUT.mkdir(parents=True, exist_ok=True)
    for measured in (f"{LOWEST}", "document.documentElement.scrollHeight"):
        height = driver.execute_script(f"return {measured}")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        time.sleep(0.3)
    path = OUT / f"{name}.png"
    assert driver.save_screenshot(str(path))
    assert path.stat().st_size > 5000


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_survey(start_server, folders, browser):
    server = start_server("eval", "listen", "serve", *folders, "--groups", "1")
    for name, width in WIDTHS.items():
        driver = browser(width)
        driver.get(server.address)
        picture(driver, f"survey-1-consent-{name}", width)
        Select(driver.find_element("id", "age")).select_by_index(2)
        Select(driver.find_element("id", "background")).select_by_index(1)
        driver.find_element("name", "consent").click()
        driver.find_element("css selector", "form button").click()
        until(lambda d=driver: "/group/1" in d.current_url)
        sections = driver.find_elements("css selector", "section.clip")
        for number, section in enumerate(sections):
            section.find_element("css selector", ".play").click()
            until(lambda s=section: not s.find_elements("css selector", "fieldset:disabled"))
            for i, scale in enumerate(("relevance", "quality", "musicality")):
                box = section.find_element("css selector", f"[data-scale={scale}][value='{2 + i}']")
                driver.execute_script("arguments[0].click()", box)
            if number == 0:
                picture(driver, f"survey-2-group-{name}", width)
        button = driver.find_element("css selector", "#next button")
        until(button.is_enabled)
        driver.execute_script("arguments[0].click()", button)
        until(lambda d=driver: d.current_url.endswith("/thanks"))
        picture(driver, f"survey-3-thanks-{name}", width)
        driver.get(server.address + "nowhere")
        picture(driver, f"survey-4-refused-{name}", width)


def test_studio(studio, browser):  # noqa: F811
    server = studio()
    for name, width in WIDTHS.items():
        driver = browser(width)
        driver.get(server.address)
        picture(driver, f"studio-1-empty-{name}", width)
        driver.find_element("id", "prompt").send_keys("dramatic trailer with drums and a choir")
        button = driver.find_element("css selector", "form [type=submit]")
        driver.execute_script("arguments[0].click()", button)
        until(lambda d=driver: d.find_elements("css selector", ".clip img"))
        driver.execute_script("steps.value = 800; candidates.value = 8; arguments[0].click()", button)
        until(lambda d=driver: " left" in d.find_element("id", "jobs").text)
        driver.execute_script("document.querySelector('img').loading = 'eager'")
        until(lambda d=driver: d.execute_script("return document.querySelector('img').naturalWidth"))
        picture(driver, f"studio-2-clip-{name}", width)
        driver.find_element("css selector", ".cancel").click()
        until(lambda d=driver: d.find_elements("css selector", ".job[data-state=cancelled]"))
