"""One set of small weights, laid out by hand as each program lays them out."""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

VOCABULARY, WIDTH, OUT, POSITIONS, HEADS = 340, 32, 24, 66, 2

# What transformers 2.3.0 wrote of a RobertaConfig: its `pad_token_id` is PretrainedConfig's, not the one in use.
TRANSFORMERS_2_3: dict[str, Any] = {
    "_num_labels": 2,
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "do_sample": False,
    "eos_token_ids": 0,
    "finetuning_task": "docmsmarco",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_range": 0.02,
    "is_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "layer_norm_eps": 1e-5,
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "num_labels": 2,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_past": True,
    "pad_token_id": 0,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "use_bfloat16": False,
}
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size"),
)

FAIRSEQ = {
    "embeddings.word_embeddings": "embed_tokens",
    "embeddings.position_embeddings": "embed_positions",
    "embeddings.LayerNorm": "emb_layer_norm",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}


def fairseq_name(name: str) -> str:
    """fairseq's name of a tensor of RobertaModel."""
    name = name.replace("encoder.layer.", "layers.")
    for theirs, ours in sorted(FAIRSEQ.items(), key=lambda pair: -len(pair[0])):
        if f".{theirs}." in f".{name}":
            return name.replace(theirs, ours)
    raise AssertionError(name)


@dataclass
class Released:
    """The weights, and folders and files made of them. Token types are zero, as in a SEED-Encoder there are none."""

    model: RobertaModel
    head: nn.Linear
    norm: nn.LayerNorm
    root: Path

    @property
    def body(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    @property
    def head_tensors(self) -> dict[str, Tensor]:
        named = {"embeddingHead": self.head, "norm": self.norm}
        return {f"{name}.{key}": value for name, part in named.items() for key, value in part.state_dict().items()}

    @property
    def ance(self) -> dict[str, Tensor]:
        """microsoft/ANCE's, the parts that nobody uses among them."""
        unused = {"roberta.pooler.dense.weight": torch.randn(WIDTH, WIDTH), "classifier.out_proj.bias": torch.randn(2)}
        return {f"roberta.{name}": value for name, value in self.body.items()} | self.head_tensors | unused

    @property
    def fairseq(self) -> dict[str, Tensor]:
        return {fairseq_name(name): value for name, value in self.body.items() if "token_type" not in name}

    def vectors(self, rows: list[list[int]], pooling: str = "cls") -> Tensor:
        """Embeddings [n, OUT] of token ids by the modules of transformers and torch, padded."""
        longest = max(map(len, rows))
        ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        with torch.no_grad():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            parts = mask.unsqueeze(-1).float()
            pooled = hidden[:, 0] if pooling == "cls" else (hidden * parts).sum(1) / parts.sum(1)
            return self.norm(self.head(pooled))

    # ---- layouts ----

    def ance_folder(self, name: str, state: dict[str, Tensor] | None = None, **config: object) -> Path:
        """As transformers 2.3.0 saved it: no model_type, the old form of torch.save, vocabulary files alone."""
        folder = self.root / name
        folder.mkdir()
        sizes = {name: getattr(self.model.config, name) for name in SIZES}
        (folder / "config.json").write_text(json.dumps(TRANSFORMERS_2_3 | sizes | config))
        torch.save(state or self.ance, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "max_len": POSITIONS - 2}))
        for file in ("vocab.json", "merges.txt"):
            (folder / file).write_bytes((self.root / "roberta-vocabulary" / file).read_bytes())
        return folder

    def seed_folder(self, name: str, state: dict[str, Tensor] | None = None, **config: object) -> Path:
        """transformers' form of SEED-Encoder."""
        folder = self.root / name
        folder.mkdir()
        prefix = "seed_encoder.encoder.sentence_encoder."
        body = {prefix + key: value for key, value in self.fairseq.items()}
        unused = {"classification_heads.dense.weight": torch.randn(WIDTH, WIDTH)}
        torch.save(state or body | self.head_tensors | unused, folder / "pytorch_model.bin")
        settings = {"encoder_layers": 2, "encoder_embed_dim": WIDTH, "encoder_attention_heads": HEADS} | config
        (folder / "config.json").write_text(json.dumps(settings | {"vocab_size": VOCABULARY, "max_positions": 64}))
        (folder / "vocab.txt").write_bytes((self.root / "seed-vocabulary" / "vocab.txt").read_bytes())
        return folder

    def seed_tar(self, name: str) -> Path:
        folder = self.seed_folder(f"{name}-inside")
        with tarfile.open(self.root / name, "w:gz") as tar:
            tar.add(folder, arcname="seed-encoder")
        return self.root / name

    def seed_fairseq(self, name: str, **more: object) -> Path:
        """A pre-trained file: decoder and language-model head beside the encoder, and the program's arguments."""
        body = {f"encoder.sentence_encoder.{key}": value for key, value in self.fairseq.items()}
        other = {"encoder.lm_head.bias": torch.randn(VOCABULARY), "decoder.layers.0.fc1.bias": torch.randn(3)}
        content = {"args": argparse.Namespace(encoder_attention_heads=HEADS), "model": body | other} | more
        torch.save(content, self.root / name)
        (self.root / "vocab.txt").write_bytes((self.root / "seed-vocabulary" / "vocab.txt").read_bytes())
        return self.root / name

    def seed_finetuned(self, name: str) -> Path:
        """What DistributedDataParallel saved."""
        body = {f"module.encoder.{key}": value for key, value in self.fairseq.items()}
        torch.save(body | {f"module.{key}": value for key, value in self.head_tensors.items()}, self.root / name)
        (self.root / "vocab.txt").write_bytes((self.root / "seed-vocabulary" / "vocab.txt").read_bytes())
        return self.root / name

    def sentence_transformers_folder(self, name: str) -> Path:
        """As sentence-transformers ported the model."""
        self.model.save_pretrained(self.root / "plain")
        RobertaTokenizer.from_pretrained(self.root / "roberta-vocabulary").save_pretrained(self.root / "plain")
        dense = modules.Dense(WIDTH, OUT, activation_function=nn.Identity())
        dense.linear.load_state_dict(self.head.state_dict())
        norm = modules.LayerNorm(OUT)
        norm.norm.load_state_dict(self.norm.state_dict())
        transformer = modules.Transformer(str(self.root / "plain"), max_seq_length=POSITIONS - 2)
        chain = [transformer, modules.Pooling(WIDTH, pooling_mode="cls"), dense, norm]
        SentenceTransformer(modules=chain, device="cpu").save(str(self.root / name))
        return self.root / name


