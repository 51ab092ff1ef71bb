"""ance-fast encode"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ance_fast.cli.chunking import cut_documents, refuse_unknown_chunks
from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_model, refuse_unknown_preset
from ance_fast.cli.options import Chunks, TextPreset
from ance_fast.cli.output import print_json, print_stages

if TYPE_CHECKING:
    from ance_fast.data import TokenStore


def encode(
    data: Annotated[str, typer.Argument(help="Token store, or a corpus: beir:DIR, tsv:FILE, parquet:FILE, -, a path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the embeddings.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder or Hugging Face id.")],
    dtype: Annotated[str, typer.Option(help="float32 or float16, as stored.")] = "float32",
    centre: Annotated[bool, typer.Option("--centre", help="Subtract the mean before rounding to float16.")] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="ONNX Runtime in 8 bits on the CPU; refused where it changes too many neighbours."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1; several with commas: cuda:0,cuda:1")] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one forward pass (default: measured at the start).")
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Passages of a shard.")] = 65536,
    max_length: Annotated[int | None, typer.Option(help="Tokens a passage is cut at (default: the model's).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is there, or start over.")
    ] = True,
    chunks: Chunks = None,
    text_preset: TextPreset = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="One JSON document with the table of stages: the seconds of all threads of a stage together, and the "
            "share of the time that each of them was busy.",
        ),
    ] = False,
) -> None:
    """Embed a corpus into .npy shards with ids and a manifest.

    A run that was cut off goes on where it stopped; of a corpus that has grown only the new passages are encoded.
    Several processes may work on one output folder at the same time, on any number of hosts.

    Example: ance-fast encode scifact.tokens -m intfloat/e5-small-v2 -o scifact.embeddings
    """
    refuse_unknown_chunks(chunks, max_length)
    refuse_missing_data(data)
    refuse_missing_model(model)
    refuse_unknown_preset(text_preset)
    from ance_fast.data import open_passages
    from ance_fast.encoding import StageTimes, encode_corpus
    from ance_fast.encoding.corpus import refuse_changed_corpus, tokenised
    from ance_fast.models import Encoder
    from ance_fast.models.int8 import quantize

    devices = device.split(",")
    encoder = Encoder.load(model, device="cpu" if int8 else devices[0], text_preset=text_preset)
    passages = open_passages(data)
    cut_documents(encoder, chunks, passages, max_length)
    times = StageTimes()
    if int8:
        accept = functools.partial(refuse_changed_corpus, output) if resume else None
        passages = tokenised(encoder, passages, output, times, accept=accept, show_progress=True)
        encoder = quantize(encoder, _sample(passages))
    shards = encode_corpus(
        encoder,
        passages,
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


def _sample(store: TokenStore, size: int = 400) -> list[str]:
    """Evenly spaced texts of a corpus."""
    rows = range(0, len(store), max(1, len(store) // size))
    return [store.document(row).full_text for row in rows][:size]
