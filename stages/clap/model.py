"""CLAP: text and sound in one space of L2-normalised vectors (paper, section 3.1 and appendix B).

waveform (B, L) -> windows (B * n, W) -> dB mel (B * n, T, F) -> HTSAT -> (B * n, D) -> mean -> (B, D)
captions [B]    -> tokens (B, <= max_tokens)                  -> RoBERTa                     -> (B, D)
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchaudio.functional as AF
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ClapConfig, ClapModel
from transformers.utils.logging import disable_progress_bar

from stages.audio.mel import clap_mel
from stages.clap.text_tower import find_files
from stages.errors import DataError, ModelError
from stages.params import Params
from stages.pretrained import files_digest, load_tokenizer, model_config, must_fit, network_of, read_weights
from stages.store import model_card, model_digest, model_params
from stages.tensors import misfit

TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"
REMEDY = (
    "Give a folder of `musicldm train clap`, a transformers CLAP folder, or a hub id, and set the clap section to its "
    "sizes."
)
FRONT_END: dict[str, bool | set[str]] = {
    "sample_rate": True, "n_fft": True, "hop_length": True, "n_mels": True, "f_min": True, "f_max": True,
    "window_seconds": True, "text": {"max_tokens"},
}  # fmt: skip
ROBERTA_POSITIONS = 514  # as in every public RoBERTa, so that public weights fit
ROBERTA_PAD = 1

disable_progress_bar()  # of reading and writing weights; ours goes through stages.progress


def build(params: Params, pad_token_id: int = ROBERTA_PAD) -> ClapModel:
    """A transformers `ClapModel` with random weights, of the sizes in `params.clap`, for a tokenizer's padding."""
    clap, audio, text = params.clap, params.clap.audio, params.clap.text
    config = ClapConfig(
        projection_dim=clap.projection_dim,
        audio_config={
            "window_size": audio.window_size,
            "num_mel_bins": clap.n_mels,
            "spec_size": audio.spec_size,
            "hidden_size": audio.embed_dim * 2 ** (len(audio.depths) - 1),  # the width doubles at every stage
            "patch_embeds_hidden_size": audio.embed_dim,
            "depths": list(audio.depths),
            "num_attention_heads": list(audio.heads),
            "enable_fusion": False,
        },
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": ROBERTA_POSITIONS,
            "pad_token_id": pad_token_id,
        },
    )
    return ClapModel(config)


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class WholeBatchNorm(nn.BatchNorm2d):
    """HTSAT's first layer, with the statistics of all processes' clips together: torch's SyncBatchNorm needs a GPU.

    Its input, mels, takes no gradient, so neither do the statistics. `whole` are those of a batch that comes in parts.
    """

    whole: tuple[Tensor, Tensor] | None = None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "WholeBatchNorm":
        """The same layer, its tensors shared."""
        whole = cls(norm.num_features, norm.eps, norm.momentum)
        whole._parameters, whole._buffers = norm._parameters, norm._buffers
        return whole.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T, 1), of equal B on all processes."""
        if not self.training or (self.whole is None and world_size() == 1):
            return super().forward(x)
        mean, variance = self.whole or self.measure([x])
        return F.batch_norm(x, mean.to(x), variance.to(x), self.weight, self.bias, False, 0.0, self.eps)

    def measure(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and variance (F,) of all processes' parts, each (B, F, T, 1); the running ones move towards them."""
        exact = [part.detach().double() for part in parts]
        moments = sum(torch.stack([part.mean((0, 2, 3)), part.square().mean((0, 2, 3))]) for part in exact) / len(parts)
        assert isinstance(moments, Tensor)  # noqa: S101  (there are parts)
        if world_size() > 1:
            dist.all_reduce(moments)
        mean, square = moments / world_size()
        variance = square - mean.square()
        count = sum(part.numel() // part.shape[1] for part in parts) * world_size()
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
        return mean, variance


class Clap(nn.Module):
    """A `ClapModel` with its tokenizer and its own mel front-end.

    `forward` is the training pass with gradients; `embed_text` and `embed_audio` are for everybody else.
    """

    def __init__(self, params: Params, model: ClapModel, tokenizer: Any) -> None:
        super().__init__()
        self.params, self.model, self.tokenizer = params, model, tokenizer
        self.mel = clap_mel(params)
        encoder = model.audio_model.audio_encoder
        encoder.batch_norm = WholeBatchNorm.of(encoder.batch_norm)

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale_a.device

    def forward(self, windows: Tensor, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Windows (B, W) at clap.sample_rate and `tokenize`d captions -> audio (B, D), text (B, D), and the
        two learned logit scales, audio's and text's, of which CLAP keeps the logarithms."""
        audio, text = self._audio(windows), self._text(tokens)
        return audio, text, self.model.logit_scale_a.exp(), self.model.logit_scale_t.exp()

    def tokenize(self, captions: list[str], padding: str = "longest") -> dict[str, Tensor]:
        """Token ids and attention mask (B, N), cut at clap.text.max_tokens."""
        limit = self.params.clap.text.max_tokens
        tokens = self.tokenizer(captions, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        return {key: tokens[key] for key in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def embed_text(self, captions: list[str]) -> Tensor:
        """Captions [B] -> (B, D) float32, L2-normalised.

        Padded to the full length, so that a caption's embedding does not depend on its neighbours' lengths.
        """
        tokens = self.tokenize(captions, "max_length")
        return self._text({key: value.to(self.device) for key, value in tokens.items()})

    @torch.no_grad()
    def embed_audio(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Waveform (B, L) float32 at `sample_rate` -> (B, D) float32, L2-normalised.

        The mean over the fixed windows of `windows`, normalised again: equal input gives equal bits, where
        a random crop, as in CLAP's own feature extractor, would not. Raises DataError for no samples.
        """
        audio = windows(self.resample(waveform.to(self.device), sample_rate), self.params.clap.window_samples)
        embedded = self._audio(audio.flatten(0, 1)).unflatten(0, audio.shape[:2])
        return F.normalize(embedded.mean(1), dim=-1)

    def resample(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """(B, L) at `sample_rate` -> (B, L') at clap.sample_rate, on the waveform's device."""
        return AF.resample(waveform.float(), sample_rate, self.params.clap.sample_rate)

    @torch.no_grad()
    def measure(self, parts: list[Tensor]) -> None:
        """Normalise from now on, while training, by the statistics of these windows, parts (B, W) of one batch."""
        norm = self.model.audio_model.audio_encoder.batch_norm
        norm.whole = norm.measure([self._mel(part).transpose(1, 2)[..., None] for part in parts])

    def _mel(self, audio: Tensor) -> Tensor:
        """(B, W) -> (B, T, F), of as many frames as fit into HTSAT's square."""
        encoder = self.model.audio_model.audio_encoder
        return self.mel(audio)[:, : encoder.spec_size * encoder.freq_ratio]

    def _audio(self, audio: Tensor) -> Tensor:
        return self.model.get_audio_features(self._mel(audio)[:, None]).pooler_output.float()

    def _text(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.model.get_text_features(**tokens).pooler_output.float()


def windows(waveform: Tensor, size: int) -> Tensor:
    """Waveform (B, L) -> (B, n, size): evenly spaced windows that cover it, the first at 0, the last flush
    with the end; n is the smallest number that leaves no gap.

    A shorter waveform is repeated as often as it fits whole and then padded with zeros (CLAP's `repeatpad`).
    """
    length = waveform.shape[-1]
    if length == 0:
        raise DataError("A clip without samples has no embedding.", "Check the audio: musicldm prep verify")
    if length <= size:
        repeated = waveform.repeat(1, size // length)
        return F.pad(repeated, (0, size - repeated.shape[-1]))[:, None]
    count = math.ceil(length / size)
    starts = [round(index * (length - size) / (count - 1)) for index in range(count)]
    return torch.stack([waveform[:, start : start + size] for start in starts], dim=1)


def load_clap(folder: Path) -> Clap:
    """The CLAP of a trained `clap` or `ldm` folder, in eval mode. Raises ModelError."""
    params = model_params(folder)
    return Clap(params, *_read(params, folder / TEXT_ENCODER, folder / TOKENIZER)).eval()


def clap_digest(folder: Path) -> str:
    """Hex digits that name the CLAP of a `clap` or `ldm` folder by its tensors, configs, tokenizer and mel front-end:
    one name wherever a copy of it lies. Raises ModelError."""
    if not any(name.startswith(f"{TEXT_ENCODER}/") for name in model_card(folder)["files"]):
        raise ModelError(f"{folder} holds no CLAP.", "Give a `clap` or `ldm` folder.")
    front = model_params(folder).clap.model_dump_json(include=FRONT_END)
    return hashlib.sha256(f"{model_digest(folder, (TEXT_ENCODER, TOKENIZER))} {front}".encode()).hexdigest()[:12]


def load_pretrained(params: Params, source: str) -> tuple[Clap, str]:
    """The CLAP to start from, and its digest: one of our folders, a transformers CLAP folder, or a hub id.

    Raises ModelError when it cannot be had or its sizes are not those of `params.clap`.
    """
    try:
        folder = find_files(source, "clap.init_from", "model*.safetensors*")
        own = (folder / TEXT_ENCODER, folder / TOKENIZER)
        network, tokenizer = own if own[0].is_dir() else (folder, folder)
        return Clap(params, *_read(params, network, tokenizer)), files_digest(network, tokenizer)
    except ModelError as error:
        raise ModelError(f"No CLAP model can be read from {source}: {error.message}", error.remedy) from error


def _read(params: Params, model_folder: Path, tokenizer_folder: Path) -> tuple[ClapModel, Any]:
    config = model_config(model_folder / "config.json", REMEDY)
    tensors, _ = read_weights(model_folder, REMEDY)
    with torch.device("meta"):
        wanted = build(params)
    with must_fit(f"{model_folder} is no CLAP of the sizes in params", REMEDY):
        theirs = ClapConfig(**config)
        if _depths(theirs) != _depths(wanted.config):
            raise ValueError(f"it has {_depths(theirs)} layers, params ask for {_depths(wanted.config)}")
        with torch.device("meta"):
            sizes = ClapModel(theirs).state_dict()
        wrong = [problem for name, mine in wanted.state_dict().items() if (problem := misfit(name, sizes[name], mine))]
        if wrong:
            raise ValueError(f"{len(wrong)} tensors differ; {wrong[0]} by params")
        model, lost = network_of(ClapModel, theirs, tensors)
    if lost:
        raise ModelError(f"{model_folder} is no whole CLAP: {len(lost)} tensors, first {lost[0]}.", REMEDY)
    return model, load_tokenizer(tokenizer_folder, REMEDY, params.clap.text.vocab_size)


def _depths(config: ClapConfig) -> list[int]:
    return [config.text_config.num_hidden_layers, *config.audio_config.depths]
