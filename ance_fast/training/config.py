"""Settings of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ance_fast.data.chunks import ChunkRules
from ance_fast.errors import ConfigError
from ance_fast.training.config_checks import check_order, check_rate
from ance_fast.training.learning_rate import LOWEST, RateSchedule
from ance_fast.training.sampler_config import SamplerConfig, check_sources
from ance_fast.training.schedule import Schedule, chunk_of, parse_schedule, steps_of

LOSSES = ("pairwise", "contrastive")
SOURCES = ("random", "bm25", "index", "dataset")
REFRESH = ("sync", "rolling", "async", "none")
OPTIMIZERS = ("adamw", "lamb")
WARMUPS = ("once", "refresh")
ORDERS = ("queries", "triples")
POSITIVES = ("all", "last")
POSITIVE = (
    "max_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "topk",
    "negatives_per_query",
    "query_chunks",
    "triples_per_query",
    "num_proc",
    "logging_steps",
    "save_total_limit",
)


@dataclass
class AnceConfig:
    """How to train. Lengths are tokens, learning rates per optimizer step, steps are optimizer steps.

    loss: "pairwise" is ANCE's own (Xiong et al. 2021, §3): softplus(scale * (q.n - q.p)) on a query's own negatives.
        "contrastive" adds every passage of the batch as a candidate (InfoNCE), known positives masked.
    optimizer: "adamw", or "lamb" as microsoft/ANCE trains with it (`Lamb`); both with `adam_epsilon`.
    warmup_steps: optimizer steps that the learning rate rises; by default `warmup_fraction` of the run. lr_scheduler:
        how it then changes: "linear" to 0, "cosine" to 1e-8, or any name that `transformers.get_scheduler` knows.
        warmup: "once"; "refresh" begins anew with each generation and falls over as many steps as this has queries.
    schedule_steps: the step at which the learning rate has fallen; by default the last. Published runs were often
        stopped long before it: a run of 60,000 steps on a schedule of two million hardly falls.
    order: "queries" gives a batch queries in a new order every epoch. "triples" is microsoft/ANCE's order: each
        generation draws `triples_per_query` negatives for each of its queries, shuffles the queries, and goes through
        the triples of one query after another, again from the first when all were had; the rest goes at the next
        refresh. A batch is then `batch_size` triples.
    query_chunks: a generation of order "triples" has this part of the queries: the first has the first, and so on in
        a circle. A start that mines nothing has all of them.
    positives: "all" of a query's, one drawn at each use; "last" keeps the last in the file of judgements alone, as
        microsoft/ANCE does: the others then count as any passage, and can become negatives.
    scale: multiplies scores; by default 20 for encoders that L2-normalise and 1 otherwise.
    start: where negatives come from until the first refresh: "random" passages, "bm25", the untrained encoder's own
        "index", or the negatives that the "dataset" brings.
    refresh: "sync" stops every `refresh_every` ("500", "500 steps", "2 epochs", or ranges of steps with an interval
        each, "0-1000:500,1000-:1000"), encodes, indexes and mines anew. "rolling" encodes a slice of the corpus before
        every step, in place, and mines each batch's queries just before the batch is made; `refresh_every` then says
        when dev queries are measured and a generation is written. "async" has a second process encode, index and mine
        while training goes on: `refresh_every` says when it is handed new weights (or as soon afterwards as it is
        free). "none" keeps the start negatives. `first_refresh` (steps or epochs; by default the first of the schedule)
        ends the warm-up; `max_refreshes` stops "sync" after so many.
    max_staleness: steps that may lie between the weights a passage was encoded with and those it is a negative for.
        What the schedule or the slice cannot keep is refused before anything is computed; "rolling" derives its slice
        from it; "async" waits rather than exceed it, and says how long.
    rolling_slice: passages encoded before each step; by default what `max_staleness` needs, else as many as a step
        trains on. rolling_hot: so many more, the stalest of those that were in recently mined lists.
    rerank: "rolling" retrieves so many candidates (at least topk), encodes them with the current weights and keeps the
        best topk of them.
    refresh_overlap: "sync" skips a refresh while a probe of queries keeps at least this share of its ten best
        negatives.
    refresh_device, refresh_threads: where "async" refreshes. By default on a GPU that no process of this host trains
        on, else on that of the run; on a CPU with a third of the run's threads, which training then goes without.
    dropout: replaces every dropout of the checkpoint; on a CPU, drawing masks costs about a fifth of a step.
    encode_tokens: a batch is encoded in chunks of so many tokens, each distinct text once; by default in one. Graphs
        are kept of the chunks within `kept_tokens` (by default of one chunk); the others are encoded a second time for
        their gradients, which bounds memory whatever the batch size. The result is that of one pass.
    topk, negatives_per_query: how many negatives are drawn, from the topk retrieved passages that are not positives.
    sampler: how, for what the encoder retrieves: a preset ("ance", uniformly; "star", "ance-tele", "nv-retriever",
        "simans"), with changes after commas ("simans,a=50"); see `SamplerConfig`.
    candidates: run files by the name that the sampler's `sources` give them, {"tas-b": "tas-b.trec"}. "bm25" is made
        from the corpus and "dataset" of what the data set brings, unless a file has the name. The file "teacher" gives
        the teacher's scores.
    answers: JSON Lines, {"query": id, "answers": [strings]}, or "dataset" for what a data set of questions brings: of
        what a refresh finds for a query, passages that hold an answer are left out.
    chunks: documents are cut into chunks of which the best counts (MaxP): "released", as microsoft/ANCE does it, or
        "ours", each a passage of its own, with changes after commas ("ours,length=256,count=8"), see `ChunkRules`;
        "none". By default as the checkpoint says.
    documents, document_separator: chunks of a positive's document are no negatives. A file of lines `passage <tab>
        document`, or what stands between the document's id and the rest in the ids of its passages ("#": "doc7#0").
    measure_every: with refresh="none", steps between two measurements of the dev queries; by default only at the end.
    dev_candidates: a run file, or `top1000.dev`: dev queries also rank these passages alone ("eval_rerank_...").
        full_ranking: False leaves out the ranking of the whole corpus, which then is not encoded for it.
    """

    output_dir: str
    max_steps: int = 1000
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-5
    adam_epsilon: float = 1e-8
    warmup_fraction: float = 0.1
    warmup_steps: int | None = None
    warmup: str = "once"
    schedule_steps: int | None = None
    lr_scheduler: str = "linear"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    dropout: float | None = None
    loss: str = "contrastive"
    scale: float | None = None
    order: str = "queries"
    query_chunks: int = 1
    triples_per_query: int = 1
    positives: str = "all"
    start: str = "bm25"
    refresh: str = "sync"
    refresh_every: str | int = "1 epoch"
    first_refresh: str | int | None = None
    max_refreshes: int | None = None
    max_staleness: int | None = None
    rolling_slice: int | None = None
    rolling_hot: int = 0
    rerank: int | None = None
    refresh_overlap: float | None = None
    refresh_device: str | None = None
    refresh_threads: int | None = None
    topk: int = 200
    negatives_per_query: int = 1
    sampler: str = "ance"
    candidates: dict[str, str] = field(default_factory=dict)
    answers: str | None = None
    documents: str | None = None
    document_separator: str | None = None
    chunks: str | None = None
    measure_every: str | int | None = None
    dev_candidates: str | None = None
    full_ranking: bool = True
    max_query_length: int | None = None
    max_document_length: int | None = None
    index_factory: str = "Flat"
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    batch_tokens: int | None = None
    encode_tokens: int | None = None
    kept_tokens: int | None = None
    save_every: str | int | None = None
    save_total_limit: int = 2
    logging_steps: int = 10
    seed: int = 42
    num_proc: int = 1
    trainer_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("loss", self.loss, LOSSES),
            ("start", self.start, SOURCES),
            ("refresh", self.refresh, REFRESH),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("warmup", self.warmup, WARMUPS),
            ("order", self.order, ORDERS),
            ("positives", self.positives, POSITIVES),
        ):
            if value not in choices:
                raise ConfigError(f"{name}={value!r}: choose {', '.join(choices)}")
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        check_sources(SamplerConfig.parse(self.sampler), self.candidates, self.start)
        if self.documents is not None and self.document_separator is not None:
            raise ConfigError("documents and document_separator both say which document a passage is of; give one")
        if self.chunks is not None:
            ChunkRules.parse(self.chunks)
        if self.document_separator == "":
            raise ConfigError("document_separator is empty")
        drawn = "triples_per_query" if self.order == "triples" else "negatives_per_query"
        if self.topk < getattr(self, drawn):
            raise ConfigError(f"topk={self.topk} is below {drawn}={getattr(self, drawn)}")
        check_order(self)
        if self.max_refreshes is not None and self.max_refreshes < 1:
            raise ConfigError(f"max_refreshes={self.max_refreshes}: must be at least 1; refresh='none' is for none")
        self._check_refresh()
        if not 0 <= self.warmup_fraction <= 1:
            raise ConfigError(f"warmup_fraction={self.warmup_fraction}: must be between 0 and 1")
        check_rate(self)
        if self.scale is not None and self.scale <= 0:
            raise ConfigError(f"scale={self.scale}: must be positive")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout}: must be at least 0 and below 1")
        if self.encode_tokens is not None and self.encode_tokens < 1:
            raise ConfigError(f"encode_tokens={self.encode_tokens}: must be at least 1")
        if self.kept_tokens is not None and self.encode_tokens is None:
            raise ConfigError("kept_tokens counts tokens of chunks; set encode_tokens, the tokens of one, too")
        if self.kept_tokens is not None and self.kept_tokens < (self.encode_tokens or 0):
            raise ConfigError(
                f"kept_tokens={self.kept_tokens} is below encode_tokens={self.encode_tokens}: one chunk's graph is "
                "always held; lower encode_tokens"
            )
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate={self.learning_rate}: must be positive")
        self.metrics = tuple(self.metrics)
        self.schedule(1)
        if not self.full_ranking and self.dev_candidates is None:
            raise ConfigError("full_ranking=False leaves nothing to measure; give dev_candidates")
        for name in ("first_refresh", "save_every", "measure_every"):
            value = getattr(self, name)
            if value is not None:
                steps_of(value, 1, name)

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """`refresh_every` in steps."""
        return parse_schedule(self.refresh_every, steps_per_epoch, "refresh_every")

    def refresh_steps(self, steps_per_epoch: int) -> list[int]:
        """Optimizer steps at which a refresh happens before the step's first batch; never at or after the last step."""
        if self.refresh == "none":
            return []
        first = None if self.first_refresh is None else steps_of(self.first_refresh, steps_per_epoch, "first_refresh")
        return self.schedule(steps_per_epoch).steps(self.max_steps, first)[: self.max_refreshes]

    def rate_schedule(self, steps_per_epoch: int, queries: int) -> RateSchedule | None:
        """The learning rate of a run on so many training queries; None where the stock trainer's is meant."""
        if self.warmup == "once" and self.lr_scheduler != "cosine" and self.schedule_steps is None:
            return None
        starts, horizons = [0], [self.schedule_steps or self.max_steps]
        if self.warmup == "refresh":
            starts += self.refresh_steps(steps_per_epoch)
            horizons = [len(self.queries_of(number, queries)) for number in range(len(starts))]
        return RateSchedule(self.lr_scheduler, self.rise, LOWEST / self.learning_rate, starts, horizons)

    @property
    def rise(self) -> int:
        """Optimizer steps that the learning rate rises."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(self.warmup_fraction * self.max_steps)

    def queries_of(self, generation: int, queries: int) -> range:
        """The part of so many training queries that generation number `generation` has negatives for."""
        mined = generation > 0 or self.start == "index"
        return chunk_of(generation, self.query_chunks if mined else 1, queries)

    def measure_steps(self, steps_per_epoch: int) -> set[int]:
        """Optimizer steps before which dev queries are measured though there is no refresh; never the first."""
        if self.measure_every is None:
            return set()
        every = steps_of(self.measure_every, steps_per_epoch, "measure_every")
        return set(range(every, self.max_steps, every))

    def save_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps between checkpoints: by default the refresh interval. A quarter of the run where there is
        none, or where it only says when a worker may be asked again ("async")."""
        if self.save_every is not None:
            return steps_of(self.save_every, steps_per_epoch, "save_every")
        ranges = self.schedule(steps_per_epoch).ranges
        stops = self.refresh in ("sync", "rolling") and len(ranges) == 1
        return ranges[0][2] if stops else max(1, self.max_steps // 4)

    def settings(self) -> dict[str, Any]:
        """What decides the result of a run: everything but where it is written and how it reports."""
        reporting = {"output_dir", "logging_steps", "save_total_limit", "num_proc", "refresh_device", "refresh_threads"}
        return {key: value for key, value in asdict(self).items() if key not in reporting}

    def _check_refresh(self) -> None:
        """Refuse settings of one way to refresh that are given for another."""
        belongs = {
            "rolling_slice": ("rolling",),
            "rolling_hot": ("rolling",),
            "rerank": ("rolling",),
            "refresh_overlap": ("sync",),
            "max_refreshes": ("sync",),
            "measure_every": ("none",),
            "max_staleness": ("sync", "rolling", "async"),
            "refresh_device": ("async",),
            "refresh_threads": ("async",),
        }
        for name, modes in belongs.items():
            value = getattr(self, name)
            if value and self.refresh not in modes:
                raise ConfigError(f"{name}={value} is for refresh={' or '.join(modes)}, not for {self.refresh!r}")
        bounds = {"max_staleness": 0, "rolling_slice": 1, "rolling_hot": 0, "rerank": self.topk, "refresh_threads": 1}
        for name, least in bounds.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value}: must be at least {least}{' (topk)' if name == 'rerank' else ''}")
        if self.refresh_overlap is not None and not 0 < self.refresh_overlap <= 1:
            raise ConfigError(f"refresh_overlap={self.refresh_overlap}: must be above 0 and at most 1")
