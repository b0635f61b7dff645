"""diffusers' MusicLDMPipeline folders into ours and back: the same networks, one config of sizes instead of seven."""

import math
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from transformers import ClapConfig, ClapModel, SpeechT5HifiGanConfig
from yaml import YAMLError

from stages import params as parameters
from stages.clap.model import TEXT_ENCODER, TOKENIZER, Clap
from stages.clap.model import build as build_clap
from stages.errors import ModelError, ParamsError
from stages.ldm.folder import COMPONENTS
from stages.ldm.lora import FEW_STEPS
from stages.ldm.model import UNET, LatentDiffusion, build_unet, read_null
from stages.params import Params
from stages.pretrained import model_config, must_fit, read_weights
from stages.store import CARD, model_card, model_params
from stages.vae.model import build as build_vae
from stages.vae.model import scaling_factor
from stages.vocoder.model import build_hifigan
from stages.weights.folders import Parts, load_tokenizer, save_pipeline_of, set_epsilon
from stages.weights.ledger import Ledger

INDEX = "model_index.json"
# Keys of configs that do not change what is computed here, and of transformers' long ones those that do.
UNET_FREE = {"sample_size", "attention_head_dim"}  # the heads are in params, an integer there stands for all blocks
VAE_FREE = {"sample_size", "scaling_factor", "force_upcast"}
VOCODER_KEYS = ("resblock_dilation_sizes", "leaky_relu_slope", "normalize_before")
AUDIO_KEYS = (
    "hidden_size", "patch_size", "patch_stride", "patch_embed_input_channels", "flatten_patch_embeds",
    "enable_patch_layer_norm", "enable_fusion", "qkv_bias", "mlp_ratio", "hidden_act", "projection_hidden_act",
    "num_mel_bins",
)  # fmt: skip
TEXT_KEYS = ("hidden_act", "projection_hidden_act", "max_position_embeddings", "type_vocab_size")
REMEDY = "Give a whole folder of diffusers' MusicLDMPipeline with .safetensors files."
NAMELESS = ("other", "unknown")  # what the hub has for a licence that it does not know, and which need not be stated
README = """---
{head}
---
A text-to-music model, exported by musicldm {version} from preset `{preset}` (digest {digest}).
Training data: {data}.

Guidance leads away from a null condition. This model learned one (`null_condition.safetensors`), for which
diffusers' `MusicLDMPipeline` has no place: left alone it takes the embedding of the empty prompt. To sound as with
musicldm, hand it over:

```python
from diffusers import MusicLDMPipeline
from safetensors.torch import load_file

pipe = MusicLDMPipeline.from_pretrained(".")
null = load_file("null_condition.safetensors")["null"][None]
tokens = pipe.tokenizer("dramatic trailer", return_tensors="pt")
prompt = pipe.text_encoder.get_text_features(**tokens).pooler_output
audio = pipe(prompt_embeds=prompt, negative_prompt_embeds=null, audio_length_in_s={seconds}).audios[0]
```
"""


def import_diffusers(
    source: Path, out: Path, about: dict[str, Any], remark: Callable[[str], object] = lambda _: None
) -> Params:
    """Read a MusicLDMPipeline folder strictly and write it as a sealed `ldm` folder; returns its parameters.

    Its scheduler's config is kept as it is, and the null condition is the empty prompt's embedding, as in diffusers,
    unless the folder is an export of ours. `remark` gets a sentence for each network that there are only weights of
    half precision of. Raises ModelError.
    """
    _check_index(source)
    configs = _configs(source)
    params = params_of(configs, source)
    ldm, vae, vocoder = LatentDiffusion(params, build_unet(params)), build_vae(params), build_hifigan(params)
    model = _build_clap(params, configs[TEXT_ENCODER])
    for name, network in ((UNET, ldm.unet), ("vae", vae), ("vocoder", vocoder), (TEXT_ENCODER, model)):
        variant = _fill(network, source / name)
        if variant is not None:
            remark(f"{source / name} has weights of the variant {variant} only; they were taken.")
    vae.register_to_config(scaling_factor=scaling_factor(configs["vae"], source / "vae/config.json", REMEDY))
    clap = Clap(params, model.eval(), load_tokenizer(str(source / TOKENIZER), params))
    null = source / "null_condition.safetensors"
    with torch.no_grad():
        ldm.null.copy_(read_null(null, ldm.null, REMEDY) if null.exists() else clap.embed_text([""])[0])
    save_pipeline_of(Parts(ldm, clap, vae.eval(), vocoder.eval(), configs["scheduler"]), out, about)
    return params


def _check_index(source: Path) -> None:
    """Raises ModelError for another pipeline than MusicLDM's, and for parts of other classes than its own."""
    index = model_config(source / INDEX, REMEDY)
    if index.get("_class_name") != "MusicLDMPipeline":
        raise ModelError(
            f"{source} holds a {index.get('_class_name')!s:.100}, not a MusicLDMPipeline.",
            "AudioLDM's has no CLAP audio tower; import its public .ckpt: musicldm model import pipeline",
        )
    for name, (library, _) in COMPONENTS.items():
        found = index.get(name, [library])
        if found is not None and (not isinstance(found, list) or found[:1] != [library]):
            raise ModelError(
                f"{source / INDEX} asks for code that is not {library}'s: {name} is {found!r:.100}; "
                "such code is not run here.",
                REMEDY,
            )


def _configs(source: Path) -> dict[str, dict[str, Any]]:
    """The configs that decide what the networks compute, by folder. Raises ModelError."""
    files = dict.fromkeys((UNET, "vae", "vocoder", TEXT_ENCODER), "config")
    files |= {"feature_extractor": "preprocessor_config", "scheduler": "scheduler_config"}
    classes = {UNET: "UNet2DConditionModel", "vae": "AutoencoderKL"}
    return {
        name: model_config(source / name / f"{file}.json", REMEDY, classes.get(name)) for name, file in files.items()
    }


def export_diffusers(model: Path, out: Path) -> None:
    """Copy a pipeline folder for diffusers, with a README that says how to use its null condition.

    Our folders have diffusers' layout already; what is added is for the people who get it. Raises ModelError.
    """
    card = model_card(model, "ldm")
    params = model_params(model)
    if params.vocoder.architecture != "hifigan":
        raise ModelError(
            f"diffusers' MusicLDMPipeline has a HiFi-GAN at its end; {model} has another vocoder.",
            "Train one with -S vocoder.architecture=hifigan, then this model again with it.",
        )
    shutil.copytree(model, out, ignore=shutil.ignore_patterns(CARD, FEW_STEPS))  # diffusers does not know the second
    head = ModelCardData(library_name="diffusers", pipeline_tag="text-to-audio", license=card.get("licence"))
    text = README.format(
        head=head.to_yaml(), version=card.get("musicldm"), preset=card.get("preset"), digest=card.get("params_digest"),
        data=card.get("training_data") or f"digest {card.get('data_digest')}",
        seconds=params.audio.clip_seconds,
    )  # fmt: skip
    (out / "README.md").write_text(text, encoding="utf-8")


def licence_of(source: Path) -> str | None:
    """The licence that a hub repository's model card states, by name; None where it states none. Raises ModelError."""
    readme = source / "README.md"
    if not readme.exists():
        return None
    try:
        head = metadata_load(readme) or {}
    except (ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"The head of {readme} is no YAML: {reason}.", "Mend it, or leave that file out.") from error
    stated = head.get("license")
    if stated in NAMELESS:
        stated = head.get("license_name")
    return ", ".join(map(str, stated)) if isinstance(stated, list) else stated and str(stated)


def params_of(configs: dict[str, dict[str, Any]], source: Path) -> Params:
    """Our parameters for the sizes that a pipeline folder's configs name. Raises ModelError."""
    unet, vae, vocoder, clap, mel, schedule = configs.values()
    try:
        rate, hop = vocoder["sampling_rate"], math.prod(vocoder["upsample_rates"])
        frames = unet["sample_size"] if isinstance(unet["sample_size"], int) else unet["sample_size"][0]
        positions = frames * 2 ** (len(vae["block_out_channels"]) - 1)
        raw = {
            "preset": "released",
            "audio": {"sample_rate": rate, "clip_seconds": positions * hop / rate},
            "mel": {"n_mels": vocoder["model_in_dim"], "hop_length": hop},
            "clap": _clap(clap, mel),
            "vae": {
                "block_out_channels": vae["block_out_channels"], "layers_per_block": vae["layers_per_block"],
                "latent_channels": vae["latent_channels"], "norm_num_groups": vae["norm_num_groups"],
                "mid_attention": vae.get("mid_block_add_attention", True),
            },
            "vocoder": {
                "upsample_rates": vocoder["upsample_rates"],
                "upsample_kernel_sizes": vocoder["upsample_kernel_sizes"],
                "initial_channels": vocoder["upsample_initial_channel"],
                "resblock_kernel_sizes": vocoder["resblock_kernel_sizes"],
                "resblock_dilations": vocoder["resblock_dilation_sizes"][0],
            },
            "ldm": _ldm(unet) | {
                "prediction": schedule.get("prediction_type", "epsilon"),
                "diffusion_steps": schedule["num_train_timesteps"],
                "beta_start": schedule["beta_start"], "beta_end": schedule["beta_end"],
            },
        }  # fmt: skip
        params = parameters.resolve(raw, origin=str(source))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"A config in {source} lacks or mistypes a value: {error}.", REMEDY) from error
    except ParamsError as error:
        raise ModelError(error.message, error.remedy) from error
    _same_configs(params, configs, source)
    return params


