"""Memory of an encoding run: bounded by windows and queues, whatever the number of passages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The forward pass is left out: what counts is what the pipeline, the ring and the shards hold.
CHILD = """
import json, sys
import torch
from ance_fast import Encoder, TokenStore, encode_corpus
DIM = 768
Encoder.dim = property(lambda self: DIM)
Encoder.hidden = lambda self, batch: None
Encoder.pool = lambda self, hidden, batch: torch.full((len(batch), DIM), 0.5)
encoder = Encoder.load(sys.argv[1], device="cpu", max_document_length=16)

def run(rows, place):
    texts = (f"passage {row}" for row in range(rows))
    store = TokenStore.build(texts, encoder.tokenizer, place + ".tokens", max_length=16, keep_text=False)
    shards = encode_corpus(encoder, store, place, shard_rows=10000, batch_tokens=1024)
    assert len(shards) == rows
    # Not ru_maxrss, which a child inherits from whoever started it.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

few = run(10_000, sys.argv[2] + "/few")
print(json.dumps([few, run(100_000, sys.argv[2] + "/many")]))
"""


@pytest.mark.timeout(200)
def test_ten_times_the_passages_take_no_more_memory(tiny: Callable[..., Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tiny("Bert")), str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout
    few, many = json.loads(printed)
    # The embeddings are 307 MB; tokens, ids and lengths of the passages a few.
    assert many - few < 60
