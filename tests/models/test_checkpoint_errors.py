"""Checkpoints that are not what they should be: what is wrong with them is said, and nothing half-written stays."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import lzma
import pickle
import shutil
import sys
import tarfile
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import RobertaConfig

from ance_fast import Encoder
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.attention_heads import attention_heads, refuse_unsaid_heads
from ance_fast.models.checkpoint_formats import find_format, read_checkpoint, with_head, write_checkpoint
from ance_fast.models.foreign import ReadOptions


class Custom:
    """What a pickle may ask for."""


def refusal(path: Path, options: ReadOptions | None = None, form: str | None = None) -> str:
    with pytest.raises((ArtifactError, ConfigError)) as caught:
        read_checkpoint(path, form, options or ReadOptions())
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_tensors_that_are_missing_or_too_many_or_of_another_shape_are_named(released: Any) -> None:
    state = released.ance
    del state["roberta.encoder.layer.1.output.dense.bias"]
    del state["roberta.embeddings.LayerNorm.weight"]
    state["roberta.encoder.layer.2.output.dense.bias"] = torch.zeros(32)
    state["roberta.embeddings.position_embeddings.weight"] = torch.zeros(40, 32)
    path = released.ance_folder("broken", state)
    assert refusal(path) == (
        f"{path}: the weights do not fit; tensors 2 missing (roberta.embeddings.LayerNorm.weight, "
        "roberta.encoder.layer.1.output.dense.bias); 1 not known (roberta.encoder.layer.2.output.dense.bias); 1 of "
        "another shape (roberta.embeddings.position_embeddings.weight is [40, 32], expected [66, 32])"
    )
    many = released.ance | {f"extra.{number}": torch.zeros(1) for number in range(5)}
    assert "5 not known (extra.0, extra.1, extra.2, ...)" in refusal(released.ance_folder("extra", many))


def test_tensors_of_seed_encoder_are_named_as_its_files_name_them(released: Any) -> None:
    prefix = "seed_encoder.encoder.sentence_encoder."
    state = {prefix + name: value for name, value in released.fairseq.items()} | released.head_tensors
    del state[prefix + "layers.1.fc2.bias"]
    state["another.weight"] = torch.zeros(2)
    said = refusal(released.seed_folder("broken", state))
    assert f"1 missing ({prefix}layers.1.fc2.bias); 1 not known (another.weight)" in said
    assert "layers.2" in refusal(released.seed_folder("shallow", encoder_layers=3))
    assert "1 missing (encoder.sentence_encoder.embed_positions.weight)" not in said
    path = released.seed_fairseq("part.pt")
    content = torch.load(path, weights_only=False)
    del content["model"]["encoder.sentence_encoder.embed_positions.weight"]
    torch.save(content, path)
    assert "tensors 1 missing (encoder.sentence_encoder.embed_positions.weight)" in refusal(path)


def test_tensors_of_a_plain_folder_are_named_too(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(tiny("Bert"), folder)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "encoder.layer.1.output.dense.bias"

    def load(state: dict[str, object]) -> Encoder:
        torch.save(state, folder / "pytorch_model.bin")
        return Encoder.load(str(folder))

    with pytest.raises(ArtifactError, match=f"lack 1 tensors of BertModel, such as {name};"):
        load({key: value for key, value in whole.items() if key != name})
    with pytest.raises(ArtifactError, match=rf"1 tensors .* such as {name} is \[48\], expected \[32\]"):
        load(whole | {name: torch.zeros(48)})
    with pytest.raises(ArtifactError, match="a pickle of more than tensors, which is not read"):
        load(whole | {"task": Custom()})
    with caplog.at_level("WARNING", logger="ance_fast"):
        load(whole | {"cls.predictions.bias": torch.zeros(3)})
        load(whole | {"encoder.layer.2.output.dense.bias": torch.zeros(3), "lstm.weight": torch.zeros(2)})
    assert [record.getMessage() for record in caplog.records if record.name.startswith("ance_fast")] == [
        f"{folder}: 2 tensors of the weights have no place in a BertModel and are left out, such as "
        "encoder.layer.2.output.dense.bias, lstm.weight"
    ]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("embeddingHead.weight", (24, 64), "the head takes vectors 64 wide .* the transformer gives 32"),
        ("embeddingHead.weight", (16, 32), r"the head gives vectors 16 wide .* embeddingHead.bias is \[24\]"),
        ("norm.weight", (768,), r"the head gives vectors 24 wide .* norm.weight is \[768\]"),
        ("embeddingHead.weight", (24,), r"embeddingHead.weight is \[24\], expected a matrix"),
        ("norm.bias", None, "the head lacks 1 of 4 tensors: norm.bias"),
    ],
)
def test_a_head_of_another_width_is_named_with_both_widths(
    released: Any, name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    state = {key: value for key, value in released.ance.items() if key != name}
    if shape is not None:
        state[name] = torch.zeros(shape)
    with pytest.raises(ArtifactError, match=message):
        Encoder.load(str(released.ance_folder("broken", state)))


def test_a_head_of_another_width_in_a_folder_of_sentence_transformers_is_named(released: Any) -> None:
    folder = released.sentence_transformers_folder("st")
    dense = folder / "2_Dense"
    save_file({"linear.weight": torch.zeros(24, 48), "linear.bias": torch.zeros(24)}, dense / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"2_Dense.*linear.weight is \[24, 48\], expected \[24, 32\]"):
        Encoder.load(str(folder))
    config = (dense / "config.json").read_text()
    (dense / "config.json").write_text(config.replace('"in_features": 32', '"in_features": 48'))
    with pytest.raises(ArtifactError, match="Dense takes vectors 48 wide, the transformer gives 32"):
        Encoder.load(str(folder))


def test_weights_for_another_encoder_are_named(released: Any, tmp_path: Path) -> None:
    encoder = Encoder.load(str(released.ance_folder("ance")))
    with_head(encoder, "fresh").save(tmp_path / "wider")
    with pytest.raises(ArtifactError, match=r"head.0.linear.weight is \[32, 32\], expected \[24, 32\].*another archi"):
        encoder.load_weights(tmp_path / "wider")


def test_pickles_that_could_run_code_are_read_only_when_trusted(
    released: Any, tmp_path: Path, token_rows: list[list[int]], embed: Callable[..., Tensor]
) -> None:
    folder = released.ance_folder("ance")
    body = torch.load(folder / "pytorch_model.bin", weights_only=True)
    expected = embed(Encoder.load(str(folder)), token_rows)
    # A dictionary with an attribute, as some programs saved theirs.
    body = type("State", (dict,), {"__module__": __name__})(body)
    setattr(sys.modules[__name__], "State", type(body))  # noqa: B010
    torch.save(body, folder / "pytorch_model.bin")
    said = refusal(folder)
    assert "a Python object" in said
    assert "--trust" in said
    with pytest.raises(ArtifactError, match="if you trust where the file comes from.*ance-fast convert"):
        Encoder.load(str(folder))
    found = read_checkpoint(folder, None, ReadOptions(trust=True))
    assert torch.equal(embed(found.placed(), token_rows), expected)


def test_a_trusted_file_may_hold_objects_of_programs_that_are_not_here(
    released: Any, token_rows: list[list[int]], embed: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = types.ModuleType("fairseq_of_long_ago")
    elsewhere.Meter = type("Meter", (), {"__module__": "fairseq_of_long_ago"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fairseq_of_long_ago", elsewhere)
    meter = elsewhere.Meter()
    meter.total = 3
    path = released.seed_fairseq("pretrained.pt", extra_state={"meters": [meter]})
    monkeypatch.delitem(sys.modules, "fairseq_of_long_ago")
    assert "fairseq_of_long_ago.Meter" in refusal(path)
    found = read_checkpoint(path, None, ReadOptions(trust=True))
    again = read_checkpoint(released.seed_fairseq("plain.pt"), None, ReadOptions())
    assert torch.equal(embed(found, token_rows), embed(again, token_rows))


def test_reading_a_pickle_without_trust_runs_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    content = {"model": {"encoder.sentence_encoder.embed_tokens.weight": Trap()}}
    torch.save(content, tmp_path / "zip.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("zip.pt", "old.pt", "plain.pt"):
        refusal(tmp_path / name)
        refusal(tmp_path / name, form="seed-finetuned")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 5, 300, -7])
def test_files_that_are_cut_off_are_said_to_be(released: Any, kept: int) -> None:
    folder = released.ance_folder("ance")
    file = folder / "pytorch_model.bin"
    torch.save(released.ance, file, _use_new_zipfile_serialization=kept != -7)
    file.write_bytes(file.read_bytes()[:kept])
    for options in (ReadOptions(), ReadOptions(trust=True)):
        with pytest.raises(ArtifactError, match="pytorch_model.bin: cannot be read"):
            read_checkpoint(folder, "ance", options)
    save_file({name: value.contiguous().clone() for name, value in released.ance.items()}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:kept])
    with pytest.raises(ArtifactError, match="model.safetensors: cannot be read"):
        Encoder.load(str(folder))
    tar = released.seed_tar("seed.tgz")
    tar.write_bytes(tar.read_bytes()[: max(kept, 1) if kept >= 0 else -5000])
    with pytest.raises(ArtifactError, match="seed.tgz: cannot be read"):
        Encoder.load(str(tar))


def test_files_without_a_tokenizer_or_a_head_have_to_be_converted(released: Any, tmp_path: Path) -> None:
    for path in (released.seed_fairseq("pretrained.pt"), released.seed_finetuned("model.pt")):
        with pytest.raises(ArtifactError, match="convert it first: ance-fast convert .*pt FOLDER --to"):
            Encoder.load(str(path))
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, other)
    with pytest.raises(ArtifactError, match=r"no known form of checkpoint \(it holds weight\); known are sentence-tr"):
        Encoder.load(str(other))
    torch.save([1, 2], other)
    with pytest.raises(ArtifactError, match="it holds list"):
        find_format(other)


def test_a_tokenizer_that_is_missing_or_of_another_model_is_refused(released: Any, tmp_path: Path) -> None:
    folder = released.ance_folder("ance")
    (folder / "merges.txt").unlink()
    assert "no tokenizer (tokenizer.json, or vocab.json and merges.txt); name the folder of one with --tok" in refusal(
        folder
    )
    found = read_checkpoint(folder, None, ReadOptions(tokenizer=released.root / "roberta-vocabulary"))
    assert len(found.tokenizer) <= 340
    with pytest.raises(ArtifactError, match="nowhere: no such tokenizer"):
        read_checkpoint(folder, None, ReadOptions(tokenizer=tmp_path / "nowhere"))
    vocabulary = released.root / "roberta-vocabulary" / "vocab.json"
    with pytest.raises(ArtifactError, match="vocab.json: one file of several; name the folder that holds vocab.json"):
        read_checkpoint(folder, None, ReadOptions(tokenizer=vocabulary))
    (released.root / "big").mkdir()
    words = (released.root / "seed-vocabulary" / "vocab.txt").read_text() + "".join(f"w{n}\n" for n in range(400))
    (released.root / "big" / "vocab.txt").write_text(words)
    said = refusal(released.seed_folder("seed"), ReadOptions(tokenizer=released.root / "big" / "vocab.txt"))
    assert "the tokenizer has 459 tokens, the model 340" in said
    (released.root / "big" / "vocab.txt").write_text("[PAD]\n[CLS]\n")
    with pytest.raises((ArtifactError, ConfigError), match=r"\[CLS\]"):
        read_checkpoint(released.seed_folder("other"), None, ReadOptions(tokenizer=released.root / "big"))


def test_settings_that_make_no_model_are_refused(released: Any) -> None:
    folder = released.ance_folder("ance", num_attention_heads=5)
    assert "no RobertaModel can be made of its settings" in refusal(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="config.json: not valid JSON"):
        Encoder.load(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="config.json: holds list"):
        Encoder.load(str(folder))
    noted = released.ance_folder("noted")
    lengths = [("max_seq_length", value) for value in (True, -5, 0, 2)]
    for note, value in (("pooling", "some"), ("max_query_length", "some"), *lengths):
        (noted / "ance_fast.json").write_text(json.dumps({note: value}))
        assert f"{note}={value!r} in its ance_fast.json means nothing" in refusal(noted)
    assert "activation_fn='relu'; only 'gelu' is" in refusal(released.seed_folder("relu", activation_fn="relu"))
    assert "pad_token_id=0; only 1 is" in refusal(released.seed_folder("pad", pad_token_id=0))
    assert "dropout=2, not a probability" in refusal(released.seed_folder("drop", dropout=2))
    assert "cannot have 'two' attention heads" in refusal(released.seed_folder("a", encoder_attention_heads="two"))
    assert "cannot have 5 attention heads" in refusal(released.seed_folder("b"), ReadOptions(heads=5))
    assert "say it (--heads)" in refusal(released.seed_fairseq("c.pt", args=argparse.Namespace()))
    assert "no 'model' in it" in refusal(released.seed_finetuned("d.pt"), form="seed-fairseq")
    assert "not a dictionary of weights" in refusal(released.seed_fairseq("e.pt"), form="seed-finetuned")


def test_what_a_format_has_no_place_for_is_not_lost_in_silence(
    released: Any, tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    ance = Encoder.load(str(released.ance_folder("ance")))
    bert = Encoder.load(str(tiny("Bert")))

    def refused(encoder: Encoder, form: str, message: str, **settings: Any) -> None:
        copy = Encoder(encoder.backbone, encoder.head, encoder.tokenizer, encoder.layout, encoder.query_encoder)
        copy.layout = dataclasses.replace(copy.layout, **settings)
        with pytest.raises(ConfigError, match=message):
            write_checkpoint(copy, tmp_path / "to", form)
        assert not (tmp_path / "to").exists()

    seed = Encoder.load(str(released.seed_folder("seed")))
    refused(seed, "ance", "its tokenizer is not RoBERTa's, a byte-level BPE")
    refused(bert, "ance", "holds RoBERTa encoders; this one is a BertModel")
    refused(bert, "seed-finetuned", "has mean pooling", pooling="mean")
    refused(bert, "seed-finetuned", "is a BertModel, not a RobertaModel", pooling="cls")
    refused(ance, "ance", "has max pooling", pooling="max")
    refused(ance, "castorini", "it L2-normalises its vectors", normalize=True)
    refused(ance, "seed-hf", "it has prompts", prompts={"query": "query: "})
    refused(ance, "seed-fairseq", "no place for a head; write seed-finetuned")
    refused(with_head(ance, "none"), "ance", "this one's head is none .*--head fresh")
    refused(with_head(ance, "none").two_towers(), "ance", "it has two towers")
    refused(ance, "huggingface", "read, not written")
    refused(ance, "onnx", "'onnx': no known form")
    for setting, value in (("layer_norm_eps", 1e-12), ("pad_token_id", 0), ("hidden_act", "relu")):
        config = ance.backbone.model.config
        kept = getattr(config, setting)
        setattr(config, setting, value)
        refused(ance, "seed-finetuned", "seed-finetuned has no place for this encoder: it has")
        if setting == "pad_token_id":
            refused(ance, "castorini", "it has the padding id 0, there it is 1")
        setattr(config, setting, kept)
    with pytest.raises(ConfigError, match="head='new': choose keep, none or fresh"):
        with_head(ance, "new")


@pytest.mark.parametrize("form", ["ance", "seed-hf", "seed-finetuned"])
def test_writing_that_fails_leaves_nothing(
    released: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    encoder = Encoder.load(str(released.ance_folder("ance")))

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"part")
        raise OSError("No space left on device")

    for module in ("ance_checkpoints", "seed_folders", "seed_checkpoints"):
        monkeypatch.setattr(f"ance_fast.models.{module}.write_state", full)
    for name in ("to", "to.tar"):
        (tmp_path / "here").mkdir(exist_ok=True)
        with pytest.raises(ArtifactError, match="was not written .*No space left.*is the disk full?"):
            write_checkpoint(encoder, tmp_path / "here" / name, form)
        assert list((tmp_path / "here").iterdir()) == []


def test_what_is_already_there_is_not_replaced_unless_it_is_a_checkpoint(released: Any, tmp_path: Path) -> None:
    encoder = Encoder.load(str(released.ance_folder("ance")))
    (tmp_path / "file.pt").write_text("mine")
    with pytest.raises(ArtifactError, match="file.pt: exists"):
        write_checkpoint(encoder, tmp_path / "file.pt", "seed-finetuned")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "a.tar").mkdir()
    for path, form in ((tmp_path / "folder", "seed-finetuned"), (tmp_path / "a.tar", "seed-hf")):
        with pytest.raises(ArtifactError, match="exists; remove it or use another path"):
            write_checkpoint(encoder, path, form)
    with pytest.raises(ArtifactError, match="folder"):
        write_checkpoint(encoder, tmp_path / "folder", "ance")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"
    for form in ("ance", "castorini"):
        write_checkpoint(encoder, tmp_path / "again", form)
    assert find_format(tmp_path / "again") == "castorini"
    damaged = tmp_path / "again" / "pytorch_model.bin"
    damaged.write_bytes(damaged.read_bytes()[:-3] + b"abc")
    with pytest.raises(ArtifactError, match="checksum differs"):
        Encoder.load(str(tmp_path / "again"))


def test_a_tar_is_read_by_the_names_of_its_files_and_unpacked_nowhere_else(
    released: Any, tmp_path: Path, token_rows: list[list[int]], embed: Callable[..., Tensor]
) -> None:
    path = released.seed_tar("seed.tar.gz")
    expected = embed(Encoder.load(str(path)), token_rows)
    inside = released.root / "seed.tar.gz-inside"
    for whole in (True, False):
        with tarfile.open(path, "w") as tar:
            for name in ("../config.json", "seed/../../vocab.txt", "/tmp/escaped/config.json", "notes/vocab.txt"):
                member = tarfile.TarInfo(name)
                member.size = 4
                tar.addfile(member, io.BytesIO(b"evil"))
            link = tarfile.TarInfo("deep/er/seed/tokenizer.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
            if whole:
                tar.add(inside, arcname="deep/er/seed")
        before = set(tmp_path.rglob("*"))
        if whole:
            assert torch.equal(embed(Encoder.load(str(path)), token_rows), expected)
        else:
            with pytest.raises(ArtifactError, match="a tar without the config.json of a SEED-Encoder"):
                Encoder.load(str(path))
        assert set(tmp_path.rglob("*")) == before
    with tarfile.open(path, "w") as tar:
        tar.add(inside / "config.json", arcname="config.json")
    with pytest.raises(ArtifactError, match="no weights"):
        Encoder.load(str(path))


def test_attention_heads_that_a_file_does_not_hold_are_neither_lost_nor_assumed_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for heads, said in ((4, "128 dimensions would be read as 2 heads, this encoder has 4"), (2, None)):
        config = RobertaConfig(num_attention_heads=heads, hidden_size=128)
        if said is None:
            refuse_unsaid_heads(config, "seed-finetuned")
        else:
            with pytest.raises(ConfigError, match=said):
                refuse_unsaid_heads(config, "seed-finetuned")
    # Whoever reads such a file has to say its heads.
    refuse_unsaid_heads(RobertaConfig(num_attention_heads=2, hidden_size=32), "seed-finetuned")
    assert attention_heads(4, 128, tmp_path) == 4
    assert not caplog.records
    assert attention_heads(None, 128, tmp_path) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: does not say how many attention heads its 128 dimensions have; 2 are assumed (--heads)"
    ]


def test_a_file_that_would_be_read_with_other_heads_is_not_written(released: Any, tmp_path: Path) -> None:
    encoder = Encoder.load(str(released.ance_folder("ance")))
    config: Any = encoder.backbone.model.config
    config.hidden_size = 64  # two heads of 32 dimensions
    with pytest.raises(ConfigError, match="64 dimensions would be read as 1 heads, this encoder has 2"):
        write_checkpoint(encoder, tmp_path / "to.pt", "seed-finetuned")


def test_notes_that_lie_beside_a_file_are_not_its_own(released: Any) -> None:
    path = released.seed_finetuned("model.pt")
    (path.parent / "ance_fast.json").write_text('{"pooling": "mean", "max_query_length": 5}')
    encoder = read_checkpoint(path, None, ReadOptions(heads=2))
    assert (encoder.layout.pooling, encoder.max_query_length) == ("cls", 64)


@pytest.mark.parametrize("preset", ["plain", "dpr", "ance"])
def test_a_seed_encoder_does_not_lose_the_rules_of_its_tokens(released: Any, tmp_path: Path, preset: str) -> None:
    folder = released.seed_folder("seed")
    said = refused_preset(folder, preset)
    assert f"text_preset={preset!r}: a vocab.txt of SEED-Encoder becomes a tokenizer by the rules of 'seed'" in said
    encoder = Encoder.load(str(folder))
    encoder.save(tmp_path / "saved")
    if preset == "plain":
        saved = Encoder.load(str(tmp_path / "saved"), text_preset=preset)
        assert saved.tokenizer.init_kwargs["truncation_drops_end"]
        assert saved.tokenizer("The [PAD]").input_ids == encoder.tokenizer("The [PAD]").input_ids
    else:
        assert "is SEED-Encoder" in refused_preset(tmp_path / "saved", preset)
    assert Encoder.load(str(tmp_path / "saved"), text_preset="seed,lower_case=false").tokenizer("The").input_ids[1] == 3


def refused_preset(folder: Path, preset: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Encoder.load(str(folder), text_preset=preset)
    return str(caught.value)


BROKEN_MODULES = [
    ("2_Dense/config.json", b"{}", "in_features is None, not a width"),
    ("2_Dense/config.json", b"[]", "holds list, not an object"),
    ("3_LayerNorm/config.json", b"{}", "dimension is None, not a width"),
    ("modules.json", b'[{"idx": 0}]', "not a list of modules (KeyError: 'type')"),
    ("modules.json", b"[1]", "not a list of modules (TypeError"),
    ("modules.json", b"\xff\xfe", "not valid JSON"),
    ("ance_fast.json", b"\xff", "not valid JSON"),
]


def test_a_broken_folder_of_sentence_transformers_is_named(released: Any) -> None:
    folder = released.sentence_transformers_folder("st")
    for name, content, message in BROKEN_MODULES:
        file = folder / name
        whole = file.read_bytes() if file.exists() else None
        file.write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            Encoder.load(str(folder))
        assert f"{file}: " in str(caught.value)
        assert message in str(caught.value)
        if whole is None:
            file.unlink()
        else:
            file.write_bytes(whole)
    config = (folder / "2_Dense" / "config.json").read_text()
    for name in ("torch.nn.modules.linear.Nothing", "torch.nn.init.normal_", "torch.nnx.Identity", "torch.nn.Linear"):
        (folder / "2_Dense" / "config.json").write_text(config.replace("torch.nn.modules.linear.Identity", name))
        with pytest.raises(ConfigError, match=f"Dense activation '{name}' (cannot be made|is not a torch.nn module)"):
            Encoder.load(str(folder))


def sharded(folder: Path, state: dict[str, Tensor], safe: bool) -> Path:
    """`folder` with its weights in two files, as transformers saves large models."""
    (folder / "pytorch_model.bin").unlink()
    stem, end = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    places = {key: f"{stem}-0000{1 + number % 2}-of-00002.{end}" for number, key in enumerate(state)}
    for file in sorted(set(places.values())):
        part = {key: state[key].contiguous().clone() for key, place in places.items() if place == file}
        save_file(part, folder / file) if safe else torch.save(part, folder / file)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("safe", [True, False])
def test_weights_in_several_files_are_read_by_their_index(
    released: Any, token_rows: list[list[int]], embed: Callable[..., Tensor], safe: bool
) -> None:
    state = released.ance
    folder = sharded(released.ance_folder("sharded", state, model_type="roberta"), state, safe)
    assert find_format(folder) == "ance"
    torch.testing.assert_close(
        embed(Encoder.load(str(folder)), token_rows), released.vectors(token_rows), atol=2e-5, rtol=1e-5
    )
    index = next(folder.glob("*.index.json"))
    next(folder.glob("*-00002-of-00002.*")).unlink()
    assert "names 1 of 2 files that are not there" in refusal(folder)
    for content, message in (
        ('{"weight_map": {"a": "../a.bin"}}', "'../a.bin' is not the name of a file beside it"),
        ("[]", "not an index of weights"),
    ):
        index.write_text(content)
        assert message in refusal(folder)


def test_whatever_a_damaged_file_raises_is_an_error_that_names_it(
    released: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tar = released.seed_finetuned("model.pt"), released.seed_tar("seed.tgz")

    def damaged(error: Exception) -> Callable[..., Any]:
        def raises(*_: object, **__: object) -> Any:
            raise error

        return raises

    for error in (AssertionError("a"), AttributeError("b"), zlib.error("c"), KeyError("d")):
        monkeypatch.setattr(torch, "load", damaged(error))
        assert "cannot be read as a file of weights" in refusal(path, form="seed-finetuned")
        assert "cannot be read as a file of weights" in refusal(path)
    for error in (zlib.error("invalid block"), lzma.LZMAError("corrupt input"), EOFError()):
        monkeypatch.setattr(tarfile.TarFile, "getmembers", damaged(error))
        assert "cannot be read as a tar" in refusal(tar)
        assert "cannot be read as a tar" in refusal(tar, form="seed-hf")


def test_a_format_that_is_named_is_the_one_that_is_read(released: Any) -> None:
    folder = released.ance_folder("ance", model_type="roberta")
    assert "no modules.json" in refusal(folder, form="sentence-transformers")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    plain = read_checkpoint(folder, "huggingface", ReadOptions())
    assert (plain.layout.pooling, plain.layout.head) == ("mean", ())
    file = released.seed_finetuned("model.pt")
    for form in ("ance", "castorini", "dpr-hf", "huggingface", "sentence-transformers"):
        assert refusal(file, form=form) == f"{file}: is a file; {form} is a folder"
    for form in ("dpr-cp", "seed-nq", "seed-fairseq", "seed-finetuned"):
        assert refusal(folder, form=form) == f"{folder}: is a folder; {form} is a file"
    assert "ance has no use for --heads" in refusal(folder, ReadOptions(heads=2))
    assert "huggingface has no use for --trust" in refusal(folder, ReadOptions(trust=True), "huggingface")
