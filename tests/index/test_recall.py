from __future__ import annotations

import numpy as np
import pytest

from ance_fast.errors import ConfigError
from ance_fast.index import Index, recall_at_k, sampled_recall


def test_recall_is_the_mean_share_of_the_exact_results() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, -1, -1], [-1, -1, -1, -1]])
    found = np.array([[4, 9, 1, -1], [6, 5, 7, 8], [1, 2, 3, 4]])
    assert recall_at_k(found, exact) == pytest.approx((0.5 + 1) / 2)
    assert recall_at_k(exact[:0], exact[:0]) == 1.0
    with pytest.raises(ConfigError, match="recall of 2 queries against the exact results of 3"):
        recall_at_k(found[:2], exact)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_sampled_recall_is_one_for_all_lists_and_less_for_one(metric: str, corpus: np.ndarray) -> None:
    scaled = corpus * np.linspace(1, 2, 1200)[:, None].astype(np.float32)
    index = Index.build(scaled, factory="IVF40,Flat", metric=metric)
    assert sampled_recall(index, scaled, 20, sample=100, params={"nprobe": 40}) == 1.0
    few = sampled_recall(index, scaled, 60, sample=100, params={"nprobe": 1})
    assert few < 0.8
    whole = Index.build(scaled, metric=metric)
    rows = np.arange(1200)
    itself = (np.arange(1201), rows)
    hits = [
        one.search(scaled, 60, exclude_positions=itself, params=p) for one, p in ((index, {"nprobe": 1}), (whole, {}))
    ]
    assert few == pytest.approx(recall_at_k(*hits), abs=0.12)
