"""Model files and folders that are cut, lie, come in variants, or bring code of their own."""

import builtins
import json
import re
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import params as parameters
from stages.beats.convert import import_beat_transformer
from stages.beats.model import load_tracker
from stages.clap.model import load_clap, load_pretrained
from stages.clap.text_tower import read_text_tower
from stages.errors import ModelError
from stages.evaluate.mert import load_mert
from stages.evaluate.panns import load_cnn14
from stages.evaluate.vggish import load_vggish
from stages.generate.pipeline import Pipeline
from stages.generate.settings import read_scheduler
from stages.ldm import lora
from stages.ldm.model import load_ldm
from stages.pretrained import load_tokenizer, refuse_code
from stages.store import CARD, card_facts, model_card, model_digest, model_folder, verify_model
from stages.training.checkpoint import load_weights
from stages.vae.model import load_vae
from stages.vocoder.model import load_vocoder
from stages.weights.describe import describe
from stages.weights.diffusers_folder import export_diffusers, import_diffusers
from stages.weights.half import export_half
from stages.weights.hub import import_from_hub
from stages.weights.public import import_clap, import_pipeline, import_vae, import_vocoder, sizes_of

TINY = parameters.preset("tiny")


def test_what_a_person_types_about_broken_files_is_answered_in_a_sentence(fault):
    case = fault("model-files")
    before = sorted(path.name for path in case.folder.iterdir())
    done = case.cmd()
    assert done.stdout.split() == ["rc=5"] * 3
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(said) == 3, done.stderr
    assert sorted(path.name for path in case.folder.iterdir()) == before


def bomb(path):
    """1.9 MB whose pickle unpacks to 2 GB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as file:
        file.write(b"\x80\x02B\xff\xff\xff\x7f")
        for _ in range(2047):
            file.write(bytes(2**20))
    return path


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Files that are no checkpoints, by name."""
    from tests.faults.conftest import FAULTS

    folder = tmp_path_factory.mktemp("spoilt")
    for name in ("short.safetensors", "intkey.pt", "empty.ckpt"):
        shutil.copy(FAULTS / "model-files" / name, folder / name)
    bomb(folder / "bomb.ckpt")
    return sorted(folder.iterdir())


READERS = {
    "beat-transformer": lambda file, out: import_beat_transformer(file, out),
    "pipeline": lambda file, out: import_pipeline([file], out, TINY, "x", {}),
    "clap": lambda file, out: import_clap([file], out, TINY, "x", {}),
    "vae": lambda file, out: import_vae([file], out, TINY, 1.0, {}),
    "vocoder": lambda file, out: import_vocoder([file], out, sizes_of("tiny"), {}),
    "cnn14": lambda file, out: load_cnn14(file, 16_000),
    "vggish": lambda file, out: load_vggish(file),
    "networks of ours": lambda file, out: load_weights(torch.nn.Linear(2, 2), file, "Mend it."),
    "few steps": lambda file, out: lora.update(torch.nn.Linear(2, 2), file),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_a_file_refuses_it_in_a_sentence_and_writes_nothing(spoilt, tmp_path, reader):
    assert len(spoilt) == 4
    for file in spoilt:
        with pytest.raises(ModelError) as caught:
            READERS[reader](file, tmp_path / "out")
        assert len(caught.value.message.splitlines()) == 1
        assert str(file) in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pipeline(toy_models, tmp_path):
    return shutil.copytree(toy_models / "ldm", tmp_path / "ldm")


FOLDER_READERS = {
    "text_encoder/model.safetensors": load_clap,
    "vae/diffusion_pytorch_model.safetensors": load_vae,
    "vocoder/model.safetensors": load_vocoder,
    "unet/diffusion_pytorch_model.safetensors": load_ldm,
    "null_condition.safetensors": load_ldm,
    "text_encoder/config.json": load_clap,
    "tokenizer/tokenizer_config.json": load_clap,
    "tokenizer/tokenizer.json": load_clap,
    "vae/config.json": load_vae,
    "vocoder/config.json": load_vocoder,
    "scheduler/scheduler_config.json": read_scheduler,
}


@pytest.mark.parametrize("name", FOLDER_READERS)
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"[" * 100_000, b'{"a": ' * 100_000, b"\x08\0\0\0\0\0\0\0nonsense"]
)
def test_every_file_of_a_model_folder_is_read_bounded(pipeline, name, content):
    if content == b"{}" and name in ("tokenizer/tokenizer_config.json", "vocoder/config.json"):
        return  # tokenizer.json, and the card's params, say all that is needed
    (pipeline / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        FOLDER_READERS[name](pipeline)
    assert len(caught.value.message.splitlines()) == 1
    assert len(caught.value.message) < 1000


NUMBERS = ("3", None, [], {}, True, -1, 1e400)


@pytest.mark.parametrize(
    ("name", "key", "read"),
    [
        ("vae/config.json", "scaling_factor", load_vae),
        ("text_encoder/config.json", "text_config", load_clap),
        ("text_encoder/config.json", "audio_config", load_clap),
        ("text_encoder/config.json", "projection_dim", load_clap),
        ("scheduler/scheduler_config.json", "num_train_timesteps", read_scheduler),
    ],
)
@pytest.mark.parametrize("value", NUMBERS, ids=str)
def test_a_config_that_mistypes_or_exaggerates_a_value_is_one_sentence(pipeline, name, key, read, value):
    path = pipeline / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelError):
        read(pipeline)


