"""ance-fast encode"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ance_fast.cli.output import print_json, print_stages


def encode(
    data: Annotated[str, typer.Argument(help="Token store, or a corpus: beir:DIR, tsv:FILE, parquet:FILE, -, a path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the embeddings.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder or Hugging Face id.")],
    dtype: Annotated[str, typer.Option(help="float32 or float16, as stored.")] = "float32",
    centre: Annotated[bool, typer.Option("--centre", help="Subtract the mean before rounding to float16.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1; several with commas: cuda:0,cuda:1")] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one forward pass [default: measured at the start].")
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Passages of a shard.")] = 65536,
    max_length: Annotated[int | None, typer.Option(help="Tokens a passage is cut at [default: the model's].")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is there, or start over.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON document with the table of stages.")] = False,
) -> None:
    """Embed a corpus into .npy shards with ids and a manifest.

    A run that was cut off goes on where it stopped; of a corpus that has grown only the new passages are encoded.
    Several processes may work on one output folder at the same time, on any number of hosts.

    Example: ance-fast encode scifact.tokens -m intfloat/e5-small-v2 -o scifact.embeddings
    """
    from ance_fast.data import open_passages
    from ance_fast.encoding import StageTimes, encode_corpus
    from ance_fast.models import Encoder

    devices = device.split(",")
    encoder = Encoder.load(model, device=devices[0], max_document_length=max_length)
    times = StageTimes()
    shards = encode_corpus(
        encoder,
        open_passages(data),
        output,
        dtype=dtype,
        centre=centre,
        shard_rows=shard_rows,
        batch_tokens=batch_tokens,
        devices=devices if len(devices) > 1 else None,
        resume=resume,
        times=times,
        show_progress=True,
    )
    if json:
        result = {"path": str(output), "rows": len(shards), "dim": shards.dim, "dtype": str(shards.dtype)}
        print_json({**result, **times.summary(), "encoder": encoder.info()})
    else:
        print(f"{output}: {len(shards):,} embeddings of {shards.dim} dimensions, {times.passages:,} of them new")
        print_stages(times.summary())
