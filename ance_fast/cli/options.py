"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

TextPreset = Annotated[
    str | None,
    typer.Option(
        help="How text becomes tokens: ance, ance-cased, seed, dpr, plain; changes after commas, as in "
        '"ance,strip=false" [as the checkpoint says].'
    ),
]
