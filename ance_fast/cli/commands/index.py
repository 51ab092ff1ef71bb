"""ance-fast index"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ance_fast.cli.output import print_json
from ance_fast.errors import ConfigError
from ance_fast.progress import progress_bar


def index(
    embeddings: Annotated[Path, typer.Argument(help="Folder that `ance-fast encode` made.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Index to make.")],
    factory: Annotated[str, typer.Option("--factory", "-f", help="FAISS index_factory string, or CAGRA.")] = "Flat",
    metric: Annotated[str, typer.Option(help="ip or cosine.")] = "ip",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N; several with commas between.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="What Flat stores: float32 or float16. [as embedded]")] = None,
    train_size: Annotated[int | None, typer.Option(min=1, help="Vectors to train IVF and PQ on.")] = None,
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Flat over the embeddings as files; copies none.")] = False,
    check: Annotated[bool, typer.Option(help="Measure recall@10 of an approximate index on a sample.")] = True,
    memory_check: Annotated[bool, typer.Option(help="Refuse what does not fit into memory.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Build a search index from embeddings: exact (Flat) or approximate (HNSW32, IVF1024,Flat, IVF1024,PQ16, ...).

    Example: ance-fast index scifact.embeddings -o scifact.index -f HNSW32
    """
    from ance_fast.encoding import EmbeddingShards
    from ance_fast.index import Index, sampled_recall

    if on_disk and (factory != "Flat" or dtype is not None):
        raise ConfigError("--on-disk searches the embeddings as they are: it goes with Flat, and without --dtype")
    devices = device.split(",")
    shards = EmbeddingShards.open(embeddings)
    clock = _Clock()
    expected = None
    if not on_disk:
        # What the embeddings are stored in decides only with `dtype` unset, and then by no more than a factor of two.
        expected = Index.estimate(factory, len(shards), shards.dim, dtype=dtype or "float32", train_size=train_size)
        print(f"{factory} over {len(shards):,} vectors of {shards.dim}: about {expected}", file=sys.stderr)
    with progress_bar("checking" if on_disk else "indexing", len(shards), "vectors") as advance:
        progress = clock.adding(advance)
        if on_disk:
            built = Index.over(shards, metric=metric, devices=devices, progress=progress)
        else:
            built = Index.build(
                shards, factory=factory, metric=metric, devices=devices, dtype=dtype, train_size=train_size,
                check_memory=memory_check, progress=progress,
            )  # fmt: skip
    clock.stage("add")
    built.save(output)
    clock.stage("write")
    result: dict[str, Any] = {
        "path": str(output),
        "vectors": len(built),
        "dim": built.dim,
        "factory": factory,
        "metric": metric,
        "backend": built.backend,
        "bytes": sum(file.stat().st_size for file in output.iterdir()),
    }
    if expected is not None:
        result["estimate"] = {"memory": expected.index, "build": expected.build, "disk": expected.disk}
    if check and factory != "Flat":
        result["recall@10"] = sampled_recall(built, shards, 10)
        clock.stage("check")
    result["seconds"] = clock.seconds
    if json:
        print_json(result)
        return
    recall = f", recall@10 {result['recall@10']:.3f} on a sample" if "recall@10" in result else ""
    print(f"{output}: {len(built):,} vectors, {factory}, {metric}, {built.backend}{recall}")
    print("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in clock.seconds.items()))


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def adding(self, advance: Any) -> Any:
        """`advance`; a call with 0, which says that training is over, ends the stage "train"."""

        def step(count: int) -> None:
            if not count:
                self.stage("train")
            advance(count)

        return step
