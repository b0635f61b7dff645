"""Combinations of valid parameters that cannot work, rejected before any work starts."""

import math
from collections.abc import Iterator
from itertools import chain

from stages.params.sections import Params

Check = tuple[bool, str, str]
"""Whether the check holds, the key to blame if not, and what is wrong with it."""

TRAININGS = ("beats", "clap", "vae", "vocoder", "ldm", "few_steps")  # sections with a `train`
BEAT_HEADS = 8  # of the Beat Transformer's attention
LOWEST_BPM, HIGHEST_BPM = 20, 600  # below, the decoder takes gigabytes; above, a beat is no five frames
LEAST_MELS = 32  # that HTSAT's four stages halve to one
TEXT_POSITIONS = 512  # of a RoBERTa
LEAST_TOKENS = 3  # a token between begin and end
LEAST_VOCABULARY = 5  # special tokens
LEAST_BETA = 1e-6  # below, float32 knows no noise at the first step
MOST_NOISE = 80.0  # logarithm of the signal's share, in all; float32 ends at 87
VOCODED_VAE_FACTOR = 64  # the vocoder's segments are decoded in multiples of so many frames
LARGEST_STFT = 2048  # of vocoder.stft_weight's loss


def impossible(p: Params) -> list[tuple[str, str]]:
    """(key path, what is wrong) of each combination in `p` that some command could not work with."""
    sections = (_audio, _beats, _clap, _vae, _vocoder, _ldm, _sampling, _trainings)
    checks = chain.from_iterable(section(p) for section in sections)
    return list(dict.fromkeys((key, what) for ok, key, what in checks if not ok))


def _audio(p: Params) -> Iterator[Check]:
    samples, exact = p.audio.clip_samples, p.audio.sample_rate * p.audio.clip_seconds
    yield abs(exact - samples) < 1e-6, "audio.clip_seconds", f"is {exact:.3f} samples, not a whole number"
    hop, window, n_fft = p.mel.hop_length, p.mel.win_length, p.mel.n_fft
    yield samples % hop == 0, "mel.hop_length", f"{hop} does not divide the clip's {samples} samples"
    yield hop < window, "mel.hop_length", f"{hop} is not shorter than win_length {window}"
    yield window <= n_fft, "mel.win_length", f"{window} is longer than n_fft {n_fft}"
    yield n_fft < 2 * samples, "mel.n_fft", f"{n_fft} is more than twice the clip's {samples} samples"
    f_min, f_max, highest = p.mel.f_min, p.mel.f_max, p.audio.sample_rate / 2
    yield f_min < f_max <= highest, "mel.f_max", f"{f_max} Hz must lie above f_min and at most at half the sample rate"
    shares = p.manifest.valid_share + p.manifest.test_share
    yield shares < 1, "manifest.test_share", "leaves nothing to train on"


def _beats(p: Params) -> Iterator[Check]:
    beats = p.beats
    yield beats.min_bpm < beats.max_bpm, "beats.max_bpm", "must lie above min_bpm"
    yield beats.min_bpm >= LOWEST_BPM, "beats.min_bpm", f"{beats.min_bpm:g} is below {LOWEST_BPM}"
    yield beats.max_bpm <= HIGHEST_BPM, "beats.max_bpm", f"{beats.max_bpm:g} is above {HIGHEST_BPM}"
    width = beats.network.width
    yield width % BEAT_HEADS == 0, "beats.network.width", f"{width} is no multiple of its {BEAT_HEADS} heads"
    own = beats.model is None or beats.backend != "madmom"
    yield own, "beats.model", "belongs to another backend: madmom has its own networks"


