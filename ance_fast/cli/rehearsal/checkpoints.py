"""Checkpoints of two small layers with random weights, and tokenizers trained on the rehearsal's texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ance_fast.models import Encoder

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


def ance(folder: Path, texts: list[str]) -> None:
    """`rdot_nll` as microsoft/ANCE saves it: RoBERTa with ANCE's head."""
    from ance_fast.models import Encoder
    from ance_fast.models.checkpoint_formats import with_head, write_checkpoint

    with TemporaryDirectory() as plain:
        roberta(Path(plain), texts)
        encoder = Encoder.load(plain, device="cpu", dtype="float32", attention="padded")
    write_checkpoint(with_head(encoder, "fresh"), folder, "ance")


def dpr(folder: Path, texts: list[str]) -> None:
    """Two towers of BERT."""
    from ance_fast.models import Encoder

    with TemporaryDirectory() as plain:
        bert(Path(plain), texts)
        encoder = Encoder.load(plain, device="cpu", dtype="float32", attention="padded", pooling="cls")
    encoder.two_towers().save(folder)


def seed(folder: Path, texts: list[str]) -> None:
    """SEED-Encoder with ANCE's head, as its folders for transformers have it."""
    from ance_fast.models.checkpoint_formats import with_head, write_checkpoint

    write_checkpoint(with_head(_seed_encoder(texts), "fresh"), folder, "seed-hf")


def seed_dpr(folder: Path, texts: list[str]) -> None:
    """Two towers of SEED-Encoder."""
    _seed_encoder(texts).two_towers().save(folder)


CHECKPOINTS: dict[str, Callable[[Path, list[str]], None]] = {
    "ance": ance,
    "bert": bert,
    "dpr": dpr,
    "roberta": roberta,
    "seed": seed,
    "seed-dpr": seed_dpr,
}
"""Name in a recipe -> what writes a checkpoint to a folder for texts."""


def _seed_encoder(texts: list[str]) -> Encoder:
    import torch
    from tokenizers import BertWordPieceTokenizer
    from torch import nn
    from transformers import RobertaConfig, RobertaModel

    from ance_fast.data.text_rules import released_tokenizer
    from ance_fast.models import Encoder
    from ance_fast.models.backbone import PackedBackbone
    from ance_fast.models.layouts import CheckpointLayout

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(texts, vocab_size=_VOCABULARY, show_progress=False)
    first = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    words = [word for word, _ in sorted(made.get_vocab().items(), key=lambda pair: pair[1]) if word not in first]
    with TemporaryDirectory() as plain:
        vocabulary = Path(plain) / "vocab.txt"
        vocabulary.write_text("\n".join([*first, *words]) + "\n", encoding="utf-8")
        tokenizer = released_tokenizer(vocabulary, "seed")
    _seed()
    settings = {**SIZES, "vocab_size": len(tokenizer), "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    model = RobertaModel(RobertaConfig(**settings)).eval()
    # SEED-Encoder knows no token types.
    with torch.no_grad():
        model.embeddings.token_type_embeddings.weight.zero_()
    layout = CheckpointLayout(transformer=Path("."), pooling="cls", similarity="dot", max_seq_length=64)
    return Encoder(PackedBackbone(model, "padded", 1), nn.ModuleList(), tokenizer, layout).eval()


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
