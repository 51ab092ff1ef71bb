"""ance-fast index"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ance_fast.cli.chunking import cut_documents, refuse_unknown_chunks
from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_folder, refuse_missing_model, refuse_unknown_preset
from ance_fast.cli.options import Chunks, DocumentSeparator, TextPreset
from ance_fast.cli.output import print_json
from ance_fast.errors import ConfigError
from ance_fast.progress import progress_bar

if TYPE_CHECKING:
    from ance_fast.encoding import EmbeddingShards
    from ance_fast.index import Index, IndexSink


def index(
    embeddings: Annotated[
        str, typer.Argument(help="Folder that `ance-fast encode` made; or, with --model, a token store or a corpus.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Index to make.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Encode the corpus first, into OUTPUT.embeddings.")
    ] = None,
    factory: Annotated[str, typer.Option("--factory", "-f", help="FAISS index_factory string, or CAGRA.")] = "Flat",
    metric: Annotated[str, typer.Option(help="ip or cosine.")] = "ip",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N; several with commas between.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="What Flat stores: float32 or float16. (default: as embedded)")
    ] = None,
    train_size: Annotated[int | None, typer.Option(min=1, help="Vectors to train IVF and PQ on.")] = None,
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Flat over the embeddings as files; copies none.")] = False,
    check: Annotated[bool, typer.Option(help="Measure recall@10 of an approximate index on a sample.")] = True,
    memory_check: Annotated[bool, typer.Option(help="Refuse what does not fit into memory.")] = True,
    chunks: Chunks = None,
    document_separator: DocumentSeparator = None,
    text_preset: TextPreset = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Build a search index from embeddings: exact (Flat) or approximate (HNSW32, IVF1024,Flat, IVF1024,PQ16, ...).

    Example: ance-fast index scifact.embeddings -o scifact.index -f HNSW32

    Example: ance-fast index beir:scifact -m intfloat/e5-small-v2 -o scifact.index
    """
    if on_disk and (factory != "Flat" or dtype is not None):
        raise ConfigError("--on-disk searches the embeddings as they are: it goes with Flat, and without --dtype")
    if model is None and chunks is not None:
        raise ConfigError("--chunks cuts documents before they are encoded: it goes with --model")
    refuse_unknown_chunks(chunks)
    if model is None:
        if text_preset is not None:
            raise ConfigError("--text-preset is for the tokens of a corpus: it goes with --model CHECKPOINT")
        if Path(embeddings).is_file():
            raise ConfigError(f"{embeddings}: not a folder of embeddings; a corpus goes with --model CHECKPOINT")
        refuse_missing_folder(embeddings)
    else:
        refuse_missing_data(embeddings)
        refuse_missing_model(model)
    refuse_unknown_preset(text_preset)
    from ance_fast.encoding import EmbeddingShards
    from ance_fast.index import Index, IndexSink, sampled_recall

    devices = device.split(",")
    clock = _Clock()
    expected = None
    built: Index | None = None
    if model is not None:
        live = None if on_disk or dtype is not None else functools.partial(IndexSink, factory=factory, metric=metric)
        shards, built = _encoded(embeddings, model, output, factory, devices, live, memory_check, chunks, text_preset)
        clock.stage("encode")
    else:
        shards = EmbeddingShards.open(embeddings)
    if built is None and not on_disk:
        # What the embeddings are stored in decides only with `dtype` unset, and then by no more than a factor of two.
        expected = Index.estimate(factory, len(shards), shards.dim, dtype=dtype or "float32", train_size=train_size)
        print(f"{factory} over {len(shards):,} vectors of {shards.dim}: about {expected}", file=sys.stderr)
    if built is None:
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
    built.set_documents(document_separator or shards.document_separator)
    built.text_record = shards.text_record
    built.save(output)
    clock.stage("write")
    result: dict[str, Any] = {
        "path": str(output),
        "vectors": len(built),
        "document_separator": built.document_separator,
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


def _encoded(
    data: str,
    model: str,
    output: Path,
    factory: str,
    devices: list[str],
    live: Callable[..., IndexSink] | None,
    memory_check: bool,
    chunks: str | None,
    text_preset: str | None,
) -> tuple[EmbeddingShards, Index | None]:
    """Embeddings of a corpus, and the index where it could be filled meanwhile; tokens and embeddings lie beside it."""
    from ance_fast.data import TokenStore, open_passages
    from ance_fast.encoding import encode_corpus
    from ance_fast.encoding.corpus import refuse_changed_corpus
    from ance_fast.index.memory import check_memory, estimate_memory
    from ance_fast.index.sink import needs_training
    from ance_fast.models import Encoder

    embeddings = output.with_name(output.name + ".embeddings")
    encoder = Encoder.load(model, device=devices[0], text_preset=text_preset)
    store = open_passages(data)
    cut_documents(encoder, chunks, store)
    if not isinstance(store, TokenStore):
        store = TokenStore.build(
            store,
            encoder.tokenizer,
            output.with_name(output.name + ".tokens"),
            max_length=encoder.max_document_length,
            prompt=encoder.document_prompt,
            chunks=encoder.chunks,
            show_progress=True,
            accept=functools.partial(refuse_changed_corpus, embeddings),
        )
    if live is not None:
        expected = estimate_memory(factory, len(store), encoder.dim)
        print(f"{factory} over {len(store):,} vectors of {encoder.dim}: about {expected}", file=sys.stderr)
        if memory_check:
            check_memory(expected, factory, len(store), encoder.dim, devices)
    sink = None
    if live is not None and not needs_training(factory, encoder.dim):
        sink = live(store.ids, encoder.dim, devices=devices, fingerprint=encoder.fingerprint())
    shards = encode_corpus(
        encoder,
        store,
        embeddings,
        devices=devices if len(devices) > 1 else None,
        sinks=[] if sink is None else [sink],
        show_progress=True,
    )
    return shards, None if sink is None else sink.finish()


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