def _clap(p: Params) -> Iterator[Check]:
    clap, audio, text = p.clap, p.clap.audio, p.clap.text
    band = clap.f_min < clap.f_max <= clap.sample_rate / 2
    yield band, "clap.f_max", f"{clap.f_max} Hz must lie above f_min and at most at half of clap.sample_rate"
    samples = clap.window_samples
    yield clap.n_fft > 1, "clap.n_fft", f"{clap.n_fft} is no spectrum"
    yield clap.n_mels >= LEAST_MELS, "clap.n_mels", f"{clap.n_mels} is below {LEAST_MELS}"
    yield clap.n_fft < 2 * samples, "clap.n_fft", f"{clap.n_fft} is more than twice the window's {samples} samples"
    size, side = audio.spec_size, 32 * audio.window_size
    yield size % clap.n_mels == 0, "clap.audio.spec_size", f"{size} is no multiple of clap.n_mels {clap.n_mels}"
    yield size % side == 0, "clap.audio.window_size", f"needs a spec_size that is a multiple of {side}"
    frames, capacity = samples // clap.hop_length, size * (size // clap.n_mels)  # HTSAT folds them into a square
    yield frames <= capacity, "clap.window_seconds", f"is {frames} frames; {capacity} fit spec_size {size}"
    for stage, heads in enumerate(audio.heads):  # the width doubles at every stage
        width = audio.embed_dim * 2**stage
        yield width % heads == 0, "clap.audio.heads", f"{heads} does not divide the {width} channels of its stage"
    yield text.hidden_size % text.heads == 0, "clap.text.heads", "does not divide hidden_size"
    enough = text.vocab_size >= LEAST_VOCABULARY
    yield enough, "clap.text.vocab_size", f"{text.vocab_size} is below {LEAST_VOCABULARY}"
    fits = LEAST_TOKENS <= text.max_tokens <= TEXT_POSITIONS
    yield fits, "clap.text.max_tokens", f"{text.max_tokens} is not between {LEAST_TOKENS} and {TEXT_POSITIONS}"


def _vae(p: Params) -> Iterator[Check]:
    vae, factor, blocks = p.vae, p.vae.downsampling, len(p.vae.block_out_channels)
    for size, axis in ((p.clip_frames, "frames"), (p.mel.n_mels, "mel bins")):
        what = f"{blocks} blocks divide by {factor}, which does not divide {size} {axis}"
        yield size % factor == 0, "vae.block_out_channels", what
    frames = vae.segment_frames or p.clip_frames
    what = f"{frames} must be a multiple of {factor} and at most the clip's {p.clip_frames} frames"
    yield frames % factor == 0 and frames <= p.clip_frames, "vae.segment_frames", what
    yield from _groups("vae.norm_num_groups", vae.norm_num_groups, vae.block_out_channels)
    judged = min(frames, p.mel.n_mels) >> vae.discriminator_layers  # halved by each; the last two need three
    what = f"{vae.discriminator_layers} leave nothing of {frames} frames and {p.mel.n_mels} mel bins"
    yield judged >= 3 or vae.adversarial_start >= vae.train.steps, "vae.discriminator_layers", what


def _groups(key: str, groups: int, widths: list[int]) -> Iterator[Check]:
    for width in widths:
        yield width % groups == 0, key, f"{groups} does not divide {width} channels"


