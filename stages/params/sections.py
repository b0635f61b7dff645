"""The sections of params.yaml: every key with its type, its bounds and the paper's value as default."""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

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
    precision: Literal["auto", "fp32", "bf16"] = "auto"
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
