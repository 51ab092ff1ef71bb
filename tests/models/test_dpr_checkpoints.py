"""DPR's checkpoints in every form against plain transformers, and what is wrong with those that do not open."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertModel,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    RobertaConfig,
    RobertaModel,
)

from ance_fast import Encoder
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.checkpoint_formats import find_format, read_checkpoint, with_head, write_checkpoint
from ance_fast.models.foreign import ReadOptions

TEXTS = ["", "who wrote the SESSION", "a", "words and " * 60, "folder [SEP] weights", "Ünïcödé \t東京"]
HEADS = ReadOptions(heads=4)


@pytest.fixture(scope="module")
def folders(small_bert: Callable[..., Path]) -> dict[str, Path]:
    return {role: small_bert(seed, initializer_range=0.2) for role, seed in (("question", 3), ("ctx", 4))}


@pytest.fixture(scope="module")
def berts(folders: dict[str, Path]) -> dict[str, BertModel]:
    return {role: BertModel.from_pretrained(folder).eval() for role, folder in folders.items()}


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path], berts: dict[str, BertModel]) -> Callable[..., Tensor]:
    """`plain("ctx")`: vectors of TEXTS by plain transformers, padded; with a Linear behind them if one is given."""

    def embed(role: str, length: int = 80, projection: nn.Linear | None = None) -> Tensor:
        tokenizer = AutoTokenizer.from_pretrained(folders[role])
        tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            first = berts[role](**tokens).last_hidden_state[:, 0]
            return first if projection is None else projection(first)

    return embed


def dpr_state(berts: dict[str, BertModel], **projections: nn.Linear) -> dict[str, Tensor]:
    state = {
        f"{role}_model.{name}": tensor for role, bert in berts.items() for name, tensor in bert.state_dict().items()
    }
    for role, projection in projections.items():
        state |= {f"{role}_model.encode_proj.{name}": tensor for name, tensor in projection.state_dict().items()}
    return state


def saved(path: Path, content: Any, vocabulary: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(vocabulary / "vocab.txt", path.parent)
    torch.save(content, path)
    return path


def assert_vectors(encoder: Encoder, plain: Callable[..., Tensor], length: int = 80, **more: nn.Linear) -> None:
    for method, role in (("encode_query", "question"), ("encode_document", "ctx")):
        found = getattr(encoder, method)(TEXTS, output="torch")
        torch.testing.assert_close(found, plain(role, length, **more), atol=2e-5, rtol=1e-5)


def cp(state: dict[str, Tensor], **params: Any) -> dict[str, Any]:
    """What DPR saves."""
    training = {"optimizer_dict": {"state": {0: {"step": 3}}}, "scheduler_dict": {}, "offset": 7, "epoch": 1}
    return {"model_dict": state, **training, "encoder_params": params}


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "DPR's": lambda state: cp(state, do_lower_case=True, sequence_length=256, projection_dim=0),
    "microsoft/ANCE's": lambda state: cp(state),
    "with a namespace": lambda state: cp(state) | {"encoder_params": argparse.Namespace(sequence_length=256)},
    "bare": OrderedDict,
    "of a wrapped model": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "nested": lambda state: {
        f"{role}_model": {k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(role)}
        for role in ("question", "ctx")
    },
    "with a buffer": lambda state: state | {"ctx_model.embeddings.position_ids": torch.arange(80)[None]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_dpr_gives_the_vectors_of_plain_transformers(
    folders: dict[str, Path], berts: dict[str, BertModel], plain: Callable[..., Tensor], tmp_path: Path, form: str
) -> None:
    path = saved(tmp_path / "dpr.cp", FORMS[form](dpr_state(berts)), folders["ctx"])
    assert find_format(path) == "dpr-cp"
    encoder = read_checkpoint(path, None, HEADS).placed()
    assert encoder.info()["attention"] == encoder.info()["query_attention"] == "packed"
    assert encoder.layout.similarity == "dot"
    assert_vectors(encoder, plain)


def test_a_file_says_where_texts_are_cut(
    folders: dict[str, Path], berts: dict[str, BertModel], plain: Callable[..., Tensor], tmp_path: Path
) -> None:
    path = saved(tmp_path / "dpr.cp", cp(dpr_state(berts), sequence_length=9), folders["ctx"])
    encoder = read_checkpoint(path, None, HEADS).placed()
    assert (encoder.max_query_length, encoder.max_document_length) == (9, 9)
    assert_vectors(encoder, plain, 9)


@pytest.mark.parametrize("form", ["dpr-cp", "dpr-hf"])
def test_a_projection_is_part_of_the_vectors_both_ways(
    folders: dict[str, Path], berts: dict[str, BertModel], plain: Callable[..., Tensor], tmp_path: Path, form: str
) -> None:
    torch.manual_seed(1)
    projection = nn.Linear(32, 6)
    state = dpr_state(berts, question=projection, ctx=projection)
    encoder = read_checkpoint(saved(tmp_path / "dpr.cp", cp(state), folders["ctx"]), None, HEADS)
    assert_vectors(encoder, plain, projection=projection)
    write_checkpoint(encoder, tmp_path / form, form)
    again = read_checkpoint(tmp_path / form, None, ReadOptions())
    assert again.dim == 6
    assert_vectors(again, plain, projection=projection)


@pytest.fixture
def pair(folders: dict[str, Path]) -> Encoder:
    towers = [Encoder.load(str(folders[role]), "cpu", pooling="cls") for role in ("question", "ctx")]
    encoder = Encoder.pair(*towers)
    for tower in encoder.towers:
        tower.layout = replace(tower.layout, similarity="dot")
    return encoder


def test_what_is_written_for_dpr_loads_strictly_into_berts_and_gives_the_same_vectors(
    pair: Encoder, folders: dict[str, Path], plain: Callable[..., Tensor], tmp_path: Path
) -> None:
    write_checkpoint(pair, tmp_path / "out.cp", "dpr-cp")
    assert not (tmp_path / "out.cp").read_bytes().startswith(b"PK"), "older torch reads no zip files"
    content = torch.load(tmp_path / "out.cp", weights_only=True)
    assert list(content) == ["model_dict", "optimizer_dict", "scheduler_dict", "offset", "epoch", "encoder_params"]
    params = content["encoder_params"]
    assert params["encoder_model_type"] == "hf_bert"
    assert (params["do_lower_case"], params["pretrained_model_cfg"]) == (True, None)
    assert params["sequence_length"] == max(pair.max_query_length, pair.max_document_length)
    biencoder = nn.Module()
    for role in ("question", "ctx"):
        setattr(biencoder, f"{role}_model", BertModel(BertModel.from_pretrained(folders[role]).config).eval())
    biencoder.load_state_dict(content["model_dict"])  # the pooler is asked for, too
    tokens = pair.tokenizer(TEXTS, padding=True, truncation=True, max_length=80, return_tensors="pt")
    for role in ("question", "ctx"):
        with torch.no_grad():
            found = getattr(biencoder, f"{role}_model")(**tokens).last_hidden_state[:, 0]
        torch.testing.assert_close(found, plain(role))


def test_folders_of_transformers_are_read_one_by_one_and_both_at_once(
    folders: dict[str, Path], berts: dict[str, BertModel], plain: Callable[..., Tensor], tmp_path: Path
) -> None:
    for role, kind in (("question", DPRQuestionEncoder), ("ctx", DPRContextEncoder)):
        settings = {k: v for k, v in berts[role].config.to_dict().items() if k not in ("model_type", "architectures")}
        model = kind(DPRConfig(**settings))
        inner: Any = getattr(model, f"{role}_encoder")
        inner.bert_model.load_state_dict(
            {name: tensor for name, tensor in berts[role].state_dict().items() if "pooler" not in name}
        )
        model.save_pretrained(tmp_path / "both" / f"dpr-{role}-single")
        shutil.copy(folders[role] / "vocab.txt", tmp_path / "both" / f"dpr-{role}-single")
    assert find_format(tmp_path / "both") == "dpr-hf"
    assert_vectors(Encoder.load(str(tmp_path / "both")), plain)
    towers = [Encoder.load(str(tmp_path / "both" / f"dpr-{role}-single")) for role in ("question", "ctx")]
    assert [tower.query_encoder for tower in towers] == [None, None]
    assert_vectors(Encoder.pair(*towers), plain)
    assert Encoder.pair(*towers).fingerprint() == Encoder.load(str(tmp_path / "both")).fingerprint()


def test_folders_that_are_written_open_in_transformers_with_the_same_vectors(
    pair: Encoder, plain: Callable[..., Tensor], tmp_path: Path
) -> None:
    pair.set_lengths(max_query_length=11, max_document_length=30)
    write_checkpoint(pair, tmp_path / "hf", "dpr-hf")
    for role, kind, length in (("question", DPRQuestionEncoder, 11), ("ctx", DPRContextEncoder, 30)):
        folder = tmp_path / "hf" / f"{role}_encoder"
        model, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(**tokens).pooler_output, plain(role, length), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["dpr-cp", "dpr-hf", "sentence-transformers"])
def test_a_pair_that_is_written_and_read_again_is_the_same_encoder(
    pair: Encoder, folders: dict[str, Path], tmp_path: Path, form: str
) -> None:
    pair.set_lengths(max_query_length=12, max_document_length=20)
    write_checkpoint(pair, tmp_path / "there", form)
    assert find_format(tmp_path / "there") == form
    options = ReadOptions(tokenizer=folders["ctx"]) if form == "dpr-cp" else ReadOptions()
    again = read_checkpoint(tmp_path / "there", None, options).placed()
    for method in ("encode_query", "encode_document"):
        assert (getattr(again, method)(TEXTS) == getattr(pair, method)(TEXTS)).all()
    assert again.fingerprint() == pair.fingerprint()
    assert (again.max_query_length, again.max_document_length) == (12, 20)


def test_a_released_file_becomes_a_folder_that_sentence_transformers_opens(
    folders: dict[str, Path], berts: dict[str, BertModel], plain: Callable[..., Tensor], tmp_path: Path
) -> None:
    path = saved(tmp_path / "dpr.cp", cp(dpr_state(berts)), folders["ctx"])
    write_checkpoint(read_checkpoint(path, "dpr-cp", HEADS), tmp_path / "st", "sentence-transformers")
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    assert theirs.similarity_fn_name == "dot"
    for method, role in (("encode_query", "question"), ("encode_document", "ctx")):
        found = torch.from_numpy(getattr(theirs, method)(TEXTS))
        torch.testing.assert_close(found, plain(role), atol=2e-5, rtol=1e-5)


def test_one_tower_is_written_as_both(folders: dict[str, Path], tmp_path: Path) -> None:
    one = Encoder.load(str(folders["ctx"]), "cpu", pooling="cls")
    write_checkpoint(one, tmp_path / "start.cp", "dpr-cp")
    two = read_checkpoint(tmp_path / "start.cp", None, ReadOptions(tokenizer=folders["ctx"])).placed()
    for method in ("encode_query", "encode_document"):
        assert (getattr(two, method)(TEXTS) == one.encode(TEXTS)).all()


def test_heads_are_begun_and_left_out_on_both_towers(pair: Encoder) -> None:
    fresh = with_head(pair, "fresh")
    assert [len(tower.layout.head) for tower in fresh.towers] == [2, 2]
    assert with_head(fresh, "none").fingerprint() == pair.fingerprint()


# ---- SEED-Encoder's two towers ----


FAIRSEQ = {
    "encoder.layer.": "layers.",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
    "embeddings.word_embeddings": "embed_tokens",
    "embeddings.position_embeddings": "embed_positions",
    "embeddings.LayerNorm": "emb_layer_norm",
}


@pytest.mark.parametrize("inner", ["", "encoder.sentence_encoder."])
def test_the_towers_of_a_seed_encoder_for_natural_questions_are_read_and_written(tmp_path: Path, inner: str) -> None:
    words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("".join(word + "\n" for word in words))
    config = RobertaConfig(
        vocab_size=len(words) + 1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.2,
    )
    models, state = {}, {}
    for seed, role in enumerate(("question", "ctx")):
        torch.manual_seed(seed)
        models[role] = RobertaModel(config, add_pooling_layer=False).eval()
        with torch.no_grad():
            models[role].embeddings.token_type_embeddings.weight.zero_()
        for name, tensor in models[role].state_dict().items():
            if "token_type" not in name:
                theirs = re.sub("|".join(map(re.escape, FAIRSEQ)), lambda match: FAIRSEQ[match[0]], name)
                state[f"{role}_model.fairseq_roberta.{inner}{theirs}"] = tensor
    if inner:
        state["ctx_model.fairseq_roberta.encoder.lm_head.bias"] = torch.zeros(3)
    torch.save(cp(state), tmp_path / "seed-nq.pt")
    assert find_format(tmp_path / "seed-nq.pt") == "seed-nq"
    encoder = read_checkpoint(tmp_path / "seed-nq.pt", None, HEADS).placed()
    rows = encoder.tokenizer(["who wrote it", "a b"], padding=True, return_tensors="pt")
    for method, role in (("encode_query", "question"), ("encode_document", "ctx")):
        with torch.no_grad():
            wanted = models[role](rows["input_ids"], rows["attention_mask"]).last_hidden_state[:, 0]
        found = getattr(encoder, method)(["who wrote it", "a b"], output="torch")
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    write_checkpoint(encoder, tmp_path / "again.pt", "seed-nq")
    assert read_checkpoint(tmp_path / "again.pt", None, ReadOptions()).fingerprint() == encoder.fingerprint()
    written = torch.load(tmp_path / "again.pt", weights_only=True)["model_dict"]
    plain = {name.replace(inner, ""): tensor for name, tensor in state.items() if "lm_head" not in name}
    assert written.keys() == plain.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in plain.items())


# ---- what does not open ----


class Settings:
    """An object of a class of its own, as newer checkpoints of DPR hold."""


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(names)}


WORDS = "ctx_model.embeddings.word_embeddings.weight"
BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], Any], type[Exception], str]] = {
    "one tower": (lambda s: cp(without(s, "ctx_model")), ArtifactError, "no tensors ctx_model.*; a checkpoint of two"),
    "a missing layer": (
        lambda s: cp(without(s, "ctx_model.encoder.layer.1.output")),
        ArtifactError,
        "4 missing (ctx_model.encoder.layer.1.output.dense.weight",
    ),
    "a tensor too many": (
        lambda s: cp(s | {"ctx_model.extra": torch.zeros(2)}),
        ArtifactError,
        "1 not known (ctx_model.extra)",
    ),
    "another tensor": (
        lambda s: cp(s | {"reader.bias": torch.zeros(2)}),
        ArtifactError,
        "1 tensors of neither tower (reader.bias)",
    ),
    "no words": (lambda s: cp(without(s, WORDS)), ArtifactError, f"1 tensors missing ({WORDS})"),
    "another width": (
        lambda s: cp(s | {"ctx_model.embeddings.LayerNorm.weight": torch.zeros(31)}),
        ArtifactError,
        "ctx_model.embeddings.LayerNorm.weight is [31], expected [32]",
    ),
    "half a projection": (
        lambda s: cp(s | {"ctx_model.encode_proj.weight": torch.zeros(4, 32)}),
        ArtifactError,
        "1 missing (ctx_model.encode_proj.bias)",
    ),
    "vectors of two widths": (
        lambda s: cp(
            s | {"ctx_model.encode_proj.weight": torch.zeros(4, 32), "ctx_model.encode_proj.bias": torch.zeros(4)}
        ),
        ConfigError,
        "the query tower's vectors have 32 dimensions, the documents' 4",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_does_not_fit_is_refused_and_says_what_is_wrong(
    folders: dict[str, Path], berts: dict[str, BertModel], tmp_path: Path, name: str
) -> None:
    change, error, message = BROKEN[name]
    path = saved(tmp_path / "dpr.cp", change(dpr_state(berts)), folders["ctx"])
    with pytest.raises(error, match=re.escape(message)):
        read_checkpoint(path, "dpr-cp", HEADS)


def test_what_a_file_cannot_say_is_asked_for(
    folders: dict[str, Path], berts: dict[str, BertModel], tmp_path: Path
) -> None:
    path = saved(tmp_path / "dpr.cp", cp(dpr_state(berts)), folders["ctx"])
    with pytest.raises(ConfigError, match="how many attention heads 32 dimensions have; say it .--heads"):
        Encoder.load(str(path))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ArtifactError, match="no tokenizer .* --tokenizer"):
        read_checkpoint(path, None, HEADS)
    encoder = read_checkpoint(path, None, replace(HEADS, tokenizer=folders["ctx"]))
    assert encoder.encode_query("a").shape == (32,)


def test_a_pickle_of_more_than_tensors_is_read_only_on_trust(
    folders: dict[str, Path], berts: dict[str, BertModel], plain: Callable[..., Tensor], tmp_path: Path
) -> None:
    content = cp(dpr_state(berts)) | {"encoder_params": {"encoder": Settings()}}
    path = saved(tmp_path / "dpr.cp", content, folders["ctx"])
    with pytest.raises(ArtifactError, match="Settings.* --trust"):
        read_checkpoint(path, "dpr-cp", HEADS)
    assert find_format(path, True) == "dpr-cp"
    assert_vectors(read_checkpoint(path, None, replace(HEADS, trust=True)), plain)


def test_folders_that_are_no_pair_are_refused(pair: Encoder, tmp_path: Path) -> None:
    write_checkpoint(pair, tmp_path / "hf", "dpr-hf")
    question, context = tmp_path / "hf" / "question_encoder", tmp_path / "hf" / "ctx_encoder"
    (tmp_path / "hf" / "manifest.json").unlink()  # released folders have none
    shutil.copytree(question, tmp_path / "hf" / "question_2")
    with pytest.raises(ConfigError, match="question_2 and question_encoder are both|question_encoder and question_2"):
        Encoder.load(str(tmp_path / "hf"))
    shutil.rmtree(tmp_path / "hf" / "question_2")
    for name, other in (("runs", "{"), ("reader", '{"model_type": "dpr", "architectures": ["DPRReader"]}')):
        (tmp_path / "hf" / name).mkdir()
        (tmp_path / "hf" / name / "config.json").write_text(other)
    assert len(Encoder.load(str(tmp_path / "hf")).towers) == 2
    for name in ("runs", "reader"):
        shutil.rmtree(tmp_path / "hf" / name)
    config = json.loads((context / "config.json").read_text())
    (context / "config.json").write_text(json.dumps(config | {"projection_dim": 8}))
    with pytest.raises(ArtifactError, match="projection_dim and the weights, which hold none"):
        Encoder.load(str(tmp_path / "hf"))
    (context / "config.json").write_text(json.dumps(config | {"architectures": ["DPRReader"]}))
    with pytest.raises(ArtifactError, match="neither DPRQuestionEncoder nor DPRContextEncoder .DPRReader"):
        Encoder.load(str(context))
    shutil.rmtree(context)
    with pytest.raises(ArtifactError, match="neither config.json nor modules.json"):
        Encoder.load(str(tmp_path / "hf"))


def test_an_encoder_that_dpr_has_no_place_for_is_not_written(
    pair: Encoder, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    roberta = Encoder.load(str(tiny("Roberta", num_hidden_layers=1)), "cpu", pooling="cls")
    mean = Encoder.pair(pair.for_queries, pair)
    mean.query_encoder.layout = replace(mean.query_encoder.layout, pooling="mean")
    for encoder, form, message in (
        (roberta, "dpr-cp", "is a RobertaModel, not a BertModel"),
        (mean, "dpr-hf", "has mean pooling"),
        (with_head(pair, "fresh"), "dpr-cp", "has the head Dense and LayerNorm"),
        (with_head(pair, "fresh"), "seed-nq", "seed-nq has no place for a head"),
        (pair, "seed-nq", "is a BertModel, not a RobertaModel"),
        (pair, "ance", "has two towers"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_checkpoint(encoder, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []
