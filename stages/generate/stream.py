"""Music that can be heard while it is still being made: one window after the other, each going on from the last.

Every window holds the second half of the one before it and adds half a clip. Its log-mel is final where the next
window no longer reaches, and its sound where the vocoder has heard enough of what follows; that much goes out.
"""

import struct
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from stages.audio.io import quantise
from stages.audio.level import limiter
from stages.errors import ModelError
from stages.generate.pipeline import CANDIDATE_STEP, Pipeline
from stages.generate.prompts import SEED_LIMIT, Prompt
from stages.generate.samplers import diffusion, keeping, make_scheduler, normal, sample
from stages.generate.settings import LONGEST_STREAM_SECONDS, Settings, check_length, check_steps
from stages.generate.windows import CONTEXT_FRAMES, vocode, window_weights
from stages.progress import Progress, silent


def stream(
    pipeline: Pipeline, prompt: Prompt, settings: Settings, on_step: Callable[[], None] = lambda: None
) -> Iterator[NDArray[np.int16]]:
    """Mono pieces (n,) int16, round(seconds * rate) samples in all, each given out as soon as it is final.

    The sound is that of the seed, but not of a file of the same seed, whose windows are all made together. Raises
    UsageError for an impossible length or too many steps, ModelError when the model gives values that are not numbers.
    """
    check_length(prompt.seconds, pipeline.params.audio.sample_rate, LONGEST_STREAM_SECONDS)
    check_steps(settings.steps, pipeline.scheduler)
    return _pieces(pipeline, prompt, settings, on_step, pipeline.samples(prompt.seconds))


def stream_bytes(
    pipeline: Pipeline, prompt: Prompt, settings: Settings, suffix: str, progress: Progress = silent
) -> Iterator[bytes]:
    """The stream in 16 bits, little-endian: as wav behind its header, or raw."""
    total = len(pipeline.timesteps(settings)) * count_windows(pipeline, prompt.seconds)
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        progress("Denoising steps", done, total)

    pieces = stream(pipeline, prompt, settings, on_step)
    if suffix == "wav":
        yield wav_header(pipeline.samples(prompt.seconds), pipeline.params.audio.sample_rate)
    for piece in pieces:
        yield piece.astype("<i2").tobytes()


def count_windows(pipeline: Pipeline, seconds: float) -> int:
    size = pipeline.params.latent_shape[1]
    positions = -(-pipeline.samples(seconds) // pipeline.position_samples)
    return 1 + max(0, -(-(positions - size) // (size // 2)))


def wav_header(samples: int, sample_rate: int) -> bytes:
    """The 44 bytes before 16-bit mono samples; a length beyond 32 bits is stated as the highest."""
    size = min(2 * samples, 0xFFFFFFFF - 36)
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16) + form + struct.pack("<4sI", b"data", size)
    )


def _pieces(
    pipeline: Pipeline, prompt: Prompt, settings: Settings, on_step: Callable[[], None], total: int
) -> Iterator[NDArray[np.int16]]:
    sent, hop = 0, pipeline.params.mel.hop_length
    mels: list[Tensor] = []
    frames = done = 0  # made by the VAE; given out as sound
    windows = count_windows(pipeline, prompt.seconds)
    for number, mel in enumerate(_mels(pipeline, prompt, settings, on_step, windows)):
        mels.append(mel)
        frames += mel.shape[1]
        ready = frames if number == windows else max(done, frames - CONTEXT_FRAMES)
        if ready == done:
            continue
        heard = torch.cat(mels, 1)
        begin = frames - heard.shape[1]
        audio = vocode(pipeline.vocoder, heard, pipeline.params.clip_frames)[0].float().cpu()
        audio = limiter(audio, pipeline.params.audio.sample_rate)
        audio = audio[(done - begin) * hop : (ready - begin) * hop][: total - sent]
        if not audio.isfinite().all():
            raise ModelError("The model gave values that are not numbers.", "Check it: musicldm model verify")
        if len(audio):
            yield quantise(audio.numpy())
        sent, done = sent + len(audio), ready
        mels = [heard[:, max(0, done - begin - CONTEXT_FRAMES) :]]


def _mels(
    pipeline: Pipeline, prompt: Prompt, settings: Settings, on_step: Callable[[], None], windows: int
) -> Iterator[Tensor]:
    """Final log-mel pieces (1, n, F): one for each window, and the rest; neighbours are blended where they overlap."""
    size, factor = pipeline.params.latent_shape[1] * pipeline.params.vae.downsampling, pipeline.params.vae.downsampling
    hop = size // factor // 2 * factor
    weight = window_weights(size).to(pipeline.device).view(1, -1, 1)
    summed = weights = torch.zeros(1, 0, 1, device=pipeline.device)
    for latents in _latents(pipeline, prompt, settings, on_step, windows):
        with torch.no_grad():
            mel = pipeline.vae.decode(latents / pipeline.vae.scale)
        overlap = summed.shape[1]
        summed = torch.cat([summed + (mel * weight)[:, :overlap], (mel * weight)[:, overlap:]], 1) if overlap else (
            mel * weight
        )  # fmt: skip
        weights = torch.cat([weights + weight[:, :overlap], weight[:, overlap:]], 1)
        yield summed[:, :hop] / weights[:, :hop]
        summed, weights = summed[:, hop:], weights[:, hop:]
    yield summed / weights


@torch.no_grad()
def _latents(
    pipeline: Pipeline, prompt: Prompt, settings: Settings, on_step: Callable[[], None], windows: int
) -> Iterator[Tensor]:
    """Scaled latents (1, C, T / P, F / P) of each window; each begins with the second half of the one before."""
    channels, size, bins = pipeline.params.latent_shape
    predict = pipeline.denoiser([prompt], settings)
    before: Tensor | None = None
    for number in range(windows):
        generator = Generator().manual_seed((prompt.seed + number * CANDIDATE_STEP) % SEED_LIMIT)
        noise = normal((channels, size, bins), [generator]).to(pipeline.device)
        scheduler = make_scheduler(settings.sampler, pipeline.scheduler, settings.steps)
        found = predict
        if before is not None:
            held = size - size // 2
            known = torch.nn.functional.pad(before[:, :, size // 2 :], (0, 0, 0, size - held))
            kept = (torch.arange(size, device=pipeline.device) < held).view(1, 1, -1, 1)
            found = keeping(predict, known, kept, diffusion(scheduler))
        before = sample(found, noise, scheduler, [generator], settings.eta, on_step)
        yield before
