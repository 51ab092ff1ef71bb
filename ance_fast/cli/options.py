"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Chunks = Annotated[
    str | None,
    typer.Option(
        help="Cut documents into chunks, of which the best counts (MaxP): released, as microsoft/ANCE, or ours; "
        'changes after commas, as in "ours,length=256,count=8"; none [as the checkpoint says].'
    ),
]
DocumentSeparator = Annotated[
    str | None,
    typer.Option(
        help='Rows are chunks of documents, and this ends the document in their ids, "#" in "doc7#0": results are '
        "documents, by their best chunk [as the index says]."
    ),
]
TextPreset = Annotated[
    str | None,
    typer.Option(
        help="How text becomes tokens: ance, ance-cased, seed, dpr, plain; changes after commas, as in "
        '"ance,strip=false" [as the checkpoint says].'
    ),
]
