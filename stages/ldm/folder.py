"""A trained text-to-music pipeline as one sealed folder, which diffusers' MusicLDMPipeline reads too."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler
from transformers import ClapFeatureExtractor

from stages.clap.model import TEXT_ENCODER, TOKENIZER
from stages.errors import ModelError
from stages.ldm.model import LatentDiffusion
from stages.params import Clap, Ldm
from stages.store import model_digest, model_folder, read_config
from stages.training.card import about

# The pipeline's parts in the order diffusers lists them, with the class that reads each.
COMPONENTS = {
    "scheduler": ("diffusers", "DDIMScheduler"),
    TEXT_ENCODER: ("transformers", "ClapModel"),
    TOKENIZER: ("transformers", "AutoTokenizer"),  # a saved folder names its own class
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "vocoder": ("transformers", "SpeechT5HifiGan"),
    "feature_extractor": ("transformers", "ClapFeatureExtractor"),
}


def save_pipeline(
    model: LatentDiffusion, clap: Path, vae: Path, vocoder: Path, out: Path, card: dict[str, Any],
    scheduling: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a sealed folder that diffusers' MusicLDMPipeline reads too, with copies of the frozen parts.

    `scheduling` is the config of a scheduler that came with imported weights; else it is `scheduler`'s.
    """
    params = model.params
    made_of = {"clap": model_digest(clap), "vae": model_digest(vae), "vocoder": model_digest(vocoder)}
    with model_folder(out, "ldm", about(params) | card | {"made_of": made_of}) as folder:
        for source, name in ((clap, TEXT_ENCODER), (clap, TOKENIZER), (vae, "vae"), (vocoder, "vocoder")):
            if not (source / name).is_dir():
                raise ModelError(f"{source} has no {name} folder.", f"Train it again: musicldm train {source.name}")
            shutil.copytree(source / name, folder / name)
        model.save(folder)
        chosen = scheduler(params.ldm) if scheduling is None else DDIMScheduler.from_config(scheduling)
        chosen.save_pretrained(folder / "scheduler")
        feature_extractor(params.clap).save_pretrained(folder / "feature_extractor")
        index: dict[str, Any] = {"_class_name": "MusicLDMPipeline", "_diffusers_version": version("diffusers")}
        index |= {name: list(where) for name, where in COMPONENTS.items()}
        index[TOKENIZER] = ["transformers", _tokenizer_class(folder / TOKENIZER)]
        if params.vocoder.architecture == "vocos":  # which diffusers cannot read
            index["vocoder"] = ["stages.vocoder.vocos", "Vocos"]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tokenizer_class(folder: Path) -> str:
    """The class that reads a saved tokenizer: RoBERTa's, or that of a BERT the text tower began as."""
    return str(read_config(folder / "tokenizer_config.json", "Train or import this CLAP again.")["tokenizer_class"])


def scheduler(ldm: Ldm) -> DDIMScheduler:
    """DDIM as the official sampler steps: times 1, 101, ... and the last alpha that of time 0."""
    return DDIMScheduler(
        num_train_timesteps=ldm.diffusion_steps,
        beta_start=ldm.beta_start,
        beta_end=ldm.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=ldm.prediction,
    )


def feature_extractor(clap: Clap) -> ClapFeatureExtractor:
    """CLAP's mel front-end for diffusers' pipeline, which ranks its candidates with it; ours is stages.audio.mel."""
    return ClapFeatureExtractor(
        feature_size=clap.n_mels,
        sampling_rate=clap.sample_rate,
        hop_length=clap.hop_length,
        max_length_s=clap.window_seconds,
        fft_window_size=clap.n_fft,
        frequency_min=clap.f_min,
        frequency_max=clap.f_max,
        truncation="rand_trunc",
        padding="repeatpad",
    )
