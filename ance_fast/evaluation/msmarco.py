"""MS MARCO's own measure and file form: MRR over the ranks that a submission gives.

What differs from `evaluate`: the ranks of a file count, not an order of scores; a rank that nobody holds is a miss; a
document ranked twice makes a submission invalid. Source: `ms_marco_eval.py` of github.com/microsoft/MSMARCO-Passage-
Ranking (cut at 10 for passages, at 100 for documents).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ance_fast.artifacts import atomic_file
from ance_fast.data.qrels import read_qrels
from ance_fast.data.text_lines import read_lines, warn_counted
from ance_fast.data.trec import listed_twice, read_run_lines
from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation.metrics import Evaluation
from ance_fast.evaluation.runs import RunSource, load_run, ranking, refuse_other

logger = logging.getLogger(__name__)

MAX_RANK = 1000
"""The last rank that a submission may give."""

Ranks = dict[str, dict[str, int]]
"""Query id -> document id -> rank, from 1."""


@dataclass(frozen=True, eq=False)
class MsmarcoEvaluation(Evaluation):
    """MRR@10, ... as MS MARCO computes it. queries_ranked: queries of the run, judged or not."""

    queries_ranked: int = 0


def evaluate_msmarco(
    run: RunSource, qrels: Mapping[str, Mapping[str, int]] | str | os.PathLike[str], cuts: Sequence[int] = (10, 100)
) -> MsmarcoEvaluation:
    """MS MARCO's official MRR of a run, at each cut, with its checks.

    run: a path of lines `query <tab> document <tab> rank`, whose ranks count, or of a TREC run; or query id ->
        {document id: score}. Scores are ranked as in `evaluate`.
    qrels: query id -> {document id: grade}, relevant above 0, or a path.

    The mean is over all queries with a relevant document; one that the run lacks counts 0. Queries of the run that
    nobody judged are counted in a warning.

    Raises `DataError`, with file and line where there is a file: a line of another form, a document ranked twice, a
    rank given twice or outside 1 .. 1000, no query in common with the qrels, qrels without a relevant document.
    `ConfigError` for a cut outside 1 .. 1000.
    """
    if not cuts or not all(1 <= cut <= MAX_RANK for cut in cuts):
        raise ConfigError(f"cuts {list(cuts)}: MRR is cut at ranks 1 .. {MAX_RANK}")
    ranks = read_ranks(run)
    judged = qrels if isinstance(qrels, Mapping) else read_qrels(refuse_other(qrels, "qrels"))
    relevant = {
        query: {document for document, grade in grades.items() if grade > 0}
        for query, grades in judged.items()
        if any(grade > 0 for grade in grades.values())
    }
    if not relevant:
        raise DataError(f"none of the {len(judged)} judged queries has a relevant document (grade above 0)")
    missing = tuple(query for query in relevant if query not in ranks)
    if len(missing) == len(relevant):
        raise DataError(
            f"the run ({len(ranks)} queries, first {next(iter(ranks), None)!r}) and the qrels ({len(relevant)}, first "
            f"{next(iter(relevant))!r}) have no query in common: wrong split or id format?"
        )
    warn_counted(logger, len(missing), "judged queries are not in the run and count 0", repr((*missing, "")[0]))
    unjudged = [query for query in ranks if query not in judged]
    warn_counted(logger, len(unjudged), "queries of the run are not judged and left out", repr((*unjudged, "")[0]))
    first = {
        query: min((rank for document, rank in ranks.get(query, {}).items() if document in documents), default=0)
        for query, documents in relevant.items()
    }
    per_query = {
        f"MRR@{cut}": {query: 1 / rank if 0 < rank <= cut else 0.0 for query, rank in first.items()} for cut in cuts
    }
    mean = {name: math.fsum(values.values()) / len(relevant) for name, values in per_query.items()}
    return MsmarcoEvaluation(mean, per_query, missing, len(ranks))


def read_ranks(run: RunSource) -> Ranks:
    """The ranks of a run: those a file of `query document rank` gives, else of its scores as `evaluate` orders them.

    Raises as `evaluate_msmarco`.
    """
    if isinstance(run, Mapping) or not _gives_ranks(refuse_other(run, "run")):
        return {
            query: {document: rank for rank, document in enumerate(ranking(query, scores), 1)}
            for query, scores in load_run(run).items()
        }
    found: Ranks = {}
    line_of: dict[tuple[str, int], int] = {}
    for line in read_run_lines(Path(run)):
        rank = -int(line.score)
        if not 1 <= rank <= MAX_RANK:
            raise DataError(f"{run}:{line.number}: rank {rank} is outside 1 .. {MAX_RANK}")
        documents = found.setdefault(line.query_id, {})
        if line.document_id in documents:
            raise listed_twice(Path(run), line)
        before = line_of.setdefault((line.query_id, rank), line.number)
        if before != line.number:
            raise DataError(
                f"{run}:{line.number}: rank {rank} of query {line.query_id!r} again, first at {run}:{before}"
            )
        documents[line.document_id] = rank
    return found


def write_ranks(path: str | os.PathLike[str], run: RunSource, depth: int = MAX_RANK) -> None:
    """Write a run as the leaderboards take it, atomically: lines `query <tab> document <tab> rank`, best first.

    depth: ranks a query, at most 1000 (100 for documents). Needs no judgements. Raises `ConfigError` for another depth,
    `DataError` for ids that are empty or hold tabs or line breaks, and what `read_ranks` raises.
    """
    if not 1 <= depth <= MAX_RANK:
        raise ConfigError(f"depth {depth}: a leaderboard takes 1 to {MAX_RANK} documents a query")
    ranks = read_ranks(run)
    with atomic_file(path) as staging, open(staging, "w", encoding="utf-8", newline="\n") as file:
        for query, documents in ranks.items():
            for document, rank in sorted(documents.items(), key=lambda entry: entry[1]):
                if rank > depth:
                    break
                for name in (query, document):
                    if not name.strip() or any(mark in name for mark in "\t\n\r\v\f"):
                        raise DataError(f"{path}: the id {name!r} is empty or holds tabs or line breaks")
                file.write(f"{query}\t{document}\t{rank}\n")


def _gives_ranks(path: Path) -> bool:
    for _, line in read_lines(path):
        if line.strip():
            return len(line.split("\t") if line.count("\t") >= 2 else line.split()) == 3
    return False
