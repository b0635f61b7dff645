"""`musicldm generate` as typed, on a toy model: one file, edits, a stream, mistakes, a full disk, an interruption."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import soundfile

from musicldm_cli import app
from stages.generate.pipeline import Pipeline
from stages.generate.run import Made, Run
from tests import DEMO

SONG = str(DEMO / "flare_battle_theme.ogg")


@pytest.fixture
def call(toy_models, tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        usual = ["--model", str(toy_models / "ldm"), "--steps", "2"]
        monkeypatch.setattr(sys, "argv", ["musicldm", "generate", *usual, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            app.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def planned(monkeypatch):
    """A list that gets every run which would have made clips."""
    seen = []
    monkeypatch.setattr(Run, "files", lambda run, *_: seen.append(run) or Made([], [], [], [], 0.0))
    return seen


def test_one_file_by_name_and_edits_of_a_real_song(call, tmp_path):
    length = soundfile.info(SONG).duration
    for name, options, seconds in (
        ("a.flac", (), 1.28),
        ("b.ogg", ("--continue", SONG, "--seconds", str(length + 1)), length + 1),
        ("c.wav", ("--inpaint", f"{SONG}:3:4"), length),
        ("d.wav", ("--loop", "--bars", "1", "--bpm", "130"), round(4 * 60 / 130 * 16_000) / 16_000),
        ("e.mp3", ("--init-audio", "a.flac"), 1.28),
        ("f.opus", ("--continue", "e.mp3", "--seconds", "2"), 2),
    ):
        code, out, err = call("calm piano", "--out", name, *options)
        assert code == 0, err
        assert out.startswith(name)
        assert soundfile.info(tmp_path / name).duration == pytest.approx(seconds, abs=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == ["a.flac", "b.ogg", "c.wav", "d.wav", "e.mp3", "f.opus"]
    assert rows[3]["prompt"] == "calm piano, 130 BPM"


def test_takes_of_one_prompt_differ_and_the_first_is_the_prompt_itself(call, tmp_path):
    assert call("calm piano", "--out", "one")[0] == call("calm piano", "--out", "three", "--takes", "3")[0] == 0
    names = [f"calm-piano-{seed}.wav" for seed in range(3)]
    assert sorted(path.name for path in (tmp_path / "three").glob("*.wav")) == names
    sounds = [soundfile.read(tmp_path / "three" / name)[0].tobytes() for name in names]
    assert len(set(sounds)) == 3
    assert sounds[0] == soundfile.read(tmp_path / "one" / names[0])[0].tobytes()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("x", "--guidance-interval", "0.8", "0.2"), 2, "--guidance-interval"),
        (("x", "--loop", "--init-audio", SONG), 2, "exclude each other"),
        (("x", "--bars", "4"), 2, "--bars belongs to --loop"),
        (("x", "--strength", "0.5"), 2, "--strength belongs to --init-audio"),
        (("x", "--loop", "--seconds", "3"), 2, "--seconds does not go with --loop"),
        (("x", "--loop", "--bpm", "0"), 2, "above 0"),
        (("x", "--tries", "3"), 2, "--tries belongs to --max-similarity"),
        (("x", "--max-similarity", "7"), 2, "--max-similarity 7"),
        (("x", "--max-similarity", "0.9", "--index", "none"), 4, "none is no index"),
        (("x", "--max-similarity", "0.9"), 4, "no training music in work/shards"),
        (("x", "--continue", SONG, "--seconds", "2"), 2, "has"),
        (("x", "--continue", "none.wav"), 4, "none.wav cannot be opened"),
        (("x", "--inpaint", SONG), 2, "FILE:START:END"),
        (("x", "--out", "a.m4a"), 2, "--out a.m4a: m4a is read, but not written"),
        (("x", "--format", "m4a"), 2, "--format m4a is none of wav"),
        (("x", "--out", "a.wav", "--format", "flac"), 2, "contradict"),
        (("x", "--format", "raw"), 2, "stdout only"),
        (("x", "--out", "-", "--plot"), 2, "--plot"),
        (("x", "--out", "-", "--loop"), 2, "an edit"),
        (("x", "--out", "-", "--takes", "2"), 2, "--takes"),
        (("x", "--out", "a.wav", "--takes", "2"), 2, "needs a folder"),
        (("x\x07",), 2, "control character"),
        (("x", "--seconds", "-3"), 2, "--seconds -3 is not above 0 and at most 600"),
        (("x", "--seconds", "601"), 2, "at most 600"),
        (("x", "--seconds", "1e-9"), 2, "not above 0"),
        (("x", "--init-audio", SONG, "--seconds", "601"), 2, "at most 600"),
        (("x", "--continue", SONG, "--seconds", "6001"), 2, "at most 600 are added"),
        (("x", "--out", "-", "--seconds", "90000"), 2, "at most 86400"),
        (("x", "--out", "-", "--guidance-interval", "0.8", "0.2"), 2, "--guidance-interval"),
        (("x", "--out", "-", "--reuse", "0"), 2, "--reuse 0 is less than 1"),
        (("x", "--sampler", "plms"), 2, "--sampler plms is none of ddim, dpm++, unipc, euler"),
        (("x", "--steps", "0"), 2, "--steps 0 is less than 1"),
        (("x", "--steps", "1001"), 2, "more than the model's 1000"),
        (("x", "--eta", "2"), 2, "--eta 2 is not between 0 and 1"),
        (("x", "--candidates", "0"), 2, "--candidates 0 is less than 1"),
        (("x", "--avoid-copies", "-1"), 2, "--avoid-copies -1"),
        (("x", "--backend", "tpu"), 2, "--backend tpu is none of auto, eager"),
        (("x", "--out", f"{SONG}/clips"), 4, "cannot be written"),
    ],
)
def test_mistakes_get_one_sentence_at_once_and_leave_nothing(call, tmp_path, monkeypatch, options, code, said):
    """At once: before a network is loaded, which takes seconds."""
    monkeypatch.setattr(Pipeline, "load", None)
    found, _, err = call(*options)
    assert (found, said in err) == (code, True), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_before_torch_is_imported(toy_models, tmp_path):
    """Which takes seconds: a bad length, file, span, index, prompts file, parameter or folder needs no network."""
    soundfile.write(tmp_path / "short.wav", [0.1, -0.1] * 100, 16_000)
    soundfile.write(tmp_path / "silent.wav", [0.0] * 20_000, 16_000)
    (tmp_path / "p.csv").write_text("prompt,seconds\nx,-3\n")
    mistakes = [
        ["x", "--continue", SONG, "--seconds", "2"], ["x", "--continue", "short.wav"], ["x", "--continue", "none.wav"],
        ["x", "--init-audio", "silent.wav"], ["x", "--init-audio", SONG, "--strength", "2"],
        ["x", "--inpaint", f"{SONG}:5:4"], ["x", "--inpaint", "short.wav:0:0.01"], ["x", "--loop", "--bpm", "0"],
        ["x", "--loop", "--seconds", "3"], ["x", "--candidates", "0"], ["x", "--steps", "1001"], ["x", "--eta", "2"],
        ["x", "--max-similarity", "0.9"], ["x", "--max-similarity", "0.9", "--index", "none"],
        ["--prompts", "p.csv"], ["--prompts", "none.csv"], [], ["x", "-S", "generate.steps=0"],
        ["x", "--out", f"{SONG}/clips"], ["x", "--sampler", "few-steps"],
    ]  # fmt: skip
    probe = (
        "import json, sys\nfrom musicldm_cli.app import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['musicldm', *words]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(end.code, bool({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    lines = json.dumps([["generate", "--model", str(toy_models / "ldm"), *words] for words in mistakes])
    done = subprocess.run([sys.executable, "-c", probe, lines], cwd=tmp_path, capture_output=True, text=True)
    codes = [2, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 2, 3, 4, 5]
    assert done.stdout.splitlines() == [f"{code} False" for code in codes], done.stderr


@pytest.mark.parametrize(
    ("file", "options", "sampled"),
    [
        (None, (), ("unipc", 12, (0.0, 0.5), 4.0)),
        ("preset: tiny", (), ("unipc", 12, (0.0, 0.5), 4.0)),
        ("preset: paper", (), ("unipc", 12, (0.0, 0.5), 4.0)),
        ("preset: tiny\ngenerate: {steps: 3, guidance: 2.0, reuse: null}", (), ("unipc", 3, (0.0, 0.5), 4.0)),
        ("preset: tiny", ("-S", "generate={steps: 20, guidance_interval: [0, 1]}"), ("unipc", 20, (0.0, 1.0), 4.0)),
        ("preset: tiny\ngenerate: {steps: 3}", ("--sampler", "ddim", "--guidance", "5"), ("ddim", 3, (0.0, 0.5), 5.0)),
    ],
)
def test_a_model_samples_as_its_own_card_says_wherever_one_stands(typed, tmp_path, monkeypatch, file, options, sampled):
    """Not as the preset of the folder's params.yaml does; only what that file changes itself is heeded."""
    seen = planned(monkeypatch)
    if file is not None:
        (tmp_path / "params.yaml").write_text(file)
    code, _, err = typed(tmp_path, "generate", "calm", "--model", "shipped", "--reuse", "1", *options)
    assert code == 0, err
    (run,) = seen
    settings = run.settings
    assert (settings.sampler, settings.steps, settings.interval, run.prompts[0].guidance) == sampled


