"""Files that mean harm, dropped into the studio: each is refused or cut, and the pages go on being served."""

import http.client
import io
import json
import socket
import struct
import tempfile
import threading
import time

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="pip install 'musicldm[web]'")

from stages.web import studio as studio_
from stages.web.decode import LONGEST_SECONDS, decode
from stages.web.refused import Refused
from tests.faults.conftest import FAULTS
from tests.web.test_studio import DEMO, Person, shards, start  # noqa: F401

SONG = (DEMO / "flare_battle_theme.ogg").read_bytes()


def wav(rate, channels, data, kind=1, bits=16):
    sizes = rate * channels * bits // 8 & 0xFFFFFFFF, channels * bits // 8 & 0xFFFF
    form = struct.pack("<IHHIIHH", 16, kind, channels, rate, *sizes, bits)
    return struct.pack("<4sI4s4s", b"RIFF", 36 + len(data), b"WAVE", b"fmt ") + form + struct.pack(
        "<4sI", b"data", len(data)
    ) + data  # fmt: skip


def hours_of_silence():
    """A quarter of a megabyte that is three hours long."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(180):
            file.write(np.zeros(480_000, "int16"))
    return buffer.getvalue()


def test_of_hours_in_a_small_file_two_minutes_are_decoded(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(hours_of_silence())
    assert path.stat().st_size < 300_000
    assert len(decode(path, 48_000)) == LONGEST_SECONDS * 48_000


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "is empty"), (b"hello", "not audio"), (b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(10**6), "not audio"),
     (wav(0xFFFFFFFF, 1, bytes(10**6)), "not audio"), (wav(44_100, 65_535, bytes(10**6)), "contradicts itself"),
     (wav(1, 1, bytes(10**6)), "sample rate is 1 Hz"),  # a block of it would be 12 GB at the model's rate
     (wav(44_100, 1, np.full(50_000, np.nan, "<f4").tobytes(), 3, 32), "not finite numbers"),
     (SONG[: len(SONG) // 2], "truncated")],
    ids=["empty", "text", "endless tag", "4 GHz", "65,535 channels", "1 Hz", "NaN", "cut off"],
)  # fmt: skip
def test_what_is_no_whole_audio_is_refused_with_a_sentence(tmp_path, data, words):
    path = tmp_path / "upload"
    path.write_bytes(data)
    with pytest.raises(Refused, match=words) as caught:
        decode(path, 48_000)
    assert str(tmp_path) not in caught.value.sentence
    assert [file.name for file in tmp_path.iterdir()] == ["upload"]


@pytest.mark.parametrize("name", ["s.m4b", "s.webm", "s.wma"])
def test_what_telephones_and_downloaders_write_is_decoded(tmp_path, name):
    path = tmp_path / "upload"
    path.write_bytes((FAULTS / "other-suffixes" / name).read_bytes())
    assert len(decode(path, 16_000)) == pytest.approx(4 * 16_000, abs=1000)


@pytest.fixture
def upload_folder(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def put(person, headers):
    connection = http.client.HTTPConnection("127.0.0.1", person.port, timeout=20)
    connection.putrequest("POST", "/upload")
    for name, value in {"Cookie": person.cookie, "Content-Type": "application/octet-stream", **headers}.items():
        connection.putheader(name, str(value))
    connection.endheaders()
    return connection


def sentence(connection):
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())["sentence"]


def test_an_endless_upload_is_cut_off_and_a_slow_one_given_up(start, upload_folder, monkeypatch):  # noqa: F811
    person = Person(start().port)
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    endless, began = put(person, {"Transfer-Encoding": "chunked"}), time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() < began + 20:
            endless.send(chunk)
    honest = put(person, {"Transfer-Encoding": "chunked"})
    for _ in range(50):
        honest.send(chunk)
    honest.send(b"0\r\n\r\n")
    assert sentence(honest)[0] == 413
    huge = put(person, {"Content-Length": 10**9})
    assert sentence(huge) == (413, "That is too much: at most 40 MB are accepted here.")
    monkeypatch.setattr(studio_, "UPLOAD_SECONDS", 0.2)
    slow = put(person, {"Content-Length": 1000})
    slow.send(b"RIFF")
    assert sentence(slow) == (408, "The file took too long to arrive and was given up.")
    gone = put(person, {"Content-Length": 1000})
    gone.sock.shutdown(socket.SHUT_RDWR)
    assert person.ask("GET", "/history")[0] == 200
    end = time.monotonic() + 10
    while list(upload_folder.iterdir()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_many_slow_files_hold_up_no_page(start, monkeypatch):  # noqa: F811
    """Fifty at once, more than there are threads: two are decoded at a time, who waits too long is told so."""
    busy, most, lock = 0, 0, threading.Lock()

    def slow_decode(path, rate):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(1.0)
        with lock:
            busy -= 1
        return np.zeros(rate, np.float32)

    monkeypatch.setattr(studio_, "decode", slow_decode)
    monkeypatch.setattr(studio_, "PATIENCE_SECONDS", 1.7)
    person, answers, times = Person(start().port), [], []
    ask = ("POST", "/upload", SONG[:1000], "application/octet-stream")
    threads = [threading.Thread(target=lambda: answers.append(person.ask(*ask))) for _ in range(50)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        assert person.ask("GET", "/static/studio.js")[0] == 200
        times.append(time.monotonic() - began)
        time.sleep(0.05)
    assert len(times) > 10
    assert max(times) < 0.9  # without turns, pages wait as long as a decoder
    assert most == studio_.DECODERS
    assert 2 <= sum(status == 200 for status, _ in answers) <= 8
    refused = [answer["sentence"] for status, answer in answers if status == 503]
    assert len(refused) >= 42
    assert set(refused) == {"Other files are being read just now. Please drop yours again in a minute."}
    monkeypatch.undo()
    status, found = person.ask("POST", "/upload", SONG, "application/octet-stream")
    assert (status, found["seconds"]) == (200, pytest.approx(soundfile.info(io.BytesIO(SONG)).duration, abs=0.01))
