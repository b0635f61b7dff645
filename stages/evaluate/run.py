"""The evaluations from folders to metrics.json: which files are read, with which network."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from stages import tabular
from stages.audio.io import SUFFIXES
from stages.clap.model import Clap
from stages.data.shards import ShardReader
from stages.errors import DataError
from stages.evaluate import novelty as novelty_
from stages.evaluate import planted as planted_
from stages.evaluate import quality as quality_
from stages.evaluate import relevance as relevance_
from stages.evaluate import spectral
from stages.evaluate import zeroshot as zeroshot_
from stages.evaluate.backbones import ClapBackbone, MusicnnBackbone, UnitBackbone, load_backbone
from stages.evaluate.duplicates import duplicates
from stages.evaluate.embeddings import Segment, folder_files, folder_segments, preprocessing, shard_segments
from stages.evaluate.index import Kept, TrainingIndex
from stages.evaluate.retrieval import retrieve
from stages.evaluate.setting import Listener, Setting
from stages.generate.manifest import MANIFEST, read_manifest
from stages.generate.prompts import NO_TESTS
from stages.params import Params
from stages.progress import Progress, silent
from stages.store import write_json, write_text

METRICS = "metrics.json"
PROMPTS = "prompts.csv"
_IDS = "The id is a file's name, with or without its suffix."
QUALITY = (
    "fd", "fd_infinity", "kid", "kid_audioldm_eval", "density", "coverage", "is_softmax", "is_one_split", "kl_softmax",
    "kl_sigmoid",
)  # fmt: skip
RELEVANCE = ("text_audio_similarity", "test_set_reference", "retrieval_max_reference")
MEASURES = ("clap", "musicnn", "mel")  # of planted


def quality(setting: Setting, generated: Path, reference: Path | None, out: Path) -> dict[str, Any]:
    """Write out/metrics.json. `reference` None is the shards' test split. Raises DataError, ModelError."""
    params = setting.params
    files = folder_files(generated)
    references = None if reference is None else folder_files(reference)
    listen = setting.listener(load_backbone(params, setting.clap))
    if references is None:
        real = listen.split(ShardReader(setting.shards), "test")
    else:
        real = listen(folder_segments(references, params.audio), "reference")
    made = listen(folder_segments(files, params.audio), "generated")
    result = quality_.quality(made, real, params.evaluate)
    write_json(out / METRICS, result)
    return result


def relevance(setting: Setting, generated: Path, out: Path) -> dict[str, Any]:
    """Write out/metrics.json and out/prompts.csv. Raises DataError when the prompts of GEN are not known."""
    params = setting.params
    captions = clip_prompts(generated)
    backbone = setting.clap_backbone()
    listen = setting.listener(backbone)
    made = listen(folder_segments(list(captions), params.audio), "generated")
    others = len(folder_files(generated)) - len(captions)
    if others:
        made.warnings.append(f"{others} files are not in {_prompt_file(generated).name} and have no prompt.")
    prompts = _texts(backbone.clap, {path.stem: caption for path, caption in captions.items()})
    tests = test = training = None
    if (setting.shards / "index.json").exists():
        reader = ShardReader(setting.shards)
        found = {track.id: track.caption for track in reader.tracks if track.split == "test" and track.caption}
        if found:
            tests, test = _texts(backbone.clap, found), listen.split(reader, "test")
        training = listen.index(reader)
    result, rows = relevance_.relevance(prompts, made, tests, test, training, params.evaluate)
    _write_csv(out / "prompts.csv", rows)
    write_json(out / METRICS, result)
    return result


def novelty(
    setting: Setting, generated: Path, index: Path | None, out: Path, gates: Sequence[novelty_.Gate] = ()
) -> dict[str, Any]:
    """Write out/metrics.json and out/nearest.csv, then raise GateError when a gate does not hold.

    `index` is a folder of `index_training`; None: that of the train split of the shards, built when it is not
    there. Raises DataError when the index is of another network or preprocessing.
    """
    params, shards = setting.params, setting.shards
    files = folder_files(generated)
    reader = ShardReader(shards) if index is None or (shards / "index.json").exists() else None
    training = None if index is None else TrainingIndex(index)
    listen = setting.listener(setting.clap_backbone())
    if training is None:
        assert reader is not None  # noqa: S101  (there is no index only when there are shards)
        training = listen.index(reader)
    training.check(listen.backbone.name, preprocessing(params.audio, listen.backbone))
    sets = {"generated": folder_segments(files, params.audio)}
    if reader is not None and any(track.split == "test" for track in reader.tracks):
        sets["held_out"] = shard_segments(reader, "test", params.audio)
    result, rows = _novelty(listen, sets, training, gates)
    _write_csv(out / "nearest.csv", rows)
    write_json(out / METRICS, result)
    for gate in gates:
        novelty_.check_gate(result, gate)
    return result


