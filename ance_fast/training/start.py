"""The negatives a run begins with, before any refresh."""

from __future__ import annotations

from ance_fast.errors import ConfigError
from ance_fast.models.encoder import Encoder
from ance_fast.training.candidate_sources import generation_candidates
from ance_fast.training.config import AnceConfig
from ance_fast.training.examples import Examples
from ance_fast.training.given_candidates import bm25_table
from ance_fast.training.negatives import NegativeSampler, NegativeTable, given_table, mined_table, random_table
from ance_fast.training.ranks import ALONE, Ranks
from ance_fast.training.refresh import take_snapshot


def start_table(
    config: AnceConfig, encoder: Encoder, examples: Examples, sampler: NegativeSampler, ranks: Ranks = ALONE
) -> NegativeTable:
    """Generation 0 from the source that `config.start` names (`ConfigError` if the data set brings no negatives).

    What the sampler already has under that name, such as a run file, is not made again. All of `ranks` work on the
    encoder's own; what needs no encoder the first one makes for all.
    """
    if examples.triples is not None:
        return random_table(examples)  # nothing is drawn: the triples have their negatives
    given = sampler.tables.get(config.start)
    if given is not None:
        return _without_answers(mined_table(examples, given.candidates, given.scores, config.start, 0, 0), sampler)
    if config.start == "index":
        snapshot = take_snapshot(
            encoder, examples, factory=config.index_factory, batch_tokens=config.batch_tokens, ranks=ranks
        )
        return generation_candidates(snapshot, config, examples, sampler, None, generation=0, step=0)
    return ranks.first(lambda: _without_answers(_without_encoder(config, examples), sampler))


def _without_encoder(config: AnceConfig, examples: Examples) -> NegativeTable:
    if config.start == "random":
        return random_table(examples)
    if config.start == "dataset":
        if examples.given is None:
            raise ConfigError("start='dataset': the data set brings no negatives; choose random, bm25 or index")
        return given_table(examples)
    return bm25_table(examples, config.topk)


def _without_answers(table: NegativeTable, sampler: NegativeSampler) -> NegativeTable:
    """Without passages that answer their query. Other filters of the sampler are for what an encoder retrieves."""
    if sampler.answers is None or not table.candidates.shape[1]:
        return table
    return NegativeSampler(sampler.examples, seed=sampler.seed, count=sampler.count).select(
        table, answers=sampler.answers
    )
