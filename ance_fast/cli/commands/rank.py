"""ance-fast rank"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from ance_fast.cli.chunking import cut_documents, refuse_unknown_chunks
from ance_fast.cli.inputs import (
    refuse_missing_data,
    refuse_missing_files,
    refuse_missing_model,
    refuse_unknown_preset,
)
from ance_fast.cli.options import Chunks, TextPreset
from ance_fast.cli.output import print_json, print_table
from ance_fast.errors import DataError

if TYPE_CHECKING:
    from ance_fast.data import Dataset, Run
    from ance_fast.models import Encoder


def rank(
    data: Annotated[str, typer.Argument(help="Data set: beir:DIR, msmarco:DIR, or a path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="TREC run to write.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder or Hugging Face id.")],
    split: Annotated[str, typer.Option(help="Queries to rank for.")] = "test",
    k: Annotated[
        int | None, typer.Option("-k", min=1, help="Passages a query (default: 100; all of --candidates).")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option(help="Rank these alone, again: top1000.dev, a TREC run, an MS MARCO run.")
    ] = None,
    metrics: Annotated[str, typer.Option(help="ir-measures names, separated by commas.")] = "nDCG@10,RR@10,R@100",
    num_layers: Annotated[int | None, typer.Option(min=1, help="Keep only the first layers.")] = None,
    max_query_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    max_document_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    num_proc: Annotated[int, typer.Option(min=1, help="Processes that tokenise (1: the tokenizer's own threads).")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    chunks: Chunks = None,
    text_preset: TextPreset = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Rank passages by an encoder, exactly: all of them, or each query's candidates. Measures the run where there are
    judgements.

    Vectors of all passages are in memory; their tokens lie beside RUN while it ranks. What is to be kept, resumed or
    shared between processes is made by tokenize, encode, index and search.

    Example: ance-fast rank beir:scifact -m intfloat/e5-small-v2 -o e5.trec

    Example: ance-fast rank msmarco:DIR --split dev -m MODEL --candidates top1000.dev -o rerank.trec
    """
    refuse_unknown_chunks(chunks, max_document_length)
    refuse_missing_data(data)
    refuse_missing_model(model)
    refuse_missing_files(*([candidates] if candidates is not None else []))
    refuse_unknown_preset(text_preset)
    import ance_fast
    from ance_fast.data import load_dataset, write_run

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    ance_fast.evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}}, names)  # refused before anything is encoded
    dataset = load_dataset(data, split=split)
    if not dataset.queries:
        raise DataError(f"{data}: holds no queries to rank for")
    encoder = ance_fast.Encoder.load(
        model,
        device=device,
        num_layers=num_layers,
        max_query_length=max_query_length,
        text_preset=text_preset,
    )
    cut_documents(encoder, chunks, max_length=max_document_length)
    if candidates is not None:
        run = _again(encoder, dataset, candidates, k)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{output.name}.tokens-", dir=output.parent) as place:
            run = _full(encoder, dataset, k or 100, Path(place) / "tokens", num_proc)
    write_run(output, run, Path(model).name)
    result = dict(ance_fast.evaluate(run, dataset.qrels, names)) if dataset.qrels else {}
    if json:
        print_json({"run": str(output), **result})
    elif result:
        print_table(list(result), [list(result.values())], title=str(output))
    else:
        print(f"{output}: {len(run):,} queries; nothing to measure by")


def _full(encoder: Encoder, dataset: Dataset, k: int, tokens: Path, num_proc: int) -> Run:
    """The k best passages, or documents where the encoder cuts them into chunks, of each query."""
    from ance_fast.data import TokenStore
    from ance_fast.encoding import encode_matrix
    from ance_fast.encoding.budget import measured_budget
    from ance_fast.encoding.stages import batches_on
    from ance_fast.index import Index
    from ance_fast.progress import progress_bar

    store = TokenStore.build(
        dataset.corpus,
        encoder.tokenizer,
        tokens,
        max_length=encoder.max_document_length,
        prompt=encoder.document_prompt,
        chunks=encoder.chunks,
        num_proc=num_proc,
        keep_text=False,
        show_progress=True,
    )
    with progress_bar("encoding passages", len(store), "passages") as advance:
        passages = encode_matrix(
            encoder, store, batch_tokens=measured_budget(encoder, store), on_batch=batches_on(advance)
        )
    metric = "cosine" if encoder.layout.similarity == "cosine" else "ip"
    index = Index.over(passages, store.ids, metric=metric, check=False)  # the pipeline has checked it
    queries = encoder.encode_query(list(dataset.queries.values()))
    return index.search_documents(queries, k, documents=store.chunked).to_run(list(dataset.queries))


def _again(encoder: Encoder, dataset: Dataset, file: Path, k: int | None) -> Run:
    """The k best of each query's candidates, or all of them."""
    from ance_fast.data import read_candidates
    from ance_fast.encoding.stages import batches_on
    from ance_fast.evaluation.rerank import rerank
    from ance_fast.evaluation.runs import ranking
    from ance_fast.progress import progress_bar

    with progress_bar("encoding candidates", None, "passages") as advance:
        run = rerank(encoder, dataset.queries, read_candidates(file), dataset.corpus, on_batch=batches_on(advance))
    return {
        query: {document: scores[document] for document in ranking(query, scores)[:k]} for query, scores in run.items()
    }
