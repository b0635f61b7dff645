"""params.yaml: presets, the root file, and every mistake at once."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from stages import params
from stages.errors import ParamsError

ROOT = Path(__file__).parent.parent


def keys(data: dict, prefix: str = "") -> set[str]:
    found = set()
    for key, value in data.items():
        found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


@pytest.mark.parametrize("name", ["paper", "released", "small", "tiny"])
def test_presets_are_possible(name):
    assert params.impossible(params.preset(name)) == []
    assert params.preset(name).preset == name


def test_presets_have_the_published_shapes():
    assert set(params.PRESETS) == {"paper", "released", "small", "tiny"}
    assert params.preset("paper").latent_shape == (16, 128, 16)  # paper, appendix A
    assert params.preset("released").latent_shape == (8, 256, 16)  # the public weights
    assert params.preset("paper").clip_frames == 1024
    assert params.preset("paper").audio.clip_samples == 163_840


@pytest.mark.parametrize("name", ["paper", "released"])
def test_the_published_recipes_hide_nothing(name):
    chosen = params.preset(name)
    assert (chosen.generate.sampler, chosen.generate.steps, chosen.generate.reuse) == ("ddim", 200, 1)
    assert not chosen.captions.measured
    assert chosen.clap.text_init == "FacebookAI/roberta-base"
    assert (chosen.vocoder.train.schedule, chosen.vocoder.train.lr_decay) == ("exponential", 0.999)
    assert chosen.clap.train.betas == [0.99, 0.9]
    assert (chosen.vae.adversarial_start, chosen.vae.adversarial_weight, chosen.vae.kl_weight) == (50_001, 0.5, 1.0)
    assert (chosen.ldm.train.ema_decay, chosen.ldm.train.warmup_steps) == (0.9999, 1000)


def test_root_file_states_every_key():
    written = params.read_yaml((ROOT / "params.yaml").read_text())
    assert keys(written) == keys(params.preset("tiny").model_dump())
    assert params.load(ROOT / "params.yaml").preset == "tiny"


def test_to_yaml_reads_back():
    for name in params.PRESETS:
        original = params.preset(name)
        assert params.resolve(params.read_yaml(params.to_yaml(original))) == original


def test_dvc_reads_the_same_numbers():
    """DVC's loader is YAML 1.2; ours must agree, also on 1e-4, which YAML 1.1 takes for a string."""
    from dvc.utils.serialize import parse_yaml

    text = params.to_yaml(params.preset("paper")) + "\n# x: 1e-4\n"
    assert parse_yaml(text, "params.yaml") == params.read_yaml(text)
    assert parse_yaml("a: 1e-4\nb: on\nc: -2.5E+3", "x") == params.read_yaml("a: 1e-4\nb: on\nc: -2.5E+3")


def test_every_mistake_is_reported_at_once():
    wrong = {
        "preset": "tiny",
        "mel": {"hop_length": 161, "typo": 1},
        "vae": {"train": {"steps": "many"}},
        "sprinkles": 2,
        "ldm": {"attention": [True]},
    }
    with pytest.raises(ParamsError) as caught:
        params.resolve(wrong, ["generate.steps=2000"])
    message = caught.value.message
    for expected in (
        "mel.typo: unknown key",
        "sprinkles: unknown key",
        "vae.train.steps: input should be a valid integer",
        "mel.hop_length: 161 does not divide the clip's 163840 samples",
        "vocoder.upsample_rates: multiply to 160, not to mel.hop_length 161",
        "ldm.attention: needs 2 values",
        "generate.steps: 2000 is more than ldm.diffusion_steps 1000",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("vae.block_out_channels=[16,32,32,32,32,32,32,32]", "vae.block_out_channels"),
        ("vae.norm_num_groups=7", "vae.norm_num_groups"),
        ("ldm.head_dim=33", "ldm.head_dim"),
        ("ldm.beta_end=0.001", "ldm.beta_end"),
        ("audio.clip_seconds=10.24001", "audio.clip_seconds"),
        ("audio.peak=nan", "audio.peak"),
        ("mel.f_max=9000", "mel.f_max"),
        ("vocoder.upsample_kernel_sizes=[15,16,8,4]", "vocoder.upsample_kernel_sizes"),
        ("vocoder.upsample_kernel_sizes=[3,16,8,4,4]", "vocoder.upsample_kernel_sizes"),
        ("vocoder.segment_frames=2000", "vocoder.segment_frames"),
        ("clap.audio.heads=[1,2]", "clap.audio.depths"),
        ("clap.audio.spec_size=100", "clap.audio.spec_size"),
        ("beats.max_bpm=10", "beats.max_bpm"),
        ("latents.downbeats_per_track=0", "latents.downbeats_per_track"),
        ("manifest.test_share=0.95", "manifest.test_share"),
        ("ldm.train.accumulation=3", "ldm.train.accumulation"),
        ("ldm.mixup=shuffle", "ldm.mixup"),
        ("ldm.train.steps=true", "ldm.train.steps"),
    ],
)
def test_impossible_values_name_their_key(override, key):
    with pytest.raises(ParamsError) as caught:
        params.resolve({"preset": "tiny"}, [override])
    assert f"\n  {key}: " in caught.value.message


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "preset: huge", "just words"])
def test_files_that_are_no_params(tmp_path, text):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(ParamsError):
        params.load(file)


def test_missing_file_says_how_to_write_one(tmp_path):
    with pytest.raises(ParamsError) as caught:
        params.load(tmp_path / "params.yaml")
    assert "musicldm params show" in caught.value.remedy


def test_digest_follows_the_named_sections_only():
    before = params.preset("tiny")
    after = params.resolve({"preset": "tiny"}, ["ldm.mixup=bam"])
    assert before.digest("ldm") != after.digest("ldm")
    assert before.digest("vae", "mel") == after.digest("vae", "mel")
    assert before.digest() != after.digest()


def test_sections_are_frozen_and_strict():
    for model in [params.Params, *_sections(params.Params)]:
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"


def _sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [f.annotation for f in model.model_fields.values() if isinstance(f.annotation, type)]
    found = [kind for kind in inner if issubclass(kind, BaseModel)]
    return found + [deeper for kind in found for deeper in _sections(kind)]


def test_columns_of_a_caption_table_are_ours_to_theirs():
    read = params.resolve({"preset": "tiny"}, ["manifest.columns.caption=text", "manifest.columns.path=file"])
    assert read.manifest.columns == {"caption": "text", "path": "file"}
    assert params.resolve(params.read_yaml(params.to_yaml(read))) == read
    for wrong, key in (({"genre": "style"}, "manifest.columns.genre"), ({"caption": ""}, "manifest.columns.caption"),
                       ({"caption": 3}, "manifest.columns.caption")):  # fmt: skip
        with pytest.raises(ParamsError, match=key):
            params.resolve({"manifest": {"columns": wrong}})