def test_the_model_of_this_project_samples_as_its_params_say(typed, toy_models, tmp_path, monkeypatch):
    """Also where they say what their preset does and the model's card does not; a foreign preset says nothing."""
    seen = planned(monkeypatch)
    model = tmp_path / "work" / "models" / "ldm"
    shutil.copytree(toy_models / "ldm", model)
    card = json.loads((model / "musicldm.json").read_text())
    card["params"]["generate"]["steps"] = 33
    (model / "musicldm.json").write_text(json.dumps(card))
    for text, steps in (("preset: tiny", 20), ("preset: tiny\ngenerate: {steps: 5}", 5), ("preset: small", 33)):
        (tmp_path / "params.yaml").write_text(text)
        assert typed(tmp_path, "generate", "calm")[0] == 0
        assert seen.pop().settings.steps == steps


def test_the_model_is_named(call, toy_models, tmp_path):
    code, _, err = call("calm piano")
    assert code == 0
    assert f"Model: {toy_models / 'ldm'} (preset tiny, 0 steps)." in err
    code, out, _ = call("calm piano", "--json")
    assert json.loads(out)["model"] == str(toy_models / "ldm")


@pytest.mark.parametrize("options", [("--out", "a/clips"), ("--out", "there"), ("--out", "a/clip.wav")])
def test_an_altered_model_is_refused_and_leaves_nothing(call, toy_models, tmp_path, options):
    shutil.copytree(toy_models / "ldm", tmp_path / "mine")
    file = tmp_path / "mine" / "null_condition.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    (tmp_path / "there").mkdir()
    code, out, err = call("calm", "--model", "mine", *options)
    assert (code, out) == (5, "")
    assert "null_condition.safetensors was altered" in " ".join(err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "there"]
    assert list((tmp_path / "there").iterdir()) == []


