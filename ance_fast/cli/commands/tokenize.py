"""ance-fast tokenize"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_model, refuse_unknown_preset
from ance_fast.cli.options import TextPreset
from ance_fast.cli.output import print_json


def tokenize(
    data: Annotated[str, typer.Argument(help="beir:DIR, jsonl:FILE, parquet:FILE, irds:NAME, a path, - (a pipe).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Token store to make.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint whose tokenizer to use.")],
    max_length: Annotated[int | None, typer.Option(help="Tokens a passage is cut at (default: the model's).")] = None,
    num_proc: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    text_preset: TextPreset = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Tokenise a corpus once into a memory-mapped Arrow token store; an interrupted run goes on where it stopped.

    Of a corpus that has grown only the new passages are tokenised; rates count what was tokenised now, and are left
    out (null) where that was nothing.

    Example: ance-fast tokenize beir:scifact -m intfloat/e5-small-v2 -o scifact.tokens

    Example: zcat collection.tsv.gz | ance-fast tokenize - -m intfloat/e5-small-v2 -o msmarco.tokens
    """
    refuse_missing_data(data)
    refuse_missing_model(model)
    refuse_unknown_preset(text_preset)
    from ance_fast.data import TokenStore, load_corpus
    from ance_fast.data.token_build import Tokenised
    from ance_fast.models import Encoder

    encoder = Encoder.load(
        model, device="cpu", attention="padded", max_document_length=max_length, text_preset=text_preset
    )
    started = time.monotonic()
    store = TokenStore.build(
        load_corpus(data),
        encoder.tokenizer,
        output,
        max_length=encoder.max_document_length,
        prompt=encoder.document_prompt,
        num_proc=num_proc,
        show_progress=True,
    )
    seconds = time.monotonic() - started
    done = store.tokenised or Tokenised()
    if json:
        print_json(
            {
                "path": str(output),
                "passages": len(store),
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
