"""The studio's server and a real browser in front of it, on toy models."""

import http.client
import io
import json
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("fastapi", reason="pip install 'musicldm[web]'")

import uvicorn

from stages import params as parameters
from stages.errors import DataError
from stages.generate.choose import no_project
from stages.web.decode import decode
from stages.web.neighbours import Neighbours
from stages.web.refused import Refused
from stages.web.studio import studio_app
from stages.web.studio_queue import StudioQueue, _job, find_models
from stages.weights.shipped import SHIPPED
from tests import DEMO
from tests.conftest import CLIP_SECONDS
from tests.data.conftest import _write_collection
from tests.web.conftest import nameless, requested, small_targets

RAW = {"preset": "tiny", "audio": {"clip_seconds": CLIP_SECONDS}, "clap": {"window_seconds": CLIP_SECONDS},
       "generate": {"steps": 2}}  # fmt: skip
CLIP = {"prompt": "calm piano", "negative": "", "seconds": CLIP_SECONDS, "steps": 2, "sampler": "ddim", "guidance": 2.0,
        "seed": 1, "candidates": 1, "model": "ldm"}  # fmt: skip
LONG = CLIP | {"steps": 800, "candidates": 8}
TRAIN = ["flare_battle_theme", "flare_cave_theme", "singularity_nebula", "hyperrogue_hr3_caves"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of four training tracks."""
    from stages.data.shards import write_shards

    work = tmp_path_factory.mktemp("studio")
    _write_collection(work, TRAIN, seconds=4.0, test=())
    write_shards(work / "audio/manifest.csv", work / "beats/beats.jsonl", work / "captions/captions.jsonl",
                 work / "shards", parameters.resolve(RAW))  # fmt: skip
    return work / "shards"


@pytest.fixture
def studio(start_server, toy_models, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "work" / "shards")
    (tmp_path / "params.yaml").write_text(parameters.to_yaml(parameters.resolve(RAW)), encoding="utf-8")
    return lambda port=0: start_server("studio", "--model", toy_models / "ldm", port=port)


def test_a_job_samples_as_the_command_does(toy_models):
    """By the model's guidance interval and reuse; by few-step weights where they are asked for and there."""
    models, here = {"shipped": SHIPPED, "ldm": toy_models / "ldm"}, no_project()
    asked = CLIP | {"model": "shipped", "sampler": "unipc", "steps": 100}
    settings = _job("me", asked, None, models, here).settings
    assert (settings.sampler, settings.steps, settings.interval, settings.reuse) == ("unipc", 100, (0.0, 0.5), 2)
    few = _job("me", asked | {"sampler": "few-steps"}, None, models, here)
    assert (few.settings.sampler, few.settings.steps, few.prompt.guidance) == ("few-steps", 6, 1.0)
    with pytest.raises(Refused, match="no weights for few steps"):
        _job("me", CLIP | {"sampler": "few-steps"}, None, models, here)


class InProcess:
    """The application on a real socket, in threads of this process."""

    def __init__(self, models, shards, folder, port):
        self.jobs = StudioQueue(find_models([models]), folder / "studio", shards, folder / "cache")
        app = studio_app(self.jobs, parameters.resolve(RAW).generate, CLIP_SECONDS)
        listening = socket.create_server(("127.0.0.1", port))
        self.port = listening.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join()
        self.jobs.close()


@pytest.fixture
def start(toy_models, shards, tmp_path, monkeypatch):
    """Starts servers, which must look for no other machine while models are loaded, run and listened to."""
    running, asked, look_up = [], [], socket.getaddrinfo

    def seen(host, *more, **named):
        asked.append(host)
        return look_up(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", seen)

    def new(port=0):
        running.append(InProcess(toy_models, shards, tmp_path, port))
        return running[-1]

    yield new
    for server in running:
        server.stop()
    assert set(asked) == {"127.0.0.1"}


class Person:
    """One browser session without a browser."""

    def __init__(self, port):
        self.port, self.cookie = port, ""
        self.ask("GET", "/")

    def ask(self, method, path, body=None, kind="application/json"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = json.dumps(body) if isinstance(body, dict) else body
        headers = {"Cookie": self.cookie} | ({"Content-Type": kind} if body is not None else {})
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        found = answer.read()
        if answer.getheader("set-cookie") and not self.cookie:
            self.cookie = answer.getheader("set-cookie").split(";")[0]
        return answer.status, json.loads(found) if "json" in answer.getheader("content-type") else found

    def job(self, **changed):
        return self.ask("POST", "/jobs", CLIP | changed)

    def wait(self, job, *states, seconds=90):
        end = time.monotonic() + seconds
        while True:
            found = self.ask("GET", f"/jobs/{job}")[1]
            if found["state"] in states:
                return found
            assert time.monotonic() < end and found["state"] in ("queued", "running"), found
            time.sleep(0.05)


def audible(data):
    samples, rate = soundfile.read(io.BytesIO(data))
    assert (len(samples), rate) == (round(CLIP_SECONDS * 16_000), 16_000)
    return np.abs(samples).max() > 0.01


def test_two_people_queue_cancel_restart_and_never_mix(start, tmp_path, caplog):
    server = start()
    ann, ben = Person(server.port), Person(server.port)
    first = ann.job()[1]["id"]
    done = ann.wait(first, "done")
    assert done["seconds_left"] is None
    (clip,) = ann.ask("GET", "/history")[1]["clips"]
    assert (clip["row"]["prompt"], clip["model"]) == ("calm piano", "ldm")
    assert audible(ann.ask("GET", f"/file/{first}.wav")[1])
    assert ann.ask("GET", f"/file/{first}.png")[1][:4] == b"\x89PNG"
    assert len(clip["near"]) == 3
    assert len({n["track"] for n in clip["near"]}) == 3
    assert clip["near"][0]["similarity"] >= clip["near"][2]["similarity"] > -1
    assert audible(ann.ask("GET", f"/file/{clip['near'][0]['file']}")[1])

    long = ann.ask("POST", "/jobs", LONG)[1]["id"]
    waiting = ben.job(prompt="loud drums")[1]
    assert (waiting["state"], waiting["ahead"]) == ("queued", 1)
    for path in (f"/jobs/{long}", f"/file/{first}.wav", f"/line/{first}"):
        assert ben.ask("GET", path)[0] == 404
    assert ben.ask("POST", f"/jobs/{long}/cancel", {})[0] == 404
    running = ann.wait(long, "running")
    while not running["done"]:
        running = ann.wait(long, "running")
    assert running["seconds_left"] > 0
    started = time.monotonic()
    ann.ask("POST", f"/jobs/{long}/cancel", {})
    assert ann.wait(long, "cancelled")["done"] < 8000
    assert time.monotonic() - started < 5
    ben.wait(waiting["id"], "done")
    assert [c["row"]["prompt"] for c in ben.ask("GET", "/history")[1]["clips"]] == ["loud drums"]
    assert len(ann.ask("GET", "/history")[1]["clips"]) == 1

    line = ann.ask("GET", f"/line/{first}")[1]
    server.stop()
    again = start(server.port)
    assert ann.ask("GET", f"/line/{first}")[1] == line
    assert ann.ask("GET", "/history")[1]["clips"] == [clip]
    assert "started anew" in ann.ask("GET", f"/jobs/{long}")[1]["sentence"]
    refusals(ann, again.port)
    a_mistake_is_told_and_logged(ben, tmp_path, caplog)
    audio_to_audio(ann)


def refusals(person, port):
    cases = [{"steps": 0}, {"steps": 2.5}, {"seed": -1}, {"seconds": "9"}, {"guidance": float("nan")}, {"sampler": "x"},
             {"model": "../ldm"}, {"prompt": ""}, {"prompt": "x" * 1001}, {"prompt": "a\x00b"}, {"candidates": 9},
             {"negative": 3}]  # fmt: skip
    for changed in cases:
        status, answer = person.job(**changed)
        another_type = changed in ({"seconds": "9"}, {"negative": 3})
        assert (status, answer["ok"]) == (400 if another_type else 422, False), changed
        assert len(answer["sentence"]) > 10
    assert b'accept="audio/*,.wav,' in person.ask("GET", "/")[1] and b",.m4a," in person.ask("GET", "/")[1]
    assert person.job(upload="none")[0] == 404
    for name in ("../studio.log", "%2e%2e%2fstudio.log", "manifest.jsonl", "0" * 16 + ".wav"):
        assert person.ask("GET", f"/file/{name}")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", "/upload")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["sentence"]) == (
        413,
        "That is too much: at most 40 MB are accepted here.",
    )
    status, answer = person.ask("POST", "/upload", b"RIFF" + b"\xff" * 1000, "application/octet-stream")
    assert status == 422
    assert answer["sentence"].startswith("The file")


def a_mistake_is_told_and_logged(person, tmp_path, caplog):
    for manifest in (tmp_path / "studio").glob("*/manifest.jsonl"):
        if "loud drums" in manifest.read_text():
            manifest.write_text("{")
    expected = {"ok": False, "sentence": "The server made a mistake; its log says more."}
    assert person.ask("GET", "/history") == (500, expected)
    assert any("'/history' failed" in record.getMessage() and record.exc_info for record in caplog.records)


def audio_to_audio(person):
    data = (DEMO / "flare_battle_theme.ogg").read_bytes()
    upload = person.ask("POST", "/upload", data, "application/octet-stream")[1]
    job = person.job(upload=upload["upload"], strength=0.5)[1]["id"]
    person.wait(job, "done")
    row = person.ask("GET", "/history")[1]["clips"][0]["row"]
    assert (row["id"], row["strength"]) == (job, 0.5)
    assert Person(person.port).job(upload=upload["upload"], strength=0.5)[0] == 404
    person.ask("POST", "/upload", data, "application/octet-stream")
    assert "drop it again" in person.job(upload=upload["upload"], strength=0.5)[1]["sentence"]  # replaced


def test_a_clip_stays_when_its_comparison_fails_or_is_cancelled(start, monkeypatch):
    def endless(queue, model, pipeline, progress):
        while True:
            progress("Embed training clips", 0, 0)
            time.sleep(0.01)

    def failing(queue, model, pipeline, progress):
        raise DataError("The shards are at 8000 Hz.")

    person = Person(start().port)
    monkeypatch.setattr(StudioQueue, "_near", failing)
    failed = person.wait(person.job()[1]["id"], "done")
    assert failed["sentence"] == "The clip could not be compared with the training music: The shards are at 8000 Hz."
    monkeypatch.setattr(StudioQueue, "_near", endless)
    job = person.job()[1]["id"]
    while not person.wait(job, "running")["label"].startswith("Embed"):
        time.sleep(0.02)
    person.ask("POST", f"/jobs/{job}/cancel", {})
    assert "comparison" in person.wait(job, "done", seconds=5)["sentence"]
    clips = person.ask("GET", "/history")[1]["clips"]
    assert [clip["near"] for clip in clips] == [None, None]
    assert all(audible(person.ask("GET", f"/file/{clip['row']['file']}")[1]) for clip in clips)


def test_a_copy_late_in_a_long_clip_is_found_and_can_be_heard(toy_models, shards, tmp_path):
    params = parameters.resolve(RAW)
    near = Neighbours(shards, toy_models / "ldm", params, tmp_path / "cache", lambda *_: None)
    number, size = 2, params.audio.clip_samples
    copied = near.reader.audio(number, size, 2 * size).astype(np.float32) / 32768
    own = soundfile.read(DEMO / "hyperrogue_hr3_desert.ogg", frames=size, dtype="float32")[0]
    found = near.write(torch.from_numpy(np.concatenate([own, copied * 0.5])), tmp_path / "clip")
    assert len(found) == 3
    best = found[0]
    assert (best["track"], best["start_seconds"]) == (near.reader.tracks[number].id, CLIP_SECONDS)
    assert best["clip_start_seconds"] == CLIP_SECONDS
    assert best["similarity"] > 0.9999 > found[1]["similarity"]
    assert np.array_equal(soundfile.read(tmp_path / best["file"], dtype="float32")[0], copied)


def test_decoding_is_given_up_in_time(tmp_path):
    path = tmp_path / "upload"
    shutil.copy(DEMO / "flare_battle_theme.ogg", path)
    with pytest.raises(Refused, match="too long"):
        decode(path, 48_000, patience=0.01)


@pytest.mark.slow
def test_in_a_browser(studio, browser):
    server = studio()
    driver = browser()
    driver.get(server.address)

    def find(selector):
        return driver.find_elements("css selector", selector)

    def until(condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, driver.page_source
            time.sleep(0.05)

    find("#prompt")[0].send_keys("dramatic trailer")
    find("form [type=submit]")[0].click()
    until(lambda: find(".clip"))
    play = "const a = document.querySelector('.clip audio'); a.muted = false; a.play(); window.a = a"
    driver.execute_script(play)
    until(lambda: driver.execute_script("return a.ended && a.currentTime > 1"))
    loud = """const done = arguments[0]; (async () => {
        const data = await (await fetch(document.querySelector('.clip audio').src)).arrayBuffer();
        const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(data);
        done(Math.max(...sound.getChannelData(0)));
    })();"""
    assert driver.execute_async_script(loud) > 0.01
    until(
        lambda: driver.execute_script(
            "const i = document.querySelector('img'); i.scrollIntoView(); return i.naturalWidth"
        )
    )
    assert len(find(".clip li audio")) == 3
    steps, candidates = find("#steps")[0], find("#candidates")[0]
    for field, value in ((steps, "800"), (candidates, "8")):
        field.clear()
        field.send_keys(value)
    find("form [type=submit]")[0].click()
    until(lambda: find(".job[data-state=running]") and "left" in find(".job .state")[0].text)
    find(".job .cancel")[0].click()
    until(lambda: find(".job[data-state=cancelled]"), 10)
    assert find(".job .state")[0].text == "Cancelled."
    find("#file")[0].send_keys(str(DEMO / "flare_battle_theme.ogg"))
    until(lambda: "flare_battle_theme.ogg, " in find("#dropped")[0].text)
    for field, value in ((steps, "2"), (candidates, "1")):
        field.clear()
        field.send_keys(value)
    find("form [type=submit]")[0].click()
    until(lambda: len(find(".clip")) == 2)
    assert "begun from a sound at strength 0.5" in find(".clip .hint")[0].text
    assert not find("#how")[0].get_attribute("hidden")
    find("#without")[0].click()
    assert find("#dropped")[0].text == "The sound was removed."
    assert not nameless(driver) and not small_targets(driver)
    driver.refresh()
    until(lambda: len(find(".clip")) == 2)
    for address in requested(driver):
        assert address.startswith((server.address, "data:", "blob:", "chrome:")), address
    assert not [e for e in driver.get_log("browser") if e["level"] == "SEVERE"]
    assert threading.active_count() < 20


@pytest.mark.slow
def test_by_keyboard_alone(studio, browser):
    """Settings, a clip made, heard and another cancelled; the keyboard's place is never lost, and what a screen reader
    is told is news, not every step."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = browser()
    driver.get(studio().address)

    def press(*keys):
        ActionChains(driver).send_keys(*keys).perform()

    def at():
        return driver.switch_to.active_element

    def back_to(element):
        while at().get_attribute("id") != element:
            ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()

    def replace(text):
        ActionChains(driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(text).perform()

    def news():
        return driver.find_element("id", "news").get_attribute("textContent")

    def until(condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, driver.page_source
            time.sleep(0.05)

    order = []
    press(Keys.TAB)
    press("calm piano")
    while at().get_attribute("type") != "submit":
        order.append(at().get_attribute("id"))
        if order[-1] == "steps":
            replace("800")
        if order[-1] == "candidates":
            replace("8")
        press(Keys.TAB)
    assert order == ["prompt", "negative", "seconds", "steps", "guidance", "sampler", "candidates", "seed", "reseed",
                     "model", "file"]  # fmt: skip
    press(Keys.ENTER)
    until(lambda: "Denoising" in news())
    assert not driver.find_elements("css selector", "#jobs[aria-live], #jobs [aria-live], #jobs [role=status]")
    press(Keys.TAB)
    assert at().text == "Cancel"
    press(Keys.ENTER)
    until(lambda: at().text == "Close", 10)
    assert news() == "calm piano: Cancelled."
    press(Keys.ENTER)
    assert at().get_attribute("id") == "yours"
    back_to("candidates")
    assert driver.find_element("id", "seed").get_attribute("value") != "0"  # another after the first
    replace("1")
    back_to("steps")
    replace("2")
    press(Keys.ENTER)
    until(lambda: driver.find_elements("css selector", ".clip"))
    until(lambda: news() == "calm piano: Done.")
    while at().tag_name != "audio":
        press(Keys.TAB)
    press(Keys.SPACE)
    until(lambda: driver.execute_script("return document.activeElement.currentTime > 1"), 10)
