"""ance-fast convert"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ance_fast.cli.inputs import refuse_missing_model
from ance_fast.cli.output import print_json
from ance_fast.errors import ConfigError


def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint: a folder, a file, or a Hugging Face id.")],
    target: Annotated[Path, typer.Argument(help="Folder or file to write.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Format to write: sentence-transformers, ance, castorini, seed-hf, seed-fairseq, seed-finetuned, "
            "dpr-cp, dpr-hf, seed-nq.",
        ),
    ],
    source_format: Annotated[
        str | None, typer.Option("--from", help="Format to read (default: found out); also huggingface.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read pickles that can run any code: only files you trust.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder or vocabulary file, for a checkpoint that has none beside it.")
    ] = None,
    text_preset: Annotated[
        str | None,
        typer.Option(help="How texts are tokenised: ance, ance-cased, seed, dpr, plain."),
    ] = None,
    head: Annotated[
        str,
        typer.Option(help="keep; none: leave it out; fresh: begin ANCE's, for a warm-up from a language model."),
    ] = "keep",
    seed: Annotated[int, typer.Option(help="Of the draws of a fresh head.")] = 42,
    pooling: Annotated[str | None, typer.Option(help="cls or mean (default: the checkpoint's).")] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads, for files that do not say (default: of 64 dimensions).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Turn a checkpoint of one program into one of another, with the same vectors.

    Example: ance-fast convert "Passage ANCE(FirstP) Checkpoint" ance-passage --to sentence-transformers
    """
    refuse_missing_model(source)
    from ance_fast.models.checkpoint_formats import (
        find_format,
        read_checkpoint,
        refuse_unknown_format,
        with_head,
        write_checkpoint,
    )
    from ance_fast.models.foreign import ReadOptions
    from ance_fast.models.layouts import resolve_checkpoint

    refuse_unknown_format(to, source_format)
    path = resolve_checkpoint(source)
    if target.exists() and target.samefile(path):
        raise ConfigError(f"{target}: is what is to be read; write somewhere else")
    if target.resolve() in path.resolve().parents:
        raise ConfigError(f"{target}: holds what is to be read; write somewhere else")
    form = source_format or find_format(path, trust)
    options = ReadOptions(trust, tokenizer, text_preset, heads)
    encoder = with_head(read_checkpoint(path, form, options), head, seed)
    if pooling is not None:
        if pooling not in ("cls", "mean", "max", "last"):
            raise ConfigError(f"pooling={pooling!r}: choose cls, mean, max or last")
        for tower in encoder.towers:
            tower.layout = dataclasses.replace(tower.layout, pooling=pooling)
    write_checkpoint(encoder, target, to)
    result: dict[str, Any] = {
        "path": str(target),
        "from": form,
        "to": to,
        "dim": encoder.dim,
        "parameters": sum(weights.numel() for name, weights in encoder.named_parameters() if ".pooler." not in name),
        "fingerprint": encoder.fingerprint(),
    }
    if json:
        print_json(result)
    else:
        print(f"{target}: {to}, from {form}; {result['parameters']:,} weights, vectors of {encoder.dim} dimensions")