@dataclass(frozen=True)
class Similarity:
    """How near clips are to training music: the share of windows at or above each threshold by CLAP (SIM_AA) and by
    spectrogram, a row for each window with its nearest training music, and all figures with their intervals."""

    sim_aa: dict[float, float]
    sim_mel: dict[float, float]
    nearest: list[dict[str, Any]]
    figures: dict[str, Any] = field(repr=False)


def similarity(
    generated: Path,
    training: Path,
    clap: Path,
    params: Params,
    thresholds: Sequence[float],
    cache: Path | None = None,
    progress: Progress = silent,
) -> Similarity:
    """`novelty` without held-out music, of the clips of one folder and the training music of another: audio files, or
    shards. Embeddings are kept in `cache`, where there is one. Raises DataError, ModelError."""
    files = folder_files(generated)
    evaluate = params.evaluate.model_copy(update={"thresholds": list(thresholds)})
    params = params.model_copy(update={"evaluate": evaluate})
    with tempfile.TemporaryDirectory(prefix="musicldm-") as folder:
        kept = cache or Path(folder)
        path, _ = index_training(training, clap, params, None, kept, progress=progress)
        listen = Listener(ClapBackbone(clap, params.audio.sample_rate), params, kept, progress)
        sets = {"generated": folder_segments(files, params.audio)}
        figures, rows = _novelty(listen, sets, TrainingIndex(path))

    def shares(measure: str) -> dict[float, float]:
        return {t: figures["generated"][f"sim_{measure}@{t:g}"]["value"] for t in thresholds}

    return Similarity(shares("aa"), shares("mel"), rows, figures)


