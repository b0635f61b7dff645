"""`musicldm generate` and `musicldm eval` as typed: real music, toy models, exit codes, files written."""

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages import params as parameters
from stages.errors import ModelError
from tests import DEMO
from tests.conftest import CLIP_SECONDS
from tests.data.conftest import _write_collection

RATE = 16_000
TRAIN = ["flare_battle_theme", "flare_cave_theme", "singularity_nebula"]
TEST = ("hyperrogue_hr3_caves", "hyperrogue_hr3_desert")
TEST_IDS = [name.replace("_", "-") for name in TEST]
RAW = {
    "preset": "tiny", "audio": {"clip_seconds": CLIP_SECONDS}, "clap": {"window_seconds": CLIP_SECONDS},
    "generate": {"steps": 2}, "evaluate": {"bootstrap": 20},
}  # fmt: skip


@pytest.fixture(scope="module")
def project(toy_models, tmp_path_factory):
    """A project folder with trained toy models, shards of five tracks, and two generated clips."""
    from stages.data.shards import write_shards

    folder = tmp_path_factory.mktemp("project")
    work = folder / "work"
    params = parameters.resolve(RAW)
    (folder / "params.yaml").write_text(parameters.to_yaml(params), encoding="utf-8")
    shutil.copytree(toy_models, work / "models")
    _write_collection(work, [*TRAIN, *TEST], seconds=6.0, test=TEST)
    write_shards(work / "audio/manifest.csv", work / "beats/beats.jsonl", work / "captions/captions.jsonl",
                 work / "shards", params)  # fmt: skip
    rows = [["id", "prompt"], *([name, f"A piece called {name}."] for name in TEST_IDS)]
    with (work / "captions" / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def call(project, typed):
    """Run a command in the project, in this process: (exit code, stdout, stderr)."""
    return partial(typed, project)


@pytest.fixture
def generated(project, call):
    """The two clips of the test prompts (made once, then found again)."""
    assert call("generate")[0] == 0
    return project / "work" / "generated"


def copies(folder: Path, names, seconds=4.0, rate=RATE) -> Path:
    """A folder of real music from the demo set."""
    folder.mkdir()
    for name in names:
        samples, _ = soundfile.read(DEMO / f"{name}.ogg", frames=int(seconds * RATE), dtype="int16")
        soundfile.write(folder / f"{name}.wav", samples, rate)
    return folder


def test_a_typed_prompt_in_a_new_process_prints_its_path_and_figures(project):
    options = "--seconds 1 --plot --seed 3 --negative noise --candidates 2 --format flac"
    command = [sys.executable, "-m", "musicldm_cli", "--json", "generate", "dramatic trailer", *options.split()]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["paths"] == ["generated/dramatic-trailer-3.flac", "generated/dramatic-trailer-3.png"]
    assert soundfile.info(project / said["paths"][0]).frames == RATE
    assert (project / "generated/dramatic-trailer-3.png").read_bytes().startswith(b"\x89PNG")
    clip = said["clips"][0]
    assert (clip["negative"], clip["seed"], clip["candidates"], clip["steps"]) == ("noise", 3, 2, 2)
    assert said["made"] == 1
    assert said["real_time_factor"] == pytest.approx(1 / said["seconds_taken"], rel=0.02)


def test_every_setting_changes_the_sound(call, tmp_path):
    def sound(*extra):
        code, out, err = call("--quiet", "generate", "calm piano", "--seconds", "0.5", "--out", tmp_path, *extra)
        assert code == 0, err
        return Path(out.splitlines()[0]).read_bytes()

    options = ["", "--sampler=euler", "--eta=1 --sampler=ddim", "--guidance=4", "--steps=4", "--negative=x", "--seed=9"]
    sounds = [sound(*option.split()) for option in options]
    assert len(set(sounds)) == len(options) == 7


def test_bad_rows_are_listed_the_others_done_and_the_exit_is_4(call, tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("id,prompt,seconds\na,calm,0.5\nb,,0.5\nc,loud,-2\nd,fast,0.5\n")
    code, _, err = call("generate", "--prompts", file, "--out", tmp_path / "out")
    assert code == 4
    assert "2 row(s)" in err
    assert "line 3: the prompt is empty" in err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == ["a.wav", "d.wav"]
    code, out, _ = call("--json", "generate", "--prompts", file, "--out", tmp_path / "out", "--limit", "1")
    assert code == 4
    assert json.loads(out)["ok"] is False


def test_long_prompts_are_cut_and_said_so(call, tmp_path):
    code, out, err = call("generate", "very " * 10_000 + "loud", "--seconds", "0.5", "--out", tmp_path)
    assert code == 0
    assert "77 tokens" in err
    assert Path(out.split()[0]).exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("generate", ""), 2, "prompt is empty"),
        (("generate", "x", "--steps", "0"), 2, "--steps 0"),
        (("generate", "x", "--seconds", "-1"), 2, "--seconds -1 is not above 0"),
        (("generate", "x", "--seconds", "9999"), 2, "at most"),
        (("generate", "x", "--sampler", "plms"), 2, "none of ddim"),
        (("generate", "x", "--format", "aac"), 2, "none of wav"),
        (("generate", "x", "--prompts", "p.csv"), 2, "stands alone"),
        (("generate", "x", "--seed", "-4"), 2, "seed -4"),
        (("generate", "x", "--model", "nowhere"), 5, "nowhere is not a model folder"),
        (("generate", "x", "--out", "params.yaml"), 4, "params.yaml cannot be written"),
        (("generate", "--prompts", "none.csv"), 4, "no none.csv"),
        (("eval", "quality", "nowhere"), 4, "no folder nowhere"),
        (("eval", "novelty", "--fail-over", "5%"), 2, "SHARE@SIMILARITY"),
        (("eval", "relevance", "--clap", "nowhere"), 5, "no model folder nowhere"),
        (("eval", "novelty", "--index", "nowhere"), 4, "no nowhere"),
        (("eval", "index", "nowhere"), 4, "no folder nowhere"),
        (("eval", "quality", "-S", "evaluate.backbone=vggish"), 5, "needs its weights"),
        (("eval", "zeroshot", "nowhere"), 4, "the layout of none"),
        (("eval", "table", "nowhere"), 4, "no evaluated runs"),
    ],
)
def test_mistakes_get_one_sentence_and_their_exit_code(call, generated, arguments, code, said):
    found, _, err = call(*arguments)
    assert found == code
    assert said in err
    assert "Traceback" not in err


