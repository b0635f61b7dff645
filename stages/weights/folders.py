"""Networks that were read from elsewhere, written as sealed model folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import nn
from transformers import ClapModel

from stages import pretrained
from stages.clap.model import TEXT_ENCODER, TOKENIZER, Clap
from stages.errors import ModelError
from stages.ldm.folder import save_pipeline
from stages.ldm.model import LatentDiffusion
from stages.params import Params
from stages.store import model_folder, scratch_folder
from stages.training.card import about
from stages.vae.model import FOLDER as VAE_FOLDER
from stages.vocoder.model import FOLDER as VOCODER_FOLDER
from stages.vocoder.model import Network


@dataclass(frozen=True)
class Parts:
    """All networks of one pipeline, and its diffusers scheduler's config where that is not our own."""

    ldm: LatentDiffusion
    clap: Clap
    vae: AutoencoderKL
    vocoder: Network
    scheduler: dict[str, Any] | None = None


def save_pipeline_of(parts: Parts, out: Path, card: dict[str, Any]) -> None:
    """Write a whole `ldm` folder."""
    params = parts.ldm.params
    with scratch_folder(out) as folder:
        save_clap(parts.clap, folder / "clap", card)
        save_vae(parts.vae, params, folder / "vae", card)
        save_vocoder(parts.vocoder, params, folder / "vocoder", card)
        save_pipeline(
            parts.ldm, folder / "clap", folder / "vae", folder / "vocoder", out, card, scheduling=parts.scheduler
        )


def save_clap(clap: Clap, out: Path, card: dict[str, Any]) -> None:
    with model_folder(out, "clap", about(clap.params) | card) as folder:
        clap.model.save_pretrained(folder / TEXT_ENCODER)
        clap.tokenizer.save_pretrained(folder / TOKENIZER)


def save_vae(vae: AutoencoderKL, params: Params, out: Path, card: dict[str, Any]) -> None:
    with model_folder(out, "vae", about(params) | card) as folder:
        vae.save_pretrained(folder / VAE_FOLDER)


def save_vocoder(vocoder: Network, params: Params, out: Path, card: dict[str, Any]) -> None:
    with model_folder(out, "vocoder", about(params) | card) as folder:
        vocoder.save_pretrained(folder / VOCODER_FOLDER)


def load_tokenizer(source: str, params: Params) -> Any:
    """A tokenizer from a folder or hub id, for clap.text.max_tokens. Raises ModelError."""
    remedy = "Give a folder with vocab.json and merges.txt of RoBERTa: --tokenizer DIR"
    tokenizer = pretrained.load_tokenizer(pretrained.fetch(source, pretrained.TOKENIZER_FILES, remedy), remedy)
    if len(tokenizer) > params.clap.text.vocab_size:
        raise ModelError(
            f"The tokenizer {source} has {len(tokenizer)} tokens, clap.text.vocab_size is "
            f"{params.clap.text.vocab_size}.", "Give the tokenizer that this CLAP was trained with: --tokenizer DIR"
        )  # fmt: skip
    tokenizer.model_max_length = params.clap.text.max_tokens
    return tokenizer


def set_epsilon(model: ClapModel, epsilon: float) -> None:
    """Set RoBERTa's layer norms, in the network and its config."""
    model.config.text_config.layer_norm_eps = epsilon
    for module in model.text_model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon
