"""Whole pipelines of any preset with random weights, to time: what a network computes takes as long untrained."""

import csv
from pathlib import Path

import torch

from stages import params as parameters
from stages.clap.model import Clap
from stages.clap.model import build as build_clap
from stages.clap.tokenizer import train_tokenizer
from stages.ldm.model import LatentDiffusion, build_unet
from stages.vae.model import build as build_vae
from stages.vocoder.model import build as build_vocoder
from stages.weights.folders import Parts, save_pipeline_of

CAPTIONS = Path(__file__).parents[1] / "data" / "demo" / "attribution.csv"
MEL_LEVEL = -5.0  # a usual log-mel; the untrained decoder's bias is moved there, so that the vocoder makes sound


def random_pipeline(size: str, folder: Path) -> Path:
    """Write a sealed pipeline of the preset `size` with seeded random weights, unless it is there."""
    if (folder / "musicldm.json").exists():
        return folder
    params = parameters.preset(size)
    torch.manual_seed(0)
    with CAPTIONS.open(encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    text = params.clap.text
    clap = Clap(params, build_clap(params), train_tokenizer(captions, text.vocab_size, text.max_tokens))
    ldm, vae, vocoder = LatentDiffusion(params, build_unet(params)), build_vae(params), build_vocoder(params)
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(MEL_LEVEL)
        for weight in (w for w in vocoder.parameters() if w.ndim == 3):
            torch.nn.init.kaiming_normal_(weight, nonlinearity="leaky_relu", a=0.1)
        ldm.null.copy_(torch.nn.functional.normalize(torch.randn_like(ldm.null), dim=0))
    save_pipeline_of(Parts(ldm, clap.eval(), vae.eval(), vocoder.eval()), folder, {"steps": 0, "random_weights": True})
    return folder
