"""Documents in chunks, of which the best one counts: scores, losses, and what microsoft/ANCE makes of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import RobertaModel

from ance_fast import Encoder, TokenStore
from ance_fast.data import ChunkRules
from ance_fast.data.chunked_documents import ChunkedDocuments
from ance_fast.data.id_column import IdColumn
from ance_fast.encoding import encode_matrix
from ance_fast.models.heads import head_module
from ance_fast.models.layouts import HeadModule
from ance_fast.training.batch import BatchMaker, TrainingBatch
from ance_fast.training.chunk_scores import closest_chunks, list_scores, pair_scores
from ance_fast.training.examples import Examples
from ance_fast.training.losses import batch_loss
from ance_fast.training.max_passage import best_chunks
from ance_fast.training.negatives import NegativeSampler, random_table
from ance_fast.training.shared_batch import without_copies

LENGTH, COUNT = 8, 4
RELEASED = ChunkRules(LENGTH, COUNT, first_token=False, keep_empty=True)
WORDS = "the quick brown fox jumps over a lazy dog while rain falls on old stones near quiet rivers"
TEXTS = [" ".join(WORDS.split()[at : at + size]) for at, size in [(0, 3), (1, 17), (4, 9), (2, 6), (0, 17), (7, 4)]]


# ---- scores ----


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=6), seed=st.integers(0, 999)
)
def test_a_document_scores_as_its_best_chunk_with_tokens(sizes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    filled = np.array([size for size, _ in sizes])
    starts = np.cumsum([0, *(size + empty for size, empty in sizes)])
    ids: IdColumn = None  # type: ignore[assignment]
    documents = ChunkedDocuments(starts, filled, ids)
    chunks = random.integers(-2, 3, (starts[-1], 3)).astype(np.float32)
    queries = random.integers(-2, 3, (4, 3)).astype(np.float32)
    candidates = random.integers(-1, len(sizes), (4, 5))
    given_arrays = torch.from_numpy(queries), torch.from_numpy(chunks)
    scores = list_scores(*given_arrays, candidates, documents)
    cosines = list_scores(*given_arrays, candidates, documents, cosine=True)
    for query, column in np.ndindex(*candidates.shape):
        document = candidates[query, column]
        if document < 0:
            assert np.isnan(scores[query, column])
            continue
        own = chunks[starts[document] : starts[document] + filled[document]]
        products = own @ queries[query]
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(queries[query])
        assert scores[query, column] == products.max()
        wanted = np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), 0).max()
        assert cosines[query, column] == pytest.approx(wanted, abs=1e-6)
        row = closest_chunks(*given_arrays, np.array([query]), np.array([document]), documents)
        assert row.tolist() == [starts[document] + products.argmax()]
    nothing = np.zeros(0, dtype=np.int64)
    assert pair_scores(*given_arrays, nothing, nothing, documents).shape == (0,)
    assert closest_chunks(*given_arrays, nothing, nothing, documents).shape == (0,)


# ---- losses ----


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_a_document_without_tokens_takes_no_neighbours_score(order: list[int]) -> None:
    ids: IdColumn = None  # type: ignore[assignment]
    documents = ChunkedDocuments(np.array([0, 1, 2, 3]), np.array([0, 1, 0]), ids)
    given_arrays = torch.ones(1, 1), torch.tensor([[1.0], [7.0], [9.0]])
    asked = np.array(order), np.zeros(3, dtype=np.int64)
    scores = pair_scores(*given_arrays, asked[1], asked[0], documents)
    assert scores.tolist() == [-np.inf, 7.0, -np.inf]
    assert closest_chunks(*given_arrays, asked[1], asked[0], documents).tolist() == order
    with pytest.raises(ValueError, match="document 1 of the batch has no chunk"):
        best_chunks(*given_arrays, np.array([0, 1, 1, 2]))


def some_batch(random: np.random.Generator, corpus: int, most: int) -> TrainingBatch:
    """Documents of 1 to `most` chunks; a chunk's row is 100 times its document's number and its own."""
    count = int(random.integers(1, 4))
    known = [np.sort(random.choice(corpus, random.integers(1, 4), replace=False)) for _ in range(count)]
    chosen = np.array([random.choice(rows) for rows in known])
    wanted = random.integers(0, corpus, (count, 2))
    allowed = ~np.array([np.isin(row, own) for row, own in zip(wanted, known, strict=True)])
    rows = np.unique(np.concatenate([chosen, wanted[allowed]]))
    sizes = 1 + rows * 7 % most
    negatives = np.where(allowed, np.searchsorted(rows, wanted), -1)
    offsets = np.cumsum([0, *(len(own) for own in known)])
    return TrainingBatch(
        chunks=[],
        places=np.zeros(0),
        num_queries=count,
        passage_rows=rows,
        positive=np.searchsorted(rows, chosen),
        negatives=negatives,
        known=(offsets, np.concatenate(known)),
        row_starts=np.cumsum([0, *sizes]),
        chunk_rows=np.concatenate([row * 100 + np.arange(size) for row, size in zip(rows, sizes, strict=True)]),
        most_chunks=most,
    )


def plain_scores(queries: Tensor, chunks: Tensor, batch: TrainingBatch) -> Tensor:
    assert batch.row_starts is not None
    sizes = np.diff(batch.row_starts).tolist()
    return torch.stack([part.amax(dim=1) for part in (queries @ chunks.T).split(sizes, dim=1)], dim=1)


def plain_loss(kind: str, queries: Tensor, chunks: Tensor, batch: TrainingBatch, scale: float) -> Tensor:
    """The same from the matrix of all scores, by autograd."""
    scores = scale * plain_scores(queries, chunks, batch)
    offsets, known = batch.known
    losses = []
    for query in range(batch.num_queries):
        positive = int(batch.positive[query])
        if kind == "pairwise":
            others = [scores[query, n] - scores[query, positive] for n in batch.negatives[query] if n >= 0]
            losses.append(nn.functional.softplus(torch.stack(others)).mean() if others else scores.sum() * 0)
        else:
            own = known[offsets[query] : offsets[query + 1]]
            kept = [n for n, row in enumerate(batch.passage_rows) if row not in own or n == positive]
            losses.append(scores[query, kept].logsumexp(0) - scores[query, positive])
    return torch.stack(losses).mean()


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(["pairwise", "contrastive"]), most=st.integers(1, 4), seed=st.integers(0, 9999))
def test_losses_and_gradients_are_those_of_the_maximum_over_chunks(kind: str, most: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    batch = some_batch(random, 9, most)
    draw = torch.Generator().manual_seed(seed)
    count = batch.num_queries + len(batch.encoded_rows)
    embeddings = torch.randn(count, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    loss = batch_loss(kind, embeddings, batch, 1.7)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    queries, chunks = embeddings[: batch.num_queries], embeddings[batch.num_queries :]
    wanted = plain_loss(kind, queries, chunks, batch, 1.7)
    (wanted_gradient,) = torch.autograd.grad(wanted, embeddings)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 9999))
def test_a_document_that_another_rank_has_too_is_one_candidate(seed: int) -> None:
    """A rank's batch with copies taken out, over columns that hold the other rank's documents as well."""
    random = np.random.default_rng(seed)
    first, second = some_batch(random, 9, 3), some_batch(random, 9, 3)
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(900, 5, generator=draw, dtype=torch.float64)
    queries = torch.randn(second.num_queries, 5, generator=draw, dtype=torch.float64)
    later = without_copies(second, [first.passage_rows], corpus=9)
    both = joined(without_copies(first, [], corpus=9), later)
    loss = batch_loss("contrastive", torch.cat([queries, vectors[both.encoded_rows]]), both, 1.3)
    distinct = np.unique(np.concatenate([first.passage_rows, second.passage_rows]))
    sizes = 1 + distinct * 7 % 3
    whole = dataclasses.replace(
        second,
        passage_rows=distinct,
        positive=np.searchsorted(distinct, second.passage_rows[second.positive]),
        row_starts=np.cumsum([0, *sizes]),
    )
    rows = np.concatenate([row * 100 + np.arange(size) for row, size in zip(distinct, sizes, strict=True)])
    wanted = plain_loss("contrastive", queries, vectors[rows], whole, 1.3)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)


def joined(before: TrainingBatch, own: TrainingBatch) -> TrainingBatch:
    """The queries of `own` over the documents of both."""
    assert before.row_starts is not None
    assert own.row_starts is not None
    return dataclasses.replace(
        own,
        passage_rows=np.concatenate([before.passage_rows, own.passage_rows]),
        positive=own.positive + len(before.passage_rows),
        row_starts=np.concatenate([before.row_starts, before.row_starts[-1] + own.row_starts[1:]]),
        chunk_rows=np.concatenate([before.encoded_rows, own.encoded_rows]),
    )


def test_of_equal_chunks_the_first_is_taken() -> None:
    chunks = torch.tensor([[1.0, 0], [1, 0], [0, 1], [2, 0], [2, 0]])
    found = best_chunks(torch.tensor([[1.0, 0], [0, 1]]), chunks, np.array([0, 2, 3, 5]))
    assert found.tolist() == [[0, 2, 3], [0, 2, 3]]


# ---- the released model ----


@pytest.fixture(scope="module")
def encoder(tiny: Callable[..., Path]) -> Encoder:
    """RoBERTa, first token, Linear, LayerNorm: the layout of ANCE's checkpoints."""
    bare = Encoder.load(str(tiny("Roberta")), device="cpu", dtype="float32", pooling="cls", max_document_length=LENGTH)
    linear = {"in_features": 32, "out_features": 32, "activation_function": "torch.nn.modules.linear.Identity"}
    head = HeadModule("Dense", linear), HeadModule("LayerNorm", {"dimension": 32})
    torch.manual_seed(1)
    modules = nn.ModuleList([head_module(spec) for spec in head])
    made = Encoder(bare.backbone, modules, bare.tokenizer, dataclasses.replace(bare.layout, head=head))
    made.set_chunks(RELEASED)
    made.backbone.set_dropout(0.0)
    return made


