"""One of two processes that train on halves of a batch; started by test_contrastive_group.py.

Arguments: rank, the file over which the ranks meet, the file to write, called after the rank. Saves the loss and the
averaged parameter gradients. Prints "ready" before it looks for the other rank and "met" after, and where it stands if
it takes longer than it ever should.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ance_fast.errors import ConfigError
from ance_fast.ops import contrastive_loss


class TwoTowers(torch.nn.Module):
    """One linear map for queries, one for passages, and a learnable scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.queries, self.passages = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)
        self.scale = torch.nn.Parameter(torch.tensor(1.7))

    def forward(self, x, y):
        return self.queries(x), self.passages(y), self.scale * 1.0


def batch():
    """The whole batch, ragged over the ranks: rows and columns of rank 0, then of rank 1."""
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(7, 6, generator=draw), torch.randn(12, 6, generator=draw)
    documents = torch.tensor([1, 2, 3, 1, 5, 6, 2, 8, 9, 1, 11, 3])
    positives = [[9], [], [6, 1], [11], [], [2, 9], [44]]
    targets = [[0], [1, 3], [2], [], [5, 7], [6], [11]]
    return x, y, documents, positives, targets


ROWS, COLUMNS = (0, 3, 7), (0, 5, 12)


def csr(lists):
    offsets = torch.tensor([0, *(len(x) for x in lists)]).cumsum(0)
    return offsets, torch.tensor([v for x in lists for v in x], dtype=torch.int64)


def parts(dtype):
    """Queries and passages of a batch, all of the former on rank 1."""
    draw = torch.Generator().manual_seed(5)
    q, p = (torch.randn(n, 6, generator=draw).to(dtype) for n in (3, 7))
    return [(q[:0], p[:4]), (q, p[4:])]


def uneven(rank, dtype):
    """Loss and gradients of a rank that has no queries or few passages, without labels."""
    q, p = (part.requires_grad_() for part in parts(dtype)[rank])
    loss = contrastive_loss(q, p, process_group=dist.group.WORLD)
    return [loss.detach(), *torch.autograd.grad(loss, (q, p))]


def main() -> None:
    rank, meeting, target = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    other = target.with_name(f"{1 - rank}.pt")
    faulthandler.dump_traceback_later(100, exit=True)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else the address of this host's name, which need not be reachable
    torch.set_num_threads(1)
    print("ready", flush=True)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    print("met", flush=True)
    x, y, documents, positives, targets = batch()
    rows, columns = slice(*ROWS[rank : rank + 2]), slice(*COLUMNS[rank : rank + 2])
    # Targets of a rank are columns of its own; row 1 of the whole batch also names column 3, which is on the same rank.
    own = [[t - columns.start for t in mine] for mine in targets[rows]]
    saved = {}
    for both in (False, True):
        model = DistributedDataParallel(TwoTowers())
        q, p, scale = model(x[rows], y[columns])
        loss = contrastive_loss(
            q,
            p,
            labels=csr(own),
            doc_ids=documents[columns],
            positives=csr(positives[rows]),
            scale=scale,
            bidirectional=both,
            process_group=dist.group.WORLD,
        )
        loss.backward()
        saved[both] = (loss.detach(), {name: w.grad for name, w in model.module.named_parameters()})
    saved["uneven"] = uneven(rank, torch.float32)
    saved["half"] = uneven(rank, torch.bfloat16)
    try:  # rank 1 has fewer columns than rows
        contrastive_loss(torch.ones(2, 2), torch.ones(2 - rank, 2), process_group=dist.group.WORLD)
    except ConfigError as error:
        saved["stopped"] = str(error)
    try:
        contrastive_loss(
            torch.ones(1, 2),
            torch.ones(1, 2),
            doc_ids=torch.ones(1, dtype=torch.int64) if rank else None,
            process_group=dist.group.WORLD,
        )
    except ConfigError as error:
        saved["refused"] = str(error)
    torch.save(saved, f"{target}.part")
    os.rename(f"{target}.part", target)
    while not other.exists():  # until then it may still be reading from this one
        time.sleep(0.05)
    os._exit(0)  # gloo now and then hangs when its threads are joined


if __name__ == "__main__":
    main()
