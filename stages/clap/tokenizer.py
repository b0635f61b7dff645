"""RoBERTa's kind of tokenizer, trained on the captions where no pretrained one is at hand."""

from collections.abc import Iterable
from typing import Any

from stages.errors import DataError

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # RoBERTa's ids 0..3; its <mask> comes last, ours is 4
BYTES = 256  # every byte is a token, so that no text is unknown


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_tokens: int) -> Any:
    """Learn byte-level BPE from captions; equal captions in any order give an equal tokenizer.

    Returns a transformers `RobertaTokenizer` of at most `vocab_size` tokens that cuts at `max_tokens`,
    <s> and </s> included. Its `save_pretrained` folder loads with `AutoTokenizer`.
    Raises DataError when there is no caption or no room for the bytes.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    texts = sorted({caption for caption in captions if caption.strip()})
    if not texts:
        raise DataError(
            "No training track has a caption to learn a tokenizer from.",
            "Fill the caption column of the manifest, then run: musicldm prep captions",
        )
    if vocab_size < BYTES + len(SPECIAL_TOKENS):
        raise DataError(
            f"clap.text.vocab_size {vocab_size} leaves no room for the {BYTES + len(SPECIAL_TOKENS)} "
            "byte and special tokens.",
            "Raise clap.text.vocab_size.",
        )
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=SPECIAL_TOKENS
    )
    model = bpe._tokenizer.model  # the wrapper class hides what its `save_model` would write
    vocab, merges = _vocab_and_merges(model)
    return RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)


def _vocab_and_merges(model: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = model.save(folder)
        vocab = json.loads(Path(vocab_file).read_text(encoding="utf-8"))
        lines = Path(merges_file).read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if not line.startswith("#version")]
    return vocab, [(left, right) for left, right in pairs]
