"""params.yaml: presets, the root file, and every mistake at once."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from stages import params
from stages.errors import ParamsError
from stages.params.yaml12 import read_yaml

ROOT = Path(__file__).parent.parent


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
    written = read_yaml((ROOT / "params.yaml").read_text())
    assert dict(leaves(written)).keys() == dict(leaves(params.preset("tiny").model_dump())).keys()
    assert params.load(ROOT / "params.yaml").preset == "tiny"


def test_to_yaml_reads_back():
    for name in params.PRESETS:
        original = params.preset(name)
        assert params.resolve(read_yaml(params.to_yaml(original))) == original


def test_dvc_reads_the_same_numbers():
    """DVC's loader is YAML 1.2; ours must agree, also on 1e-4, which YAML 1.1 takes for a string."""
    from dvc.utils.serialize import parse_yaml

    text = params.to_yaml(params.preset("paper")) + "\n# x: 1e-4\n"
    assert parse_yaml(text, "params.yaml") == read_yaml(text)


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
        ("clap.audio.heads=[1,2]", "clap.audio.heads"),
        ("clap.audio.spec_size=100", "clap.audio.spec_size"),
        ("beats.max_bpm=10", "beats.max_bpm"),
        ("latents.downbeats_per_track=0", "latents.downbeats_per_track"),
        ("manifest.test_share=0.95", "manifest.test_share"),
        ("ldm.train.accumulation=3", "ldm.train.accumulation"),
        ("ldm.mixup=shuffle", "ldm.mixup"),
        ("ldm.train.steps=true", "ldm.train.steps"),
        ("beats.beats_per_bar=[]", "beats.beats_per_bar"),
        ("beats.min_bpm=1", "beats.min_bpm"),
        ("beats.max_bpm=4000", "beats.max_bpm"),
        ("beats.network.width=36", "beats.network.width"),
        ("beats.network.layers=30", "beats.network.layers"),
        ("beats.crop_seconds=0.001", "beats.crop_seconds"),
        ("beats.train.accumulation=3", "beats.train.accumulation"),
        ("beats.train.betas=[0.9, 1.0]", "beats.train.betas[1]"),
        ("tempo.tolerance=1e-300", "tempo.tolerance"),
        ("few_steps.train.accumulation=3", "few_steps.train.accumulation"),
        ("few_steps.train.warmup_steps=50", "few_steps.train.warmup_steps"),
        ("few_steps.substeps=500", "few_steps.steps"),
        ("clap.n_mels=16", "clap.n_mels"),
        ("clap.n_fft=400000", "clap.n_fft"),
        ("clap.audio.heads=[3,2,4,8]", "clap.audio.heads"),
        ("clap.audio.depths=[]", "clap.audio.depths"),
        ("clap.text.max_tokens=600", "clap.text.max_tokens"),
        ("clap.text.vocab_size=4", "clap.text.vocab_size"),
        ("vae.discriminator_layers=6", "vae.discriminator_layers"),
        ("vocoder.resblock_kernel_sizes=[3,6]", "vocoder.resblock_kernel_sizes"),
        ("vocoder.segment_frames=2", "vocoder.segment_frames"),
        ("vocoder.periods=[2,9999]", "vocoder.periods"),
        ("latents.grid_seconds=1e-5", "latents.grid_seconds"),
        ("ldm.beta_start=1e-9", "ldm.beta_start"),
        ("ldm.beta_end=0.3", "ldm.beta_end"),
        ("generate.guidance_interval=[0.9,0.1]", "generate.guidance_interval"),
        ("evaluate.thresholds=[]", "evaluate.thresholds"),
        ("manifest.seed=-1", "manifest.seed"),
        (f"ldm.train.steps={'9' * 5000}", "ldm.train.steps"),
        (f"ldm.train.steps={2**40}", "ldm.train.steps"),
        ("audio.clip_seconds=1e308", "audio.clip_seconds"),
    ],
)
def test_impossible_values_name_their_key(override, key):
    with pytest.raises(ParamsError) as caught:
        params.resolve({"preset": "tiny"}, [override])
    assert f"\n  {key}: " in caught.value.message


def test_no_list_may_be_empty():
    lists = [key for key, value in leaves(params.preset("paper").model_dump()) if isinstance(value, list)]
    assert len(lists) >= 22
    for key in lists:
        with pytest.raises(ParamsError) as caught:
            params.resolve({"preset": "tiny"}, [f"{key}=[]"])
        assert f"\n  {key}: list should have at least" in caught.value.message


def test_mistakes_are_blamed_on_where_they_come_from():
    raw = {"preset": "tiny", "mel": {"typo": 1}}
    with pytest.raises(ParamsError) as caught:
        params.resolve(raw, ["generate.steps=2000", "audio.peak=0.4"], origin="params.yaml")
    ours, theirs = caught.value.message.split("-S generate.steps=2000 -S audio.peak=0.4 has 1 mistake(s):\n")
    assert ours == "params.yaml has 1 mistake(s):\n  mel.typo: unknown key\n"
    assert theirs == "  generate.steps: 2000 is more than ldm.diffusion_steps 1000"


@pytest.mark.parametrize("override", ["audio.peak", "=1", "audio..peak=1", ".=1", "a" * 50 + "." * 5000 + "=1"])
def test_an_override_that_is_none_says_how_it_is_written(override):
    with pytest.raises(ParamsError, match=r"is not section\.key=value") as caught:
        params.resolve({"preset": "tiny"}, [override])
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("value", ["[" * 50_000, "&a [*a]", "{1: 2}", "a: b: c", "!!int x", "\udcff"])
def test_the_value_of_an_override_is_bounded_as_a_file_is(value):
    with pytest.raises(ParamsError, match=r"-S audio\.peak=.* cannot be read as YAML") as caught:
        params.resolve({"preset": "tiny"}, [f"audio.peak={value}"])
    assert len(caught.value.message) < 300


def test_of_very_many_mistakes_some_are_told():
    with pytest.raises(ParamsError) as caught:
        params.resolve({f"key{number}": number for number in range(2000)})
    assert "has 2000 mistake(s)" in caught.value.message
    assert caught.value.message.count("\n") == params.MOST_TOLD + 1


def test_every_key_that_a_message_names_exists():
    """Each `section.key` in the strings of both packages, those of f-strings and remedies included."""
    sections = "|".join([*params.Params.model_fields, "few-steps"])
    named = re.compile(rf"(?<![\w./-])(?:{sections})(?:\.[a-z_]+)+(?![\w/(])")
    known = {key for section in everything() for key in section}
    found = {key for text in strings(ROOT / "stages", ROOT / "musicldm_cli") for key in named.findall(text)}
    found = {key for key in found if not key.endswith((".csv", ".json", ".jsonl", ".safetensors"))}
    assert len(found) >= 70
    assert sorted(found - known - {"manifest.columns"}) == []  # a table of names, empty in every preset


def strings(*packages: Path) -> Iterator[str]:
    for path in (path for package in packages for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def everything() -> Iterator[set[str]]:
    """Every key of params, sections of sections included."""
    for key, _ in leaves(params.preset("paper").model_dump()):
        parts = key.split(".")
        yield {".".join(parts[: count + 1]) for count in range(len(parts))}


def leaves(data: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        yield from leaves(value, f"{prefix}{key}.") if value and isinstance(value, dict) else [(prefix + key, value)]


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
