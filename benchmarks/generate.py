"""Making clips, beside diffusers' MusicLDMPipeline in fp32 eager on the same weights.

    python benchmarks/generate.py [--only same-steps|equal-quality|cold] [--json FILE] [--size paper|small|tiny]
                                  [--steps N] [--clips N] [--backend NAME] [--reuse N] [--trained WORK]

Ours and the peer are two processes of one tree that make clips in turn, never at once; seconds are medians, of clips
after one of two steps that warms up. `same_steps`: both DDIM, `--steps` steps, the same first noise and embeddings,
random weights; once with all blocks at every step (`exact`) and once with the inner blocks at every `--reuse`-th,
by default what `musicldm generate` takes for so many steps. `memory_ratio`: their highest resident memory, loading
included. `equal_quality`, with `--trained WORK` only: ours with the sampler, steps and guidance that the command takes
when nothing is said, against the peer's 200 steps, on the trained model of a work folder, with the musicnn kernel
distance of both sets to the test split. `cold_seconds`: the command `musicldm generate` with the preset small's default
settings and random weights, from start to finished WAV. Nothing is extrapolated. `others_share` is the part of the
processors that other programs had meanwhile, at most: where it is not near 0, no time here is to be trusted. With
`--only`, what the other parts wrote into `--json FILE` is kept.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CAPTIONS = Path(__file__).parents[1] / "data" / "demo" / "attribution.csv"
PROMPTS = ("dramatic trailer", "calm piano with strings", "fast electronic dance", "sad slow guitar")
GUIDANCE, PEER_STEPS = 2.0, 200
FEW_STEPS = "few-steps"
MEL_LEVEL = -5.0  # a usual log-mel; the untrained decoder's bias is moved there, so that the vocoder makes sound
BOOTSTRAP = 1000
COLD_RUNS = 3


def random_pipeline(size: str, folder: Path) -> Path:
    """Write a sealed pipeline of the preset `size` with seeded random weights, unless it is there."""
    if (folder / "musicldm.json").exists():
        return folder
    import torch

    from stages import params as parameters
    from stages.clap.model import Clap
    from stages.clap.model import build as build_clap
    from stages.clap.tokenizer import train_tokenizer
    from stages.ldm.model import LatentDiffusion, build_unet
    from stages.vae.model import build as build_vae
    from stages.vocoder.model import build as build_vocoder
    from stages.weights.folders import Parts, save_pipeline_of

    params = parameters.preset(size)
    torch.manual_seed(0)
    with CAPTIONS.open(encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    text = params.clap.text
    clap = Clap(params, build_clap(params), train_tokenizer(captions, text.vocab_size, text.max_tokens))
    ldm, vae, vocoder = LatentDiffusion(params, build_unet(params)), build_vae(params), build_vocoder(params)
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(MEL_LEVEL)
        for weight in (w for w in vocoder.parameters() if w.ndim == 3 and params.vocoder.architecture == "hifigan"):
            torch.nn.init.kaiming_normal_(weight, nonlinearity="leaky_relu", a=0.1)
        ldm.null.copy_(torch.nn.functional.normalize(torch.randn_like(ldm.null), dim=0))
    save_pipeline_of(Parts(ldm, clap.eval(), vae.eval(), vocoder.eval()), folder, {"steps": 0, "random_weights": True})
    return folder


# The two contestants: a line of settings on stdin makes a clip, a line on stdout says what it took


def ours(folder: Path, backend_name: str, cache: Path, few_steps: bool) -> None:
    from stages.generate.backends import load_pipeline
    from stages.generate.prompts import Prompt
    from stages.generate.settings import WHOLE, Settings

    pipeline, backend = load_pipeline(folder, few_steps, backend_name, cache=cache)
    say(name=backend.name, why=backend.why)

    def make(job: dict[str, Any]) -> np.ndarray:
        guidance, interval = job.get("guidance", GUIDANCE), tuple(job.get("guidance_interval", WHOLE))
        prompt = Prompt("clip", job["prompt"], job["seed"], None, guidance, pipeline.params.audio.clip_seconds)
        settings = Settings(job["sampler"], job["steps"], 0.0, 1, interval, reuse=job["reuse"])
        return pipeline.waveforms([prompt], [0], settings)[0].cpu().numpy()

    work(make)


def peer(folder: Path) -> None:
    """diffusers' pipeline as it comes, with the same null condition and first noise."""
    import torch
    from diffusers.pipelines.deprecated.musicldm.pipeline_musicldm import MusicLDMPipeline
    from safetensors.torch import load_file

    from stages.generate.samplers import normal
    from stages.params import Params
    from stages.store import model_card

    params = Params.model_validate(model_card(folder)["params"])
    hifigan = params.vocoder.architecture == "hifigan"
    pipe = MusicLDMPipeline.from_pretrained(folder, **({} if hifigan else {"vocoder": None}))
    if not hifigan:  # it knows no other vocoder, and gets ours as it is
        pipe.register_modules(vocoder=like_hifigan(folder))
    pipe.set_progress_bar_config(disable=True)
    null = load_file(folder / "null_condition.safetensors")["null"][None]
    say(name="diffusers", why="MusicLDMPipeline, fp32 eager")

    @torch.no_grad()
    def make(job: dict[str, Any]) -> np.ndarray:
        tokens = pipe.tokenizer(job["prompt"], return_tensors="pt")
        prompt = pipe.text_encoder.get_text_features(**tokens).pooler_output
        audio = pipe(
            prompt_embeds=prompt, negative_prompt_embeds=null, num_inference_steps=job["steps"],
            latents=normal(params.latent_shape, [torch.Generator().manual_seed(job["seed"])]),
            guidance_scale=GUIDANCE, audio_length_in_s=params.audio.clip_seconds, output_type="np",
        ).audios[0]  # fmt: skip
        return np.asarray(audio)

    work(make)


