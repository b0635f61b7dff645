"""Makes a toy project: real music and click tracks in shards, latents of them, and untrained networks that fit."""

import csv
import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from stages.audio import io
from stages.clap import model as clap_model
from stages.clap.tokenizer import train_tokenizer
from stages.clap.train import save as save_clap
from stages.params import resolve
from stages.store import model_folder

DEMO = Path(__file__).parents[2] / "data" / "demo"
RATE = 16_000
SECONDS = 9.0
HEADER = ["id", "path", "caption", "title", "artist", "album", "licence", "split", "seconds", "sample_rate", "sha256"]
MUSIC = ["flare-battle-theme", "flare-cave-theme", "hyperrogue-hr3-motion", "ufoai-david01"]
# id: (BPM, seconds before the first downbeat, Hz of the click, recording, split)
CLICKS = {
    "click-a": (120.0, 0.30, 1000, "a", "train"),
    "click-b": (120.0, 1.13, 3000, "b", "train"),
    "click-c": (121.0, 0.70, 2000, "c", "train"),
    "click-a-again": (120.0, 0.55, 1500, "a", "train"),  # another excerpt of the recording a
    "click-far": (90.0, 0.40, 1000, "far", "train"),  # nobody else's tempo
    "click-held-out": (120.0, 0.40, 1000, "held", "test"),
    "click-valid": (120.0, 0.80, 1000, "valid", "valid"),
}
TOY = {
    "preset": "tiny",
    "audio": {"clip_seconds": 2.56},
    "clap": {"window_seconds": 2.56},
    "latents": {"grid_seconds": 1.28, "batch_size": 4},
    "ldm": {"mixup_bank": 8, "mixup_bank_uses": 4,
            "train": {"batch_size": 4, "steps": 8, "workers": 0,
                                       "checkpoint_every": 3, "valid_every": 4, "valid_batches": 1, "warmup_steps": 2}},
}  # fmt: skip


def toy_params(**ldm):
    return resolve({**TOY, "ldm": {**TOY["ldm"], **ldm}})


def click_track(bpm, first, hertz):
    """A 10 ms burst on every beat, (samples, downbeats in seconds); bars of four."""
    samples = np.zeros(int(SECONDS * RATE))
    beats = np.arange(first, SECONDS - 0.02, 60 / bpm)
    burst = 0.8 * np.sin(2 * np.pi * hertz * np.arange(160) / RATE)
    for beat in np.rint(beats * RATE).astype(int):
        samples[beat : beat + 160] += burst
    return samples, beats, beats[::4]


def sample_hash(file):
    """The manifest's `sha256` of an audio file: of its samples, not of its bytes."""
    found = io.SampleHash(RATE)
    with io.open_audio(file) as audio:
        for block in audio.blocks():
            found.update(block)
    return found.hexdigest()


def write_collection(work):
    rows, beat_rows, caption_rows = [], [], []
    (work / "audio" / "tracks").mkdir(parents=True)
    tracks = [(name, *_music(name), 110.0, name, "train") for name in MUSIC]
    tracks += [(n, *click_track(bpm, at, hz), bpm, rec, split) for n, (bpm, at, hz, rec, split) in CLICKS.items()]
    for name, samples, beats, downbeats, bpm, recording, split in tracks:
        file = work / "audio" / "tracks" / f"{name}.flac"
        soundfile.write(file, samples, RATE, subtype="PCM_16")
        digest = sample_hash(file)
        rows.append([name, f"tracks/{name}.flac", f"music {name}", recording, "somebody", "", "CC-BY-SA-3.0", split,
                     len(samples) / RATE, RATE, digest])  # fmt: skip
        mixable = len(beats) > 0
        beat_rows.append({"id": name, "beats": list(beats), "downbeats": list(downbeats),
                          "metre": 4 if mixable else None, "tempo_bpm": bpm if mixable else None,
                          "mean_bpm": bpm if mixable else None, "tempo_confidence": float(mixable)})  # fmt: skip
        caption_rows.append({"id": name, "split": split, "caption": f"music like {name.replace('-', ' ')}",
                             "original": "", "words": []})  # fmt: skip
    with (work / "audio" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    for name, lines in (("beats", beat_rows), ("captions", caption_rows)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _music(name):
    samples, rate = soundfile.read(DEMO / f"{name.replace('-', '_')}.ogg", frames=int(SECONDS * RATE))
    assert rate == RATE
    return samples, [], []


def save_untrained(root, params):
    """Folders `clap`, `vae` and `vocoder` with seeded random weights."""
    from stages.vae import model as vae_model
    from stages.vocoder import model as vocoder_model

    torch.manual_seed(3)
    card = {"preset": "tiny", "params": params.model_dump(mode="json"), "params_digest": params.digest(),
            "data_digest": "0" * 12, "steps": 0, "losses": {}}  # fmt: skip
    tokenizer = train_tokenizer(["music like click", "music like flare"], 400, 77)
    save_clap(clap_model.Clap(params, clap_model.build(params), tokenizer), root / "clap", card)
    vae = vae_model.build(params)
    vae.register_to_config(scaling_factor=1.5)
    for kind, network in (("vae", vae), ("vocoder", vocoder_model.build(params))):
        with model_folder(root / kind, kind, card) as folder:
            network.save_pretrained(folder / kind)
