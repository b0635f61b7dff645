"""How near each sampler comes, in few steps, to 200 steps of DDIM with the same seeds.

    python benchmarks/samplers.py [MODEL] [--json FILE] [--clips N] [--steps 5 10 20 50] [--backend NAME] [--write docs]

The distance of two clips is the mean absolute difference of their log-mels (L1, in ln of magnitude), and that of two
sets the Frechet distance of musicnn embeddings; both beside the same of another seed's clips, which is how far apart
unrelated music of this model is. `reuse` n computes the UNet's inner blocks at every n-th step only (`generate
--reuse`): UniPC at every second, DDIM's 200 at every fourth. `--write` keeps the curve as samplers.csv and
samplers.png. All clips are made by one backend, by default the one that `generate` would take.
"""

import argparse
import csv
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from stages.audio.mel import clip_mel
from stages.evaluate.backbones import MusicnnBackbone
from stages.evaluate.quality import frechet_distance
from stages.generate.backends import load_pipeline
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.settings import SAMPLERS, Settings

PROMPTS = ("dramatic trailer", "calm piano with strings", "fast electronic drums", "slow ambient pad",
           "heavy rock guitar", "cheerful game music", "dark orchestral theme", "mellow synth melody")  # fmt: skip
REFERENCE = Settings("ddim", 200, 0.0, 1)


class Judge:
    """The two distances to the reference set."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.mel, self.network = clip_mel(pipeline.params), MusicnnBackbone(pipeline.params.audio.sample_rate)

    def mels(self, clips: torch.Tensor) -> torch.Tensor:
        return self.mel(clips)

    def embed(self, clips: torch.Tensor) -> np.ndarray:
        return np.concatenate([self.network(clip[None])[0].double().numpy() for clip in clips])

    def __call__(self, clips: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
        l1 = (self.mels(clips) - self.mels(reference)).abs().mean((1, 2))
        return statistics.mean(l1.tolist()), frechet_distance(self.embed(clips), self.embed(reference))


def make(pipeline: Pipeline, settings: Settings, clips: int, first_seed: int = 0) -> tuple[torch.Tensor, float]:
    """Clips (N, L), and seconds a clip."""
    seconds = pipeline.params.audio.clip_seconds
    started = time.perf_counter()
    made = [
        pipeline.waveforms([Prompt("x", PROMPTS[i % len(PROMPTS)], first_seed + i, None, 2.0, seconds)], [0], settings)
        for i in range(clips)
    ]
    return torch.cat(made), (time.perf_counter() - started) / clips


def draw(rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axis, key, title in zip(figure.subplots(1, 2), ("log_mel_l1", "musicnn_fd"), ("log-mel L1", "musicnn FD"),
                                strict=True):  # fmt: skip
        for sampler, reuse, style in (*((name, 1, "-") for name in SAMPLERS), ("unipc", 2, "--"), ("ddim", 4, "")):
            points = [(row["steps"], row[key]) for row in rows if (row["sampler"], row["reuse"]) == (sampler, reuse)]
            label = sampler if reuse == 1 else f"{sampler}, reuse {reuse}"
            axis.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=label)
        other = next(row[key] for row in rows if row["sampler"] == "another seed")
        axis.axhline(other, linestyle=":", color="gray", label="another seed")
        axis.set(xscale="log", xlabel="steps", ylabel=f"{title} to 200 steps of DDIM")
    axis.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("work/models/ldm"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    pipeline, backend = load_pipeline(options.model, backend=options.backend)
    judge = Judge(pipeline)
    reference, seconds = make(pipeline, REFERENCE, options.clips)
    print(f"reference: ddim, 200 steps, {options.clips} clips, {seconds:.2f} s each; {backend.name}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    rows = []
    runs = [(name, steps, 1, 0) for steps in options.steps for name in SAMPLERS]
    runs += [
        *(("unipc", steps, 2, 0) for steps in options.steps),
        ("ddim", 200, 4, 0),
        ("another seed", 200, 1, 10_000),
    ]
    for name, steps, reuse, first_seed in runs:
        settings = Settings("ddim" if first_seed else name, steps, 0.0, 1, reuse=reuse)
        clips, seconds = make(pipeline, settings, options.clips, first_seed)
        l1, fd = judge(clips, reference)
        rows.append({"sampler": name, "steps": steps, "reuse": reuse, "log_mel_l1": round(l1, 5),
                     "musicnn_fd": round(fd, 4), "seconds_a_clip": round(seconds, 3)})  # fmt: skip
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.write:
        with (options.write / "samplers.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        draw(rows, options.write / "samplers.png")
    if options.json:
        figures = {
            f"{row['sampler']}_{row['steps']}_reuse_{row['reuse']}_log_mel_l1".replace(" ", "_"): row["log_mel_l1"]
            for row in rows
        }
        options.json.write_text(json.dumps(figures | {"clips": options.clips}, indent=2) + "\n")


if __name__ == "__main__":
    main()