def test_quality_of_real_music_is_better_than_of_noise(call, project, tmp_path):
    real = copies(tmp_path / "real", TRAIN)
    reference = copies(tmp_path / "reference", TRAIN, seconds=5.2)
    noise = tmp_path / "noise"
    noise.mkdir()
    for index, name in enumerate(TRAIN):
        samples = np.random.default_rng(index).normal(0, 0.1, 4 * RATE)
        soundfile.write(noise / f"{name}.wav", samples, RATE)
    figures = {}
    for name, folder in (("same", reference), ("real", real), ("noise", noise)):
        code, out, err = call("--json", "eval", "quality", folder, reference, "--out", tmp_path / f"{name}-metrics")
        assert code == 0, err
        figures[name] = json.loads(out)
        assert json.loads((tmp_path / f"{name}-metrics/metrics.json").read_text())["fd"] == figures[name]["fd"]
    assert figures["same"]["fd"]["value"] == pytest.approx(0, abs=1e-6)
    assert figures["same"]["kl_sigmoid"]["value"] == pytest.approx(0, abs=1e-3)
    for key in ("fd", "kid", "kl_sigmoid", "kl_softmax"):
        assert figures["real"][key]["value"] < figures["noise"][key]["value"]
    assert figures["noise"]["backbone"] == "musicnn MTT_musicnn"
    assert (figures["real"]["n_generated"], figures["real"]["n_reference"]) == (9, 12)  # whole windows of 1.28 s
    assert "biased" in " ".join(figures["real"]["warnings"])


def test_quality_against_the_test_split_pairs_prompts_with_their_tracks(call, generated, project, tmp_path):
    code, out, err = call("--json", "eval", "quality", "-S", "evaluate.backbone=clap")
    assert code == 0, err
    found = json.loads(out)
    assert found["n_reference"] == 2 * int(6 / CLIP_SECONDS)
    assert found["kl_softmax"] is None  # CLAP has no tags
    assert found["backbone"].startswith("clap ")
    code, out, err = call("--json", "eval", "quality", "-S", "evaluate.backbone=musicnn-msd", "--out", tmp_path)
    assert (code, json.loads(out)["backbone"]) == (0, "musicnn MSD_musicnn"), err
    assert (project / "work/metrics/quality/metrics.json").exists()