def like_hifigan(folder: Path) -> Any:
    """Another vocoder, in fp32 eager, with what diffusers' pipeline asks a HiFi-GAN for; sharpening goes before it."""
    import torch

    from stages.vae.model import sharpened
    from stages.vocoder.model import load_vocoder

    class Like(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.vocoder = load_vocoder(folder)
            params = self.vocoder.params
            self.sharpening = params.vae.sharpening
            self.config = SimpleNamespace(
                sampling_rate=params.audio.sample_rate, upsample_rates=[params.mel.hop_length],
                model_in_dim=params.mel.n_mels,
            )  # fmt: skip

        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            waveform: torch.Tensor = self.vocoder(sharpened(mel, *self.sharpening))
            return waveform

    return Like()


def work(make: Callable[[dict[str, Any]], np.ndarray]) -> None:
    for line in sys.stdin:
        job, before, started = json.loads(line), others_seconds(), time.perf_counter()
        audio = make(job)
        taken = time.perf_counter() - started
        share = max(0.0, others_seconds() - before) / taken / (os.cpu_count() or 1)
        np.save(job["out"], audio)
        say(seconds=taken, peak_bytes=peak_bytes(), others_share=share)


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def peak_bytes() -> int:
    """The highest resident memory of this process so far (VmHWM), mapped files included."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def others_seconds() -> float:
    """Processor time of everything but this process, ticks of /proc/stat since the start of the machine."""
    with Path("/proc/stat").open() as file:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, file.readline().split()[1:9])
    own = os.times()
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system


class Contestant:
    """A process that waits for jobs."""

    def __init__(self, role: str, folder: Path, backend: str, cache: Path, few_steps: bool) -> None:
        command = [sys.executable, __file__, "--worker", role, "--model", str(folder), "--backend", backend]
        command += ["--few-steps"] if few_steps else []
        self.process = subprocess.Popen(
            [*command, "--cache", str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
            if line.startswith("{"):
                return dict(json.loads(line))

    def make(self, **job: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Raced:
    """What one way of making clips took: seconds of each, their sound, and the process's highest memory."""

    seconds: list[float]
    audio: list[np.ndarray]
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def race(
    folder: Path, scratch: Path, arguments: argparse.Namespace, clips: int, ways: dict[str, dict[str, Any]]
) -> tuple[dict[str, Raced], dict[str, Any]]:
    """Each way's clips in turn with the others'; `ways` named "peer" are diffusers'. Also what the race was like."""
    scratch.mkdir()
    few = any(way["sampler"] == FEW_STEPS for way in ways.values())
    us, them = (Contestant(role, folder, arguments.backend, arguments.cache, few) for role in ("ours", "peer"))
    found = {name: Raced([], []) for name in ways}
    about = {"backend": us.about["name"], "others_share": 0.0}
    for number in range(clips + 1):
        for name, way in ways.items():
            out = scratch / f"{name}-{number}.npy"
            job = way | {"prompt": PROMPTS[number % len(PROMPTS)], "seed": 1000 + number, "out": str(out)}
            made = (them if name == "peer" else us).make(**job if number else job | {"steps": 2})
            found[name].peak_bytes = made["peak_bytes"]
            if number:
                found[name].seconds.append(made["seconds"])
                found[name].audio.append(np.load(out))
                about["others_share"] = max(about["others_share"], round(made["others_share"], 3))
    us.end()
    them.end()
    return found, about


def same_steps(arguments: argparse.Namespace, models: Path, scratch: Path) -> dict[str, Any]:
    import torch

    from stages import params as parameters
    from stages.audio.mel import clip_mel
    from stages.generate.settings import automatic_reuse

    folder, reuse = random_pipeline(arguments.size, models / arguments.size), arguments.reuse
    ddim = {"sampler": "ddim", "steps": arguments.steps, "reuse": 1}
    reuse = automatic_reuse(arguments.steps) if reuse is None else reuse
    ways = {"ours": ddim | {"reuse": reuse}, "exact": ddim, "peer": ddim}
    found, about = race(folder, scratch / "same", arguments, arguments.clips, ways)
    mel = clip_mel(parameters.preset(arguments.size))
    theirs = [mel(torch.from_numpy(clip)[None]) for clip in found["peer"].audio]

    def log_mel_l1(name: str) -> float:
        ours = (mel(torch.from_numpy(clip)[None]) for clip in found[name].audio)
        return max(float((a - b).abs().mean()) for a, b in zip(ours, theirs, strict=True))

    return {
        "same_steps_ratio": found["peer"].median / found["ours"].median,
        "memory_ratio": found["ours"].peak_bytes / found["peer"].peak_bytes,
        "same_steps": {
            "size": arguments.size, "steps": arguments.steps, "clips": arguments.clips, **about, "reuse": reuse,
            "seconds": {name: raced.median for name, raced in found.items()},
            "exact_ratio": found["peer"].median / found["exact"].median,
            "log_mel_l1": log_mel_l1("ours"), "exact_log_mel_l1": log_mel_l1("exact"),
            "peak_mb": {name: raced.peak_bytes / 1e6 for name, raced in found.items() if name != "exact"},
        },
    }  # fmt: skip


def equal_quality(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Seconds of our defaults against the peer's 200 steps, and whether our set is further from real clips."""
    from stages.data.shards import ShardReader
    from stages.generate.choose import Options, choose_clip, no_project, open_model
    from stages.layout import Layout

    layout = Layout(arguments.trained)
    ShardReader(layout.shards)  # raises before minutes have gone
    model = open_model(layout.ldm, no_project())
    settings, prompt = choose_clip(model, PROMPTS[0], Options())
    way = {"sampler": settings.sampler, "steps": settings.steps, "reuse": settings.reuse, "guidance": prompt.guidance,
           "guidance_interval": settings.interval}  # fmt: skip
    ways = {"ours": way, "peer": {"sampler": "ddim", "steps": PEER_STEPS}}
    found, about = race(layout.ldm, scratch / "quality", arguments, arguments.quality_clips, ways)
    return {
        "equal_quality_ratio": found["peer"].median / found["ours"].median,
        "equal_quality": {
            **about, "ours": way, "clips": arguments.quality_clips,
            "seconds": {name: raced.median for name, raced in found.items()},
            "worse_by": worse_by(found["ours"].audio, found["peer"].audio, layout.shards, model.params.audio),
        },
    }  # fmt: skip


def worse_by(made: list[Any], theirs: list[Any], shards: Path, audio: Any) -> dict[str, float]:
    """Kernel distance to the test split, ours less theirs, with its bootstrap interval over clips and tracks."""
    import torch

    from stages.data.shards import ShardReader
    from stages.evaluate.backbones import MusicnnBackbone
    from stages.evaluate.embeddings import normalised, shard_segments
    from stages.evaluate.quality import kernel, kernel_distance

    listen = MusicnnBackbone(audio.sample_rate)

    def vectors(clips: list[Any]) -> Any:
        rows = [listen(normalised(np.asarray(clip, np.float32), audio)[None])[0] for clip in clips]
        return torch.cat(rows).double().numpy()

    real = vectors([segment.samples for segment in shard_segments(ShardReader(shards), "test", audio)])
    first, second = vectors(made), vectors(theirs)
    generator = np.random.default_rng(0)

    def difference(rows: Any, others: Any) -> float:
        values = [
            kernel_distance(kernel(x[rows], x[rows]), kernel(real[others], real[others]), kernel(x[rows], real[others]))
            for x in (first, second)
        ]
        return values[0] - values[1]

    draws = [
        difference(generator.integers(len(first), size=len(first)), generator.integers(len(real), size=len(real)))
        for _ in range(BOOTSTRAP)
    ]
    value = difference(np.arange(len(first)), np.arange(len(real)))
    error = 1.96 * float(np.std(draws))
    return {"value": value, "low": value - error, "high": value + error, "real_clips": len(real)}


def cold(arguments: argparse.Namespace, models: Path, scratch: Path) -> dict[str, Any]:
    """The command itself, `small`, default settings: one clip, and what each of three further ones adds."""
    folder = random_pipeline("small", models / "small")
    command = [sys.executable, "-m", "musicldm_cli", "--quiet", "generate"]
    options = ["--model", str(folder), "--backend", arguments.backend]
    prompts = scratch / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    seconds: dict[str, list[float]] = {"one": [], "four": []}
    for number in range(COLD_RUNS):
        for name, what in (("one", [PROMPTS[0]]), ("four", ["--prompts", str(prompts)])):
            started = time.perf_counter()
            out = str(scratch / f"{name}-{number}")
            subprocess.run([*command, *what, *options, "--out", out], check=True, cwd=scratch)
            seconds[name].append(time.perf_counter() - started)
    one, four = (statistics.median(seconds[name]) for name in ("one", "four"))
    return {"cold_seconds": one, "cold": {**seconds, "further_clip_seconds": (four - one) / (len(PROMPTS) - 1)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("same-steps", "equal-quality", "cold"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--size", choices=("paper", "released", "small", "tiny"), default="paper")
    parser.add_argument("--steps", type=int, default=PEER_STEPS)
    parser.add_argument("--reuse", type=int, help="of the inner blocks; default by the number of steps")
    parser.add_argument("--clips", type=int, default=1, help="timed clips of each after one that warms up")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--trained", type=Path, help="a work folder with a trained model and shards")
    parser.add_argument("--quality-clips", type=int, default=16)
    parser.add_argument("--models", type=Path, help="where to keep the random pipelines; default a temporary folder")
    parser.add_argument("--cache", type=Path, default=None, help="of compiled networks")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--few-steps", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        import stages  # noqa: F401  (torchaudio beside a CPU-only torch)

        if arguments.worker == "ours":
            ours(arguments.model, arguments.backend, arguments.cache, arguments.few_steps)
        else:
            peer(arguments.model)
        return
    from stages.generate.backends import default_cache

    arguments.cache = arguments.cache or default_cache()
    figures = measured(arguments)
    print(json.dumps(figures, indent=2))
    if arguments.json is not None:
        before = json.loads(arguments.json.read_text()) if arguments.only and arguments.json.exists() else {}
        arguments.json.write_text(json.dumps(before | figures, indent=2) + "\n")


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for."""
    if arguments.trained is None and arguments.only != "equal-quality":
        print("equal_quality is not measured: give a trained model with --trained work", file=sys.stderr)
    figures: dict[str, Any] = {"cpu": cpu_name(), "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        scratch, models = Path(folder), arguments.models or Path(folder)
        if arguments.only in (None, "same-steps"):
            figures |= same_steps(arguments, models, scratch)
        if arguments.only == "equal-quality" or (arguments.only is None and arguments.trained is not None):
            figures |= equal_quality(arguments, scratch)
        if arguments.only in (None, "cold"):
            figures |= cold(arguments, models, scratch)
    return figures


def cpu_name() -> str:
    with Path("/proc/cpuinfo").open() as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
