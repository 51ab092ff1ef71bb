"""ance-fast index"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ance_fast.cli.output import print_json
from ance_fast.progress import progress_bar


def index(
    embeddings: Annotated[Path, typer.Argument(help="Folder that `ance-fast encode` made.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Index to make.")],
    factory: Annotated[str, typer.Option("--factory", "-f", help="FAISS index_factory string.")] = "Flat",
    metric: Annotated[str, typer.Option(help="ip or cosine.")] = "ip",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Build a search index from embeddings: exact (Flat) or approximate (HNSW32, IVF1024,Flat, IVF1024,PQ16, ...).

    Example: ance-fast index scifact.embeddings -o scifact.index -f HNSW32
    """
    from ance_fast.encoding import EmbeddingShards
    from ance_fast.index import Index

    shards = EmbeddingShards.open(embeddings)
    with progress_bar("indexing", len(shards), "vectors") as advance:
        built = Index.build(shards, factory=factory, metric=metric, device=device, progress=advance)
    built.save(output)
    result = {
        "path": str(output),
        "vectors": len(built),
        "factory": factory,
        "metric": metric,
        "backend": built.backend,
    }
    if json:
        print_json(result)
    else:
        print(f"{output}: {len(built):,} vectors, {factory}, {metric}, {built.backend}")
