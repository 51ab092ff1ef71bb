"""A file of text triples as the trainer's examples: the warm-up of microsoft/ANCE (`run_warmup.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ance_fast.data.text_triples import TextTriples, build_text_triples
from ance_fast.errors import ConfigError
from ance_fast.models.encoder import Encoder
from ance_fast.training.config import AnceConfig
from ance_fast.training.examples import Examples
from ance_fast.training.ranks import ALONE, Ranks


def prepare_triples(
    file: Path,
    encoder: Encoder,
    config: AnceConfig,
    *,
    show_progress: bool = False,
    replace: bool = True,
    ranks: Ranks = ALONE,
) -> Examples:
    """The triples of `file`, tokenised once into `config.output_dir`; a query's positives are those of its triples.

    Of several `ranks` the first builds the stores and the others open them. Raises `ConfigError` for a run that would
    not go through them in their order, and as `build_text_triples`.
    """
    if config.order != "triples" or config.refresh != "none":
        raise ConfigError(
            f"{file}: triples are trained on as they are: use order='triples' and refresh='none', not "
            f"order={config.order!r} and refresh={config.refresh!r}"
        )
    built: list[TextTriples] = []  # stores cannot be sent: every process maps the files itself

    def build(replace: bool) -> None:
        made = build_text_triples(
            file,
            encoder.tokenizer,
            config.output_dir,
            max_query_length=encoder.max_query_length,
            max_document_length=encoder.max_document_length,
            query_prompt=encoder.query_prompt,
            document_prompt=encoder.document_prompt,
            num_proc=config.num_proc,
            show_progress=show_progress,
            replace=replace,
        )
        built.append(made)

    ranks.first(lambda: build(replace))
    ranks.each(lambda: None if built else build(False))
    (made,) = built
    # (query, positive) once each, ascending.
    corpus = len(made.passages)
    keys = np.unique(made.rows[:, 0].astype(np.int64) * corpus + made.rows[:, 1])
    counts = np.bincount(keys // corpus, minlength=len(made.queries))
    return Examples(
        passages=made.passages,
        queries=made.queries,
        texts=[],
        positive_offsets=np.concatenate([[0], np.cumsum(counts)]),
        positive_rows=keys % corpus,
        triples=made.rows,
    )
