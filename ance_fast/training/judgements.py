"""False negatives, where judgements allow: negatives of a query that somebody has called relevant to it.

Positives of the training judgements are never negatives. What is left to find are passages that other judgements call
relevant: those of another split, or of a larger qrels file for the same queries. Most negatives have no judgement at
all, so there are two rates: of all negatives, which is too low by what nobody has judged, and of the judged ones, which
says nothing of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ance_fast.data.qrels import IdTable

Grades = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade."""


@dataclass(frozen=True)
class Judgements:
    """Judged pairs of a query and a passage that is not its positive.

    keys: int64 [J], ascending, query index * `passages` + passage row. relevant: bool [J], graded above 0. passages: of
    the corpus.
    """

    keys: np.ndarray
    relevant: np.ndarray
    passages: int

    def shares(self, queries: np.ndarray, rows: np.ndarray, kind: str = "negative") -> dict[str, np.ndarray]:
        """What to take means of, for passages `rows` int [n, H] (-1 for none) of `queries` int64 [n], each float64.

        "negatives_judged": of every negative, 1 if it has a judgement; "false_negative_rate": of every negative, 1 if
        it is relevant; "false_negative_rate_judged": the same of the judged ones. Of `kind` "candidate" they are called
        "candidates_judged", "false_candidate_rate", "false_candidate_rate_judged".
        """
        present = rows >= 0
        keys = (queries[:, None] * self.passages + rows)[present]
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        judged = self.keys[places] == keys
        relevant = judged & self.relevant[places]
        return {
            f"{kind}s_judged": judged.astype(np.float64),
            f"false_{kind}_rate": relevant.astype(np.float64),
            f"false_{kind}_rate_judged": relevant[judged].astype(np.float64),
        }


def find_judgements(
    queries: Sequence[str], passages: IdTable, pairs: np.ndarray, sources: Iterable[Grades], *, count: int
) -> Judgements | None:
    """The judgements of `sources` on these query ids and a corpus of `count` passages, less the positive `pairs`.

    Where sources differ, the highest grade counts: one that calls a passage relevant is enough to doubt a negative.
    `pairs` int64 [P, 2] are (query index, passage row). None where nothing but positives is judged.
    """
    index = {query: place for place, query in enumerate(queries)}
    found = [
        (index[query], document, grade)
        for grades in sources
        for query, judged in grades.items()
        if query in index
        for document, grade in judged.items()
    ]
    rows = passages.positions([document for _, document, _ in found])
    owners = np.fromiter((query for query, _, _ in found), dtype=np.int64, count=len(found))
    relevant = np.fromiter((grade > 0 for _, _, grade in found), dtype=np.bool_, count=len(found))
    keys = owners * count + rows
    kept = (rows >= 0) & ~np.isin(keys, pairs[:, 0] * count + pairs[:, 1])
    keys, relevant = keys[kept], relevant[kept]
    if not len(keys):
        return None
    # The last of equal keys is the relevant one, if there is one.
    order = np.lexsort((relevant, keys))
    keys, relevant = keys[order], relevant[order]
    last = np.append(keys[1:] != keys[:-1], True)
    return Judgements(keys[last], relevant[last], count)