def _vocoder(p: Params) -> Iterator[Check]:
    vocoder, hop = p.vocoder, p.mel.hop_length
    rates, kernels = vocoder.upsample_rates, vocoder.upsample_kernel_sizes
    product = math.prod(rates)
    yield product == hop, "vocoder.upsample_rates", f"multiply to {product}, not to mel.hop_length {hop}"
    yield len(rates) == len(kernels), "vocoder.upsample_kernel_sizes", f"needs {len(rates)} values, one for each rate"
    whole = all(kernel >= rate for rate, kernel in zip(rates, kernels, strict=False))
    yield whole, "vocoder.upsample_kernel_sizes", "a kernel is smaller than its rate, so samples would be left out"
    narrowest = vocoder.initial_channels // 2 ** len(rates)
    yield narrowest >= 1, "vocoder.initial_channels", "halves to nothing over the upsampling layers"
    for kernel in vocoder.resblock_kernel_sizes:
        even = all((kernel - 1) * dilation % 2 == 0 for dilation in vocoder.resblock_dilations)
        yield even, "vocoder.resblock_kernel_sizes", f"{kernel} is even, so its layers would shift the sound"
    frames, samples = vocoder.segment_frames, vocoder.segment_frames * hop
    yield frames <= p.clip_frames, "vocoder.segment_frames", "is longer than the clip"
    window = max(p.mel.n_fft, LARGEST_STFT if vocoder.stft_weight else 0)
    yield window < 2 * samples, "vocoder.segment_frames", f"are {samples} samples, too few for spectra of {window}"
    longest = max(vocoder.periods)
    yield longest <= samples, "vocoder.periods", f"{longest} is longer than the segment's {samples} samples"
    decoded = vocoder.train_on == "real" or VOCODED_VAE_FACTOR % p.vae.downsampling == 0
    yield decoded, "vocoder.train_on", f"needs a VAE of at most {VOCODED_VAE_FACTOR} frames a position"


def _ldm(p: Params) -> Iterator[Check]:
    ldm, widths = p.ldm, p.ldm.block_out_channels
    factor, blocks = 2 ** (len(widths) - 1), len(widths)
    for size, axis in zip(p.latent_shape[1:], ("frames", "mel bins"), strict=True):
        what = f"{blocks} blocks divide by {factor}, which does not divide the latent's {size} {axis}"
        yield size >= factor and size % factor == 0, "ldm.block_out_channels", what
    yield len(ldm.attention) == blocks, "ldm.attention", f"needs {blocks} values, one for each block"
    yield ldm.heads is None or len(ldm.heads) == blocks, "ldm.heads", f"needs {blocks} values, one for each block"
    for width, attends, heads in zip(widths, ldm.attention, ldm.attention_heads, strict=False):
        key, unit = ("ldm.head_dim", ldm.head_dim) if ldm.heads is None else ("ldm.heads", heads)
        yield not attends or width % unit == 0, key, f"does not divide the {width} channels"
    yield from _groups("ldm.norm_num_groups", ldm.norm_num_groups, widths)
    yield not ldm.lora_rank or ldm.init_from is not None, "ldm.lora_rank", "needs a model to update, ldm.init_from"
    some = p.latents.downbeats_per_track > 0 or ldm.mixup in ("none", "simple")
    yield some, "latents.downbeats_per_track", f"0 leaves nothing to mix by ldm.mixup {ldm.mixup}"
    low, high = ldm.beta_start, ldm.beta_end
    yield low < high < 1, "ldm.beta_end", "must lie between beta_start and 1"
    yield low >= LEAST_BETA, "ldm.beta_start", f"{low:g} is below {LEAST_BETA:g}"
    lost = ldm.diffusion_steps * (low + math.sqrt(low * high) + high) / 3  # betas' roots are evenly spaced
    yield lost < MOST_NOISE, "ldm.beta_end", f"{high:g} leaves no signal after {ldm.diffusion_steps} steps"


def _sampling(p: Params) -> Iterator[Check]:
    total, few = p.ldm.diffusion_steps, p.few_steps
    what = f"{few.steps} of {few.substeps} substeps are no fewer than ldm.diffusion_steps {total}"
    yield few.steps * few.substeps < total, "few_steps.steps", what
    steps = p.generate.steps
    yield steps <= total, "generate.steps", f"{steps} is more than ldm.diffusion_steps {total}"
    for name, interval in (("few_steps", few.guidance_interval), ("generate", p.generate.guidance_interval)):
        yield interval[0] < interval[1], f"{name}.guidance_interval", f"{interval} is not two shares, the lower first"


def _trainings(p: Params) -> Iterator[Check]:
    for name in TRAININGS:
        train = getattr(p, name).train
        yield train.batch_size % train.accumulation == 0, f"{name}.train.accumulation", "does not divide batch_size"
        yield train.warmup_steps <= train.steps, f"{name}.train.warmup_steps", "is longer than the training"
