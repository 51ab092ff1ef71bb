"""Two processes with half a batch each against one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contrastive_ranks import TwoTowers, batch, csr, parts

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


@pytest.mark.parametrize(("name", "dtype"), [("uneven", torch.float32), ("half", torch.bfloat16)])
def test_a_rank_may_have_no_queries_and_half_precision(ranks, name, dtype):
    (_, first), (q, second) = parts(dtype)
    leaves = [q.float().requires_grad_(), torch.cat([first, second]).float().requires_grad_()]
    # Without labels a rank's query i has its own passage i, which is column 4 + i of all.
    wanted = contrastive_loss(*leaves, labels=torch.arange(4, 7), backend="reference")
    grad_q, grad_p = torch.autograd.grad(wanted, leaves)
    found = [rank[name] for rank in ranks]
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-3 if dtype == torch.bfloat16 else 1e-6}
    assert sum(loss.item() for loss, *_ in found) / 2 == pytest.approx(wanted.item(), rel=1e-5)
    assert {part.dtype for _, *gradients in found for part in gradients} == {dtype}
    torch.testing.assert_close(found[1][1].float() / 2, grad_q, **close)
    torch.testing.assert_close(torch.cat([found[0][2], found[1][2]]).float() / 2, grad_p, **close)


def test_a_rank_with_wrong_arguments_stops_the_others(ranks):
    assert "the arguments of rank 1 are wrong" in ranks[0]["stopped"]
    assert "p has 1 rows for 2 of q" in ranks[1]["stopped"]


def test_ranks_that_call_it_differently_are_told_so(ranks):
    for rank in ranks:
        assert "rank 0: width 2, torch.float32, doc_ids no" in rank["refused"]
        assert "rank 1: width 2, torch.float32, doc_ids yes" in rank["refused"]
