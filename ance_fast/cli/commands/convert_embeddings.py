"""ance-fast convert-embeddings"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ance_fast.artifacts import MANIFEST
from ance_fast.cli.inputs import refuse_missing_folder, refuse_missing_model
from ance_fast.cli.output import print_json
from ance_fast.errors import ConfigError


def convert_embeddings(
    source: Annotated[Path, typer.Argument(help="Folder of microsoft/ANCE's inferencer, or of `ance-fast encode`.")],
    output: Annotated[Path, typer.Argument(help="What to make of it: embeddings, or a folder of theirs.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The checkpoint that made theirs; queries are to come from it.")
    ] = None,
    part: Annotated[str, typer.Option(help="passage, query or dev_query.")] = "passage",
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint [the highest there; 0 to write].")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Preprocessed data, which knows the record of each id [rows in their order].")
    ] = None,
    prefix: Annotated[str, typer.Option(help='Before each passage id: "D" for MS MARCO documents.')] = "",
    ranks: Annotated[int, typer.Option(min=1, help="Processes to write files of.")] = 1,
    form: Annotated[str, typer.Option("--format", help="What to write: npy, or pb as until 2026.")] = "npy",
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Make embeddings of microsoft/ANCE's files (passage_STEP__emb_p__data_obj_RANK.npy or .pb), or the other way.

    What comes out is indexed and searched like any other: ance-fast index OUTPUT -o INDEX

    Example: ance-fast convert-embeddings ann_data passages.embeddings -m checkpoint-210000 --cache preprocessed

    Example: ance-fast convert-embeddings passages.embeddings ann_data --cache preprocessed --step 210000 --ranks 4
    """
    refuse_missing_folder(source, cache)
    ours = (source / MANIFEST).is_file()
    if not ours and model is None:
        raise ConfigError(f"{source}: say with --model which checkpoint made them: an index has to know")
    if ours and model is not None:
        raise ConfigError(f"{source}: knows what made it, and microsoft/ANCE's files do not say; leave --model out")
    refuse_missing_model(model)
    from ance_fast.encoding import EmbeddingShards
    from ance_fast.encoding.ance_embeddings import import_ance_embeddings, write_ance_embeddings

    if ours:
        shards = EmbeddingShards.open(source)
        write_ance_embeddings(
            shards, output, part=part, step=step or 0, ranks=ranks, form=form, cache=cache, prefix=prefix
        )
    else:
        from ance_fast.models import Encoder

        fingerprint = Encoder.load(str(model), device="cpu", attention="padded").fingerprint()
        shards = import_ance_embeddings(
            source, output, fingerprint=fingerprint, part=part, step=step, cache=cache, prefix=prefix
        )
    if json:
        print_json({"path": str(output), "rows": len(shards), "dim": shards.dim})
    else:
        print(f"{output}: {len(shards):,} embeddings of {shards.dim} dimensions")
