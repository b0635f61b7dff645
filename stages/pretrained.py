"""Pretrained models of transformers and diffusers: fetched, read strictly, and never run as code of their own."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from stages.errors import ModelError
from stages.store import read_config, sha256
from stages.tensors import Tensors, read_tensors

TOKENIZER_FILES = ["tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json"]
# Keys by which the configs of transformers and diffusers name Python files to be run.
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_pipeline", "trust_remote_code"})
# By these transformers fetches compiled kernels from the hub, or looks for packages; the usual values need neither.
KERNEL_KEYS = frozenset(
    {"attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config"}
)
USUAL_KERNELS = (None, "eager", "sdpa")
TOKENIZERS = frozenset({"RobertaTokenizer", "BertTokenizer", "PreTrainedTokenizer", "TokenizersBackend"})
VARIANTS = ("fp16", "bf16")  # of a diffusers folder's weights that the same network takes


def fetch(source: str, patterns: Sequence[str], remedy: str) -> Path:
    """A folder as it is, or a hub repository's files in the hub's own cache. Raises ModelError, with `remedy`."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ModelError(f"{source} is no folder here and cannot be had from the hub: {reason}.", remedy) from error


def files_digest(*folders: Path) -> str:
    """Twelve hex digits that name the weights, configs and tokenizers in transformers folders, wherever they lie."""
    names = ["config.json", "model*.safetensors*", *TOKENIZER_FILES]
    files = sorted({file for folder in folders for name in names for file in folder.glob(name)})
    listed = "".join(f"{file.name} {sha256(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def model_config(path: Path, remedy: str, class_name: str | None = None) -> dict[str, Any]:
    """The config of a network of transformers, or of diffusers' class `class_name`.

    Raises ModelError, with `remedy`, when it cannot be read, is of another class, or names code to be run.
    """
    config = read_config(path, remedy)
    found = config.get("_class_name", class_name)
    if class_name is not None and found != class_name:
        raise ModelError(f"{path} is the config of {found!r:.100}, not of diffusers' {class_name}.", remedy)
    refuse_code(path, config, remedy)
    return config


def refuse_code(path: Path, config: dict[str, Any], remedy: str) -> None:
    """Raises ModelError, with `remedy`, when the config in `path` names code to be run, at any depth."""
    parts: list[Any] = [config]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            named = [key for key in part if key in CODE_KEYS or (key in KERNEL_KEYS and part[key] not in USUAL_KERNELS)]
            if named:
                raise ModelError(f"{path} names code by {min(named)}; such code is not run here.", remedy)
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def load_tokenizer(folder: Path, remedy: str, vocab_size: int | None = None) -> Any:
    """The tokenizer of RoBERTa's or BERT's kind in a folder, for a network with `vocab_size` embeddings of tokens.

    Raises ModelError, with `remedy`.
    """
    from transformers import AutoTokenizer

    for path in sorted(folder.glob("*config.json")):
        name = model_config(path, remedy).get("tokenizer_class")
        if name is not None and str(name).removesuffix("Fast") not in TOKENIZERS:
            raise ModelError(f"{path} asks for the tokenizer {name!r:.100}, not RoBERTa's or BERT's.", remedy)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"The tokenizer in {folder} cannot be read: {_one_line(error)}", remedy) from error
    if tokenizer.pad_token_id is None:
        raise ModelError(f"The tokenizer in {folder} has no token for padding.", remedy)
    last = max(tokenizer.get_vocab().values())
    if vocab_size is not None and last >= vocab_size:
        raise ModelError(f"The tokenizer in {folder} has tokens up to {last}, the network {vocab_size}.", remedy)
    return tokenizer


@contextmanager
def must_fit(problem: str, remedy: str) -> Iterator[None]:
    """Turn what transformers raises for values and tensors that do not fit into a ModelError that begins with
    `problem`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, StrictDataclassError) as error:
        raise ModelError(f"{problem}: {_one_line(error)}.", remedy) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def network_of(kind: Any, config: Any, tensors: Tensors) -> tuple[Any, list[str]]:
    """transformers' network `kind` with these weights, and the names that only it or only they have.

    Raises what `must_fit` catches.
    """
    model, report = kind.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    return model, sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])


def read_weights(folder: Path, remedy: str) -> tuple[Tensors, str | None]:
    """The tensors of a network's folder of diffusers or transformers, in one .safetensors file or several that an
    index lists; and the name of the variant where it has no other.

    As in diffusers, the plain files go before those of a variant (`.fp16.`), and what else there is (`.non_ema.`) is
    not read. Raises ModelError, with `remedy`, for a folder with none.
    """
    names = sorted(path.name for path in folder.glob("*.safetensors*"))
    for variant in (None, *VARIANTS):
        plain = [name for name in names if _variant(name) == variant]
        indexes = [name for name in plain if ".safetensors.index." in name]
        files = [name for name in plain if name.endswith(".safetensors") and "-of-" not in name]
        if len(files) == 1:
            return read_tensors(folder / files[0], remedy), variant
        if len(indexes) == 1 and not files:
            return _read_parts(folder, indexes[0], remedy), variant
        if plain:
            break
    raise ModelError(f"{folder} has {len(plain)} .safetensors files that could be its weights, not one.", remedy)


def _variant(name: str) -> str | None:
    """model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model.safetensors.index.fp16.json -> fp16"""
    middle = name.removesuffix(".json").replace(".safetensors", "").replace(".index", "").partition(".")[2]
    return middle.partition("-")[0] or None


def _read_parts(folder: Path, index: str, remedy: str) -> Tensors:
    where = read_config(folder / index, remedy).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) and "/" not in name for name in where.values()):
        raise ModelError(f"{folder / index} is no index of .safetensors files beside it.", remedy)
    parts = {name: read_tensors(folder / name, remedy) for name in sorted(set(where.values()))}
    lost = [name for name, part in where.items() if name not in parts[part]]
    if lost:
        raise ModelError(f"{folder / where[lost[0]]} lacks {lost[0]}, which {index} says it has.", remedy)
    return {name: tensor for part in parts.values() for name, tensor in part.items()}