def plain(encoder: Encoder, **inputs: Tensor) -> Tensor:
    """Vectors [n, dim] by transformers' own model with padding, differentiable in the encoder's weights."""
    model = encoder.backbone.model
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    parameters = {name: value for name, value in model.named_parameters() if not name.startswith("pooler.")}
    padded = RobertaModel(config, add_pooling_layer=False).eval()
    vectors = torch.func.functional_call(padded, parameters, (), inputs).last_hidden_state[:, 0]
    for module in encoder.head:
        vectors = module(vectors)
    return vectors


def reshaped(encoder: Encoder, ids: Tensor, mask: Tensor) -> Tensor:
    """[documents, chunks, dim]: the padded sequence reshaped, each chunk by itself.

    Positions count every token, and a chunk without any sees all of its padding, as in transformers 2.3.0, where a
    mask of zeros adds the same to every score.
    """
    chunks, masks = ids.reshape(-1, LENGTH), mask.reshape(-1, LENGTH)
    seen = torch.where(masks.any(dim=1, keepdim=True), masks, torch.ones_like(masks))
    positions = torch.arange(LENGTH).expand_as(chunks) + encoder.backbone.position_offset
    vectors = plain(encoder, input_ids=chunks, attention_mask=seen, position_ids=positions)
    return vectors.reshape(len(ids), COUNT, -1)