@pytest.mark.parametrize("card", ["[]", "{}", "[" * 100_000, '{"schema": 1, "kind": "ldm", "files": {"a": 1}}'])
def test_every_reader_of_a_card_refuses_it_in_a_sentence(pipeline, card):
    (pipeline / CARD).write_text(card)
    readers = (model_card, model_digest, verify_model, describe, load_ldm, load_clap, load_vae, load_vocoder,
               load_tracker, lambda folder: export_half(folder, folder / "x"),
               lambda folder: export_diffusers(folder, folder / "x"))  # fmt: skip
    for read in readers:
        with pytest.raises(ModelError) as caught:
            read(pipeline)
        assert len(caught.value.message.splitlines()) == 1
    assert not (pipeline / "x").exists()


@pytest.mark.parametrize("key", ["layers_per_block", "block_out_channels"])
def test_a_card_with_absurd_sizes_builds_no_network(pipeline, key):
    card = json.loads((pipeline / CARD).read_text())
    card["params"]["ldm"][key] = 10**9 if key == "layers_per_block" else [10**12, 10**12]
    (pipeline / CARD).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=rf"does not read \(ldm\.{key}"):
        load_ldm(pipeline)


# Code in a model folder: a payload that makes a file, which every kind of config asks for.

PAYLOAD = "from pathlib import Path\nPath({mark!r}).touch()\nraise SystemExit('this code was run')\n"
CODE = {
    "tokenizer/tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["payload.Payload", None]}},
    "text_encoder/config.json": {"auto_map": {"AutoConfig": "payload.Payload", "AutoModel": "payload.Payload"}},
    "vae/config.json": {"auto_map": {"AutoencoderKL": "payload.Payload"}},
    "vocoder/config.json": {"auto_map": {"AutoModel": "payload.Payload"}},
}
INDEXES = [
    {"custom_pipelines": {"payload": "payload.py"}},
    {"_class_name": ["payload", "Payload"]},
    {"unet": ["payload", "Payload"]},
    {"tokenizer": ["payload", "Payload"]},
    {"scheduler": "payload"},
]


