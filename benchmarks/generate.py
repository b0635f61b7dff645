"""Making clips, beside diffusers' MusicLDMPipeline in fp32 eager on the same weights.

    python benchmarks/generate.py [--json FILE] [--size paper|small|tiny] [--steps N] [--clips N] [--backend NAME]
                                  [--trained WORK]

Ours and the peer are two processes of one tree that make clips in turn, never at once; seconds are medians, of a
clip after a first that warms up. `same_steps`: both DDIM, `--steps` steps, the same first noise and embeddings,
random weights. `equal_quality`, with `--trained WORK` only: ours with its preset's default sampler and steps
against the peer's 200, on the trained model of a work folder, with the musicnn kernel distance of both sets to the
test split. `memory_ratio`: the peers' highest resident memory, loading included. `cold_seconds`: the command
`musicldm generate` with the preset small's default settings and random weights, start to finished WAV.
Nothing is extrapolated: a ratio of fewer steps is named so.
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
from pathlib import Path
from typing import Any

import numpy as np

CAPTIONS = Path(__file__).parents[1] / "data" / "demo" / "attribution.csv"
PROMPTS = ("dramatic trailer", "calm piano with strings", "fast electronic dance", "sad slow guitar")
GUIDANCE, PEER_STEPS = 2.0, 200
MEL_LEVEL = -5.0  # a usual log-mel; the untrained decoder's bias is moved there, so that the vocoder makes sound
BOOTSTRAP = 1000


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
        for weight in (w for w in vocoder.parameters() if w.ndim == 3):
            torch.nn.init.kaiming_normal_(weight, nonlinearity="leaky_relu", a=0.1)
        ldm.null.copy_(torch.nn.functional.normalize(torch.randn_like(ldm.null), dim=0))
    save_pipeline_of(Parts(ldm, clap.eval(), vae.eval(), vocoder.eval()), folder, {"steps": 0, "random_weights": True})
    return folder


# The two contestants: a line of settings on stdin makes a clip, a line on stdout says what it took


def ours(folder: Path, backend_name: str, cache: Path) -> None:
    from stages.generate.backends import choose_backend, use_backend
    from stages.generate.manifest import Settings
    from stages.generate.memory import shelve
    from stages.generate.pipeline import Pipeline
    from stages.generate.prompts import Prompt

    pipeline = Pipeline.load(folder)
    backend = choose_backend(backend_name, pipeline, cache)
    use_backend(pipeline, backend, cache, shelve(pipeline, folder, backend.channels_last))
    say(name=backend.name, why=backend.why)
    for job in jobs():
        prompt = Prompt("clip", job["prompt"], job["seed"], None, GUIDANCE, pipeline.params.audio.clip_seconds)
        started = time.perf_counter()
        waveforms = pipeline.waveforms([prompt], [0], Settings(job["sampler"], job["steps"], 0.0, 1))
        taken = time.perf_counter() - started
        np.save(job["out"], waveforms[0].cpu().numpy())
        say(seconds=taken, peak_bytes=peak_bytes())


def peer(folder: Path) -> None:
    """diffusers' pipeline as it comes, with the same null condition and first noise."""
    import torch
    from diffusers.pipelines.deprecated.musicldm.pipeline_musicldm import MusicLDMPipeline
    from safetensors.torch import load_file

    from stages.generate.samplers import normal
    from stages.params import Params
    from stages.store import model_card

    params = Params.model_validate(model_card(folder)["params"])
    pipe = MusicLDMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    null = load_file(folder / "null_condition.safetensors")["null"][None]
    say(name="diffusers", why="MusicLDMPipeline, fp32 eager")
    for job in jobs():
        started = time.perf_counter()
        with torch.no_grad():
            tokens = pipe.tokenizer(job["prompt"], return_tensors="pt")
            prompt = pipe.text_encoder.get_text_features(**tokens).pooler_output
            audio = pipe(
                prompt_embeds=prompt, negative_prompt_embeds=null, num_inference_steps=job["steps"],
                latents=normal(params.latent_shape, [torch.Generator().manual_seed(job["seed"])]),
                guidance_scale=GUIDANCE, audio_length_in_s=params.audio.clip_seconds, output_type="np",
            ).audios[0]  # fmt: skip
        taken = time.perf_counter() - started
        np.save(job["out"], audio)
        say(seconds=taken, peak_bytes=peak_bytes())