def padded(encoder: Encoder) -> tuple[Tensor, Tensor]:
    made = encoder.tokenizer(
        TEXTS, truncation=True, padding="max_length", max_length=LENGTH * COUNT, return_tensors="pt"
    )
    return made["input_ids"], made["attention_mask"]


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_every_chunk_empty_ones_too_has_the_vector_of_the_padded_reshape(encoder: Encoder, attention: str) -> None:
    store = TokenStore.from_texts(TEXTS, encoder.tokenizer, max_length=LENGTH, chunks=RELEASED)
    assert store.lengths.min() == 0
    ids, mask = padded(encoder)
    with torch.no_grad():
        wanted = reshaped(encoder, ids, mask).reshape(len(store), -1)
    before = encoder.backbone.mode
    encoder.backbone.mode = attention
    encoder.backbone._use(attention)
    try:
        torch.testing.assert_close(encoder.encode_tokens(store), wanted, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(encode_matrix(encoder, store, batch_tokens=20), wanted, rtol=1e-4, atol=2e-5)
        some = np.array([23, 1, 3, 4])
        torch.testing.assert_close(encoder.encode_tokens(store, some), wanted[some], rtol=1e-4, atol=2e-5)
    finally:
        encoder.backbone.mode = before
        encoder.backbone._use(before)


def test_a_step_is_that_of_the_released_model(encoder: Encoder) -> None:
    """Loss and every gradient of plain modules: the reshape, empty chunks at -9999, the maximum, pairwise NLL."""
    passages = TokenStore.from_texts(TEXTS, encoder.tokenizer, max_length=LENGTH, chunks=RELEASED)
    asked = ["quick fox", "quiet rivers near stones"]
    queries = TokenStore.from_texts(asked, encoder.tokenizer, max_length=16)
    examples = Examples(passages, queries, asked, np.array([0, 1, 2]), np.array([1, 4]))
    make = BatchMaker(examples, NegativeSampler(examples, seed=0, count=2))
    batch = make(np.array([0, 1]), random_table(examples), 0)
    assert sum(len(chunk) for chunk in batch.chunks) < 2 + COUNT * len(batch.passage_rows), "empty ones are left out"
    encoder.train()
    encoder.zero_grad()
    embeddings = torch.cat([encoder(chunk) for chunk in batch.chunks])[torch.from_numpy(batch.places)]
    loss = batch_loss("pairwise", embeddings, batch, 1.0)
    loss.backward()
    gradients = {name: value.grad for name, value in encoder.named_parameters() if value.grad is not None}
    encoder.zero_grad()
    encoder.eval()

    ids, mask = padded(encoder)
    vectors = reshaped(encoder, ids, mask)
    bias = (1 - mask.reshape(len(TEXTS), COUNT, LENGTH)[:, :, 0]) * -9999.0
    made = encoder.tokenizer(asked, padding=True, return_tensors="pt")
    asked_vectors = plain(encoder, input_ids=made["input_ids"], attention_mask=made["attention_mask"])
    scores = (torch.einsum("qd,ncd->qnc", asked_vectors, vectors) + bias).amax(dim=2)
    rows = torch.from_numpy(batch.passage_rows)
    positive = scores.gather(1, rows[torch.from_numpy(batch.positive)][:, None])
    negative = scores.gather(1, rows[torch.from_numpy(batch.negatives)])
    pairs = torch.stack([positive.expand_as(negative), negative], dim=2)
    wanted = -torch.log_softmax(pairs, dim=2)[..., 0].mean()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    found: dict[str, Any] = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, found[name], rtol=1e-3, atol=2e-5)


