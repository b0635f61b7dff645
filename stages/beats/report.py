"""What tracking found in a collection: the summary, a self-contained page, and a track with clicks to check by ear."""

from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stages import params
from stages.audio import io
from stages.beats.align import Candidate, clip_starts, counted, reasons, tempo_group
from stages.beats.tempo import BEATS, Rhythm, octave_doubt
from stages.data.manifest import Manifest
from stages.errors import DataError
from stages.figures import new_figure, save_png
from stages.store import read_jsonl, write_text

REMEDY = "Make it with: musicldm prep beats"
CLICK_PEAK = 0.5  # of full scale; the music is mixed at the same level
BEAT_HZ, DOWNBEAT_HZ, CLICK_SECONDS = 1000.0, 2000.0, 0.05


@dataclass(frozen=True)
class Summary:
    """Counts over a collection. `share_with_partner` is of the training tracks, which alone are mixed."""

    tracks: int
    tracked: int  # with a tempo that can be trusted
    groups: int
    training_tracks: int
    share_with_partner: float
    without_partner: str  # the reasons of the others, each with its count


def read_rhythms(path: Path) -> list[Rhythm]:
    """The rows of a beats.jsonl. Raises DataError when it is missing or malformed."""
    try:
        return [Rhythm(**row) for row in read_jsonl(path, REMEDY)]
    except TypeError as error:
        raise DataError(f"{path} does not hold tracked beats: {error}.", REMEDY) from error


def candidates(rhythms: list[Rhythm], manifest: Manifest, settings: params.Params) -> list[Candidate]:
    """What decides on partners, one a track, as training finds it in shards and latents."""
    rate, clip = settings.audio.sample_rate, settings.audio.clip_samples
    return [
        Candidate(
            found.tempo_bpm, found.mean_bpm, found.tempo_confidence, found.metre, len(found.downbeats),
            len(clip_starts(found.downbeats, round(track.seconds * rate), rate, clip)),
            track.artist, track.title, track.recording,
        )
        for found, track in zip(rhythms, manifest.tracks, strict=True)
    ]  # fmt: skip


def summarise(rhythms: list[Rhythm], manifest: Manifest, settings: params.Params) -> Summary:
    return _Collection(rhythms, manifest, settings).summary()


class _Collection:
    """Tracks as they will be mixed: their groups, and for those of the training split why one has no partner."""

    def __init__(self, rhythms: list[Rhythm], manifest: Manifest, settings: params.Params) -> None:
        tracks = candidates(rhythms, manifest, settings)
        self.groups = [tempo_group(track, settings.tempo) for track in tracks]
        training = [place for place, track in enumerate(manifest.tracks) if track.split == "train"]
        alone = reasons([tracks[place] for place in training], settings.tempo)
        self.without = {rhythms[place].id: reason for place, reason in zip(training, alone, strict=True)}

    def summary(self) -> Summary:
        grouped, alone = [found for found in self.groups if found is not None], list(self.without.values())
        share = alone.count(None) / max(len(alone), 1)
        return Summary(len(self.groups), len(grouped), len(set(grouped)), len(alone), round(share, 4), counted(alone))


