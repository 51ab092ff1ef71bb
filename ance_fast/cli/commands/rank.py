"""ance-fast rank"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ance_fast.cli.chunking import cut_documents, refuse_unknown_chunks
from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_model, refuse_unknown_preset
from ance_fast.cli.options import Chunks, TextPreset
from ance_fast.cli.output import print_json, print_table


def rank(
    data: Annotated[str, typer.Argument(help="Data set: beir:DIR, msmarco:DIR, or a path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="TREC run to write.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder or Hugging Face id.")],
    split: Annotated[str, typer.Option(help="Queries to rank for.")] = "test",
    k: Annotated[int, typer.Option("-k", min=1, help="Passages a query.")] = 100,
    num_layers: Annotated[int | None, typer.Option(min=1, help="Keep only the first layers.")] = None,
    max_query_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    max_document_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    chunks: Chunks = None,
    text_preset: TextPreset = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Rank passages by an encoder, exactly, and measure the run.

    Example: ance-fast rank beir:scifact -m intfloat/e5-small-v2 -o e5.trec
    """
    refuse_unknown_chunks(chunks, max_document_length)
    refuse_missing_data(data)
    refuse_missing_model(model)
    refuse_unknown_preset(text_preset)
    import ance_fast
    from ance_fast.data import TokenStore, load_dataset, write_run
    from ance_fast.encoding import encode_matrix
    from ance_fast.encoding.budget import measured_budget
    from ance_fast.encoding.stages import batches_on
    from ance_fast.progress import progress_bar

    dataset = load_dataset(data, split=split)
    encoder = ance_fast.Encoder.load(
        model,
        device=device,
        num_layers=num_layers,
        max_query_length=max_query_length,
        max_document_length=max_document_length,
        text_preset=text_preset,
    )
    cut_documents(encoder, chunks)
    documents = list(dataset.corpus)
    store = TokenStore.from_texts(
        [document.full_text for document in documents],
        encoder.tokenizer,
        ids=[document.id for document in documents],
        max_length=encoder.max_document_length,
        prompt=encoder.document_prompt,
        chunks=encoder.chunks,
    )
    with progress_bar("encoding passages", len(store), "passages") as advance:
        passages = encode_matrix(
            encoder, store, batch_tokens=measured_budget(encoder, store), on_batch=batches_on(advance)
        )
    metric = "cosine" if encoder.layout.similarity == "cosine" else "ip"
    index = ance_fast.Index.build(passages, store.ids, metric=metric)
    asked = encoder.encode_query(list(dataset.queries.values()))
    run = index.search_documents(asked, k, documents=store.chunked).to_run(list(dataset.queries))
    write_run(output, run, Path(model).name)
    result = dict(ance_fast.evaluate(run, dataset.qrels))
    if json:
        print_json({"run": str(output), **result})
    else:
        print_table(list(result), [list(result.values())], title=str(output))
