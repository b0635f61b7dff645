"""The survey's server without a browser: what it prepares, what it keeps, what it refuses."""

import http.client
import itertools
import json
import shutil
import socket
import struct
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import soundfile
import soxr
from scipy.signal import lfilter

pytest.importorskip("fastapi", reason="pip install 'musicldm[web]'")
import uvicorn

from stages.errors import DataError, UsageError
from stages.web import survey_store
from stages.web.survey import open_survey, survey_app
from stages.web.survey_plan import plan
from tests.web.conftest import MODELS, SECONDS, Clock, write_folders
from tests.web.participant import Participant

GROUPS = 2


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(survey_store, "time", clock)
    return clock


@pytest.fixture(scope="module")
def laid_out(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("survey")
    open_survey(folders, GROUPS, 10, 0, out)[0].close()
    return out


@pytest.fixture
def survey(laid_out, tmp_path):
    shutil.copytree(laid_out, tmp_path, dirs_exist_ok=True)
    store = survey_store.SurveyStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def port(survey):
    """The application on a real socket, in a thread."""
    server = uvicorn.Server(uvicorn.Config(survey_app(survey), log_level="warning", access_log=False))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture
def person(port):
    person = Participant(port)
    assert person.begin()[2] == "/group/1"
    return person


def test_clips_cannot_be_told_apart_by_anything_but_their_sound(survey, tmp_path):
    files = sorted((tmp_path / "clips").iterdir())
    assert len(files) == 7 * len(MODELS)
    assert len({file.stat().st_size for file in files}) == 1
    assert {file.stat().st_mtime for file in files} == {0}
    headers = {file.read_bytes()[:44] for file in files}
    assert len(headers) == 1
    assert not any(model.encode() in file.read_bytes() for model in MODELS for file in files)
    levels = []
    for file in files:
        samples, rate = soundfile.read(file)
        assert (len(samples), rate) == (int(SECONDS * 16_000), 16_000)
        levels.append(lufs(samples))
        assert np.abs(samples).max() <= 0.98 + 1e-4
        assert abs(samples[0]) < 1e-3 and abs(samples[-1]) < 1e-3
        edge, middle = np.abs(samples[:400]).mean(), np.abs(samples[2400:-2400]).mean()
        assert edge < middle
    assert max(levels) - min(levels) < 0.05, levels


def lufs(samples):
    """Loudness by the coefficients that ITU-R BS.1770-4 prints for 48 kHz, of samples at 16 kHz."""
    weighed = soxr.resample(samples, 16_000, 48_000)
    weighed = lfilter([1.53512485958697, -2.69169618940638, 1.19839281085285],
                      [1, -1.69065929318241, 0.73248077421585], weighed)  # fmt: skip
    weighed = lfilter([1, -2, 1], [1, -1.99004745483398, 0.99007225036621], weighed)
    blocks = [np.mean(weighed[i : i + 19_200] ** 2) for i in range(0, len(weighed) - 19_200 + 1, 4800)]
    level = -0.691 + 10 * np.log10(np.mean(blocks))
    return -0.691 + 10 * np.log10(np.mean([b for b in blocks if -0.691 + 10 * np.log10(b) > level - 10]))


def test_orders_are_latin_squares_and_captions_are_spread_evenly():
    items, models = [f"p{i}" for i in range(8)], ["a", "b", "c", "d"]
    rows = [row for i in range(16) for row in plan(i, items, models, 6, seed=3)]
    assert len(rows) == 96
    assert set(Counter(row[0] for row in rows).values()) == {12}
    seen = Counter((row[0], model, position) for row in rows for position, model in enumerate(row[1:]))
    assert len(seen) == 8 * 4 * 4
    assert set(seen.values()) == {3}
    for i in range(16):
        own = [row[0] for row in plan(i, items, models, 6, seed=3)]
        assert len(set(own)) == 6
    assert len({tuple(row[1:]) for row in rows}) > 8
    assert plan(5, items, models, 6, 3) != plan(5, items, models, 6, 4)


def test_a_whole_survey(person, survey, clock):
    for place in (1, 2):
        for position in person_clips(person, place):
            assert person.rate(place, position, "quality", 3)[0] == 409  # not heard yet
            person.ask("GET", f"/clip/{place}/{position}")
            assert person.ask("POST", f"/heard/{place}/{position}", "{}")[0] == 409  # too soon
            assert person.hear(place, position, clock.sleep)[0] == 200
            assert person.ask("POST", f"/group/{place}", "")[0] == 409
            for scale in survey_store.SCALES:
                assert person.rate(place, position, scale, position)[0] == 200
        location = person.ask("POST", f"/group/{place}", "")[2]
    assert location == "/thanks"
    assert b"Thank you" in person.ask("GET", "/thanks")[1]
    rows = survey.answers()
    assert len(rows) == GROUPS * 9
    assert {row["model"] for row in rows} == set(MODELS)
    assert all(row["value"] == row["position"] and row["group_finished"] for row in rows)
    assert survey.counts() == {"began": 1, "finished": 1, "answers": GROUPS * 9}
    assert len(survey.ratings()) == GROUPS * 9


def person_clips(person, place):
    return range(1, person.clips(place) + 1)


def test_what_a_browser_gets_names_no_model(person, clock):
    found = [person.ask("GET", path)[1] for path in ("/", "/group/1", "/static/survey.js", "/static/style.css")]
    sizes = set()
    for position in person_clips(person, 1):
        person.ask("GET", f"/clip/1/{position}")
        person.connection.request("GET", f"/clip/1/{position}", headers={"Cookie": person.cookie})
        answer = person.connection.getresponse()
        found.append(answer.read())
        hidden = [(k, v) for k, v in answer.getheaders() if k != "date"]
        sizes.add(str(hidden))
    assert len(sizes) == 1
    for text in found:
        assert not any(model.lower().encode() in text.lower() for model in MODELS)


def test_replayed_posts_count_once(port, survey, clock):
    person, form = Participant(port), "f" * 32
    person.begin(form)
    cookie = person.cookie
    other = Participant(port)
    other.begin(form)
    assert other.cookie == cookie
    assert survey.counts()["began"] == 1
    person.hear(1, 1, clock.sleep)
    for value in (4, 4, 2, 2):
        assert person.rate(1, 1, "quality", value)[0] == 200
    assert [row["value"] for row in survey.answers()] == [2]
    finish_group(person, 1, clock)
    before = survey.answers()
    assert person.ask("POST", "/group/1", "")[2] == "/group/2"
    assert person.rate(1, 1, "quality", 3)[0] == 200  # as it is
    assert person.rate(1, 1, "quality", 5)[0] == 409
    assert survey.answers() == before


def finish_group(person, place, clock):
    for position in person_clips(person, place):
        person.hear(place, position, clock.sleep)
        for scale in survey_store.SCALES:
            person.rate(place, position, scale, 3)
    assert person.ask("POST", f"/group/{place}", "")[0] == 303


@pytest.mark.parametrize(
    "cookie", ["", "musicldm_survey=0", "musicldm_survey=' OR 1=1 --", "musicldm_survey=" + "x" * 32]
)
def test_forged_participants_are_refused_and_logged(port, survey, cookie, caplog):
    stranger = Participant(port, cookie)
    for method, path in (("GET", "/clip/1/1"), ("POST", "/heard/1/1"), ("POST", "/rate/1/1"), ("POST", "/group/1")):
        status, body, _ = stranger.ask(method, path, None if method == "GET" else "{}")
        assert status == 403
        assert b"not begun this survey" in body
    assert stranger.ask("GET", "/group/1")[2] == "/"
    assert survey.counts() == {"began": 0, "finished": 0, "answers": 0}
    assert len([r for r in caplog.records if "refused (403)" in r.getMessage()]) == 4


@pytest.mark.parametrize("value", [0, 6, -1, 3.5, "3", True, None, [3], 10**30])
def test_ratings_out_of_range_are_refused(person, survey, clock, value):
    person.hear(1, 1, clock.sleep)
    status, answer = person.rate(1, 1, "quality", value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    assert (status, answer["ok"]) == (422 if is_number else 400, False)
    assert "whole number from 1 to 5" in answer["sentence"]
    assert person.rate(1, 1, "loudness", 3)[0] == 422
    assert not survey.answers()
    assert person.rate(1, 1, "quality", 3)[0] == 200


@pytest.mark.parametrize(
    "path", ["/clip/../survey.db", "/clip/1/..%2f..%2fsurvey.db", "/clip/1/9", "/clip/9/1", "/clip/1/-1",
             "/clip/%2e%2e/%2e%2e", "/static/../survey.py", "/static/%2e%2e/http.py", "/clip/1/" + "9" * 400, "/docs"],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(person, path):
    status, body, _ = person.ask("GET", path)
    assert status == 404
    assert b"There is no such" in body


def test_bodies_that_are_too_long_or_malformed_are_refused(person, port, survey):
    for headers in ({"Content-Length": str(10**9)}, {"Transfer-Encoding": "chunked"}):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("POST", "/start")
        connection.putheader("Content-Type", "application/x-www-form-urlencoded")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        if "Content-Length" not in headers:
            connection.send(b"20000\r\n" + b"x" * 0x20000 + b"\r\n")
        answer = connection.getresponse()
        assert answer.status == 413
        assert "at most 64 kB" in json.loads(answer.read())["sentence"]
    for body in ("", "[1]", "{", "nul\x00", "[" * 60_000, '{"scale": "quality"}'):
        assert person.ask("POST", "/rate/1/1", body)[0] in (400, 422)
    assert person.ask("POST", "/rate/1/1", '{"scale":"quality","value":3}', "text/plain")[0] == 415
    stranger = Participant(port)
    for changed in ({"age": "12"}, {"background": ""}, {"consent": "no"}, {"form": "../x"}):
        assert stranger.begin(**changed)[0] == 422
    assert survey.counts()["began"] == 1


def test_other_host_names_are_refused(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/", headers={"Host": "attacker.example"})
    assert connection.getresponse().status == 421


def test_a_survey_goes_on_after_a_restart_and_never_with_other_clips(folders, tmp_path, clock):
    store, left_out = open_survey(folders, GROUPS, 10, 0, tmp_path)
    assert not left_out
    cookie = store.enter("f" * 32, "25-34", "x")
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    store.close()
    again, _ = open_survey(folders, GROUPS, 10, 0, tmp_path)
    assert again.participant(cookie) == 0
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == names
    again.close()
    for other in ((folders[:2], GROUPS, 0), (folders, 1, 0), (folders, GROUPS, 1)):
        with pytest.raises(DataError, match="other clips or settings"):
            open_survey(other[0], other[1], 10, other[2], tmp_path)


def test_folders_that_cannot_be_compared_are_refused(folders, tmp_path):
    def refused(error, words, given, groups=GROUPS):
        with pytest.raises(error, match=words):
            open_survey(given, groups, 10, 0, tmp_path / "out")

    refused(UsageError, "at least two folders", folders[:1])
    refused(UsageError, "at least two folders", [folders[0], folders[0]])
    refused(UsageError, "--groups 8 is not between 1 and 7", folders, 8)
    refused(DataError, "no folder", [folders[0], tmp_path / "none"])
    for name, change, words in (
        ("caption", {"prompt": "Another"}, "has the caption 'Another'"),
        ("outside", {"file": "../x.wav"}, "no file of its folder"),
        ("gone", {"file": "gone.wav"}, "no file of its folder"),
        ("silent", None, "is silent"),
    ):
        (folder,) = write_folders(tmp_path / name, ("other",))
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        rows[3] |= change or {}
        if change is None:
            soundfile.write(folder / rows[3]["file"], np.zeros(16_000), 16_000)
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
        refused(DataError, words, [folders[0], folder])
    assert not list((tmp_path / "out").glob("clips/*"))


@pytest.mark.parametrize("command", [("studio",), ("eval", "listen", "serve", "a", "b")])
def test_without_the_extra_its_name_is_told(monkeypatch, capsys, command):
    from musicldm_cli import app

    monkeypatch.setattr("stages.web.server.PACKAGES", ("fastapi", "no_such_package"))
    monkeypatch.setattr(sys, "argv", ["musicldm", *command])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 6
    assert "pip install 'musicldm[web]'" in capsys.readouterr().err


def test_wav_header_is_the_plain_one(survey, tmp_path):
    head = next((tmp_path / "clips").iterdir()).read_bytes()[:44]
    assert struct.unpack("<4s4x4s4s4x2H", head[:24])[:4] == (b"RIFF", b"WAVE", b"fmt ", 1)
    assert head[36:40] == b"data"
    assert not list(itertools.islice(tmp_path.glob("**/*.tmp"), 1))