def test_rows_that_cannot_be_made_are_listed_and_the_others_made(call, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,seconds\ncalm,0.5\ncalm,-3\ncalm,9999\nx\x07,\n")
    code, _, err = call("--prompts", "p.csv", "--out", "clips")
    assert code == 4
    assert "3 row(s) of the prompts file were left out, the other 1 done" in err
    assert "line 4: --seconds 9999 is not above 0 and at most 600" in err
    assert [path.name for path in (tmp_path / "clips").glob("*.wav")] == ["prompt-0001.wav"]
    code, _, err = call("--prompts", "p.csv", "--out", "clips", "--loop", "--bars", "1")
    assert code == 4
    assert "line 2: --seconds does not go with --loop" in err


def test_a_full_disk_is_said_and_leaves_nothing(call, tmp_path, monkeypatch):
    from stages.audio import io as audio_io

    monkeypatch.setattr(audio_io, "write", lambda path, *_: _fail(path))
    code, _, err = call("calm piano", "--out", "clips")
    assert code == 4
    assert "full" in err
    assert list(tmp_path.iterdir()) == []


def _fail(path):
    from stages.store import atomic_file

    with atomic_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")


def _as_in_a_terminal():
    """What a shell starts in the background ignores Ctrl-C, and so would its children, the tests' as well."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_stream_is_a_wav_and_an_interrupted_run_keeps_its_clips(toy_models, tmp_path):
    """In real processes: stdout is sound alone, and Ctrl-C ends with 130, its finished clips in the manifest."""
    model = ["--model", str(toy_models / "ldm")]
    command = [sys.executable, "-m", "musicldm_cli", "generate", *model]
    done = subprocess.run([*command, "calm", "--steps", "2", "--seconds", "3", "--out", "-"], capture_output=True)
    assert done.returncode == 0, done.stderr
    samples, rate = soundfile.read(io.BytesIO(done.stdout))
    assert (len(samples), rate) == (48_000, 16_000)
    (tmp_path / "p.txt").write_text("calm\n" * 500)
    run = subprocess.Popen([*command, "--prompts", "p.txt", "--steps", "2", "--out", "clips"], cwd=tmp_path,
                           preexec_fn=_as_in_a_terminal)  # fmt: skip
    manifest = tmp_path / "clips" / "manifest.jsonl"
    deadline = time.monotonic() + 120
    while not manifest.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert 1 <= len(rows) < 500
    assert {row["file"] for row in rows} <= {path.name for path in (tmp_path / "clips").iterdir()}


def test_the_guidance_interval_is_that_of_params_unless_it_is_given(call, tmp_path):
    """And what lies in the parameters the wrong way round is refused as an option is."""
    narrow = ("-S", "generate.guidance_interval=[0.25, 0.5]")
    for name, options, told in (
        ("params", narrow, [0.25, 0.5]), ("option", (*narrow, "--guidance-interval", "0.1", "0.9"), [0.1, 0.9]),
    ):  # fmt: skip
        assert call("calm", "--steps", "2", "--out", name, *options)[0] == 0
        row = json.loads((tmp_path / name / "manifest.jsonl").read_text())
        assert row["guidance_interval"] == told
    code, _, err = call("calm", "-S", "generate.guidance_interval=[0.9, 0.1]")
    assert (code, "generate.guidance_interval: [0.9, 0.1] is not two shares" in err) == (3, True)
