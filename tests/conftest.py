"""Fixtures that several rooms share."""

import csv
import os
import sys
from pathlib import Path

import pytest

# before torch is imported, and for every command a test starts: the files run side by side, one to a core
os.environ.setdefault("OMP_NUM_THREADS", "1")

import stages  # noqa: F401  (lets torchaudio be imported beside a CPU-only torch, whichever test comes first)

DEMO = Path(__file__).parents[1] / "data" / "demo"
CLIP_SECONDS = 1.28  # eight times as quick as the clips of preset tiny
CONDITION_GAIN = 10.0  # random weights barely heed the CLAP vector; with this a prompt is heard


def pytest_configure(config):
    """Before the test files run side by side, as `prep captions` does before its workers start."""
    if not hasattr(config, "workerinput"):
        from stages.audio.descriptors import compile_librosa

        compile_librosa()


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run a command in a folder, in this process: typed(folder, *words) -> (exit code, stdout, stderr)."""
    from musicldm_cli import app

    def run(folder, *words):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["musicldm", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            app.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def toy_models(tmp_path_factory) -> Path:
    """A `models` folder with sealed `clap`, `vae`, `vocoder` and `ldm`: preset tiny, clips of CLIP_SECONDS, seeded
    random weights."""
    import torch

    from stages import params as parameters
    from stages.clap.model import build as build_clap
    from stages.clap.tokenizer import train_tokenizer
    from stages.ldm.folder import save_pipeline
    from stages.ldm.model import LatentDiffusion, build_unet
    from stages.store import model_folder
    from stages.vae.model import build as build_vae
    from stages.vocoder.model import build as build_vocoder

    models = tmp_path_factory.mktemp("toy") / "models"
    raw = {"preset": "tiny", "audio": {"clip_seconds": CLIP_SECONDS}, "clap": {"window_seconds": CLIP_SECONDS}}
    params = parameters.resolve(raw)
    card = {"preset": "tiny", "params": params.model_dump(mode="json"), "params_digest": params.digest()}
    torch.manual_seed(0)
    with (DEMO / "attribution.csv").open(encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    text = params.clap.text
    with model_folder(models / "clap", "clap", card) as folder:
        build_clap(params).save_pretrained(folder / "text_encoder")
        train_tokenizer(captions, text.vocab_size, text.max_tokens).save_pretrained(folder / "tokenizer")
    with model_folder(models / "vae", "vae", card) as folder:
        vae = build_vae(params)
        vae.register_to_config(scaling_factor=0.8)
        vae.save_pretrained(folder / "vae")
    with model_folder(models / "vocoder", "vocoder", card) as folder:
        vocoder = build_vocoder(params)
        for weight in (p for p in vocoder.parameters() if p.ndim == 3):
            torch.nn.init.kaiming_normal_(weight)  # transformers' own start is silent to 16 bits
        vocoder.save_pretrained(folder / "vocoder")
    ldm = LatentDiffusion(params, build_unet(params))
    with torch.no_grad():
        ldm.unet.class_embedding.weight.mul_(CONDITION_GAIN)
        ldm.null.copy_(torch.nn.functional.normalize(torch.randn_like(ldm.null), dim=0))
    save_pipeline(ldm, models / "clap", models / "vae", models / "vocoder", models / "ldm", card | {"steps": 0})
    return models
