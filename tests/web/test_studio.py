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

pytest.importorskip("fastapi", reason="pip install 'musicldm[web]'")

import uvicorn

from stages import params as parameters
from stages.web.decode import decode
from stages.web.refused import Refused
from stages.web.studio import studio_app
from stages.web.studio_queue import StudioQueue, find_models
from tests import DEMO
from tests.conftest import CLIP_SECONDS
from tests.data.conftest import _write_collection
from tests.web.conftest import requested

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
def start(toy_models, shards, tmp_path):
    running = []

    def new(port=0):
        running.append(InProcess(toy_models, shards, tmp_path, port))
        return running[-1]

    yield new
    for server in running:
        server.stop()


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


def test_two_people_queue_cancel_restart_and_never_mix(start):
    server = start()
    ann, ben = Person(server.port), Person(server.port)
    first = ann.job()[1]["id"]
    done = ann.wait(first, "done")
    assert done["seconds_left"] is None
    (clip,) = ann.ask("GET", "/history")[1]["clips"]
    assert clip["row"]["prompt"] == "calm piano"
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
    audio_to_audio(ann)


def refusals(person, port):
    cases = [{"steps": 0}, {"steps": 2.5}, {"seed": -1}, {"seconds": "9"}, {"guidance": float("nan")}, {"sampler": "x"},
             {"model": "../ldm"}, {"prompt": ""}, {"prompt": "x" * 1001}, {"prompt": "a\x00b"}, {"candidates": 9},
             {"negative": 3}]  # fmt: skip
    for changed in cases:
        status, answer = person.job(**changed)
        assert (status, answer["ok"]) == (422, False), changed
        assert len(answer["sentence"]) > 10
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
        "That is too much: at most 20 MB are accepted here.",
    )
    status, answer = person.ask("POST", "/upload", b"RIFF" + b"\xff" * 1000, "application/octet-stream")
    assert status == 422
    assert answer["sentence"].startswith("The file")


def audio_to_audio(person):
    data = (DEMO / "flare_battle_theme.ogg").read_bytes()
    upload = person.ask("POST", "/upload", data, "application/octet-stream")[1]
    job = person.job(upload=upload["upload"], strength=0.5)[1]["id"]
    person.wait(job, "done")
    row = person.ask("GET", "/history")[1]["clips"][0]["row"]
    assert (row["id"], row["strength"]) == (job, 0.5)
    assert Person(person.port).job(upload=upload["upload"], strength=0.5)[0] == 404


def test_decoding_is_given_up_in_time(tmp_path):
    path = tmp_path / "upload"
    shutil.copy(DEMO / "flare_battle_theme.ogg", path)
    with pytest.raises(Refused, match="too long"):
        decode(path, 48_000, patience=0.01)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(Refused, match="The file is truncated"):
        decode(path, 48_000)


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
    find("form button")[0].click()
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
    find("form button")[0].click()
    until(lambda: find(".job[data-state=running]") and "left" in find(".job .state")[0].text)
    find(".job .cancel")[0].click()
    until(lambda: find(".job[data-state=cancelled]"), 10)
    assert find(".job .state")[0].text == "Cancelled."
    find("#file")[0].send_keys(str(DEMO / "flare_battle_theme.ogg"))
    until(lambda: "flare_battle_theme.ogg, " in find("#dropped")[0].text)
    for field, value in ((steps, "2"), (candidates, "1")):
        field.clear()
        field.send_keys(value)
    find("form button")[0].click()
    until(lambda: len(find(".clip")) == 2)
    assert "begun from a sound at strength 0.5" in find(".clip .hint")[0].text
    driver.refresh()
    until(lambda: len(find(".clip")) == 2)
    for address in requested(driver):
        assert address.startswith((server.address, "data:", "blob:", "chrome:")), address
    assert not [e for e in driver.get_log("browser") if e["level"] == "SEVERE"]
    assert threading.active_count() < 20
