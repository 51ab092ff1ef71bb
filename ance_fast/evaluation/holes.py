"""Holes: the share of what a run retrieves that nobody judged.

A dense retriever finds other passages than the systems whose results were judged, and each of these counts as not
relevant. Its measures are to be read beside its holes (Xiong et al., ICLR 2021, section 5.1).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ance_fast.data.qrels import read_qrels
from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation.runs import RunSource, load_run, ranking, refuse_other


@dataclass(frozen=True)
class HoleRates:
    """Shares of retrieved documents without a judgement, 0 to 1, over all judged queries of the run together.

    at_cut: of those within the first `cut`. overall: of all of them. queries: judged queries of the run.
    """

    at_cut: float
    overall: float
    cut: int
    queries: int


def hole_rates(
    run: RunSource, qrels: Mapping[str, Mapping[str, int]] | str | os.PathLike[str], cut: int = 10
) -> HoleRates:
    """How much of a run nobody judged; a grade of 0 is a judgement too.

    A rate is holes over retrieved documents, of all queries together, so a query with few results weighs less (as
    microsoft/ANCE computes it). Queries that nobody judged are left out.

    Raises `ConfigError` for a cut below 1, `DataError`: malformed files, NaN, no document retrieved for a judged query.
    """
    if cut < 1:
        raise ConfigError(f"cut {cut}: holes are counted within the first 1 or more")
    judged = qrels if isinstance(qrels, Mapping) else read_qrels(refuse_other(qrels, "qrels"))
    ranked = {query: ranking(query, scores) for query, scores in load_run(run).items() if query in judged}
    retrieved = sum(map(len, ranked.values()))
    if not retrieved:
        raise DataError("the run retrieves nothing for any judged query: wrong split or id format?")
    within = sum(min(cut, len(documents)) for documents in ranked.values())
    holes = [[document not in judged[query] for document in documents] for query, documents in ranked.items()]
    return HoleRates(sum(sum(one[:cut]) for one in holes) / within, sum(map(sum, holes)) / retrieved, cut, len(ranked))
