"""Encoding a corpus to shards: the right rows, nothing lost, nothing mixed, and every sink fed the same."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ance_fast import EmbeddingShards, Encoder, Index, TokenStore, encode_corpus
from ance_fast.data import load_corpus
from ance_fast.data.packing import PackedBatch
from ance_fast.encoding.claims import Claim
from ance_fast.encoding.ring import EmbeddingRing
from ance_fast.encoding.shard_job import ShardJob
from ance_fast.encoding.sinks import MatrixSink
from ance_fast.encoding.stages import StageTimes
from ance_fast.errors import ArtifactError, ConfigError, DataError
from ance_fast.models.backbone import PackedBackbone

pytestmark = pytest.mark.timeout(120)


def digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.blake2b(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir()) if file.is_file()
    }


@pytest.fixture
def counted(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Passages of each batch that is encoded; the run is interrupted when `counted.append` says so."""
    inner, seen = encoder.hidden, []

    def hidden(batch: PackedBatch) -> torch.Tensor:
        seen.append(len(batch))
        return inner(batch)

    monkeypatch.setattr(encoder, "hidden", hidden)
    return seen


def test_shards_hold_what_encode_gives_in_corpus_order(encoder: Encoder, wiki: Path, tmp_path: Path) -> None:
    documents = list(load_corpus(str(wiki)))
    times = StageTimes()
    shards = encode_corpus(encoder, documents, tmp_path / "out", shard_rows=150, times=times)
    assert [len(block) for block in shards] == [150, 150, 100]
    assert list(shards.ids) == [document.id for document in documents]
    expected = encoder.encode_document([document.full_text for document in documents])
    np.testing.assert_allclose(shards.read(), expected, atol=1e-5)
    assert [row["stage"] for row in times.table()] == ["tokenise", "pack", "forward", "pool", "write"]
    assert times.passages == 400
    half = encode_corpus(encoder, documents, tmp_path / "half", dtype="float16").read()
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, expected, atol=1e-2)


def test_a_mean_that_is_subtracted_saves_precision_and_keeps_the_ranking(
    encoder: Encoder, store: TokenStore, tmp_path: Path
) -> None:
    exact = encode_corpus(encoder, store, tmp_path / "exact").read()
    plain = encode_corpus(encoder, store, tmp_path / "plain", dtype="float16").read().astype(np.float32)
    centred = encode_corpus(encoder, store, tmp_path / "centred", dtype="float16", centre=True)
    assert centred.mean is not None
    assert np.abs(centred.read() - exact).mean() < 0.7 * np.abs(plain - exact).mean()
    queries = exact[:20]
    wanted = np.argsort(-(queries @ exact.T), axis=1)[:, 0]
    stored = np.concatenate([block for _, block in centred.stored()]).astype(np.float32)
    assert (np.argsort(-(queries @ stored.T), axis=1)[:, 0] == wanted).all()


