"""Refreshed negatives inside sentence-transformers' own trainer."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import TrainerCallback

from ance_fast.errors import ConfigError
from ance_fast.integrations.sentence_transformers import RefreshNegatives
from ance_fast.mining import mine_hard_negatives

WORDS = ("river", "war", "king", "planet", "music", "food", "law", "sport", "bird", "metal", "ship", "city")
PASSAGES = [f"{first} and {second} number {n}" for n, (first, second) in enumerate(itertools.pairwise(WORDS))]
CORPUS = [f"the {word} of another {other}" for word in WORDS for other in ("land", "age", "town")]


@pytest.fixture
def model(tiny: Callable[..., Path]) -> SentenceTransformer:
    transformer = Transformer(str(tiny("Bert", num_hidden_layers=1)), max_seq_length=16)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    anchors = [f"what is a {word}?" for word in WORDS[: len(PASSAGES)]]
    # One query has two positives, and one pair comes twice.
    return Dataset.from_dict(
        {
            "query": [*anchors, anchors[0], anchors[1]],
            "answer": [*PASSAGES, PASSAGES[5], PASSAGES[1]],
            "number": [0] * 13,
        }
    )


def arguments(tmp_path: Path, **overrides: Any) -> SentenceTransformerTrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return SentenceTransformerTrainingArguments(**{**settings, **overrides})


def rows_of(dataset: Dataset) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in dataset]


def mined_now(pairs: Dataset, model: SentenceTransformer) -> list[tuple[str, ...]]:
    found = mine_hard_negatives(
        pairs, model, corpus=CORPUS, num_negatives=2, output_format="n-tuple", range_max=20, verbose=False
    )
    return rows_of(found)


class Watch(TrainerCallback):
    """Remembers, after each step, what the data set holds and what the weights of that step would mine."""

    def __init__(self, refresh: RefreshNegatives, pairs: Dataset) -> None:
        self.refresh, self.pairs = refresh, pairs
        self.held: list[list[tuple[str, ...]]] = []
        self.fresh: list[list[tuple[str, ...]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.held.append(rows_of(self.refresh.dataset))
        self.fresh.append(mined_now(self.pairs, kwargs["model"]))


def test_the_trainer_gets_the_negatives_of_the_live_model_at_every_refresh(
    model: SentenceTransformer, pairs: Dataset, tmp_path: Path
) -> None:
    refresh = RefreshNegatives(pairs, model, every=2, num_negatives=2, corpus=CORPUS, range_max=20)
    assert refresh.dataset.column_names == ["query", "answer", "negative_1", "negative_2"]
    first = rows_of(refresh.dataset)
    assert first == mined_now(pairs, model)
    watch = Watch(refresh, pairs)
    loss = MultipleNegativesRankingLoss(model)
    seen: list[list[str]] = []
    preprocess = model.preprocess

    def listening(texts: list[str], *rest: Any, **options: Any) -> Any:
        seen.append(list(texts))
        return preprocess(texts, *rest, **options)

    model.preprocess = listening  # type: ignore[method-assign]
    trainer = SentenceTransformerTrainer(
        model, arguments(tmp_path), train_dataset=refresh.dataset, loss=loss, callbacks=[refresh, watch]
    )
    trainer.train()
    # Refreshed after steps 2 and 4, not after the last one; between refreshes nothing moves.
    assert (refresh.generation, refresh.step) == (3, 4)
    assert watch.held[0] == first
    assert watch.held[1] == watch.fresh[1] == watch.held[2]
    assert watch.held[3] == watch.fresh[3] == watch.held[5]
    assert watch.held[1] != first
    assert watch.held[3] != watch.held[1]
    # What reached the tokenizer as a batch's negatives includes some that only the refreshed tables hold.
    late = {negative for row in watch.held[3] for negative in row[2:]} - {n for row in first for n in row[2:]}
    assert late & {text for texts in seen if len(texts) <= 8 for text in texts}


def test_the_model_trains_on_after_a_refresh_as_before(model: SentenceTransformer, pairs: Dataset) -> None:
    refresh = RefreshNegatives(pairs, model, every=2, corpus=CORPUS)
    model.train()
    model[1].eval()
    state = torch.get_rng_state()
    refresh.refresh(model, 2)
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_stay_as_many_and_never_hold_a_positive_where_the_limits_leave_nothing(
    model: SentenceTransformer, pairs: Dataset
) -> None:
    refresh = RefreshNegatives(pairs, model, every=1, num_negatives=3, max_score=-1.0)
    own: dict[str, set[str]] = {}
    for row in pairs:
        own.setdefault(row["query"], set()).add(row["answer"])
    first = rows_of(refresh.dataset)
    assert len(first) == len({row[:2] for row in rows_of(pairs)})
    for query, _, *negatives in first:
        assert len(set(negatives)) == 3
        assert own[query].isdisjoint(negatives)
    refresh.refresh(model, 1)
    assert rows_of(refresh.dataset) != first


def test_a_resumed_run_mines_with_the_weights_it_resumes(
    model: SentenceTransformer, pairs: Dataset, tmp_path: Path
) -> None:
    def train(steps: int, resume: bool) -> RefreshNegatives:
        refresh = RefreshNegatives(pairs, model, every=2, num_negatives=2, corpus=CORPUS, range_max=20)
        settings = arguments(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2)
        SentenceTransformerTrainer(
            model,
            settings,
            train_dataset=refresh.dataset,
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[refresh],
        ).train(resume_from_checkpoint=resume)
        return refresh

    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(2, False)
    after = mined_now(pairs, model)
    model.load_state_dict(before)
    resumed = train(3, True)
    assert (resumed.generation, resumed.step) == (2, 2)
    assert rows_of(resumed.dataset) == after


def test_worker_processes_are_refused_since_no_refresh_would_reach_them(
    model: SentenceTransformer, pairs: Dataset, tmp_path: Path
) -> None:
    refresh = RefreshNegatives(pairs, model, every=2, corpus=CORPUS)
    trainer = SentenceTransformerTrainer(
        model,
        arguments(tmp_path, dataloader_num_workers=1),
        train_dataset=refresh.dataset,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[refresh],
    )
    with pytest.raises(ConfigError, match="set it to 0"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "at least 1 step"),
        ({"every": 1, "num_negatives": 30}, "passages that are not its positives"),
        ({"every": 1, "sampling_strategy": "best"}, "choose top or random"),
        ({"every": 1, "num_negatives": 3, "range_max": 2, "corpus": CORPUS}, "only 2 candidates"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(
    model: SentenceTransformer, pairs: Dataset, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RefreshNegatives(pairs, model, **options)


def test_the_package_imports_neither_library_for_it() -> None:
    code = (
        "import sys, ance_fast.mining, ance_fast.integrations\n"
        "print(sorted({'sentence_transformers', 'datasets'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