def write_report(rhythms: list[Rhythm], manifest: Manifest, settings: params.Params, path: Path) -> Summary:
    """One HTML file without outside references: tempos, groups, confidence, partners, doubts and rejections."""
    from jinja2 import Environment

    collection = _Collection(rhythms, manifest, settings)
    summary = collection.summary()
    doubts = [(found.id, octave_doubt(found, settings.tempo)) for found in rhythms]
    tempos = [found.tempo_bpm for found in rhythms if found.tempo_bpm is not None]
    sizes = Counter(number for number in collection.groups if number is not None)
    trusts = [found.tempo_confidence for found in rhythms]
    figures = [
        ("Tempo as tracked", _histogram(tempos, np.arange(40, 245, 5), "BPM")),
        (f"Tempo groups ({settings.tempo.rule})", _bars(sizes, "group")),
        ("Confidence", _histogram(trusts, np.linspace(0, 1, 21), "confidence", settings.tempo.min_confidence)),
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    html = page.render(
        summary=summary,
        figures=figures,
        tempo=settings.tempo,
        names={track.id: track.title or PurePosixPath(track.path).name for track in manifest.tracks},
        metres=sorted(Counter(str(found.metre or "none") for found in rhythms).items()),
        doubts=[(track, why) for track, why in doubts if why],
        rejected=[(track, why) for track, why in collection.without.items() if why],
    )
    write_text(path, html)
    return summary


def write_clicks_of(track_id: str, manifest: Manifest, folder: Path) -> tuple[Path, Path]:
    """`write_clicks` of one track of a manifest, as tracked in `folder`, into `folder`/listen.

    Raises DataError when there is no such track.
    """
    rhythms = {found.id: found for found in read_rhythms(folder / BEATS)}
    audio = {track.id: manifest.audio_path(track) for track in manifest.tracks}
    if track_id not in rhythms or track_id not in audio:
        near = ", ".join(get_close_matches(track_id, rhythms, cutoff=0.3))
        raise DataError(f"There is no track {track_id} in {folder / BEATS}.", f"The nearest ids: {near or 'none'}.")
    return write_clicks(audio[track_id], rhythms[track_id], folder / "listen")


def write_clicks(audio: Path, rhythm: Rhythm, folder: Path) -> tuple[Path, Path]:
    """`<id>.wav`, the track with a click on each beat, an octave higher on downbeats; `<id>.png`, its waveform.

    Raises DataError when the audio cannot be read.
    """
    from mir_eval.sonify import clicks

    music, rate = io.read(audio)
    mixed = music / max(float(np.abs(music).max(initial=0)), 1e-9) * (1 - CLICK_PEAK)
    time = np.arange(round(CLICK_SECONDS * rate)) / rate
    others = np.setdiff1d(rhythm.beats, rhythm.downbeats)
    for times, pitch in ((others, BEAT_HZ), (np.array(rhythm.downbeats), DOWNBEAT_HZ)):
        click = CLICK_PEAK * np.sin(2 * np.pi * pitch * time) * np.exp(-time / (CLICK_SECONDS / 5))
        if len(times):
            mixed = mixed + clicks(times, rate, click=click, length=len(mixed))
    wav, png = folder / f"{rhythm.id}.wav", folder / f"{rhythm.id}.png"
    io.write(wav, mixed.clip(-1, 1).astype(np.float32), rate)
    _plot_waveform(music, rate, rhythm, png)
    return wav, png


def _plot_waveform(music: io.Samples, rate: int, rhythm: Rhythm, path: Path) -> None:
    """Peaks of 10 ms in rows of 15 s, with beats and, stronger, downbeats."""
    row_seconds, hop = 15, max(rate // 100, 1)
    peaks = np.abs(music[: len(music) // hop * hop].reshape(-1, hop)).max(axis=1, initial=0)
    rows = max(int(np.ceil(len(music) / rate / row_seconds)), 1)
    figure = new_figure(12, 1.4 * rows)
    for row, axes in enumerate(figure.subplots(rows, squeeze=False)[:, 0]):
        axes.fill_between(np.arange(len(peaks)) * hop / rate, -peaks, peaks, color="0.6", linewidth=0)
        for times, colour, width in ((rhythm.beats, "tab:blue", 0.8), (rhythm.downbeats, "tab:red", 1.6)):
            axes.vlines(times, -1, 1, colors=colour, linewidth=width)
        axes.set(xlim=(row * row_seconds, (row + 1) * row_seconds), ylim=(-1, 1), yticks=[])
    axes.set_xlabel(f"seconds of {rhythm.id}; beats blue, downbeats red")
    save_png(path, figure)


def _histogram(values: list[float], edges: Any, label: str, mark: float | None = None) -> str:
    figure = new_figure(6, 2.6)
    axes = figure.subplots()
    axes.hist(np.clip(values, edges[0], edges[-1]), bins=edges, color="tab:blue")
    if mark is not None:
        axes.axvline(mark, color="tab:red", linestyle="--")
    axes.set(xlabel=label, ylabel="tracks")
    return _svg(figure)


def _bars(sizes: Counter[int], label: str) -> str:
    figure = new_figure(6, 2.6)
    axes = figure.subplots()
    axes.bar(list(sizes), list(sizes.values()), color="tab:blue")
    axes.set(xlabel=label, ylabel="tracks")
    return _svg(figure)


def _svg(figure: Any) -> str:
    from markupsafe import Markup
    from matplotlib import rc_context

    text = StringIO()
    with rc_context({"svg.hashsalt": "musicldm"}):  # equal input, equal bytes
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return Markup(svg[svg.index("<svg") :])  # noqa: S704  (matplotlib's own output, without our data's names)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Beats</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
</style></head><body>
<h1>Beats and tempo groups</h1>
<table>
<tr><th>Tracks</th><td>{{ summary.tracks }}</td></tr>
<tr><th>With a tempo that can be trusted</th><td>{{ summary.tracked }}</td></tr>
<tr><th>Tempo groups</th><td>{{ summary.groups }}</td></tr>
<tr><th>Share of the {{ summary.training_tracks }} training tracks with a partner</th>
<td>{{ "%.1f" | format(100 * summary.share_with_partner) }}%</td></tr>
<tr><th>Metre (beats a bar)</th><td>{% for metre, n in metres %}{{ metre }}: {{ n }} tracks{{ ", " if not loop.last }}
{% endfor %}</td></tr>
<tr><th>Rule</th><td>{{ tempo.rule }}, tolerance {{ tempo.tolerance }}, octaves from {{ tempo.low_bpm }} BPM,
confidence at least {{ tempo.min_confidence }}, at least {{ tempo.min_downbeats }} downbeats</td></tr>
</table>
{% for title, svg in figures %}<figure><figcaption>{{ title }}</figcaption>{{ svg }}</figure>
{% endfor %}
{% for title, rows in (("Suspected octave errors", doubts), ("Training tracks without a partner, and why", rejected)) %}
<h2>{{ title }}: {{ rows | length }}</h2>
<table>{% for track, why in rows %}<tr><td>{{ names[track] }}</td><td>{{ track }}</td><td>{{ why }}</td></tr>
{% endfor %}</table>
{% endfor %}
</body></html>
"""
