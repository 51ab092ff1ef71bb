"""What a run works on, made of its data sets: training examples, and dev queries to measure with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ance_fast.data.dataset import Dataset
from ance_fast.errors import ConfigError, DataError
from ance_fast.models.encoder import Encoder
from ance_fast.training.config import AnceConfig
from ance_fast.training.dev import HeldOut
from ance_fast.training.dev_candidates import listed_candidates
from ance_fast.training.examples import Examples, corpus_store, prepare
from ance_fast.training.judgements import Grades
from ance_fast.training.ranks import Ranks
from ance_fast.training.triple_examples import prepare_triples


def run_examples(
    dataset: Dataset,
    encoder: Encoder,
    config: AnceConfig,
    *,
    dev: Dataset | None,
    judged: Grades | None,
    replace: bool,
    ranks: Ranks,
) -> Examples:
    """The training examples of `dataset`: queries with judgements over a corpus, or a file of triples.

    `dev` and `judged` may judge training queries too. Raises as `prepare` and `prepare_triples`, and `DataError` for
    `judged` of other queries.
    """
    if dataset.triples is not None:
        return prepare_triples(dataset.triples, encoder, config, show_progress=True, replace=replace, ranks=ranks)
    return prepare(
        dataset,
        encoder,
        Path(config.output_dir) / "passages",
        num_proc=config.num_proc,
        show_progress=True,
        replace=replace,
        ranks=ranks,
        judged=_judgements(dataset, dev, judged),
        last_positive=config.positives == "last",
    )


def dev_queries(
    dev: Dataset | None,
    dataset: Dataset,
    examples: Examples,
    encoder: Encoder,
    config: AnceConfig,
    *,
    replace: bool,
    ranks: Ranks,
) -> HeldOut | None:
    """The queries of `dev`, to be asked of the run's own corpus; None without any.

    Where training is on a file of triples, whose texts are no corpus, that of `dev` is tokenised, once.
    Raises `ConfigError` for settings that ask for a measurement there is nothing for.
    """
    if dev is None or not dev.queries:
        for name in ("measure_every", "dev_candidates"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{name}={getattr(config, name)!r}: there are no dev queries; pass dev=")
        return None
    passages = candidates = None
    if dataset.triples is not None:
        folder = Path(config.output_dir) / "dev_passages"
        common: dict[str, Any] = {"num_proc": config.num_proc, "show_progress": True, "replace": replace}
        passages = corpus_store(dev, encoder, folder, ranks=ranks, **common)
    if config.dev_candidates is not None:
        corpus = examples.passages if passages is None else passages
        candidates = listed_candidates(config.dev_candidates, list(dev.queries), corpus)
    return HeldOut(dev, encoder, passages=passages, candidates=candidates, full=config.full_ranking)


def _judgements(dataset: Dataset, dev: Dataset | None, judged: Grades | None) -> list[Grades]:
    """What may judge training queries; those of `dev` only where id and text agree, since ids of splits can clash."""
    texts = dataset.query_tokens is None and dev is not None and dev.query_tokens is None
    shared = dev.queries.items() & dataset.queries.items() if texts and dev is not None else set()
    if judged and not judged.keys() & dataset.queries.keys():
        raise DataError(f"{dataset.name}: none of the {len(judged)} queries in `judged` is a training query")
    from_dev = {query: dev.qrels[query] for query, _ in shared if query in dev.qrels} if dev is not None else {}
    return [from_dev, judged or {}]