@pytest.fixture
def armed(pipeline, tmp_path, monkeypatch):
    """armed(name, values) -> the folder, resealed, whose config `name` asks for code that makes the file `mark`."""
    mark = tmp_path / "mark"
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("it asked whether to run the code"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def arm(name, values):
        path = pipeline / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        for folder in (pipeline, path.parent):
            (folder / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
        with model_folder(tmp_path / "sealed", "ldm", card_facts(model_card(pipeline))) as sealed:
            shutil.copytree(pipeline, sealed, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD))
        return tmp_path / "sealed"

    yield arm
    assert not mark.exists()
    assert not (tmp_path / "hf" / "modules").exists()


@pytest.mark.parametrize("name", CODE)
def test_a_resealed_pipeline_with_code_is_refused_by_generate_and_import(armed, tmp_path, typed, name):
    folder = armed(name, CODE[name])
    assert verify_model(folder) == []
    with pytest.raises(ModelError, match=r"names code by auto_map; such code is not run here\."):
        Pipeline.load(folder, "cpu")
    code, _, err = typed(tmp_path, "generate", "x", "--model", folder, "--steps", "1", "--out", "clips")
    assert (code, "such code is not run here" in " ".join(err.split())) == (5, True)
    code, _, err = typed(tmp_path, "model", "import", "diffusers", folder, "--out", "imported")
    assert (code, "such code is not run here" in " ".join(err.split())) == (5, True)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("values", INDEXES, ids=str)
def test_a_diffusers_folder_that_asks_for_code_is_refused(armed, tmp_path, values):
    folder = armed("model_index.json", values)
    with pytest.raises(ModelError, match=r"not run here|not a MusicLDMPipeline"):
        import_diffusers(folder, tmp_path / "imported", {})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("unet/config.json", {"_class_name": "Payload"}),
        ("vae/config.json", {"_class_name": "payload.Payload"}),
        ("unet/config.json", {"auto_map": {"UNet2DConditionModel": "payload.Payload"}}),
        ("feature_extractor/preprocessor_config.json", {"auto_map": {"AutoFeatureExtractor": "payload.Payload"}}),
        ("scheduler/scheduler_config.json", {"custom_pipeline": "payload.py"}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "Payload"}),
    ],
)
def test_a_hub_model_that_asks_for_code_is_refused(armed, tmp_path, monkeypatch, name, values):
    folder = armed(name, values)
    monkeypatch.setattr("stages.weights.hub.fetch", lambda _: folder)
    with pytest.raises(ModelError, match=r"not run here|not of diffusers'|not RoBERTa's or BERT's"):
        import_from_hub("somebody/model", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_a_clap_or_text_tower_to_start_from_that_asks_for_code_is_refused(armed):
    folder = armed("text_encoder/config.json", CODE["text_encoder/config.json"])
    params = parameters.resolve(model_card(folder)["params"])
    for read in (lambda source: load_pretrained(params, source), lambda source: read_text_tower(params.clap, source)):
        for source in (folder, folder / "text_encoder"):
            with pytest.raises(ModelError, match=r"such code is not run here|has no model\.safetensors"):
                read(str(source))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "quantization_config"])
def test_kernels_from_the_hub_and_quantisers_are_code_too(armed, key):
    folder = armed("text_encoder/config.json", {"text_config": {key: {"": "somebody/kernel"}}})
    with pytest.raises(ModelError, match=rf"names code by {key}; such code is not run here\."):
        load_clap(folder)
    with pytest.raises(ModelError, match=rf"names code by {key}"):
        refuse_code(folder, {"x": [{key: "somebody/kernel"}]}, "")
    refuse_code(folder, {"attn_implementation": "sdpa", "_attn_implementation": None}, "")


def test_a_tokenizer_that_does_not_fit_its_network_is_refused_before_it_is_used(armed, pipeline):
    with pytest.raises(ModelError, match=r"has tokens up to \d+, the network 5\."):
        load_tokenizer(pipeline / "tokenizer", "", vocab_size=5)
    with pytest.raises(ModelError, match="no token for padding"):
        load_clap(armed("tokenizer/tokenizer_config.json", {"pad_token": None}))


