"""What training costs: `python benchmarks/train.py [--json FILE] [--work DIR] [--parts steps mixup memory estimate]`.

`steps`: every network of the preset `small` in fp32 and in bf16, before and after its adversary begins: the median
step, the ratio of both, and the share of a step that is waiting for the loader (the preset's own workers, batches of
real shards and latents). `mixup`: the LDM's mean step with BLM at p = 0.5 against that without mixup. Of a BLM run's
steps the part that makes mixed clips is timed by itself and put in as the bank's schedule has it over the whole
training, its first filling included; what the measured steps themselves took is printed beside. `memory`: the
highest resident memory of two steps at the preset `paper` with batch 1, each network in a process of its own.
`estimate`: the seconds that `musicldm train NETWORK --estimate` foretells of the preset `tiny`, against those of the
training itself, one after the other.

Networks are untrained, which changes no time. The music is that of DIR/shards, or without --work of 24 demo tracks,
which are prepared first by the usual commands.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from generate import random_pipeline

from stages.clap.train import ClapTask
from stages.data.shards import ShardReader
from stages.ldm.latents import choose_windows, joined, prepare
from stages.ldm.mixup import Mixer, Pairs
from stages.ldm.train import LdmTask, build_task
from stages.params import Params, resolve
from stages.progress import silent
from stages.training.checkpoint import Position
from stages.training.estimate import sizes
from stages.training.log import Journal
from stages.training.loop import Run
from stages.vae.model import Vae
from stages.vae.model import build as build_vae
from stages.vae.train import VaeTask
from stages.vocoder.model import Vocoder
from stages.vocoder.model import build as build_vocoder
from stages.vocoder.train import VocoderTask

DEMO = Path(__file__).parents[1] / "data" / "demo"
NETWORKS = ("clap", "vae", "vocoder", "ldm")
PARTS = ["steps", "mixup", "memory", "estimate"]
WARM = 3  # steps before any is measured
SHORTEST = 4.0  # seconds that are measured at least
SHORT = ["clap.text_init=null", "clap.text_sha256=null", "latents.grid_seconds=40", "latents.downbeats_per_track=6"]


def demo_shards(work: Path, tracks: int) -> None:
    """What a person would type, on some of the demo music, without tags in the captions."""
    first = ["manifest", str(DEMO), "--captions", str(DEMO / "attribution.csv"), "-S", f"manifest.limit={tracks}"]
    for command in (first, ["resample"], ["beats"], ["captions", "-S", "captions.tags=0"], ["shards"]):
        call = [sys.executable, "-m", "musicldm_cli", "--quiet", "--work", str(work), "prep", *command]
        subprocess.run([*call, "-S", "preset=small"], check=True, stdout=subprocess.DEVNULL)


class Lesson:
    """Steps of one training, from a given step on, and what of them was waiting for the loader."""

    def __init__(self, task: Any, first: int = 0) -> None:
        self.task, self.run = task, Run(task, Path(), {}, silent, _nobody, _nobody)
        self.run.position = Position(first)
        self.waits: list[float] = []
        self.seconds: list[float] = []

    def take(self, count: int, warm: int = WARM, shortest: float = SHORTEST) -> "Lesson":
        """`warm` steps, then at least `count` that are measured."""
        self.run.to_device()
        unwritten = Journal(None)
        with self.run.wrapped() as backward:
            begun = time.perf_counter()
            for step, batch in self.run.batches():
                had = time.perf_counter()
                self.run.step(batch, step, backward, unwritten)
                self.waits.append(had - begun)
                self.seconds.append(time.perf_counter() - begun)
                if len(self.seconds) - warm >= count and sum(self.seconds[warm:]) >= shortest:
                    break
                begun = time.perf_counter()
        del self.waits[:warm], self.seconds[:warm]
        return self

    @property
    def wait_share(self) -> float:
        return sum(self.waits) / sum(self.seconds)


def build(name: str, params: Params, work: Path) -> Any:
    """A task of `small`, and for the LDM the latents it needs, which are kept in `work`."""
    shards = ShardReader(work / "shards")
    if name != "ldm":
        return ClapTask(shards, params) if name == "clap" else _GANS[name](params, shards)
    models, latents = random_pipeline("small", work / "bench" / "models"), work / "bench" / "latents"
    if not latents.exists():
        print("encoding latents ...", flush=True)
        prepare(params, work / "shards", models, models, latents)
    return build_task(params, latents, work / "shards", models, models, models)


_GANS = {"vae": VaeTask, "vocoder": VocoderTask}


def steps(work: Path, count: int) -> dict[str, float]:
    """fp32 and bf16 by turns, in two rounds."""
    figures: dict[str, float] = {}
    for name in NETWORKS:
        for first in build(name, resolve({"preset": "small"}, [*SHORT, "ldm.mixup=none"]), work).phases:
            taken: dict[str, list[float]] = {"fp32": [], "bf16": []}
            waits = []
            for precision in ("fp32", "bf16") * 2:
                chosen = [*SHORT, "ldm.mixup=none", f"{name}.train.precision={precision}"]
                lesson = Lesson(build(name, resolve({"preset": "small"}, chosen), work), first).take(count)
                taken[precision] += lesson.seconds
                waits.append(lesson.wait_share)
            single, half = (statistics.median(taken[precision]) for precision in ("fp32", "bf16"))
            key = f"{name}_from_{first}"
            figures |= {f"{key}_fp32_seconds": single, f"{key}_bf16_seconds": half, f"{key}_bf16_ratio": half / single,
                        f"{key}_wait_share": statistics.mean(waits)}  # fmt: skip
            print(f"  {name:8} from step {first:5}: fp32 {single:.3f} s, bf16 {half:.3f} s (x {half / single:.2f}), "
                  f"waiting for the loader {100 * statistics.mean(waits):.2f}% ({len(taken['fp32'])} and "
                  f"{len(taken['bf16'])} steps)",
                  flush=True)  # fmt: skip
    return figures


def mixup(work: Path, count: int, precision: str) -> dict[str, float]:
    """A small bank in place of the preset's, replaced at the same rate; what filling the real one takes is added."""
    settings = [*SHORT, f"ldm.train.precision={precision}"]

    def task(*more: str) -> Any:
        return build("ldm", resolve({"preset": "small"}, [*settings, *more]), work)

    plain = Lesson(task("ldm.mixup=none")).take(count).seconds
    mixing = task("ldm.mixup=blm", "ldm.mixup_bank=16")
    making = watch(mixing.mixer)
    lesson = Lesson(mixing)
    mixing.bank.draw(0, 64, 0, lesson.run.accelerator.device)  # the small bank is full before anything is measured
    made_before = [0]
    original = lesson.run.step

    def step(*arguments: Any) -> None:
        if len(lesson.seconds) == WARM:
            made_before[0] = len(making)
        original(*arguments)

    lesson.run.step = step  # type: ignore[method-assign]
    lesson.take(2 * count)
    plain += Lesson(task("ldm.mixup=none")).take(count).seconds
    clip, during = statistics.mean(making), making[made_before[0] :]
    own = (sum(lesson.seconds) - sum(during)) / len(lesson.seconds)
    ldm = mixing.ldm
    per_step = (resolve({"preset": "small"}).ldm.mixup_bank / ldm.train.steps) + mixing.bank.rate
    base, whole = statistics.mean(plain), own + clip * per_step
    print(f"  {precision}: without mixup {base:.3f} s ({len(plain)} steps); BLM {own:.3f} s and {per_step:.3f} clips "
          f"of {clip:.3f} s a step: {whole:.3f} s, x {whole / base:.2f}; its {len(lesson.seconds)} measured steps made "
          f"{len(during)} clips and took {statistics.mean(lesson.seconds):.3f} s", flush=True)  # fmt: skip
    return {f"none_{precision}_seconds": base, f"blm_{precision}_seconds": whole, f"clip_{precision}_seconds": clip,
            f"blm_{precision}_ratio": whole / base}  # fmt: skip


