"""ance-fast tokenize"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ance_fast.cli.chunking import cut_documents, refuse_unknown_chunks
from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_model, refuse_unknown_preset
from ance_fast.cli.options import Chunks, TextPreset
from ance_fast.cli.output import print_json
from ance_fast.errors import ConfigError

if TYPE_CHECKING:
    from ance_fast.data import TokenStore
    from ance_fast.models import Encoder


def tokenize(
    data: Annotated[str, typer.Argument(help="beir:DIR, jsonl:FILE, parquet:FILE, irds:NAME, a path, - (a pipe).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Token store to make.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint whose tokenizer to use.")],
    max_length: Annotated[int | None, typer.Option(help="Tokens a passage is cut at (default: the model's).")] = None,
    form: Annotated[
        str, typer.Option("--format", help="store, or ance: the files that microsoft/ANCE's trainer and miner read.")
    ] = "store",
    split: Annotated[
        list[str] | None, typer.Option(help="With --format ance: a split whose queries to write too. Repeatable.")
    ] = None,
    max_query_length: Annotated[
        int | None, typer.Option(help="With --format ance: tokens a query is cut at (default: the model's).")
    ] = None,
    num_proc: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    chunks: Chunks = None,
    text_preset: TextPreset = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Tokenise a corpus once into a memory-mapped Arrow token store; an interrupted run goes on where it stopped.

    Of a corpus that has grown only the new passages are tokenised; rates count what was tokenised now, and are left
    out (null) where that was nothing.

    Example: ance-fast tokenize beir:scifact -m intfloat/e5-small-v2 -o scifact.tokens

    Example: ance-fast tokenize msmarco:DIR -m MODEL -o preprocessed --format ance --split train --split dev

    Example: zcat collection.tsv.gz | ance-fast tokenize - -m intfloat/e5-small-v2 -o msmarco.tokens
    """
    if form not in ("store", "ance"):
        raise ConfigError(f"--format {form!r}: choose store or ance")
    if form == "store" and (split or max_query_length):
        raise ConfigError("--split and --max-query-length write queries, which only --format ance has a place for")
    if form == "ance" and chunks is not None:
        raise ConfigError("--chunks cuts the documents of a store; microsoft/ANCE's files hold them whole")
    refuse_unknown_chunks(chunks, max_length)
    refuse_missing_data(data)
    refuse_missing_model(model)
    refuse_unknown_preset(text_preset)
    from ance_fast.data import TokenStore, load_corpus
    from ance_fast.data.token_build import Tokenised
    from ance_fast.models import Encoder

    encoder = Encoder.load(
        model,
        device="cpu",
        attention="padded",
        max_query_length=max_query_length,
        text_preset=text_preset,
    )
    cut_documents(encoder, "none" if form == "ance" else chunks, max_length=max_length)
    started = time.monotonic()
    store = TokenStore.build(
        load_corpus(data),
        encoder.tokenizer,
        output if form == "store" else output.with_name(output.name + ".tokens"),
        max_length=encoder.max_document_length,
        prompt=encoder.document_prompt,
        chunks=encoder.chunks,
        num_proc=num_proc,
        show_progress=True,
    )
    if form == "ance":
        _write_cache(output, data, split or [], encoder, store)
    seconds = time.monotonic() - started
    done = store.tokenised or Tokenised()
    if json:
        print_json(
            {
                "path": str(output),
                "passages": len(store),
                "documents": len(store.corpus),
                "tokens": store.num_tokens,
                "truncated": store.manifest["truncated"],
                "max_length": store.max_length,
                "tokenised": {"passages": done.rows, "tokens": done.tokens},
                "seconds": seconds,
                "passages_per_second": done.rows / seconds if done.rows else None,
                "tokens_per_second": done.tokens / seconds if done.rows else None,
            }
        )
    else:
        new = f"{done.rows:,} passages tokenised in {seconds:.1f} s" if done.rows else "nothing new to tokenise"
        print(f"{output}: {len(store):,} passages, {store.num_tokens:,} tokens (cut at {store.max_length}); {new}")


def _write_cache(output: Path, data: str, splits: list[str], encoder: Encoder, passages: TokenStore) -> None:
    """microsoft/ANCE's `passages`, and for each split its queries and judgements."""
    from ance_fast.data import TokenStore, load_dataset
    from ance_fast.data.ance_cache_writer import write_ance_passages, write_ance_queries

    tower = encoder.for_queries
    write_ance_passages(output, passages, encoder.tokenizer.pad_token_id)
    for split in splits:
        dataset = load_dataset(data, split=split)
        queries = TokenStore.of_queries(
            dataset,
            [query for query in dataset.queries if query in dataset.qrels or not dataset.qrels],
            tower.tokenizer,
            max_length=tower.max_query_length,
            prompt=tower.query_prompt,
        )
        write_ance_queries(output, split, queries, dataset.qrels, passages, tower.tokenizer.pad_token_id)
