"""The negatives a run begins with, before any refresh."""

from __future__ import annotations

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index import Bm25
from ance_fast.models.encoder import Encoder
from ance_fast.training.candidate_sources import refreshed_candidates
from ance_fast.training.config import AnceConfig
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeSampler, NegativeTable, given_table, mined_table, random_table
from ance_fast.training.ranks import ALONE, Ranks
from ance_fast.training.refresh import take_snapshot


def start_table(
    config: AnceConfig, encoder: Encoder, examples: Examples, sampler: NegativeSampler, ranks: Ranks = ALONE
) -> NegativeTable:
    """Generation 0 from the source that `config.start` names (`ConfigError` if the data set brings no negatives).

    All of `ranks` work on the encoder's own; what needs no encoder the first one makes for all.
    """
    if config.start == "index":
        snapshot = take_snapshot(
            encoder, examples, factory=config.index_factory, batch_tokens=config.batch_tokens, ranks=ranks
        )
        return refreshed_candidates(snapshot, examples, sampler, None, topk=config.topk, generation=0, step=0)
    return ranks.first(lambda: _without_encoder(config, examples))


def _without_encoder(config: AnceConfig, examples: Examples) -> NegativeTable:
    if config.start == "random":
        return random_table(examples)
    if config.start == "dataset":
        if examples.given is None:
            raise ConfigError("start='dataset': the data set brings no negatives; choose random, bm25 or index")
        return given_table(examples)
    passages = examples.passages
    texts = (passages.document(row).full_text for row in range(len(passages)))
    most = int(np.diff(examples.positive_offsets).max())
    found = Bm25.build(texts, passages.ids).search(examples.texts, min(config.topk + most, len(passages)))
    return mined_table(examples, found.positions, found.scores, "bm25", 0, 0).top(config.topk)