def _novelty(
    listen: Listener,
    sets: dict[str, Iterator[Segment]],
    training: TrainingIndex,
    gates: Sequence[novelty_.Gate] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and rows of the sets `generated` and, where it is there, `held_out`."""
    params = listen.params
    sketched = {name: _sketched(segments, params) for name, segments in sets.items()}
    embedded = {name: listen(segments, name.replace("_", " ")) for name, (segments, _) in sketched.items()}
    heard = {name: novelty_.hear(sketches, training, listen.progress) for name, (_, sketches) in sketched.items()}
    return novelty_.novelty(embedded["generated"], embedded.get("held_out"), training, params.evaluate, gates, heard)


def index_training(
    source: Path, clap: Path, params: Params, out: Path | None, cache: Path, kept: Kept = "float32",
    with_duplicates: bool = False, progress: Progress = silent,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Build the index of a folder of shards (their train split) or of audio files; returns its path and figures.

    Without `out` the index of shards goes where `novelty` looks for it. With duplicates, the nearest other
    track of every window is written to duplicates.csv inside the index. Raises DataError.
    """
    listen = Listener(ClapBackbone(clap, params.audio.sample_rate), params, cache, progress)
    if (source / "index.json").exists():
        index = listen.index(ShardReader(source), out, kept)
    else:
        segments = folder_segments(folder_files(source), params.audio)
        index = listen.write(out or cache / "index-folder", segments, f"files of {source.name}", kept)
    figures: dict[str, Any] = {
        "backbone": index.backbone, "preprocessing": index.preprocessing, "n_windows": len(index),
        "n_tracks": index.n_tracks, "dtype": index.kept,
        "bytes": sum(file.stat().st_size for file in index.path.iterdir()),
    }  # fmt: skip
    if with_duplicates:
        rows, shares = duplicates(index, params.evaluate, progress)
        _write_csv(index.path / "duplicates.csv", rows)
        figures |= shares
    return index.path, figures


def planted(setting: Setting, others: Path | None, out: Path, per_kind: int) -> dict[str, Any]:
    """Write out/metrics.json and out/planted.csv: how many disguised training excerpts each similarity finds.

    The similarities are CLAP's, musicnn's (a network that was trained on much music) and the spectrograms'. The
    innocent clips are the windows of the valid and test splits, and of the audio files in `others`.
    """
    params, reader = setting.params, ShardReader(setting.shards)
    parts = [shard_segments(reader, split, params.audio) for split in ("valid", "test")]
    parts += [] if others is None else [folder_segments(folder_files(others), params.audio)]
    hidden = planted_.Spool(setting.cache)
    count = planted_.hide(
        reader, params.audio.clip_samples, chain.from_iterable(parts), per_kind, params.evaluate.seed, hidden,
        setting.progress,
    )  # fmt: skip
    result: dict[str, Any] = {"n_innocent": count, "n_planted_per_kind": per_kind, "warnings": []}
    found: dict[str, novelty_.Found] = {}
    sketches: list[spectral.Frames] = []
    for measure, network in (
        ("clap", setting.clap_backbone()),
        ("musicnn", UnitBackbone(MusicnnBackbone(params.audio.sample_rate))),
    ):
        listen = setting.listener(network)
        index = listen.index(reader)
        segments, sketches = _sketched((hidden[i] for i in range(len(hidden))), params)
        clips = listen(segments, f"planted copies, {measure}")
        similarity, rows = index.search(clips.vectors)
        found[measure] = novelty_.Found(similarity, [index.place(int(row))[0] for row in rows])
        result[f"{measure}_backbone"], result["preprocessing"] = clips.backbone, clips.preprocessing
    found["mel"] = novelty_.hear(sketches, index, setting.progress).found()
    result |= {"mel_sketch": spectral.VERSION, "n_training_tracks": index.n_tracks}
    for measure in MEASURES:
        result[measure], result["warnings"] = planted_.recalls(clips.names, found[measure])
    _write_csv(out / "planted.csv", planted_.table(clips.names, found))
    write_json(out / METRICS, result)
    return result


def retrieval(setting: Setting, prompts: Path, out: Path) -> int:
    """Write the nearest training clip for each prompt of a CSV (id,prompt) into `out`; returns how many."""
    backbone = setting.clap_backbone()
    reader = ShardReader(setting.shards)
    wanted = list(_prompt_table(prompts).items())[: setting.params.generate.max_prompts]
    index = setting.listener(backbone).index(reader)
    return len(retrieve(_texts(backbone.clap, dict(wanted)), index, reader, setting.params.audio, out))


def zeroshot(setting: Setting, folder: Path, benchmark: str | None, out: Path) -> dict[str, Any]:
    """Write out/metrics.json and out/clips.csv. Raises DataError when the folder has no known layout."""
    name = benchmark or zeroshot_.detect(folder)
    backbone = setting.clap_backbone()
    result, rows = zeroshot_.evaluate_zeroshot(
        folder, name, backbone.clap, backbone.name, setting.params.evaluate, setting.progress
    )
    _write_csv(out / "clips.csv", rows)
    write_json(out / METRICS, result)
    return result


def _sketched(segments: Iterable[Segment], params: Params) -> tuple[Iterator[Segment], list[spectral.Frames]]:
    """The windows, and a list that holds the sketch of each when they have been read."""
    sketches: list[spectral.Frames] = []

    def passing() -> Iterator[Segment]:
        for segment in segments:
            sketches.append(spectral.sketch(segment.samples, params.audio.sample_rate))
            yield segment

    return passing(), sketches


def clip_prompts(folder: Path) -> dict[Path, str]:
    """The prompt of each clip of a folder that has one: in the manifest, or in a prompts.csv (id, prompt) beside
    another system's clips. Raises DataError when none has."""
    files, table = folder_files(folder), _prompt_file(folder)
    is_ours = table.name == MANIFEST
    prompts = (
        {Path(row["file"]).stem: row["prompt"] for row in read_manifest(folder)} if is_ours else _prompt_table(table)
    )
    found = {path: str(prompts[path.stem]) for path in files if path.stem in prompts}
    if not found:
        remedy = "Make clips with: musicldm generate" if is_ours else _IDS
        raise DataError(f"No audio file of {folder} is in its {table.name}.", remedy)
    return found


def _prompt_file(folder: Path) -> Path:
    found = next((folder / name for name in (MANIFEST, PROMPTS) if (folder / name).exists()), None)
    if found is None:
        raise DataError(
            f"{folder} has no {MANIFEST}, so its prompts are unknown.",
            f"Make clips with: musicldm generate, or put a {PROMPTS} (id,prompt) beside them.",
        )
    return found


def _prompt_table(path: Path) -> dict[str, str]:
    """Prompt by id, of a CSV; an id may carry its file's suffix. Raises DataError."""
    table = tabular.read_table(path, "Make it with: musicldm prep captions")
    names = [tabular.candidates(table.columns, field) for field in ("id", "prompt")]
    if not table.rows:
        raise DataError(
            f"{path} holds no prompts.", f"Where `prep captions` wrote it, no music is for tests. {NO_TESTS}"
        )
    if [len(found) for found in names] != [1, 1]:
        raise DataError(f"{path} needs the columns id and prompt.", _IDS)
    prompts: dict[str, str] = {}
    for row in table.cells():
        id_, prompt = (str(row.get(found[0], "")) for found in names)
        name = Path(id_).stem if Path(id_).suffix.lower() in SUFFIXES else Path(id_).name
        if name in prompts:
            raise DataError(f"{path} has the id {name} more than once.", _IDS)
        prompts[name] = prompt
    return prompts


def _texts(clap: Clap, captions: dict[str, str]) -> relevance_.Texts:
    vectors = np.concatenate([clap.embed_text([caption]).double().cpu().numpy() for caption in captions.values()])
    return relevance_.Texts(list(captions), list(captions.values()), vectors)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, tabular.csv_text(list(rows[0]), rows))
