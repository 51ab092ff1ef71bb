"""Whether two runs over the same queries differ by more than chance: paired, two-sided tests on per-query values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.evaluation.metrics import Evaluation

TESTS = ("t", "randomization", "wilcoxon")


@dataclass(frozen=True)
class Significance:
    """Comparison of run a with run b on one metric.

    Attributes:
        difference: mean over queries of a - b.
        p_value: two-sided; 1 when every difference is 0.
        wins, losses, ties: queries on which a is above, below, equal to b.
        n: queries.
        ci95: 95 % confidence interval of `difference` (Student's t).
    """

    difference: float
    p_value: float
    wins: int
    losses: int
    ties: int
    n: int
    ci95: tuple[float, float]


def paired_significance(
    a: Evaluation, b: Evaluation, metric: str, *, test: str = "t", samples: int = 10_000, seed: int = 0
) -> Significance:
    """Compare run a with run b.

    Args:
        metric: a metric of both evaluations.
        test: "t" (Student's paired t-test), "randomization" (Fisher's: signs of the differences flipped `samples`
            times by `seed`; p = (1 + as extreme ones) / (1 + samples)) or "wilcoxon" (signed ranks, zeros left out).

    Smucker, Allan, Carterette, CIKM 2007: t and randomization agree on retrieval metrics; Wilcoxon may miss or invent
    differences. The confidence interval is Student's whatever the test.

    Raises:
        ConfigError: unknown test or metric, other queries in a than in b, fewer than two queries, samples below 1.
    """
    differences = _differences(a, b, metric)
    if test not in TESTS:
        raise ConfigError(f"unknown test {test!r}; choose one of {', '.join(TESTS)}")
    if samples < 1:
        raise ConfigError(f"samples is {samples}; the randomization test needs at least 1")
    p_value = _p_value(differences, test, samples, seed) if differences.any() else 1.0
    return Significance(
        difference=float(differences.mean()),
        p_value=p_value,
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        n=len(differences),
        ci95=_confidence_interval(differences),
    )


def _differences(a: Evaluation, b: Evaluation, metric: str) -> np.ndarray:
    for evaluation in (a, b):
        if metric not in evaluation.per_query:
            raise ConfigError(f"metric {metric!r} was not evaluated; there is {', '.join(evaluation.per_query)}")
    first, second = a.per_query[metric], b.per_query[metric]
    if first.keys() != second.keys():
        example = sorted(first.keys() ^ second.keys())[0]
        raise ConfigError(
            f"the runs were evaluated on different queries ({len(first)} and {len(second)}; {example!r} is in one "
            "only); evaluate both with the same qrels"
        )
    if len(first) < 2:
        raise ConfigError(f"a paired test needs at least two queries, there is {len(first)}")
    return np.array([first[query] - second[query] for query in first])


def _p_value(differences: np.ndarray, test: str, samples: int, seed: int) -> float:
    if test == "randomization":
        return _randomization(differences, samples, seed)
    from scipy import stats

    if test == "wilcoxon":
        return float(stats.wilcoxon(differences).pvalue)
    if np.ptp(differences) == 0:
        return 0.0  # the limit of vanishing variance, where scipy divides by zero
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _randomization(differences: np.ndarray, samples: int, seed: int) -> float:
    observed = abs(differences.sum())
    # The observed assignment itself must count as extreme whatever the order of summation.
    threshold = observed - 1e-12 * np.abs(differences).sum()
    extreme = sum(int((np.abs(sums) >= threshold).sum()) for sums in _flipped_sums(differences, samples, seed))
    return (1 + extreme) / (1 + samples)


def _flipped_sums(differences: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Sums under random signs, in pieces of at most about 32 MB."""
    generator = np.random.default_rng(seed)
    piece = max(1, (1 << 22) // len(differences))
    for start in range(0, samples, piece):
        signs = generator.integers(0, 2, size=(min(piece, samples - start), len(differences)), dtype=np.int8)
        yield (signs * 2.0 - 1.0) @ differences


def _confidence_interval(differences: np.ndarray) -> tuple[float, float]:
    from scipy import stats

    mean = float(differences.mean())
    half = float(stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences)))
    return mean - half, mean + half