def test_mert_with_code_is_read_without_it(tmp_path, monkeypatch):
    """Published MERTs name their code; their weights are plain HuBERT's, and are read as such or not at all."""
    from transformers import HubertConfig, HubertModel

    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("it asked whether to run the code"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
             "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
    HubertModel(HubertConfig(**sizes)).save_pretrained(tmp_path)
    (tmp_path / "payload.py").write_text(PAYLOAD.format(mark=str(tmp_path / "mark")))
    config = json.loads((tmp_path / "config.json").read_text())
    for values in ({"model_type": "mert_model"}, {"model_type": "hubert"}):
        asks = {"auto_map": {"AutoConfig": "payload.Payload", "AutoModel": "payload.Payload"}}
        (tmp_path / "config.json").write_text(json.dumps(config | values | asks))
        assert load_mert(str(tmp_path)).sample_rate == 16_000
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "somebody/kernel"}))
    with pytest.raises(ModelError, match="names code by attn_implementation"):
        load_mert(str(tmp_path))
    for values in ({"num_hidden_layers": 10**9}, {"hidden_size": "3"}, {"conv_dim": 3}):
        (tmp_path / "config.json").write_text(json.dumps(config | values))
        with pytest.raises(ModelError, match="does not fit transformers' HuBERT"):
            load_mert(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": "many"}')
    with pytest.raises(ModelError, match="sampling_rate of 'many'"):
        load_mert(str(tmp_path))
    assert not (tmp_path / "mark").exists()


# Variants of weights in a diffusers folder.


def test_a_folder_with_both_precisions_is_imported_from_the_plain_one(fault, toy_models, tmp_path):
    case = fault("fp16-variants")
    shutil.copytree(toy_models, case.folder / "work" / "models")
    done = case.cmd()
    assert done.stdout.splitlines()[-1] == "rc=0", done.stderr
    assert "variant" not in done.stdout + done.stderr
    for name in ("unet", "vae", "vocoder", "text_encoder"):
        (wanted,) = (toy_models / "ldm" / name).glob("*.safetensors")
        found = load_file(case.folder / "both" / name / wanted.name)
        assert all(torch.equal(value, found[key]) for key, value in load_file(wanted).items())


@pytest.fixture
def exported(toy_models, tmp_path):
    export_diffusers(toy_models / "ldm", tmp_path / "dif")
    return tmp_path / "dif"


def weights(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_half_precision_alone_is_taken_with_a_remark(exported, tmp_path, typed):
    path = weights(exported / "vae")
    half = {name: value.half() for name, value in load_file(path).items()}
    save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"))
    save_file({"x": torch.ones(1)}, path.with_name(f"{path.stem}.non_ema.safetensors"))
    path.unlink()
    code, out, err = typed(tmp_path, "model", "import", "diffusers", exported, "--out", "ldm")
    assert code == 0
    assert "vae has weights of the variant fp16 only; they were taken." in " ".join((out + err).split())
    found = load_vae(tmp_path / "ldm").network.state_dict()
    assert all(torch.equal(value.float(), found[name]) for name, value in half.items())


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_a_sharded_network_is_read_by_its_index(exported, tmp_path, variant):
    path = weights(exported / "unet")
    tensors = load_file(path)
    path.unlink()
    names = [f"{path.stem}{variant}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    where = {name: names[n % 2] for n, name in enumerate(tensors)}
    for file in names:
        save_file({name: value for name, value in tensors.items() if where[name] == file}, path.with_name(file))
    index = path.with_name(f"{path.stem}.safetensors.index{variant}.json")
    index.write_text(json.dumps({"weight_map": where}))
    remarks = []
    import_diffusers(exported, tmp_path / "ldm", {}, remarks.append)
    assert len(remarks) == (1 if variant else 0)
    found = load_ldm(tmp_path / "ldm").unet.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in tensors.items())
    first = next(iter(where))
    for spoiled, said in (
        ({first: "../unet/" + names[0]}, "is no index"),
        ({first: 3}, "is no index"),
        ({first: names[1]}, f"lacks {re.escape(first)}, which"),
        ({first: "absent.safetensors"}, "There is no"),
    ):
        index.write_text(json.dumps({"weight_map": where | spoiled}))
        with pytest.raises(ModelError, match=said):
            import_diffusers(exported, tmp_path / "other", {})


def test_weights_of_nobody_are_named(exported, tmp_path):
    path = weights(exported / "unet")
    shutil.copy(path, path.with_name("other.safetensors"))
    with pytest.raises(ModelError, match=r"unet has 2 \.safetensors files that could be its weights, not one"):
        import_diffusers(exported, tmp_path / "ldm", {})
