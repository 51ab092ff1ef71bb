"""Checkpoints of two small layers with random weights, and tokenizers trained on the rehearsal's texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
_VOCABULARY = 400


def roberta(folder: Path, texts: list[str]) -> None:
    """What a warm-up starts from: RoBERTa without a head, with a cased byte-level BPE tokenizer."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer = _byte_level_bpe(texts)
    _seed()
    config = RobertaConfig(**SIZES, vocab_size=len(tokenizer), type_vocab_size=1, layer_norm_eps=1e-5)
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def bert(folder: Path, texts: list[str]) -> None:
    """What DPR starts from: BERT, with an uncased WordPiece tokenizer."""
    from transformers import BertConfig, BertModel

    tokenizer = _word_piece(texts)
    _seed()
    BertModel(BertConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CHECKPOINTS: dict[str, Callable[[Path, list[str]], None]] = {"roberta": roberta, "bert": bert}
"""Name in a recipe -> what writes a checkpoint to a folder for texts."""


def _seed() -> None:
    import torch

    torch.manual_seed(0)


def _byte_level_bpe(texts: list[str]) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    made = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator(texts, vocab_size=_VOCABULARY, special_tokens=specials, show_progress=False)
    return RobertaTokenizerFast(tokenizer_object=made._tokenizer, model_max_length=64)


def _word_piece(texts: list[str]) -> Any:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(texts, vocab_size=_VOCABULARY, show_progress=False)
    return BertTokenizer(tokenizer_object=made._tokenizer, model_max_length=64)
