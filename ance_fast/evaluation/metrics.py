"""Retrieval metrics of a run, computed by ir-measures.

Ties: documents of equal score, in float32, are ranked by document id, descending, as trec_eval does. The providers
behind ir-measures disagree on this (RR without a cut-off follows trec_eval, RR@10 the dict), so the order is fixed
before they see the run, and every metric of an evaluation looks at the same ranking.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ance_fast.errors import ConfigError, DataError, MissingDependencyError
from ance_fast.evaluation.runs import load_run, ranking, refuse_other

logger = logging.getLogger(__name__)

DEFAULT_METRICS = ("nDCG@10", "RR@10", "R@100")


@dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, float]):
    """Metrics of one run; as a mapping, metric name (as asked for) -> mean over queries.

    Attributes:
        mean: metric -> mean over all queries with at least one relevant document; one missing from the run counts 0.
        per_query: metric -> {query id: value}, over the same queries.
        missing: those query ids that the run does not have.
    """

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]
    missing: tuple[str, ...] = ()

    @property
    def num_queries(self) -> int:
        """Number of queries the means are over."""
        return len(next(iter(self.per_query.values())))

    def __getitem__(self, metric: str) -> float:
        return self.mean[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.mean)

    def __len__(self) -> int:
        return len(self.mean)


def evaluate(
    run: Mapping[str, Mapping[str, float]] | str | os.PathLike[str],
    qrels: Mapping[str, Mapping[str, int]] | str | os.PathLike[str],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    min_grade: int = 1,
) -> Evaluation:
    """Measure a run.

    Args:
        run: query id -> {document id: score}, or the path of a TREC run. Only scores count, not the order of the dict.
        qrels: query id -> {document id: grade} (relevant above 0), or the path of a qrels file.
        metrics: names that ir-measures knows: "nDCG@10", "RR@10" (or "MRR@10"), "R@100" (or "Recall@100"), "AP", "P@5",
            "Success@5", "RR(rel=2)@10", ..., or trec_eval: "ndcg_cut_10", "map_cut_10", "recip_rank", "recall_1000".
        min_grade: the grade from which on a document is relevant to measures that know no grades (RR, AP, recall, ...),
            unless their name says "rel=". 2 for the passages of TREC Deep Learning, where 1 means related.

    Queries without a relevant document (grade above 0) are left out, as are queries of the run that nobody judged.

    Raises:
        ConfigError: unknown metric or none, `min_grade` below 1.
        DataError: a malformed file, no query with a relevant document, no judged query in the run, or a NaN score.
    """
    measures = _parse(metrics, min_grade)
    ranked, grades = load_run(run), _load_qrels(qrels)
    judged = {query: dict(row) for query, row in grades.items() if any(grade > 0 for grade in row.values())}
    if not judged:
        raise DataError(f"none of the {len(grades)} judged queries has a relevant document (grade above 0)")
    found = {query: _strict_ranking(query, ranked[query]) for query in judged if query in ranked}
    if not found:
        raise DataError(
            f"the run ({len(ranked)} queries, first {next(iter(ranked), None)!r}) and the qrels ({len(judged)}, first "
            f"{next(iter(judged))!r}) have no query in common: wrong split or id format?"
        )
    missing = tuple(query for query in judged if query not in found)
    if missing:
        logger.warning(
            "%d of %d judged queries are not in the run and count 0 (first: %r)", len(missing), len(judged), missing[0]
        )
    per_query = {name: dict.fromkeys(judged, 0.0) for name in measures}
    for name, values in _values(measures, {query: judged[query] for query in found}, found):
        per_query[name].update(values)
    mean = {name: math.fsum(values.values()) / len(judged) for name, values in per_query.items()}
    return Evaluation(mean, per_query, missing)


def _values(measures: dict[str, Any], qrels: Any, run: Any) -> Iterator[tuple[str, dict[str, float]]]:
    ir_measures = _import_ir_measures()
    by_measure: dict[Any, dict[str, float]] = {}
    for entry in ir_measures.iter_calc(list(set(measures.values())), qrels, run):
        by_measure.setdefault(entry.measure, {})[entry.query_id] = float(entry.value)
    return ((name, by_measure.get(measure, {})) for name, measure in measures.items())


def _parse(metrics: Sequence[str], min_grade: int) -> dict[str, Any]:
    if isinstance(metrics, str):
        metrics = [metrics]
    if not metrics:
        raise ConfigError(f"no metric asked for; for example {', '.join(DEFAULT_METRICS)}")
    if min_grade < 1:
        raise ConfigError(f"min_grade={min_grade}: grades of 0 and below mean not relevant")
    ir_measures = _import_ir_measures()
    parsed = {}
    for name in metrics:
        try:
            measure = _trec_measure(name) or ir_measures.parse_measure(name)
            supported = ir_measures.DefaultPipeline.supports(measure)
        except (NameError, ValueError, TypeError, SyntaxError) as error:
            raise ConfigError(
                f"unknown metric {name!r} ({error}); for example {', '.join(DEFAULT_METRICS)}, AP"
            ) from error
        if not supported:
            raise ConfigError(f"no installed provider computes {name!r}; for example {', '.join(DEFAULT_METRICS)}, AP")
        if min_grade > 1 and "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
            measure = measure(rel=min_grade)
        parsed[name] = measure
    return parsed


def _trec_measure(name: str) -> Any:
    """The measure that trec_eval calls so, such as "ndcg_cut_10", or None."""
    if not (name.islower() or "_" in name):
        return None
    try:
        measures = _import_ir_measures().parse_trec_measure(name)
    except (ValueError, TypeError):
        return None
    return measures[0] if len(measures) == 1 else None


def _strict_ranking(query: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Replace scores by falling ranks, which no measure can take for equal."""
    order = ranking(query, scores)
    return {document: float(len(order) - rank) for rank, document in enumerate(order)}


def _load_qrels(source: Any) -> Any:
    if isinstance(source, Mapping):
        return source
    from ance_fast.data.trec import read_qrels

    return read_qrels(refuse_other(source, "qrels"))


def _import_ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError("metrics need ir-measures: pip install ir-measures") from error
    return ir_measures
