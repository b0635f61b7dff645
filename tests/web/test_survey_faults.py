"""The survey under many people, under kill -9, and under a real browser: minutes, by `make test-all`."""

import re
import sqlite3
import threading
import time

import numpy as np
import pytest

from tests.web.conftest import MODELS, nameless, requested, small_targets
from tests.web.participant import SCALES, Participant

pytestmark = pytest.mark.slow
GROUPS = 6
PER_SURVEY = GROUPS * len(MODELS) * len(SCALES)


def stored(tmp_path):
    with sqlite3.connect(tmp_path / "work" / "listening" / "survey.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        rows = db.execute("SELECT participant, place, position, scale, value FROM answers").fetchall()
        cookies = dict(db.execute("SELECT 'musicldm_survey=' || cookie, number FROM participants"))
    return {row[:4]: row[4] for row in rows}, cookies


def test_fifty_participants_at_once(start_server, folders, tmp_path):
    server = start_server("eval", "listen", "serve", *folders)
    people = [Participant(server.port) for _ in range(50)]
    failures = []

    def whole_survey(number, person):
        try:
            person.begin()
            for place in range(1, GROUPS + 1):
                person.do_group(place, number)
        except Exception as error:
            failures.append(error)

    started = time.monotonic()
    threads = [threading.Thread(target=whole_survey, args=pair) for pair in enumerate(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.monotonic() - started
    assert not failures
    answers, cookies = stored(tmp_path)
    assert len(cookies) == 50
    assert len(answers) == 50 * PER_SURVEY
    for person in people:
        mine = {(cookies[person.cookie], *key): value for key, value in person.acknowledged.items()}
        assert len(mine) == PER_SURVEY
        assert mine.items() <= answers.items()
    times = np.concatenate([person.seconds for person in people])
    p50, p95, worst = np.quantile(times, [0.5, 0.95, 1])
    print(f"{len(times)} requests in {taken:.1f} s: median {p50:.3f}, p95 {p95:.3f}, worst {worst:.3f} s")
    assert p95 < 0.3


def test_kill_9_loses_nothing_that_was_acknowledged(start_server, folders, tmp_path):
    server = start_server("eval", "listen", "serve", *folders)
    people = [Participant(server.port) for _ in range(5)]
    for person in people:
        person.begin()
    reached = {}

    def until_it_dies(person):
        try:
            for place in range(1, GROUPS + 1):
                reached[person] = place
                person.do_group(place)
        except (OSError, AssertionError):
            return

    threads = [threading.Thread(target=until_it_dies, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    time.sleep(3.1)
    server.process.kill()
    for thread in threads:
        thread.join()
    again = start_server("eval", "listen", "serve", *folders, port=server.port)
    answers, cookies = stored(tmp_path)
    for person in people:
        number = cookies[person.cookie]
        acknowledged = person.acknowledged
        assert 0 < len(acknowledged) < PER_SURVEY
        assert {(number, *key): value for key, value in acknowledged.items()}.items() <= answers.items()
        back = Participant(again.port, person.cookie)
        _, _, location = back.ask("GET", "/", accept="text/html")
        assert location == f"/group/{reached[person]}"
        page = back.ask("GET", location, accept="text/html")[1].decode()
        mine = [key for key in acknowledged if key[0] == reached[person]]
        assert len(re.findall(r"\bchecked\b", page)) >= len(mine)
        for place in range(reached[person], GROUPS + 1):
            location = back.do_group(place)[2]
        assert location == "/thanks"
    assert len(stored(tmp_path)[0]) == 5 * PER_SURVEY


def test_a_whole_survey_by_keyboard_alone(start_server, folders, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    server = start_server("eval", "listen", "serve", *folders, "--groups", "2")
    driver = browser()
    driver.get(server.address)

    def press(*keys):
        from selenium.webdriver import ActionChains

        ActionChains(driver).send_keys(*keys).perform()

    def at():
        return driver.switch_to.active_element

    press(Keys.TAB)
    assert at().get_attribute("id") == "age"
    press(Keys.ARROW_DOWN, Keys.TAB)
    assert at().get_attribute("id") == "background"
    press(Keys.ARROW_DOWN, Keys.TAB, Keys.SPACE, Keys.TAB, Keys.ENTER)
    for place in (1, 2):
        until(lambda place=place: f"/group/{place}" in driver.current_url and driver.title.startswith("Group"))
        assert not driver.find_elements("css selector", "fieldset:not([disabled])")
        for position in (1, 2, 3):
            press(Keys.TAB)
            assert at().text == f"Play clip {position}"
            press(Keys.ENTER)
            until(lambda position=position: enabled(driver, position))
            for k, scale in enumerate(("relevance", "quality", "musicality")):
                press(Keys.TAB)
                assert at().get_attribute("data-scale") == scale, at().get_attribute("outerHTML")
                press(Keys.SPACE, *[Keys.ARROW_RIGHT] * (k + place))
        until(lambda: driver.find_element("css selector", "#next button").is_enabled())
        press(Keys.TAB, Keys.ENTER)
    until(lambda: driver.current_url.endswith("/thanks"))
    answers, _ = stored(tmp_path)
    expected = {(p, scale): 1 + k + p for p in (1, 2) for k, scale in enumerate(SCALES)}
    assert len(answers) == 18
    assert all(value == expected[place, scale] for (_, place, _, scale), value in answers.items())
    check_silent_about_models(driver, server)


def test_a_whole_survey_on_a_phone_with_a_closed_tab(start_server, folders, browser, tmp_path):
    from selenium.webdriver.support.select import Select

    server = start_server("eval", "listen", "serve", *folders, "--groups", "2")
    driver = browser(width=360, height=740)
    driver.get(server.address)
    fits(driver)
    Select(driver.find_element("id", "age")).select_by_index(2)
    Select(driver.find_element("id", "background")).select_by_index(1)
    driver.find_element("name", "consent").click()
    driver.find_element("css selector", "form button").click()
    for place in (1, 2):
        until(lambda place=place: f"/group/{place}" in driver.current_url)
        fits(driver)
        for position in (1, 2, 3):
            section = driver.find_elements("css selector", "section.clip")[position - 1]
            section.find_element("css selector", ".play").click()
            until(lambda position=position: enabled(driver, position))
            for scale in SCALES:
                tap(driver, section.find_element("css selector", f"[data-scale={scale}][value='4']"))
            if (place, position) == (1, 2):  # the tab is closed in the middle, and another opened
                until(lambda: len(stored(tmp_path)[0]) == 6)
                old = driver.current_window_handle
                driver.switch_to.new_window("tab")
                new = driver.current_window_handle
                driver.switch_to.window(old)
                driver.close()
                driver.switch_to.window(new)
                driver.get(server.address)
                until(lambda: "/group/1" in driver.current_url)
                assert len(driver.find_elements("css selector", "input:checked")) == 6
                assert [enabled(driver, p) for p in (1, 2, 3)] == [True, True, False]
        button = driver.find_element("css selector", "#next button")
        until(button.is_enabled)
        button.click()
    until(lambda: driver.current_url.endswith("/thanks"))
    answers, _ = stored(tmp_path)
    assert len(answers) == 18
    assert set(answers.values()) == {4}


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def enabled(driver, position):
    section = driver.find_elements("css selector", "section.clip")[position - 1]
    return not section.find_elements("css selector", "fieldset:disabled")


def tap(driver, element):
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def fits(driver):
    """Nothing is wider than the screen, what is tapped is at least 44 pixels high, and every control has a name."""
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert not small_targets(driver)
    assert not nameless(driver)


def check_silent_about_models(driver, server):
    addresses = requested(driver)
    assert len(addresses) > 10
    for address in addresses:
        assert address.startswith((server.address, "data:", "blob:", "chrome:")), address
        assert not any(model.lower() in address.lower() for model in MODELS)
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
