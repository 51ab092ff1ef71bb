"""ance-fast encode"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ance_fast.cli.output import print_json


def encode(
    data: Annotated[str, typer.Argument(help="Token store, or a corpus: beir:DIR, msmarco:DIR, jsonl:FILE, a path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the embeddings.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder or Hugging Face id.")],
    dtype: Annotated[str, typer.Option(help="float32 or float16, as stored.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of one forward pass.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a passage is cut at [default: the model's].")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Embed a corpus into .npy shards with ids and a manifest; finished shards survive an interruption.

    Example: ance-fast encode scifact.tokens -m intfloat/e5-small-v2 -o scifact.embeddings
    """
    from ance_fast.artifacts import MANIFEST
    from ance_fast.data import TokenStore, load_corpus
    from ance_fast.encoding import encode_corpus
    from ance_fast.models import Encoder

    encoder = Encoder.load(model, device=device, max_document_length=max_length)
    corpus = TokenStore.open(data, verify=False) if (Path(data) / MANIFEST).is_file() else load_corpus(data)
    started = time.monotonic()
    shards = encode_corpus(encoder, corpus, output, dtype=dtype, batch_tokens=batch_tokens, show_progress=True)
    seconds = time.monotonic() - started
    if json:
        print_json(
            {"path": str(output), "passages": len(shards), "dim": shards.dim, "seconds": seconds, **encoder.info()}
        )
    else:
        print(f"{output}: {len(shards):,} embeddings of {shards.dim} dimensions in {seconds:.1f} s")