def _clap(config: dict[str, Any], mel: dict[str, Any]) -> dict[str, Any]:
    audio, text = config["audio_config"], config["text_config"]
    return {
        "sample_rate": mel["sampling_rate"], "n_fft": mel["fft_window_size"], "hop_length": mel["hop_length"],
        "n_mels": mel["feature_size"], "f_min": float(mel["frequency_min"]), "f_max": float(mel["frequency_max"]),
        "window_seconds": float(mel["max_length_s"]), "projection_dim": config["projection_dim"],
        "audio": {
            "embed_dim": audio["patch_embeds_hidden_size"], "depths": audio["depths"],
            "heads": audio["num_attention_heads"], "window_size": audio["window_size"],
            "spec_size": audio["spec_size"],
        },
        "text": {
            "hidden_size": text["hidden_size"], "layers": text["num_hidden_layers"],
            "heads": text["num_attention_heads"], "intermediate_size": text["intermediate_size"],
            "vocab_size": text["vocab_size"],
        },
    }  # fmt: skip


def _ldm(unet: dict[str, Any]) -> dict[str, Any]:
    widths = unet["block_out_channels"]
    named = unet.get("attention_head_dim", 8)  # which is the number of heads
    return {
        "block_out_channels": widths,
        "attention": [kind.startswith("CrossAttn") for kind in unet["down_block_types"]],
        "layers_per_block": unet["layers_per_block"],
        "norm_num_groups": unet.get("norm_num_groups", 32),
        "heads": [named] * len(widths) if isinstance(named, int) else named,
    }


def _fill(network: torch.nn.Module, folder: Path) -> str | None:
    """Every tensor of the folder's .safetensors, and of no other format; returns the variant, if there is no plain
    one."""
    tensors, variant = read_weights(folder, REMEDY)
    ledger = Ledger(tensors, str(folder))
    ledger.fill(network)
    ledger.close(of_no_use="")
    return variant


def _same_configs(params: Params, configs: dict[str, dict[str, Any]], source: Path) -> None:
    """Compare what the folder's configs say with the networks that `params` build, key by key. Raises ModelError."""
    with torch.device("meta"):
        unet, vae, vocoder = (make(params) for make in (build_unet, build_vae, build_hifigan))
        clap = _build_clap(params, configs[TEXT_ENCODER])
    their_unet, their_vae = (
        {name: each.default for name, each in signature(kind.__init__).parameters.items()} | configs[folder]
        for kind, folder in ((UNet2DConditionModel, UNET), (AutoencoderKL, "vae"))
    )
    with must_fit(f"A config in {source} mistypes a value", REMEDY):
        their_clap = ClapConfig(**configs[TEXT_ENCODER])
        their_vocoder = SpeechT5HifiGanConfig(**configs["vocoder"])
    pairs = (
        (UNET, unet.config, their_unet, unet.config.keys() - UNET_FREE),
        ("vae", vae.config, their_vae, vae.config.keys() - VAE_FREE),
        ("vocoder", vars(vocoder.config), vars(their_vocoder), VOCODER_KEYS),
        (f"{TEXT_ENCODER} audio", vars(clap.config.audio_config), vars(their_clap.audio_config), AUDIO_KEYS),
        (f"{TEXT_ENCODER} text", vars(clap.config.text_config), vars(their_clap.text_config), TEXT_KEYS),
    )
    wrong = [
        f"  {name}: {key} is {theirs.get(key)!r}, this program has {ours.get(key)!r}"
        for name, ours, theirs, keys in pairs
        for key in sorted(keys)
        if not key.startswith("_") and _plain(ours.get(key)) != _plain(theirs.get(key))
    ]
    if wrong:
        listed = "\n".join(wrong)
        raise ModelError(f"{source} is not of MusicLDM's architecture:\n{listed}", REMEDY)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _build_clap(params: Params, config: dict[str, Any]) -> ClapModel:
    """CLAP with the folder's padding token and layer norm epsilon, in which LAION's and transformers' differ."""
    text = config["text_config"]
    model = build_clap(params, int(text.get("pad_token_id", 1)))
    set_epsilon(model, float(text.get("layer_norm_eps", 1e-12)))
    return model