def watch(mixer: Mixer) -> list[float]:
    """Seconds for each clip that the mixer makes from now on."""
    seconds: list[float] = []
    make = mixer.make

    def timed(numbers: list[int], rank: int, device: torch.device) -> Any:
        begun = time.perf_counter()
        found = make(numbers, rank, device)
        seconds.extend([(time.perf_counter() - begun) / len(numbers)] * len(numbers))
        return found

    mixer.make = timed  # type: ignore[method-assign]
    return seconds


class RandomLatents:
    """Windows of real tracks with random posteriors and embeddings, to measure memory with."""

    scale = 1.0

    def __init__(self, shards: ShardReader, params: Params) -> None:
        self.shape, self.width = params.latent_shape, params.clap.projection_dim
        self.windows = joined([choose_windows(number, info, shards.downbeats(number), params)
                               for number, info in enumerate(shards.tracks) if info.split == "train"])  # fmt: skip

    def posterior(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(i)), torch.zeros(self.shape)

    def embedding(self, i: int, _kind: str) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(self.width, generator=torch.Generator().manual_seed(i)), dim=0)


def paper_task(name: str, work: Path) -> Any:
    """A task at the paper's size with batch 1; `ldm` without mixup, `ldm-blm` with it, on the fly."""
    network = name.partition("-")[0]
    chosen = [*SHORT, f"{network}.train.batch_size=1", f"{network}.train.workers=0", f"{network}.train.precision=fp32"]
    chosen += ["ldm.mixup_probability=1.0"] if name == "ldm-blm" else ["ldm.mixup=none"]
    params, shards = resolve({"preset": "paper"}, chosen), ShardReader(work / "shards")
    if network != "ldm":
        return ClapTask(shards, params) if name == "clap" else _GANS[name](params, shards)
    latents: Any = RandomLatents(shards, params)
    mixer = None
    if name == "ldm-blm":
        clap = ClapTask(shards, params).clap.eval()
        nets = Vae(build_vae(params), params).eval(), Vocoder(build_vocoder(params), params).eval()
        mixer = Mixer(Pairs(latents, shards, params), latents, shards, *nets, clap, params)
    return LdmTask(latents, shards, params, mixer)


