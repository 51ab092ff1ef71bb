from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from ance_fast.errors import ConfigError
from ance_fast.evaluation import Evaluation, paired_significance

TESTS = ["t", "randomization", "wilcoxon"]


def evaluation(values: object, first: int = 0) -> Evaluation:
    per_query = {f"q{first + row}": float(value) for row, value in enumerate(np.asarray(values))}
    return Evaluation({"RR@10": float(np.mean(list(per_query.values())))}, {"RR@10": per_query})


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    a = generator.random(60)
    return a, np.clip(a - 0.05 + 0.2 * generator.normal(size=60), 0, 1)


def test_t_and_wilcoxon_are_those_of_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    expected = stats.ttest_rel(a, b)
    found = paired_significance(evaluation(a), evaluation(b), "RR@10")
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)))
    wilcoxon = paired_significance(evaluation(a), evaluation(b), "RR@10", test="wilcoxon")
    assert wilcoxon.p_value == pytest.approx(stats.wilcoxon(a, b).pvalue)


def test_randomization_approaches_the_exact_permutation_test() -> None:
    a, b = np.array([0.9, 0.8, 0.7, 0.5, 0.4, 0.9, 0.3, 0.6]), np.array([0.5, 0.9, 0.1, 0.4, 0.1, 0.6, 0.4, 0.2])
    exact = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
    found = paired_significance(evaluation(a), evaluation(b), "RR@10", test="randomization", samples=200_000)
    assert found.p_value == pytest.approx(exact.pvalue, abs=0.004)


def test_randomization_depends_on_the_seed_only_and_never_says_zero(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = evaluation(pair[0]), evaluation(pair[1])
    values = [paired_significance(a, b, "RR@10", test="randomization", seed=s, samples=500).p_value for s in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    certain = paired_significance(evaluation(np.ones(80)), evaluation(np.zeros(80)), "RR@10", test="randomization")
    assert certain.p_value == 1 / 10_001


@pytest.mark.parametrize("test", TESTS)
def test_swapping_the_runs_turns_the_sign_and_keeps_the_p_value(test: str, pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = evaluation(pair[0]), evaluation(pair[1])
    forward, back = (paired_significance(*both, "RR@10", test=test) for both in ((a, b), (b, a)))
    assert forward.p_value == pytest.approx(back.p_value)
    assert forward.difference == -back.difference
    assert (forward.wins, forward.losses) == (back.losses, back.wins)


@pytest.mark.parametrize("test", TESTS)
def test_equal_runs_have_p_one(test: str) -> None:
    same = evaluation([0.5, 0.25, 1.0])
    found = paired_significance(same, same, "RR@10", test=test)
    assert (found.p_value, found.difference, found.ci95) == (1.0, 0.0, (0.0, 0.0))
    assert (found.wins, found.losses, found.ties, found.n) == (0, 0, 3, 3)


@pytest.mark.parametrize("test", TESTS)
def test_gains_that_equal_losses_are_no_evidence(test: str) -> None:
    found = paired_significance(evaluation([1, 0, 1, 0, 1, 0]), evaluation([0, 1, 0, 1, 0, 1]), "RR@10", test=test)
    assert found.p_value == pytest.approx(1.0)


def test_a_constant_difference_is_certain_and_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_significance(evaluation([1, 1, 1]), evaluation([0.5, 0.5, 0.5]), "RR@10")
    assert (found.p_value, found.ci95) == (0.0, (0.5, 0.5))


def test_queries_are_paired_by_id_not_by_order(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = evaluation(pair[0]), evaluation(pair[1])
    turned = Evaluation(b.mean, {"RR@10": dict(reversed(b.per_query["RR@10"].items()))})
    assert paired_significance(a, turned, "RR@10") == paired_significance(a, b, "RR@10")


def test_wrong_requests_are_refused() -> None:
    a = evaluation([0.1, 0.2, 0.3])
    for other, metric, options, message in [
        (evaluation([0.1, 0.2, 0.3], first=1), "RR@10", {}, r"different queries \(3 and 3; 'q0' is in one only\)"),
        (a, "AP", {}, "'AP' was not evaluated; there is RR@10"),
        (a, "RR@10", {"test": "sign"}, "unknown test 'sign'; choose one of t, randomization, wilcoxon"),
        (a, "RR@10", {"samples": 0}, "samples is 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            paired_significance(a, other, metric, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least two queries, there is 1"):
        paired_significance(evaluation([1]), evaluation([0]), "RR@10")
