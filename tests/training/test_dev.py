"""Dev queries measured by judgements and by the answers that passages hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ance_fast.data import ChunkRules, TokenStore, load_dataset
from ance_fast.encoding import encode_matrix
from ance_fast.errors import ConfigError
from ance_fast.evaluation import has_answer
from ance_fast.index import Index
from ance_fast.models import Encoder
from ance_fast.training.dev import DevMeasure, HeldOut, refuse_metrics

TEXTS = ["in Paris on a river", "Lyon, in France", "nothing at all", "Lyon and Paris"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = "".join(f"{number}\t{text}\tParis\n" for number, text in enumerate(TEXTS))
    (tmp_path / "psgs_w100.tsv").write_text(f"id\ttext\ttitle\n{rows}")
    examples = [("where is a river", ["Paris"], "0"), ("what else", ["LYON"], "1"), ("who", ["nobody"], "2")]
    (tmp_path / "nq-dev.json").write_text(
        json.dumps([{"question": q, "answers": a, "positive_ctxs": [{"passage_id": p}]} for q, a, p in examples])
    )
    return tmp_path


def test_questions_are_measured_by_answers_beside_judgements(tiny_bert: Path, questions: Path, tmp_path: Path) -> None:
    dataset, encoder = load_dataset(f"dpr:{questions}", split="dev"), Encoder.load(tiny_bert)
    chunks = ChunkRules(4, 2, True, False)
    encoder.set_chunks(chunks)
    store = TokenStore.build(dataset.corpus, encoder.tokenizer, tmp_path / "t", max_length=4, chunks=chunks)
    index = Index.build(encode_matrix(encoder, store, batch_tokens=64), store.ids, metric="cosine")
    index.document_separator = "#"
    held_out = HeldOut(dataset, encoder)
    run = held_out.search(encoder, index)
    report = DevMeasure(held_out, ("top-2", "RR@10", "top-100"), tmp_path / "run", store)(encoder, index, 5)
    assert list(report) == ["eval_top-2", "eval_RR@10", "eval_top-100"]
    hits = [
        any(has_answer(dataset.answers[query], TEXTS[int(name)]) for name in list(found)[:2])  # type: ignore[index]
        for query, found in run.items()
    ]
    assert report["eval_top-2"] == pytest.approx(sum(hits) / 3)
    assert report["eval_top-100"] == pytest.approx(2 / 3)
    assert report["eval_RR@10"] == held_out.evaluate(run, ["RR@10"], store)["RR@10"]
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best == {"metric": "top-2", "value": report["eval_top-2"], "step": 5}


def test_a_metric_that_needs_answers_is_refused_without_and_an_unknown_one_always(wiki: Path) -> None:
    dataset = load_dataset(str(wiki), split="dev")
    with pytest.raises(ConfigError, match="metric 'top-20': the dev data brings no answers"):
        refuse_metrics(["RR@10", "top-20"], dataset)
    for metrics in (["top-20", "magic"], ["top-0"], []):
        with pytest.raises(ConfigError, match="unknown metric|no metric"):
            refuse_metrics(metrics, None)
    refuse_metrics(["top-20"], None)
