"""Files whose sound was lost, halved or silenced without a word, and good ones that were refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages.data.manifest import read_manifest


def seconds(folder: Path) -> dict[str, float]:
    return {track.path: track.seconds for track in read_manifest(folder / "work" / "manifest").tracks}


def rejected(folder: Path) -> dict[str, str]:
    with (folder / "work" / "manifest" / "rejected.csv").open(encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def add_good_track(folder: Path) -> None:
    """Without one that can be used there is no manifest, nor a list of what is rejected."""
    soundfile.write(folder / "good.wav", 0.3 * np.sin(np.arange(48_000) / 6), 16_000)
    names = sorted(path.name for path in folder.glob("*.wav"))
    (folder / "captions.csv").write_text("path,caption\n" + "".join(f"{name},slow piano\n" for name in names))


def test_chained_ogg_is_read_whole(fault):
    chained = fault("chained-ogg")
    done = chained.cmd()
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds(chained.folder) == {"chain.ogg": 8.0, "chain.opus": 8.0}
    assert rejected(chained.folder) == {}


def test_channels_that_cancel_and_silence_are_rejected_by_reason(fault, typed):
    cancel = fault("channels-cancel")
    code, _, talk = typed(cancel.folder, "prep", "manifest", ".", "-j", "1")
    assert code == 4
    assert "antiphase.wav: its channels cancel each other" in talk
    add_good_track(cancel.folder)
    done = cancel.cmd()
    assert (done.returncode, done.stderr) == (0, "")
    reasons = rejected(cancel.folder)
    assert set(reasons) == {"antiphase.wav", "silent.wav"}
    assert reasons["antiphase.wav"].startswith("its channels cancel each other in the mono mix. Keep one")
    assert reasons["silent.wav"] == "is silent"
    assert len(done.stdout.splitlines()[-1].split()) == 2  # the name of the one clip, and its peak
    assert float(done.stdout.split()[-1]) == pytest.approx(0.5, abs=0.001)


def test_files_of_downloaders_are_read_by_their_content(fault):
    content = fault("content-unlike-suffix")
    done = content.cmd()
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds(content.folder) == {
        "really-m4a.mp3": pytest.approx(4, abs=0.05),
        "really-webm.mp3": pytest.approx(4, abs=0.05),
        "yt.webm.opus": pytest.approx(4, abs=0.05),
    }
    assert rejected(content.folder) == {}


def test_what_libsndfile_refuses_is_read_without_the_program_ffmpeg(fault):
    refused = fault("ffmpeg-reads-it")
    done = refused.cmd()
    assert (done.returncode, done.stderr) == (0, "")
    names = {"lead-zeros.mp3", "lyrics3.mp3", "mp3-in.wav", "oggflac.ogg"}
    assert seconds(refused.folder) == dict.fromkeys(names, pytest.approx(4, abs=0.1))
    assert rejected(refused.folder) == {"noaudio.mp4": "has no sound, only video."}


def test_other_suffixes_are_read_and_none_is_passed_over(fault, typed):
    other = fault("other-suffixes")
    names = {"s.m4b", "s.mkv", "s.webm", "s.wma", "z.ogg"}
    code, _, talk = typed(other.folder, "prep", "manifest", ".", "-j", "1")
    assert (code, talk) == (0, "")
    assert seconds(other.folder) == dict.fromkeys(names, pytest.approx(4, abs=0.05))
    assert other.cmd().returncode == 0
    assert set(seconds(other.folder)) == {"z.ogg"}
    no_caption = "has no caption in a table, a sidecar file or its tags"
    assert rejected(other.folder) == dict.fromkeys(names - {"z.ogg"}, no_caption)


def test_strange_wavs_are_rejected_by_reason_and_without_a_warning(fault):
    strange = fault("strange-wav")
    soundfile.write(strange.folder / "constant.wav", np.full(48_000, 0.25), 16_000)
    data = (strange.folder / "silence.wav").read_bytes()
    longer = (2 * len(data)).to_bytes(4, "little")
    (strange.folder / "lie_length.wav").write_bytes(data[:40] + longer + data[44:])
    add_good_track(strange.folder)
    done = strange.cmd()
    assert (done.returncode, done.stderr) == (0, "")
    assert set(seconds(strange.folder)) == {"good.wav"}
    words = {
        "constant.wav": "holds no sound but one value throughout, 0.250",
        "lie_block_align.wav": "has a header that contradicts itself: blocks of 7 bytes for 1 channel(s) of 16 bits.",
        "lie_length.wav": f"is truncated: {44 + 2 * len(data)} bytes are promised, {len(data)} are there.",
        "rate_1hz.wav": "says that its sample rate is 1 Hz; 1000 to 768000 Hz are read.",
        "silence.wav": "is silent",
    }
    assert rejected(strange.folder) == words