def memory_of(name: str, work: Path) -> dict[str, float]:
    """In a process of its own: the last phase's steps, with the adversary where there is one."""
    task = paper_task(name, work)
    lesson = Lesson(task, task.phases[-1])
    lesson.take(2, warm=0, shortest=0.0)
    counts, _, state = sizes(task.state)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"parameters": sum(counts.values()), "state_bytes": state, "peak_bytes": peak,
            "step_seconds": lesson.seconds[-1]}  # fmt: skip


def memory(work: Path) -> dict[str, float]:
    figures = {}
    for name in (*NETWORKS, "ldm-blm"):
        call = [sys.executable, __file__, "--memory-of", name, "--work", str(work)]
        found = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        print(f"  {name:8} {found['parameters'] / 1e6:6.1f} M parameters with adversary and moving average, "
              f"{found['state_bytes'] / 1e9:5.2f} GB of weights, gradients and optimizer, "
              f"{found['peak_bytes'] / 1e9:5.2f} GB at the peak, {found['step_seconds']:.0f} s a step",
              flush=True)  # fmt: skip
        figures |= {f"paper_{name}_{key}": value for key, value in found.items()}
    return figures


def estimates(work: Path) -> dict[str, float]:
    """By the command; what the loop took counts its start, checkpoints and samples, which are not foretold."""
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        call = [sys.executable, "-m", "musicldm_cli", "--json", "--work", temporary]
        places = ["--shards", str(work / "shards"), "-S", "preset=tiny"]

        def command(*words: str) -> Any:
            done = subprocess.run([*call, *words, *places], check=True, stdout=subprocess.PIPE, text=True)
            return json.loads(done.stdout)

        for name in NETWORKS:
            if name == "ldm":
                command("prep", "latents")
            foretold = command("train", name, "--estimate")["total_seconds"]
            taken = command("train", name)["seconds"]
            print(f"  {name:8} foretold {foretold:.1f} s, taken {taken:.1f} s, x {taken / foretold:.2f}", flush=True)
            figures |= {f"tiny_{name}_foretold_seconds": foretold, f"tiny_{name}_taken_seconds": taken}
    return figures


def _nobody(_text: str) -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=4, help="measured in each of two rounds; 4 times as many for BLM")
    parser.add_argument("--prepare", action="store_true", help="only make what --work lacks")
    parser.add_argument("--memory-of", choices=[*NETWORKS, "ldm-blm"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory_of:
        print(json.dumps(memory_of(chosen.memory_of, chosen.work)))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, AMX {torch.cpu._is_amx_tile_supported()}, AVX-512 bf16 "
          f"{torch.cpu._is_avx512_bf16_supported()}", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        if not (work / "shards").exists():
            demo_shards(work, 24)
        if chosen.prepare:
            build("ldm", resolve({"preset": "small"}, [*SHORT, "ldm.mixup=none"]), work)
            return
        figures: dict[str, float] = {}
        if "steps" in chosen.parts:
            print("Steps of `small`:", flush=True)
            figures |= steps(work, chosen.steps)
        if "mixup" in chosen.parts:
            print("BLM at p = 0.5, `small`:", flush=True)
            for precision in ("fp32", "bf16"):
                figures |= mixup(work, 4 * chosen.steps, precision)
        if "memory" in chosen.parts:
            print("Memory at `paper`, batch 1, fp32:", flush=True)
            figures |= memory(work)
        if "estimate" in chosen.parts:
            print("Estimate and training of `tiny`:", flush=True)
            figures |= estimates(work)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
