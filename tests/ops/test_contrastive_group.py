"""Two processes with half a batch each against one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contrastive_ranks import TwoTowers, batch, csr

from ance_fast.ops import contrastive_loss

SCRIPT = Path(__file__).with_name("contrastive_ranks.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank saved."""
    folder = tmp_path_factory.mktemp("ranks")
    files = [folder / f"{rank}.pt" for rank in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder / "meeting"), str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:  # one that waits for a rank that failed
            process.kill()
    if all(out.split() == ["ready"] for out, _ in said):  # stopped in torch's own rendezvous
        pytest.skip(f"no loopback network: gloo's ranks cannot reach each other: {said[0][1][-300:]}")
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.parametrize("both", [False, True])
def test_averaged_parameter_gradients_are_those_of_one_process(ranks, both):
    x, y, documents, positives, targets = batch()
    model = TwoTowers()
    q, p, scale = model(x, y)
    loss = contrastive_loss(
        q,
        p,
        labels=csr(targets),
        doc_ids=documents,
        positives=csr(positives),
        scale=scale,
        bidirectional=both,
        backend="reference",
    )
    loss.backward()
    assert sum(rank[both][0] for rank in ranks) / 2 == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0
        for rank in ranks:
            torch.testing.assert_close(rank[both][1][name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_ranks_that_call_it_differently_are_told_so(ranks):
    for rank in ranks:
        assert "rank 0: width 2, torch.float32, doc_ids no" in rank["refused"]
        assert "rank 1: width 2, torch.float32, doc_ids yes" in rank["refused"]