def _roberta_vocabulary(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [AddedToken(token, special=True) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["what is the capital of the country", "some words and other words"] * 3, trainer)
    folder.mkdir()
    tokenizer.model.save(str(folder))


def _seed_vocabulary(folder: Path) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "the"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


@pytest.fixture
def released(tmp_path: Path) -> Released:
    """Weights with sharp attention and biases, so that a tensor in another's place shows."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = RobertaModel(config, add_pooling_layer=False).eval()
    head, norm = nn.Linear(WIDTH, OUT), nn.LayerNorm(OUT)
    with torch.no_grad():
        for part in (model, head, norm):
            for parameter in part.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.3)
        model.embeddings.token_type_embeddings.weight.zero_()
    _roberta_vocabulary(tmp_path / "roberta-vocabulary")
    _seed_vocabulary(tmp_path / "seed-vocabulary")
    return Released(model, head, norm, tmp_path)


@pytest.fixture(scope="session")
def token_rows() -> list[list[int]]:
    """Sequences of token ids of every length from 1, and of the longest the positions allow."""
    draws = torch.Generator().manual_seed(3)
    lengths = [1, 2, 3, 3, 3, 7, 12, 12, 40, POSITIONS - 2]
    return [[0, *torch.randint(3, VOCABULARY, (length - 1,), generator=draws).tolist()] for length in lengths]


@pytest.fixture(scope="session")
def embed() -> Callable[..., Tensor]:
    """`embed(encoder, rows)`: its vectors of token ids."""
    import numpy as np

    from ance_fast import Encoder

    def vectors(encoder: Encoder, rows: list[list[int]]) -> Tensor:
        values = np.array([token for row in rows for token in row], dtype=np.uint16)
        offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
        return encoder.encode_tokens([(values, offsets)])

    return vectors
