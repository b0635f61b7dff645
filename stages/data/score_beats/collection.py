"""`musicldm data fetch score-beats`: which pieces, in which split, by which instruments; and all of it on disk.

Every piece is a function of the seed and its number. Splits go by tune and by groove file, so that nothing of a
test piece is heard in training.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stages.audio import io
from stages.data.debian import unpack
from stages.data.parallel import run_each
from stages.data.score_beats import tunes
from stages.data.score_beats.arrange import arrange, lengthen
from stages.data.score_beats.grooves import Groove, library, play
from stages.data.score_beats.perform import CHORALE_BPM, MAX_BPM, MAX_SECONDS, TYPICAL_BPM, draw_bpm, perform
from stages.data.score_beats.render import SAMPLE_RATE, render
from stages.data.score_beats.score import Score
from stages.errors import DataError
from stages.progress import Progress, silent
from stages.store import read_jsonl, write_jsonl, write_text

INDEX = "index.jsonl"
REMEDY = "Make it with: musicldm data fetch score-beats DEST"
SPLITS = {"test": 0.10, "valid": 0.05}  # shares of the tunes, and of the groove files; the rest is train
GROOVE_SHARE = 0.5
COLLECTION_SHARES = {"ryansMammoth": 0.35, "oneills1850": 0.25, "airdsAirs": 0.2, "bach": 0.2}
METRE_SHARES = {4: 0.82, 3: 0.18}  # of the grooves
DRUM_KIT_SHARE = 0.4  # of the pieces have their drums from a recorded kit and not from the soundfont
LONGEST = MAX_BPM * MAX_SECONDS / 60  # beats of a piece at most
PACKAGES = ("mma", "timgm6mb-soundfont", "fluidr3mono-gm-soundfont", "musescore-general-soundfont-small",
            "csound-soundfont", "opl3-soundfont", "avldrums.lv2-soundfont")  # fmt: skip
SOUNDFONTS = {  # General MIDI: the package, and where in it
    "timgm6mb-soundfont": "usr/share/sounds/sf2/TimGM6mb.sf2",
    "fluidr3mono-gm-soundfont": "usr/share/fluidr3mono-gm-soundfont/FluidR3Mono_GM.sf3",
    "musescore-general-soundfont-small": "usr/share/sounds/sf3/MuseScore_General_Lite.sf3",
    "csound-soundfont": "usr/share/sounds/sf2/sf_GMbank.sf2",
    "opl3-soundfont": "usr/share/sounds/sf2/OPL-3_FM_128M.sf2",
}
DRUM_KITS = ("Black_Pearl_4_LV2.sf2", "Red_Zeppelin_4_LV2.sf2")  # recorded ones, of avldrums.lv2-soundfont


@dataclass(frozen=True)
class Piece:
    """A row of the index. `audio` and `beats` are paths below its folder; the latter holds seconds and positions."""

    id: str
    split: str
    audio: str
    beats: str
    title: str
    source: str
    licence: str
    metre: int
    tempo_bpm: float
    seconds: float
    soundfont: str


@dataclass(frozen=True)
class _Plan:
    """What a piece is to be: its tune, perhaps a groove, the soundfont, and the seed of all that is drawn."""

    number: int
    split: str
    tune: tuple[str, str, int | None]
    groove: Groove | None
    soundfont: str
    seed: int


def fetch(
    destination: Path, pieces: int = 600, seed: int = 0, jobs: int | None = None, progress: Progress = silent
) -> list[Piece]:
    """Render `pieces` pieces of at most a minute into `destination`, with their beats; index.jsonl last.

    Packages are kept in its folder `packages`, pieces that are there already are not rendered again. Raises
    MissingDependencyError without the scores' packages, apt-get or dpkg, DataError when a package cannot be had.
    """
    catalogue = tunes.catalogue()
    for done, package in enumerate(PACKAGES):
        progress("packages", done, len(PACKAGES))
        unpack(package, destination / "packages" / package)
    progress("packages", len(PACKAGES), len(PACKAGES))
    plans = _plan(catalogue, library(_mma(destination)), pieces, seed)
    items = [(plan, destination.absolute()) for plan in plans]
    made = dict(run_each(_make, items, jobs=jobs, label="pieces", progress=progress))
    found = [piece for index in sorted(made) if (piece := made[index]) is not None]
    write_jsonl(destination / INDEX, [asdict(piece) for piece in found])
    return found


def read_index(folder: Path) -> list[Piece]:
    """The pieces that `fetch` left in `folder`. Raises DataError."""
    try:
        return [Piece(**row) for row in read_jsonl(folder / INDEX, REMEDY)]
    except TypeError as error:
        raise DataError(f"{folder / INDEX} does not list pieces: {error}.", REMEDY) from error


def split_of(key: str, seed: int) -> str:
    """train, valid or test, by a hash of what must not be divided."""
    place = int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:8], 16) / 2**32
    for split, share in SPLITS.items():
        if place < share:
            return split
        place -= share
    return "train"


def _plan(
    catalogue: Sequence[tuple[str, str, int | None]], grooves: Sequence[Groove], pieces: int, seed: int
) -> list[_Plan]:
    """All that is drawn before any piece is made, so that any number of processes make the same."""
    tunes_of: dict[tuple[str, str], list[tuple[str, str, int | None]]] = {}
    for tune in catalogue:
        key = f"{tune[0]}/{Path(tune[1]).stem}/{tune[2]}"
        tunes_of.setdefault((split_of(key, seed), tune[0]), []).append(tune)
    grooves_of: dict[tuple[str, int], dict[str, list[Groove]]] = {}
    for groove in grooves:
        of_metre = grooves_of.setdefault((split_of(groove.file, seed), groove.metre), {})
        of_metre.setdefault(groove.file, []).append(groove)
    shares = {"train": 1 - sum(SPLITS.values()), **SPLITS}
    plans = []
    for number in range(pieces):
        generator = np.random.default_rng([seed, number])
        split = str(generator.choice(list(shares), p=list(shares.values())))
        chosen: Groove | None = None
        if generator.random() < GROOVE_SHARE:
            metre = int(generator.choice(list(METRE_SHARES), p=list(METRE_SHARES.values())))
            files = list(grooves_of.get((split, metre), {}).values())
            if files:
                among = files[int(generator.integers(len(files)))]
                chosen = among[int(generator.integers(len(among)))]
        collection = str(generator.choice(list(COLLECTION_SHARES), p=list(COLLECTION_SHARES.values())))
        if chosen is not None and collection == "bach":
            collection = "ryansMammoth"
        of_collection = tunes_of[split, collection]
        tune = of_collection[int(generator.integers(len(of_collection)))]
        font = str(generator.choice(list(SOUNDFONTS)))
        plans.append(_Plan(number, split, tune, chosen, font, int(generator.integers(2**62))))
    return plans


def _make(plan: _Plan, destination: Path) -> Piece | None:
    """Render one piece, unless it is there; None when its score has no bars to trust or MMA refuses the groove."""
    stem = f"{plan.split}/{plan.number:05d}"
    kept = destination / f"{stem}.json"
    if kept.is_file():
        row = json.loads(kept.read_text(encoding="utf-8"))
        return None if row is None else Piece(**row)
    generator = np.random.default_rng(plan.seed)
    score = _score(plan, destination, generator)
    piece = None
    if score is not None:
        bpm = draw_bpm(score, CHORALE_BPM if plan.tune[0] == "bach" else TYPICAL_BPM, generator)
        played = perform(score, bpm, generator, lead_in=generator.choice([0.1, generator.uniform(0.1, 3)]))
        kit = str(generator.choice(DRUM_KITS)) if generator.random() < DRUM_KIT_SHARE else plan.soundfont
        fonts = _soundfonts(destination)
        sound = render(played, score.programs, fonts, (plan.soundfont, kit), generator, score.amplified)
        piece = Piece(
            f"{plan.number:05d}-{score.id}", plan.split, f"{stem}.flac", f"{stem}.beats", score.title, score.source,
            score.licence, score.metre, round(bpm, 3), round(len(sound) / SAMPLE_RATE, 3), plan.soundfont,
        )  # fmt: skip
        io.write(destination / piece.audio, sound, SAMPLE_RATE)
        beats = zip(played.beats, played.positions, strict=True)
        write_text(destination / piece.beats, "".join(f"{time:.4f}\t{position}\n" for time, position in beats))
    write_text(kept, json.dumps(None if piece is None else asdict(piece)) + "\n")
    return piece


def _score(plan: _Plan, destination: Path, generator: np.random.Generator) -> Score | None:
    tune = tunes.read_tune(*plan.tune)
    if tune is None:
        return None
    if plan.groove is None:
        return arrange(lengthen(tune, LONGEST), generator)
    try:
        return play(plan.groove, tune, _mma(destination), math.ceil(LONGEST / plan.groove.metre), generator)
    except DataError:
        return None  # a few grooves need plugins that the package leaves out


def _mma(destination: Path) -> Path:
    return destination / "packages" / "mma" / "usr/share/mma"


def _soundfonts(destination: Path) -> dict[str, Path]:
    """Every soundfont's file by its name: its package's, or a drum kit's."""
    packages = destination / "packages"
    kits = packages / "avldrums.lv2-soundfont" / "usr/share/sounds/sf2"
    return {name: packages / name / file for name, file in SOUNDFONTS.items()} | {kit: kits / kit for kit in DRUM_KITS}