def test_two_towers_share_a_batch_of_chunks_and_keep_how_documents_are_cut(encoder: Encoder, tmp_path: Path) -> None:
    pair = encoder.two_towers()
    assert pair.chunks == RELEASED
    pair.save(tmp_path / "pair")
    assert Encoder.load(str(tmp_path / "pair"), device="cpu").chunks == RELEASED
    passages = TokenStore.from_texts(TEXTS, encoder.tokenizer, max_length=LENGTH, chunks=RELEASED)
    queries = TokenStore.from_texts(["quick fox", "old stones"], encoder.tokenizer, max_length=16)
    examples = Examples(passages, queries, [], np.array([0, 1, 2]), np.array([1, 4]))
    sampler = NegativeSampler(examples, seed=0, count=3)
    apart = BatchMaker(examples, sampler, encode_tokens=20, two_towers=True)(
        np.array([1, 0]), random_table(examples), 0
    )
    texts = [
        (chunk.for_queries, ids.tolist())
        for chunk in apart.chunks
        for ids in torch.tensor_split(chunk.input_ids, chunk.cu_seqlens[1:-1].tolist())
    ]
    wanted = [(True, queries.tokens(row).tolist()) for row in (1, 0)]
    wanted += [(False, passages.tokens(row).tolist()) for row in apart.encoded_rows]
    assert [texts[place] for place in apart.places] == wanted


def test_only_the_best_chunk_learns() -> None:
    embeddings = torch.tensor([[1.0, 0], [3, 0], [2, 0], [5, 1], [1, 0], [-1, 0]], requires_grad=True)
    batch = TrainingBatch(
        chunks=[],
        places=np.arange(6),
        num_queries=1,
        passage_rows=np.array([0, 1]),
        positive=np.array([0]),
        negatives=np.array([[1]]),
        known=(np.array([0, 1]), np.array([0])),
        row_starts=np.array([0, 3, 5]),
        chunk_rows=np.arange(5),
        most_chunks=3,
    )
    for kind in ("pairwise", "contrastive"):
        (gradient,) = torch.autograd.grad(batch_loss(kind, embeddings, batch, 1.0), embeddings)
        assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [0, 3, 4]
