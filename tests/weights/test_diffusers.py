"""diffusers folders in and out: the same sound there and here, and nothing passed over."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers.pipelines.deprecated.musicldm.pipeline_musicldm import MusicLDMPipeline
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Generator

from stages.audio.level import without_offset
from stages.errors import ModelError
from stages.generate.pipeline import Pipeline
from stages.generate.prompts import Prompt
from stages.generate.samplers import normal
from stages.generate.settings import Settings
from stages.store import model_card, verify_model
from stages.weights import hub
from stages.weights.describe import describe
from stages.weights.diffusers_folder import export_diffusers, import_diffusers, licence_of
from stages.weights.half import export_half
from stages.weights.hub import resolve_model

QUICK = Settings("ddim", 4, 0.0, 1)
WANTED = Prompt("a", "dramatic trailer", 1, None, 2.0, 1.28)


@pytest.fixture(scope="module")
def exported(toy_models, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "diffusers"
    export_diffusers(toy_models / "ldm", out)
    return out


def test_an_export_loads_in_diffusers_unchanged_and_sounds_the_same(toy_models, exported):
    """As its README says: the learned null condition is handed over as the negative prompt's embedding."""
    ours = Pipeline.load(toy_models / "ldm", "cpu")
    peer = MusicLDMPipeline.from_pretrained(exported)
    peer.set_progress_bar_config(disable=True)
    tokens = peer.tokenizer(WANTED.prompt, return_tensors="pt")
    noise = normal(ours.params.latent_shape, [Generator().manual_seed(1)])
    with torch.no_grad():
        theirs = peer(
            prompt_embeds=peer.text_encoder.get_text_features(**tokens).pooler_output,
            negative_prompt_embeds=load_file(exported / "null_condition.safetensors")["null"][None],
            latents=noise, num_inference_steps=4, guidance_scale=2.0, audio_length_in_s=1.28, output_type="pt",
        ).audios  # fmt: skip
    mine = ours.waveforms([WANTED], [0], QUICK)
    theirs = without_offset(theirs, 16_000)
    scale = theirs.abs().max()
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max() < 1e-3 * scale
    other = Prompt("b", "quiet flute", 1, None, 2.0, 1.28)
    assert (ours.waveforms([other], [0], QUICK) - theirs).abs().max() > 2e-2 * scale
    readme = (exported / "README.md").read_text()
    assert "negative_prompt_embeds" in readme
    assert model_card(toy_models / "ldm")["params_digest"] in readme


def test_a_diffusers_folder_comes_in_as_the_same_model(toy_models, exported, tmp_path):
    params = import_diffusers(exported, tmp_path / "ldm", {"licence": None})
    ours, again = Pipeline.load(toy_models / "ldm", "cpu"), Pipeline.load(tmp_path / "ldm", "cpu")
    assert params.audio.clip_samples == ours.params.audio.clip_samples
    for section in ("clap", "ldm", "vae", "vocoder"):
        mine, found = (getattr(p, section).model_dump() for p in (ours.params, params))
        sizes = [key for key in mine if not key.startswith(("train", "mixup", "heads", "text_", "init"))]
        assert {key: mine[key] for key in sizes if key in UNET_AND_CO} == {
            key: found[key] for key in sizes if key in UNET_AND_CO
        }
    for (name, wanted), found in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(wanted, found), name
    assert torch.equal(ours.waveforms([WANTED], [0], QUICK), again.waveforms([WANTED], [0], QUICK))


UNET_AND_CO = {
    "block_out_channels", "layers_per_block", "attention", "latent_channels", "initial_channels", "upsample_rates",
    "projection_dim", "n_mels", "beta_start", "beta_end", "norm_num_groups", "sample_rate", "f_max",
}  # fmt: skip


@pytest.fixture
def folder(exported, tmp_path):
    """A copy as a hub has it: without our null condition, heads as one number, and its own scheduler."""
    copy = tmp_path / "hub"
    shutil.copytree(exported, copy)
    (copy / "null_condition.safetensors").unlink()
    change(copy / "unet/config.json", attention_head_dim=4)
    change(copy / "scheduler/scheduler_config.json", set_alpha_to_one=True, steps_offset=0)
    return copy


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_heads_scheduler_and_null_condition_are_the_folders_own(folder, tmp_path):
    params = import_diffusers(folder, tmp_path / "ldm", {})
    assert params.ldm.heads == [4, 4]
    pipeline = Pipeline.load(tmp_path / "ldm", "cpu")
    assert pipeline.ldm.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.heads == 4
    assert pipeline.scheduler["set_alpha_to_one"] is True
    assert pipeline.scheduler["steps_offset"] == 0
    assert torch.allclose(pipeline.ldm.null, pipeline.embed([""])[0])


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("unet/config.json", {"use_linear_projection": True}, "unet: use_linear_projection is True"),
        ("vocoder/config.json", {"normalize_before": True}, "vocoder: normalize_before is True"),
        ("model_index.json", {"_class_name": "AudioLDMPipeline"}, "holds a AudioLDMPipeline"),
    ],
)
def test_another_architecture_is_refused_key_by_key(folder, tmp_path, file, values, said):
    change(folder / file, **values)
    with pytest.raises(ModelError, match=said):
        import_diffusers(folder, tmp_path / "ldm", {})
    assert not (tmp_path / "ldm").exists()


