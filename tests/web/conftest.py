"""Folders of clips to compare, a server as a person starts it, and a real browser."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from tests import DEMO

MODELS = ("MusicLDM", "BLM_mixup", "mubert")
SECONDS = 0.6
CONTROLS = {"button", "link", "textbox", "spinbutton", "combobox", "checkbox", "radio", "slider", "Audio",
            "progressbar", "ProgressIndicator", "image"}  # fmt: skip
INSTALL = "the browser tests need Debian's browser: apt-get install -y chromium chromium-driver"


def write_folders(root, models=MODELS, clips=7, seconds=SECONDS):
    """A folder of real music for each model: the same captions, other loudness, rate, length, name and tags."""
    files = sorted(DEMO.glob("*.ogg"))[:clips]
    for number, model in enumerate(models):
        (root / model).mkdir(parents=True)
        rows = []
        for i, file in enumerate(files):
            samples, rate = soundfile.read(
                file, start=16_000 * (5 + number), frames=int(16_000 * seconds) + 100 * number
            )
            suffix = "flac" if number == 1 else "wav"
            path = root / model / f"p{i}.{suffix}"
            with soundfile.SoundFile(path, "w", rate, 1) as sound:
                sound.comment = f"made by {model}"
                sound.write((samples / np.abs(samples).max() * (0.9, 0.3, 0.1)[number % 3]).astype("float32"))
            rows.append({"id": f"p{i}", "file": path.name, "prompt": f'Calm piece <no. {i}> of "music" & noise'})
        (root / model / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [root / model for model in models]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("models"))


class Clock:
    """Stands in for `time` in the survey's store, so that no test has to wait for clips."""

    now = 1000.0

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Server:
    """`musicldm ...` in a process of its own; `address` once it answers."""

    def __init__(self, arguments, cwd, port=0):
        self.log = (cwd / "server.txt").open("w+")
        command = [sys.executable, "-m", "musicldm_cli", *map(str, arguments), "--port", str(port)]
        self.process = subprocess.Popen(command, cwd=cwd, stdout=self.log, stderr=self.log)
        self.address = self._wait(cwd / "server.txt")

    def _wait(self, file, seconds=90):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"http://127\.0\.0\.1:\d+/", file.read_text())
            if found:
                return found[0]
            time.sleep(0.1)
        raise AssertionError(f"no server: {file.read_text()}")

    @property
    def port(self):
        return int(self.address.rstrip("/").rsplit(":", 1)[1])

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture
def start_server(tmp_path):
    servers = []

    def start(*arguments, port=0):
        servers.append(Server(arguments, tmp_path, port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def browser(tmp_path):
    """Makes a headless Chromium of a width; every address it asked for is in `requested(driver)`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install 'musicldm[dev]'")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip(INSTALL)
    drivers = []

    def start(width=1100, height=900):
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / f'profile{len(drivers)}'}",
                 f"--window-size={width},{height}")  # fmt: skip
        for flag in flags:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
        drivers.append(driver)
        if width < 500:
            phone = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        return driver

    yield start
    for driver in drivers:
        driver.quit()


def requested(driver):
    """Every address the pages of a browser asked for since the last call."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            found.append(message["params"].get("request", message["params"])["url"])
    return found


def nameless(driver):
    """What a screen reader would say of each control that has no name, from the browser's own accessibility tree."""
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert controls
    return [node["role"]["value"] for node in controls if not node.get("name", {}).get("value", "").strip()]


def small_targets(driver):
    """What is tapped and is less than 44 pixels high."""
    return driver.execute_script("""
        return [...document.querySelectorAll("button, select, textarea, input, .actions a, .scale label, label.check")]
          .filter(e => e.offsetParent && !e.closest(".scale label input") && e.type !== "checkbox")
          .filter(e => e.offsetHeight < 44).map(e => e.outerHTML)""")