def test_an_interrupted_run_keeps_its_finished_shards(
    encoder: Encoder, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, calls = encoder.hidden, 0

    def interrupted(batch: PackedBatch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        # The ring is drained by another thread: enough later batches for two shards to be on disk by then.
        if calls == 30:
            raise KeyboardInterrupt
        return inner(batch)

    monkeypatch.setattr(encoder, "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(encoder, store, tmp_path / "out", shard_rows=50, batch_tokens=200)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(encoder, "hidden", inner)
    times = StageTimes()
    encode_corpus(encoder, store, tmp_path / "out", shard_rows=50, batch_tokens=200, times=times)
    assert times.passages <= 300
    assert times.passages % 50 == 0
    encode_corpus(encoder, store, tmp_path / "whole", shard_rows=50, batch_tokens=200)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


CHILD = """
import sys
from ance_fast import Encoder, TokenStore, encode_corpus
from ance_fast.crash_points import arm
arm("".join(sys.argv[4:]) or None)
encoder = Encoder.load(sys.argv[1], device="cpu", max_document_length=32)
encode_corpus(encoder, TokenStore.open(sys.argv[2]), sys.argv[3], shard_rows=50, batch_tokens=200)
"""


@pytest.mark.parametrize("point", ["shard.before_rename:3", "record.after_rename:5", "manifest.before_rename"])
def test_a_kill_costs_at_most_the_shards_in_flight(
    warm: Callable[..., subprocess.CompletedProcess[str]],
    tiny: Callable[..., Path],
    store: TokenStore,
    tmp_path: Path,
    point: str,
) -> None:
    checkpoint, script = tiny("Bert"), tmp_path / "child.py"
    script.write_text(CHILD)
    killed = warm(script, checkpoint, store.path, tmp_path / "out", point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    encoder = Encoder.load(str(checkpoint), device="cpu", max_document_length=32)
    times = StageTimes()
    encode_corpus(encoder, store, tmp_path / "out", shard_rows=50, batch_tokens=200, times=times)
    assert times.passages == {"shard.before_rename:3": 300, "record.after_rename:5": 150}.get(point, 0)
    encode_corpus(encoder, store, tmp_path / "whole", shard_rows=50, batch_tokens=200)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_the_same_corpus_again_costs_nothing_and_a_grown_one_only_what_is_new(
    encoder: Encoder, wiki: Path, tmp_path: Path, counted: list[int]
) -> None:
    documents = list(load_corpus(str(wiki)))
    encode_corpus(encoder, documents[:300], tmp_path / "out", shard_rows=200)
    assert sum(counted) == 300
    encode_corpus(encoder, documents[:300], tmp_path / "out", shard_rows=200)
    assert sum(counted) == 300
    grown = encode_corpus(encoder, documents, tmp_path / "out", shard_rows=200)
    assert sum(counted) == 400
    np.testing.assert_allclose(
        grown.read(), encoder.encode_document([document.full_text for document in documents]), atol=1e-5
    )


def test_another_encoder_or_corpus_is_refused_unless_told_to_start_over(
    encoder: Encoder, store: TokenStore, wiki: Path, tmp_path: Path
) -> None:
    encode_corpus(encoder, store, tmp_path / "out")
    other = Encoder.load(str(encoder.backbone.model.config._name_or_path), pooling="cls", max_document_length=32)
    with pytest.raises(ArtifactError, match="pooling"):
        encode_corpus(other, store, tmp_path / "out")
    changed = [document.full_text for document in load_corpus(str(wiki))]
    changed[7] = "another text altogether"
    with pytest.raises(ArtifactError, match="rows 0 to 399"):
        encode_corpus(
            encoder,
            TokenStore.from_texts(changed, encoder.tokenizer, ids=list(store.ids), max_length=32),
            tmp_path / "out",
        )
    np.testing.assert_array_equal(
        encode_corpus(other, store, tmp_path / "out", resume=False).read(),
        encode_corpus(other, store, tmp_path / "new").read(),
    )


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_refusal_leaves_the_tokens_of_what_is_encoded(
    encoder: Encoder, wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfinished: bool
) -> None:
    out, tokens = tmp_path / "out", tmp_path / "out.tokens"
    documents = [document.full_text for document in load_corpus(str(wiki))]
    with monkeypatch.context() as patch:
        if unfinished:
            patch.setattr(encoder, "hidden", lambda batch: pytest.fail("cut off"))
            with pytest.raises(pytest.fail.Exception):
                encode_corpus(encoder, documents[:300], out)
        else:
            encode_corpus(encoder, documents[:300], out)
    before = digests(tokens)
    changed = [*documents[:7], "another text altogether", *documents[8:]]
    with pytest.raises(ArtifactError, match="made from another corpus"):
        encode_corpus(encoder, changed, out)
    other = Encoder.load(str(encoder.backbone.model.config._name_or_path), pooling="cls", max_document_length=32)
    with pytest.raises(ArtifactError, match="pooling 'mean', now 'cls'"):
        encode_corpus(other, documents, out)  # grown: its tokens are others too
    assert digests(tokens) == before
    assert not (tmp_path / ".out.tokens.building").exists()
    assert len(encode_corpus(encoder, documents, out)) == 400
    assert len(encode_corpus(other, changed, out, resume=False)) == 400
    assert TokenStore.open(tokens).document(7).full_text == "another text altogether"


def test_a_run_with_nothing_new_shows_no_rate(
    encoder: Encoder, store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_corpus(encoder, store, tmp_path / "out", show_progress=True)
    assert "passages/s" in capsys.readouterr().err
    encode_corpus(encoder, store, tmp_path / "out", show_progress=True)
    assert capsys.readouterr().err == "encoding: 400 passages, nothing new\n"


@pytest.mark.parametrize(("dtype", "centre"), [("float32", False), ("float16", False), ("float16", True)])
def test_sinks_get_every_row_as_stored_however_often_the_run_was_cut_off(
    encoder: Encoder, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, centre: bool
) -> None:
    inner, calls = encoder.hidden, 0

    def interrupted(batch: PackedBatch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise RuntimeError("cut off")
        return inner(batch)

    def run(sink: MatrixSink) -> EmbeddingShards:
        return encode_corpus(
            encoder, store, tmp_path / "out", shard_rows=50, batch_tokens=200, dtype=dtype, centre=centre, sinks=[sink]
        )

    if dtype == "float32":  # the first passages are on disk before the sink sees the others
        monkeypatch.setattr(encoder, "hidden", interrupted)
        with pytest.raises(RuntimeError, match="cut off"):
            run(MatrixSink(np.zeros((400, encoder.dim), np.float32)))
        monkeypatch.setattr(encoder, "hidden", inner)
    live = MatrixSink(np.zeros((400, encoder.dim), np.float32))
    shards = run(live)
    again = MatrixSink(np.zeros((400, encoder.dim), np.float32))
    run(again)
    np.testing.assert_array_equal(live.matrix, shards.read().astype(np.float32))
    np.testing.assert_array_equal(again.matrix, live.matrix)


def test_several_devices_share_the_shards(
    encoder: Encoder, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = encode_corpus(encoder, store, tmp_path / "one", shard_rows=50, batch_tokens=200)
    sink = MatrixSink(np.zeros((400, encoder.dim), np.float32))
    times = StageTimes()
    monkeypatch.setattr(EmbeddingRing, "copy_seconds", 0.01)  # as if the device were a GPU
    two = encode_corpus(
        encoder, store, tmp_path / "two", shard_rows=50, batch_tokens=200, devices=["cpu", "cpu"], sinks=[sink],
        times=times,
    )  # fmt: skip
    assert all(row["threads"] >= 2 for row in times.table() if row["stage"] not in ("tokenise", "add"))
    assert {row["stage"] for row in times.table()} >= {"pack", "forward", "D2H", "write"}
    assert all(0 < row["share"] < 1.05 for row in times.table())
    np.testing.assert_allclose(two.read(), one.read(), atol=2e-6)
    np.testing.assert_array_equal(sink.matrix, two.read())
    with pytest.raises(ConfigError, match="give a list"):
        encode_corpus(encoder, store, tmp_path / "three", devices=[])


def test_a_device_that_fails_ends_the_others(
    encoder: Encoder, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, calls, lock = PackedBackbone.forward, 0, threading.Lock()

    def broken(self: PackedBackbone, batch: PackedBatch, **options: bool) -> torch.Tensor:
        nonlocal calls
        with lock:
            calls += 1
            if calls == 10:
                raise RuntimeError("a broken device")
        return inner(self, batch, **options)

    monkeypatch.setattr(PackedBackbone, "forward", broken)
    with pytest.raises(RuntimeError, match="a broken device"):
        encode_corpus(encoder, store, tmp_path / "out", shard_rows=50, batch_tokens=100, devices=["cpu", "cpu"])
    assert calls < 200
    # What the device that did not fail was working on was left, not stored half encoded.
    encode_corpus(encoder, store, tmp_path / "out", shard_rows=50, batch_tokens=100, devices=["cpu", "cpu"])
    monkeypatch.setattr(PackedBackbone, "forward", inner)
    encode_corpus(encoder, store, tmp_path / "one", shard_rows=50, batch_tokens=100)
    assert digests(tmp_path / "out") == digests(tmp_path / "one")


@pytest.mark.timeout(30)
def test_a_sink_that_fails_while_others_encode_the_last_shard_ends_the_run(
    encoder: Encoder, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, asked, waiting = ShardJob._take, 0, threading.Event()

    def held_elsewhere(self: ShardJob, name: str) -> Claim | None:
        nonlocal asked
        if name != self.shards[-1].name:
            return take(self, name)
        asked += 1
        if asked == 3:
            waiting.set()
        return None

    class Failing:
        stage = "add"

        def write(self, start: int, block: np.ndarray) -> None:
            if start >= 300:
                assert waiting.wait(20)
                raise OSError("no room")

    monkeypatch.setattr(ShardJob, "_take", held_elsewhere)
    with pytest.raises(OSError, match="no room"):
        encode_corpus(encoder, store, tmp_path / "out", shard_rows=50, batch_tokens=400, sinks=[Failing()])


def test_processes_that_share_a_folder_end_together(
    tiny: Callable[..., Path], encoder: Encoder, store: TokenStore, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CHILD, str(tiny("Bert")), str(store.path), str(tmp_path / "out")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.wait(100) == 0, process.stderr
    assert (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / ".out.encoding").exists()
    encode_corpus(encoder, store, tmp_path / "whole", shard_rows=50, batch_tokens=200)
    # The seeds of `tiny` are fixed, so both encoders have the same weights.
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_poisoned_passage_is_named_and_finished_shards_stay(
    encoder: Encoder, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = encoder.pool
    poisoned = store.tokens(320).tolist()

    def pool(hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        embeddings = inner(hidden, batch)
        offsets = batch.cu_seqlens.tolist()
        for number in range(len(batch)):
            if batch.input_ids[offsets[number] : offsets[number + 1]].tolist() == poisoned:
                embeddings[number] = float("nan")
        return embeddings

    monkeypatch.setattr(encoder, "pool", pool)
    with pytest.raises(DataError, match=f"NaN or infinity: {store.id(320)!r}"):
        encode_corpus(encoder, store, tmp_path / "out", shard_rows=100)
    monkeypatch.setattr(encoder, "pool", inner)
    times = StageTimes()
    encode_corpus(encoder, store, tmp_path / "out", shard_rows=100, times=times)
    assert times.passages == 100


def test_embeddings_are_refused_for_another_encoder_and_when_damaged(
    encoder: Encoder, store: TokenStore, tmp_path: Path
) -> None:
    shards = encode_corpus(encoder, store, tmp_path / "out")
    assert EmbeddingShards.open(tmp_path / "out", fingerprint=encoder.fingerprint()).dim == 32
    with pytest.raises(ArtifactError, match="encode the corpus again"):
        EmbeddingShards.open(tmp_path / "out", fingerprint="other")
    index = Index.build(shards, metric="cosine")
    assert index.fingerprint == encoder.fingerprint()
    assert index.search(shards.read()[:5], 1).ids == [[name] for name in shards.ids[:5]]
    file = next((tmp_path / "out").glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="bytes, the manifest says"):
        EmbeddingShards.open(tmp_path / "out")
    encode_corpus(encoder, store, tmp_path / "out")
    np.testing.assert_array_equal(
        EmbeddingShards.open(tmp_path / "out").read(), encode_corpus(encoder, store, tmp_path / "new").read()
    )


def test_a_store_of_another_tokenizer_or_longer_passages_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign = TokenStore.from_texts(["a"], PreTrainedTokenizerFast(tokenizer_object=backend), max_length=8)
    with pytest.raises(ArtifactError, match="another encoder's vocabulary"):
        encode_corpus(encoder, foreign, tmp_path / "out")
    long = TokenStore.from_texts(["a " * 300], encoder.tokenizer, max_length=200)
    with pytest.raises(ConfigError, match="passages of up to 200 tokens, the encoder takes 80"):
        encode_corpus(encoder, long, tmp_path / "out")
    empty = TokenStore.from_texts([], encoder.tokenizer, max_length=32)
    with pytest.raises(DataError, match="empty"):
        encode_corpus(encoder, empty, tmp_path / "out")