def test_a_tensor_too_many_or_none_but_a_pickle_is_refused(folder, tmp_path):
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    save_file(load_file(weights) | {"surplus": torch.zeros(2)}, weights)
    with pytest.raises(ModelError, match="surplus 2 has no place"):
        import_diffusers(folder, tmp_path / "ldm", {})
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"has 0 \.safetensors files"):
        import_diffusers(folder, tmp_path / "ldm", {})


def test_a_hub_id_is_imported_once_and_its_licence_told(folder, tmp_path, monkeypatch):
    fetched = []
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\nSome model.\n")
    monkeypatch.setattr(hub, "fetch", lambda name: fetched.append(name) or folder)
    kept, said = resolve_model("ucsd-reach/musicldm", tmp_path / "models")
    assert kept == tmp_path / "models/ucsd-reach--musicldm"
    assert "has the licence cc-by-nc-sa-4.0" in said
    assert resolve_model("ucsd-reach/musicldm", tmp_path / "models") == (kept, None)
    assert fetched == ["ucsd-reach/musicldm"]
    about = describe(kept)
    assert about["licence"] == "cc-by-nc-sa-4.0"
    assert "https://huggingface.co/ucsd-reach/musicldm" in about["training_data"]


@pytest.mark.parametrize("stated", [None, "CC-BY-SA-4.0: the music's, and 'yours'"])
def test_a_licence_survives_the_way_out_and_in_and_none_is_made_up(toy_models, tmp_path, typed, stated):
    known = {} if stated is None else {"licence": stated}
    export_half(toy_models / "ldm", tmp_path / "half", known)
    export_diffusers(tmp_path / "half", tmp_path / "out")
    code, said, _ = typed(tmp_path, "model", "import", "diffusers", tmp_path / "out", "--out", tmp_path / "ldm")
    wanted = stated or "not known: ask its authors"
    assert code == 0
    assert f"Its licence: {wanted}." in " ".join(said.split())
    assert describe(tmp_path / "ldm")["licence"] == wanted


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: other\n---\n", None),  # as the hub has it for what is not in its list
        ("---\nlicense: other\nlicense_name: open-rail-music\n---\n", "open-rail-music"),
        ("---\nlicense: [mit, cc0-1.0]\n---\n", "mit, cc0-1.0"),
        ("---\ntags: []\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        (None, None),
    ],
)
def test_what_a_hub_card_states(tmp_path, readme, licence):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert licence_of(tmp_path) == licence


def test_a_broken_head_of_a_hub_card_is_told(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ModelError, match=r"The head of .*README\.md is no YAML"):
        licence_of(tmp_path)


def test_what_is_no_model_is_told_in_one_sentence(folder, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="is a diffusers folder that was not imported yet") as caught:
        resolve_model(str(folder), tmp_path)
    assert caught.value.remedy == f"musicldm model import diffusers {folder}"
    with pytest.raises(ModelError, match="is not a model folder"):
        resolve_model(str(tmp_path / "absent"), tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"^nobody/nothing is no folder here and cannot be had from the hub: [^.]+\.$"):
        resolve_model("nobody/nothing", tmp_path)
    assert list(tmp_path.glob("nobody*")) == []


def test_description_counts_every_network(toy_models):
    about = describe(toy_models / "ldm")
    pipeline = Pipeline.load(toy_models / "ldm", "cpu")
    counted = {"unet": pipeline.ldm.unet, "vae": pipeline.vae.network, "vocoder": pipeline.vocoder.network}
    for name, network in counted.items():
        assert about["networks"][name]["parameters"] == sum(t.numel() for t in network.state_dict().values())
        assert about["networks"][name]["format"] == "F32"
    assert about["networks"]["null_condition"]["parameters"] == 64
    assert about["latent_shape"] == list(pipeline.params.latent_shape)
    assert about["training_data"] == "unknown"


def test_commands(main_file, tokenizer, tmp_path):
    """An import as a person types it; errors with their exit codes."""
    overrides = [part for key, value in SIZES.items() for part in ("-S", f"{key}={value}")]
    import_ = ["model", "import", "pipeline", str(main_file), "--like", "tiny", "--tokenizer", tokenizer, *overrides]
    made = run(tmp_path, *import_)
    assert made["paths"] == ["work/models/musicldm-ckpt"]
    assert verify_model(tmp_path / made["paths"][0]) == []
    assert describe(tmp_path / made["paths"][0])["licence"] == "not known: ask its authors"
    again = run(tmp_path, *import_, code=4)
    assert "is there already" in again["error"]["message"]


SIZES = {
    "audio.clip_seconds": 1.28, "clap.window_seconds": 1.28, "clap.audio.depths": "[2,2,1,1]",
    "vae.block_out_channels": "[16,32,32]", "vae.mid_attention": "true", "vae.layers_per_block": 2,
    "ldm.block_out_channels": "[16,32,48]", "ldm.attention": "[false,true,true]", "ldm.layers_per_block": 2,
    "ldm.head_dim": 8,
}  # fmt: skip


def run(folder, *arguments, code=0):
    command = [sys.executable, "-m", "musicldm_cli", "--json", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)
