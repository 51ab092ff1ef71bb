"""Batches on threads of their own: each once, errors passed on, torch's setting put back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ance_fast import Encoder, TokenStore
from ance_fast.encoding.pipeline import encode_spans
from ance_fast.encoding.workers import QUEUED, Workers, one_thread_an_operation

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_item_is_worked_on_once_and_all_are_done_at_the_end(count: int) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.001 * (item % 3))
        done.append(item)

    with Workers(count) as workers:
        workers.run(work, range(40))
        assert sorted(done) == list(range(40))
        workers.run(work, iter([40]))
        workers.run(work, [])
    assert sorted(done) == list(range(41))


def test_items_are_taken_no_sooner_than_threads_are_free() -> None:
    taken, release = [], threading.Event()

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    def work(item: int) -> None:
        release.wait(30)

    with Workers(3) as workers:
        runner = threading.Thread(target=workers.run, args=(work, items()))
        runner.start()
        time.sleep(0.3)
        assert len(taken) <= 3 + QUEUED + 1
        release.set()
        runner.join(30)
    assert len(taken) == 50


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_exception_is_raised_when_nothing_runs_any_more(count: int) -> None:
    running = [0]

    def work(item: int) -> None:
        running[0] += 1
        time.sleep(0.01)
        running[0] -= 1
        if item == 5:
            raise ValueError("item 5")

    with Workers(count) as workers, pytest.raises(ValueError, match="item 5"):
        workers.run(work, range(100))
    assert running == [0]


def test_workers_compute_without_gradients_on_one_thread_each() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen: list[tuple[int, bool]] = []
    try:
        with one_thread_an_operation() as outside, Workers(outside) as workers:
            with one_thread_an_operation() as nested:
                assert nested == outside == 3
            workers.run(lambda item: seen.append((torch.get_num_threads(), torch.is_grad_enabled())), range(6))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, False)] * 6


def test_embeddings_do_not_depend_on_the_number_of_workers(encoder: Encoder, store: TokenStore) -> None:
    def encoded(workers: int) -> np.ndarray:
        matrix = torch.zeros(len(store), encoder.dim)
        with one_thread_an_operation():
            encode_spans(encoder, store, [(0, 400)], resident=matrix, batch_tokens=300, workers=workers)
        return matrix.numpy()

    one = encoded(1)
    assert np.abs(one).min() > 0
    for workers in (2, 7):
        np.testing.assert_array_equal(encoded(workers), one)
