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
    from ance_fast.data import Dataset, TokenStore
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
        list[str] | None,
        typer.Option(
            help="With --format ance: a split whose queries to write too; SPLIT=NAME under another name. Repeatable."
        ),
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

    Example: ance-fast tokenize msmarco-doc:DIR -m MODEL -o preprocessed --format ance --split test2019=dev

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

    place = output if form == "store" else output.with_name(output.name + ".tokens")
    splits = _splits(data, output, place, split or []) if form == "ance" else {}
    encoder = Encoder.load(
        model,
        device="cpu",
        attention="padded",
        text_preset=text_preset,
    )
    cut_documents(encoder, "none" if form == "ance" else chunks, max_length=max_length)
    length = encoder.max_document_length
    if max_length is not None and max_length > length:
        # Records for MaxP are longer than a model's positions: whoever trains on them cuts them into chunks.
        if form == "store":
            raise ConfigError(
                f"--max-length {max_length}: the model takes {length} tokens; longer documents are cut by --chunks"
            )
        length = max_length
    started = time.monotonic()
    store = TokenStore.build(
        load_corpus(data),
        encoder.tokenizer,
        place,
        max_length=length,
        prompt=encoder.document_prompt,
        chunks=encoder.chunks,
        num_proc=num_proc,
        show_progress=True,
    )
    if form == "ance":
        _write_cache(output, splits, encoder, store, max_query_length)
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


def _splits(data: str, output: Path, tokens: Path, splits: list[str]) -> dict[str, Dataset]:
    """Name there -> data set of each split asked for: read before anything is tokenised, since that takes hours.

    Raises `ConfigError` for two splits of one name and for data of which the original has other files; `ArtifactError`
    where `output` holds passages that cannot come from `tokens`.
    """
    from ance_fast.data import load_dataset
    from ance_fast.data.ance_cache import PASSAGES
    from ance_fast.data.ance_cache_writer import other_passages
    from ance_fast.data.record_file import META
    from ance_fast.data.sources import form_of

    if form_of(data) == "dpr":
        raise ConfigError(
            f"{data}: of DPR's data microsoft/ANCE has files with answers and its own numbers of questions "
            "(`DPR_data.py`), which are not written; train and mine on dpr: itself"
        )
    if (output / (PASSAGES + META)).exists() and not tokens.exists():
        raise other_passages(output)
    found: dict[str, Dataset] = {}
    for text in splits:
        split, _, name = text.partition("=")
        name = name or split
        if name in found:
            raise ConfigError(f"--split {text}: another split is already to be called {name!r}")
        found[name] = load_dataset(data, split=split)
    return found


def _write_cache(
    output: Path, splits: dict[str, Dataset], encoder: Encoder, passages: TokenStore, max_query_length: int | None
) -> None:
    """microsoft/ANCE's `passages`, and for each split its queries and judgements."""
    from ance_fast.data import TokenStore
    from ance_fast.data.ance_cache_writer import write_ance_passages, write_ance_queries

    tower = encoder.for_queries
    write_ance_passages(output, passages, encoder.tokenizer.pad_token_id)
    for name, dataset in splits.items():
        queries = TokenStore.of_queries(
            dataset,
            [query for query in dataset.queries if query in dataset.qrels or not dataset.qrels],
            tower.tokenizer,
            max_length=max_query_length or tower.max_query_length,
            prompt=tower.query_prompt,
        )
        write_ance_queries(output, name, queries, dataset.qrels, passages, tower.tokenizer.pad_token_id)