def test_relevance_has_both_references_and_a_row_for_each_prompt(call, generated, project):
    code, out, err = call("--json", "eval", "relevance")
    assert code == 0, err
    found = json.loads(out)
    with (project / "work/metrics/relevance/prompts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows if row["set"] == "generated"] == TEST_IDS
    assert [row["id"] for row in rows if row["set"] == "test_set"] == TEST_IDS
    own = [float(row["similarity"]) for row in rows if row["set"] == "generated"]
    assert found["text_audio_similarity"]["value"] == pytest.approx(np.mean(own), abs=1e-6)
    manifest = [json.loads(line) for line in (generated / "manifest.jsonl").read_text().splitlines()]
    assert own == pytest.approx([row["clap_score"] for row in manifest], abs=2e-3)
    best = [float(row["best_training_similarity"]) for row in rows if row["set"] == "generated"]
    assert found["retrieval_max_reference"]["value"] == pytest.approx(np.mean(best), abs=1e-6)


def test_copied_music_is_found_and_the_gate_closes(call, generated, project, tmp_path):
    copied, copied_id = copies(tmp_path / "copied", TRAIN[:1]), TRAIN[0].replace("_", "-")
    code, out, err = call(
        "--json", "eval", "novelty", copied, "--out", tmp_path / "copied-metrics", "--fail-over", "0.05@0.95"
    )
    assert code == 7, err
    assert "100.0% of 3 clips" in json.loads(out)["error"]["message"]
    with (tmp_path / "copied-metrics/nearest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "generated"]
    for row in rows:
        assert (row["training_track"], row["training_start_seconds"]) == (copied_id, row["start_seconds"])
        assert float(row["similarity"]) == pytest.approx(1, abs=1e-4)
    code, out, err = call("--json", "eval", "novelty", "--fail-over", "1@0.5")
    assert code == 0, err
    found = json.loads(out)
    assert found["n_training_windows"] == 3 * int(6 / CLIP_SECONDS)
    assert found["held_out"]["sim_aa@0.9"]["n"] == 2 * int(6 / CLIP_SECONDS)
    assert len(list((project / "work/metrics/cache").glob("index-*"))) == 1
    assert (
        json.loads(call("--json", "eval", "novelty")[1])["generated"]["sim_aa@0.9"] == found["generated"]["sim_aa@0.9"]
    )


def test_an_index_is_built_once_found_again_and_refused_when_it_does_not_fit(call, generated, project, tmp_path):
    code, out, err = call("--json", "eval", "index", "--half", "--duplicates", "--out", tmp_path / "index")
    assert code == 0, err
    said = json.loads(out)
    assert (said["n_windows"], said["n_tracks"], said["dtype"]) == (3 * int(6 / CLIP_SECONDS), 3, "float16")
    assert said["duplicates_mel@0.9"]["n"] == said["n_windows"]
    assert (tmp_path / "index/duplicates.csv").exists()
    copied, copied_id = copies(tmp_path / "copied", TRAIN[:1]), TRAIN[0].replace("_", "-")
    measure = ("eval", "novelty", copied, "--index", tmp_path / "index", "--out", tmp_path / "metrics")
    code, out, err = call("--json", *measure, "--fail-over", "1@0.9", "--fail-over", "mel:0@0.9")
    assert code == 7, err
    assert "spectrogram similarity >= 0.9" in json.loads(out)["error"]["message"]
    with (tmp_path / "metrics/nearest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "generated"]
    first = next(row for row in rows if row["start_seconds"] == "0.0")  # others lie between two frames of 0.1 s
    assert (first["mel_training_track"], first["mel_training_start_seconds"]) == (copied_id, "0.0")
    assert float(first["mel_similarity"]) > 0.9
    path = tmp_path / "index/index.json"
    header = json.loads(path.read_text())
    for change, text in (({"backbone": "clap 000000000000"}, "another network"), ({"schema": 99}, "by a newer")):
        path.write_text(json.dumps(header | change))
        code, _, err = call(*measure[:-1], tmp_path / "none")
        assert (code, text in err, "Traceback" in err) == (4, True, False)
    assert not (tmp_path / "none").exists()


def test_one_clap_has_one_name_and_one_index_wherever_its_copy_lies(call, generated, project, toy_models, tmp_path):
    from stages.evaluate.backbones import clap_name
    from stages.store import CARD

    names = [clap_name(toy_models / kind) for kind in ("clap", "ldm")]
    assert names[0] == names[1]
    with pytest.raises(ModelError, match="holds no CLAP"):
        clap_name(toy_models / "vae")
    assert call("eval", "novelty", "--out", tmp_path / "one")[0] == 0
    indexes = sorted((project / "work/metrics/cache").glob("index-*"))
    written = [(path / "vectors.bin").stat().st_mtime_ns for path in indexes]
    code, _, err = call("eval", "novelty", "--clap", "work/models/ldm", "--out", tmp_path / "two")
    assert code == 0, err
    assert sorted((project / "work/metrics/cache").glob("index-*")) == indexes
    assert [(path / "vectors.bin").stat().st_mtime_ns for path in indexes] == written
    assert (tmp_path / "one/metrics.json").read_bytes() == (tmp_path / "two/metrics.json").read_bytes()
    card = json.loads((toy_models / "clap" / CARD).read_text())
    for change in (
        lambda c: c["params"]["clap"].update(f_max=7000.0),
        lambda c: c["files"].pop(next(iter(c["files"]))),
    ):
        other = json.loads(json.dumps(card))
        change(other)
        (tmp_path / CARD).write_text(json.dumps(other))
        assert clap_name(tmp_path) != names[0]
    (tmp_path / CARD).write_text(json.dumps(card | {"steps": 7, "musicldm": "9"}))
    assert clap_name(tmp_path) == names[0]


def test_an_index_of_an_older_version_is_refused_with_the_command_that_makes_it_again(call, generated, tmp_path):
    assert call("eval", "index", "--out", tmp_path / "old")[0] == 0
    path = tmp_path / "old/index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    code, _, err = call("eval", "novelty", "--index", tmp_path / "old")
    assert code == 4
    assert "was written by an older musicldm (schema 2" in err
    assert f"musicldm eval index --out {tmp_path / 'old'}" in err
    assert call("eval", "index", "--out", tmp_path / "old")[0] == 0
    assert call("eval", "novelty", "--index", tmp_path / "old", "--out", tmp_path / "new")[0] == 0


@pytest.mark.slow  # librosa compiles itself
def test_spectrograms_find_planted_copies_that_a_random_clap_does_not(call, project, tmp_path):
    code, out, err = call("--json", "eval", "planted", "--count", "4", "--out", tmp_path / "metrics")
    assert code == 0, err
    found = json.loads(out)
    assert found["n_innocent"] == 2 * int(6 / CLIP_SECONDS)
    # clips of 1.28 s: unaltered copies are found, but a quiet passage made an ogg or mp3 may be missed
    assert found["mel"]["recall copy"]["value"] == found["mel"]["right track copy"]["value"] == 1.0
    assert found["musicnn_backbone"] == "musicnn MTT_musicnn, length 1"
    assert "less than one" in found["warnings"][0]
    with (tmp_path / "metrics/planted.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["n_innocent"] + 4 * 7
    assert rows[0].keys() == {"clip", "clap", "clap_track", "musicnn", "musicnn_track", "mel", "mel_track"}
    code, out, _ = call("eval", "planted", "--count", "2", "--out", tmp_path / "again")
    assert (code, "musicnn: alarm above" in out) == (0, True)


def test_the_retrieval_baseline_is_measured_like_any_other_and_copies(call, project, tmp_path):
    code, _, err = call("eval", "retrieve", "--out", tmp_path / "retrieved")
    assert code == 0, err
    code, out, _ = call("--json", "eval", "novelty", tmp_path / "retrieved", "--out", tmp_path / "novelty")
    assert json.loads(out)["generated"]["sim_aa@0.95"]["value"] == 1.0
    code, out, _ = call("--json", "eval", "relevance", tmp_path / "retrieved", "--out", tmp_path / "relevance")
    found = json.loads(out)
    assert found["text_audio_similarity"]["value"] == pytest.approx(found["retrieval_max_reference"]["value"], abs=0.02)
    page = tmp_path / "report.html"  # its clips were sampled by no network
    code, _, err = call("eval", "report", tmp_path / "retrieved", "--out", page)
    assert (code, "sampler" in page.read_text(encoding="utf-8")) == (0, False), err


def test_clips_of_another_system_bring_their_prompts_in_a_table(call, project, tmp_path):
    folder = copies(tmp_path / "outside", TRAIN[:2])
    (folder / "prompts.csv").write_text(f"id,prompt\n{TRAIN[0]},calm\n{TRAIN[1]},loud\n")
    code, out, err = call("--json", "eval", "relevance", folder, "--out", tmp_path / "metrics")
    assert code == 0, err
    assert json.loads(out)["n_generated"] == 2
    (folder / "prompts.csv").write_text("name,text\na,b\n")
    code, _, err = call("eval", "relevance", folder, "--out", tmp_path / "none")
    assert (code, "columns id and prompt" in err) == (4, True)


def test_folders_of_unequal_names_have_no_kl_and_say_so(call, tmp_path):
    first, second = copies(tmp_path / "a", TRAIN[:2]), copies(tmp_path / "b", TRAIN[1:])
    code, out, _ = call("--json", "eval", "quality", first, second, "--out", tmp_path / "metrics")
    found = json.loads(out)
    assert (code, found["kl_softmax"]["n"]) == (0, 1)
    assert "KL is over the 1 clips with a reference of the same name; 1 have none." in " ".join(found["warnings"])


def test_folders_that_cannot_be_measured_are_data_errors(call, tmp_path):
    empty, silent = tmp_path / "empty", tmp_path / "silent"
    empty.mkdir()
    silent.mkdir()
    soundfile.write(silent / "a.wav", np.zeros(RATE * 2), RATE)
    one = copies(tmp_path / "one", TRAIN[:1], seconds=1.5)
    damaged = copies(tmp_path / "damaged", TRAIN[:1])
    file = next(damaged.iterdir())
    file.write_bytes(file.read_bytes()[:5000])
    twice = copies(tmp_path / "twice", TRAIN[:1])
    shutil.copy(next(twice.iterdir()), twice / f"{TRAIN[0]}.flac")
    for folder, said in ((empty, "no audio file"), (silent, "are silent"), (one, "needs two"),
                         (damaged, "truncated"), (twice, "two files called")):  # fmt: skip
        code, _, err = call("eval", "quality", folder, "--out", tmp_path / "metrics")
        assert (code, said in err) == (4, True), err
    code, _, err = call("eval", "relevance", one, "--out", tmp_path / "metrics")
    assert (code, "no manifest.jsonl" in err) == (4, True), err
    assert not (tmp_path / "metrics").exists()


def test_mixed_sample_rates_and_silent_clips_are_named(call, tmp_path):
    mixed = copies(tmp_path / "mixed", TRAIN[:2])
    other = copies(tmp_path / "other", TRAIN[2:], rate=8000)
    shutil.copy(next(other.iterdir()), mixed)
    soundfile.write(mixed / "silence.wav", np.zeros(RATE * 2), RATE)
    code, out, _ = call("--json", "eval", "quality", mixed, "--out", tmp_path / "metrics")
    said = " ".join(json.loads(out)["warnings"])
    assert code == 0
    assert "mixes sample rates (8000 Hz, 16000 Hz)" in said
    assert "silence" in said


class Page(html.parser.HTMLParser):
    """Collects what the report shows and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.links, self.counts = [], [], [], {}

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_page_without_network(call, generated, project):
    for name in ("quality", "relevance", "novelty"):
        assert call("eval", name)[0] == 0
    code, out, err = call("--json", "eval", "report")
    assert code == 0, err
    text = (project / "work/report/report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert json.loads(out)["clips"] == page.counts["article"] == 2
    assert (page.counts["audio"], page.counts["img"]) == (4, 2 + 2)
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?://", text)
    assert "licence: CC-BY-SA" in text
    assert "cannot be compared" in text
    sound = next(source for source in page.sources if source.startswith("data:audio/ogg"))
    assert soundfile.info(io.BytesIO(base64.b64decode(sound.split(",")[1]))).frames == CLIP_SECONDS * RATE


def test_the_report_says_what_was_not_measured_and_escapes_prompts(call, project, tmp_path):
    prompt = "<script>alert(1)</script>"
    assert call("generate", prompt, "--seconds", "0.5", "--out", tmp_path / "g")[0] == 0
    shutil.copy(project / "params.yaml", tmp_path / "params.yaml")
    code, _, err = call("--work", tmp_path / "none", "eval", "report", tmp_path / "g", "--out", tmp_path / "r.html")
    assert code == 0, err
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "musicldm eval novelty" in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text