def jobs() -> Any:
    for line in sys.stdin:
        yield json.loads(line)


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def peak_bytes() -> int:
    """The highest resident memory of this process so far (VmHWM), mapped files included."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


class Contestant:
    """A process that waits for jobs."""

    def __init__(self, role: str, folder: Path, backend: str, cache: Path) -> None:
        command = [sys.executable, __file__, "--worker", role, "--model", str(folder), "--backend", backend]
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


def race(
    folder: Path, scratch: Path, backend: str, cache: Path, clips: int, our_way: tuple[str, int], peer_steps: int
) -> dict[str, Any]:
    """Clips in turn after one each that warms up; medians, peaks, and where the waveforms are."""
    scratch.mkdir()
    us, them = (Contestant(role, folder, backend, cache) for role in ("ours", "peer"))
    sampler, steps = our_way
    found: dict[str, Any] = {"ours": [], "peer": [], "backend": us.about["name"]}
    for number in range(clips + 1):
        words, seed = PROMPTS[number % len(PROMPTS)], 1000 + number
        for name, contestant, chosen in (("ours", us, (sampler, steps)), ("peer", them, ("ddim", peer_steps))):
            out = scratch / f"{name}-{number}.npy"
            made = contestant.make(prompt=words, seed=seed, sampler=chosen[0], steps=chosen[1], out=str(out))
            if number:
                found[name].append(made["seconds"])
            found[f"{name}_peak_bytes"] = made["peak_bytes"]
    us.end()
    them.end()
    for name in ("ours", "peer"):
        found[f"{name}_seconds"] = statistics.median(found.pop(name))
        found[f"{name}_audio"] = [np.load(scratch / f"{name}-{n}.npy") for n in range(1, clips + 1)]
    return found


def same_steps(arguments: argparse.Namespace, models: Path, scratch: Path) -> dict[str, Any]:
    import torch

    from stages import params as parameters
    from stages.audio.mel import clip_mel

    folder = random_pipeline(arguments.size, models / arguments.size)
    found = race(folder, scratch / "same", arguments.backend, arguments.cache, arguments.clips,
                 ("ddim", arguments.steps), arguments.steps)  # fmt: skip
    mel = clip_mel(parameters.preset(arguments.size))
    pairs = zip(found["ours_audio"], found["peer_audio"], strict=True)
    distances = [
        float((mel(torch.from_numpy(a)[None]) - mel(torch.from_numpy(b)[None])).abs().mean()) for a, b in pairs
    ]
    return {
        "size": arguments.size, "steps": arguments.steps, "clips": arguments.clips, "backend": found["backend"],
        "ours_seconds": found["ours_seconds"], "diffusers_seconds": found["peer_seconds"],
        "same_steps_ratio": found["peer_seconds"] / found["ours_seconds"], "same_steps_log_mel_l1": max(distances),
        "ours_peak_mb": found["ours_peak_bytes"] / 1e6, "diffusers_peak_mb": found["peer_peak_bytes"] / 1e6,
        "memory_ratio": found["ours_peak_bytes"] / found["peer_peak_bytes"],
    }  # fmt: skip


def equal_quality(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Seconds of our defaults against the peer's 200 steps, and whether our set is further from real clips."""
    from stages import params as parameters
    from stages.layout import Layout
    from stages.store import model_card

    layout = Layout(arguments.trained)
    card = model_card(layout.ldm, "ldm")
    defaults = parameters.preset(card["preset"]).generate
    found = race(layout.ldm, scratch / "quality", arguments.backend, arguments.cache, arguments.quality_clips,
                 (defaults.sampler, defaults.steps), PEER_STEPS)  # fmt: skip
    params = parameters.Params.model_validate(card["params"])
    distance = worse_by(found["ours_audio"], found["peer_audio"], layout.shards, params.audio)
    return {
        "equal_quality_ratio": found["peer_seconds"] / found["ours_seconds"],
        "equal_quality_ours": f"{defaults.sampler} {defaults.steps}", "equal_quality_clips": arguments.quality_clips,
        "equal_quality_ours_seconds": found["ours_seconds"], "equal_quality_peer_seconds": found["peer_seconds"],
        "equal_quality_worse_by": distance,
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


def cold(models: Path, scratch: Path, backend: str) -> dict[str, float]:
    """The command itself, `small`, default settings: one clip, and what a second adds."""
    folder = random_pipeline("small", models / "small")
    command = [sys.executable, "-m", "musicldm_cli", "--quiet", "generate"]
    options = ["--model", str(folder), "--backend", backend]
    prompts = scratch / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[:2]) + "\n")
    seconds = {}
    for name, what in (
        ("warm-up", [PROMPTS[0], "--steps", "1"]),
        ("one", [PROMPTS[0]]),
        ("two", ["--prompts", str(prompts)]),
    ):
        started = time.perf_counter()
        subprocess.run([*command, *what, *options, "--out", str(scratch / name)], check=True, cwd=scratch)
        seconds[name] = time.perf_counter() - started
    return {"cold_seconds": seconds["one"], "further_clip_seconds": seconds["two"] - seconds["one"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--size", choices=("paper", "released", "small", "tiny"), default="paper")
    parser.add_argument("--steps", type=int, default=PEER_STEPS)
    parser.add_argument("--clips", type=int, default=1, help="timed clips of each after one that warms up")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--trained", type=Path, help="a work folder with a trained model and shards")
    parser.add_argument("--quality-clips", type=int, default=16)
    parser.add_argument("--models", type=Path, help="where to keep the random pipelines; default a temporary folder")
    parser.add_argument("--cache", type=Path, default=None, help="of compiled networks")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        import stages  # noqa: F401  (torchaudio beside a CPU-only torch)

        if arguments.worker == "ours":
            ours(arguments.model, arguments.backend, arguments.cache)
        else:
            peer(arguments.model)
        return
    from stages.generate.backends import default_cache

    arguments.cache = arguments.cache or default_cache()
    with tempfile.TemporaryDirectory() as folder:
        scratch, models = Path(folder), arguments.models or Path(folder)
        figures: dict[str, Any] = {
            "cpu": cpu_name(), "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
            **same_steps(arguments, models, scratch), **cold(models, scratch, arguments.backend),
            "equal_quality_ratio": None,
        }  # fmt: skip
        if arguments.trained is not None:
            figures |= equal_quality(arguments, scratch)
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if arguments.trained is None:
        print("equal_quality was not measured: give a trained model with --trained work")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def cpu_name() -> str:
    with Path("/proc/cpuinfo").open() as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
