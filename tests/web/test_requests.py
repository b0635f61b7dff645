"""What both web applications do with requests that no page of theirs sends: one sentence, and nobody waits for it."""

import http.client
import json
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="pip install 'musicldm[web]'")

import uvicorn

from stages.params import Generate
from stages.store import model_folder
from stages.web import http as http_
from stages.web import protocol
from stages.web.server import server_config
from stages.web.studio import studio_app
from stages.web.studio_queue import StudioQueue, find_models

CLIP = {"prompt": "calm piano", "negative": "", "seconds": 1.0, "steps": 2, "sampler": "ddim", "guidance": 2.0,
        "seed": 1, "candidates": 1, "model": "ldm", "upload": "0" * 16}  # fmt: skip


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A studio whose one model is a seal without networks: nothing here is to be made."""
    folder = tmp_path_factory.mktemp("studio")
    with model_folder(folder / "ldm", "ldm", {}):
        pass
    jobs = StudioQueue(find_models([folder]), folder / "clips", folder / "shards", folder / "cache")
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(studio_app(jobs, Generate(), 1.0)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    jobs.close()


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.getheader("set-cookie", "").split(";")[0]


@pytest.fixture(scope="module")
def submit(port):
    """submit(body) -> (status, sentence) of a browser that asks for a clip."""
    cookie = ask(port, "GET", "/")[2]

    def send(body):
        headers = {"Cookie": cookie, "Content-Type": "application/json"}
        status, answer, _ = ask(port, "POST", "/jobs", body, **headers)
        return status, json.loads(answer)["sentence"]

    return send


DEEP = json.loads("[" * 200 + "]" * 200)


STRANGE = [[], ["ldm"], {}, {"a": 1}, True, DEEP]
TEXTS = ("prompt", "negative", "sampler", "model", "upload")
NUMBERS = ("seconds", "steps", "guidance", "seed", "candidates")


@pytest.mark.parametrize("field", CLIP)
@pytest.mark.parametrize("value", [*STRANGE, None, 3, 2.5, "text"], ids=lambda value: str(value)[:20])
def test_a_value_of_another_type_is_400(submit, field, value):
    assert {*TEXTS, *NUMBERS} == CLIP.keys()
    right = (int, float) if field in NUMBERS else (str, type(None)) if field in ("negative", "upload") else str
    if isinstance(value, right) and value is not True:
        return  # see the next test
    clip = {key: each for key, each in CLIP.items() if key != "upload"} | {field: value}
    status, sentence = submit(json.dumps(clip))
    assert (status, f"“{field}” must be " in sentence) == (400, True)


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("seed", 10**400, 422),
        ("seed", float("nan"), 422),
        ("steps", float("inf"), 422),
        ("steps", 2.5, 422),
        ("model", "text", 422),
        ("sampler", "text", 422),
        ("prompt", "", 422),
        ("upload", "text", 404),
    ],
)
def test_an_impossible_value_of_the_right_type_is_not_400(submit, field, value, status):
    assert submit(json.dumps(CLIP | {"upload": None, field: value}))[0] == status


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", "[" * 60_000, '{"prompt": ' + "9" * 5000 + "}", b'{"prompt": "\xff"}']
)
def test_what_is_no_object_is_400(submit, body):
    assert submit(body)[0] == 400


@pytest.mark.parametrize("field", ["prompt", "negative", "model", "sampler"])
def test_half_a_pair_of_utf16_is_no_text(submit, field):
    assert submit(json.dumps(CLIP | {"upload": None, field: "a\ud800"})) == (400, f"“{field}” must be text.")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
@pytest.mark.parametrize("suffix", ["", ":80", ":65535"])
def test_this_machines_names_are_answered(port, name, suffix):
    assert ask(port, "GET", "/", Host=name + suffix)[0] == 200


@pytest.mark.parametrize(
    "name",
    ["attacker.example", "127.0.0.1.attacker.example", "127.0.0.1@attacker.example", "localhost:80:90", "localhost:x",
     "[localhost]", "::1", "[::1", "", " ", "localhost, attacker.example", "127.0.0.1/x", "0.0.0.0"],
)  # fmt: skip
def test_other_names_are_refused(port, name):
    assert ask(port, "GET", "/", Host=name)[0] in (400, 421)


def test_two_names_or_none_are_refused(port):
    for hosts in (("localhost", "attacker.example"), ()):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("GET", "/", skip_host=True)
        for name in hosts:
            connection.putheader("Host", name)
        connection.endheaders()
        assert connection.getresponse().status in (400, 421)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
     b"GET /static/studio.js HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: "],
    ids=["nothing", "half a line", "half a head", "half of the next"],
)  # fmt: skip
def test_a_half_sent_head_is_dropped(port, sent, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        while connection.recv(65536):
            pass
        assert time.monotonic() - began < 10


def test_a_half_sent_body_is_dropped(port, monkeypatch):
    monkeypatch.setattr(http_, "BODY_SECONDS", 0.5)
    cookie = ask(port, "GET", "/")[2]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/jobs")
    for name, value in {"Cookie": cookie, "Content-Type": "application/json", "Content-Length": "1000"}.items():
        connection.putheader(name, value)
    connection.endheaders(b'{"prompt": ')
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["sentence"]) == (
        408,
        "The request took too long to arrive and was given up.",
    )
