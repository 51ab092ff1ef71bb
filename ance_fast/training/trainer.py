"""`AnceTrainer`: a `transformers.Trainer` whose negatives come from an index of the corpus, refreshed while it trains.

What the stock trainer does (optimizer, schedule, accumulation, mixed precision, DDP, resume) stays its own. Added here:

- The data set is query indices. Positives, negatives and tokens are resolved inside the training step.
- Before the first batch of a step a `Refresher` does what is due: all of the corpus at some steps (`sync.py`), a slice
  of it at every step (`rolling.py`), or what a second process has made is taken up (`async_refresh.py`). Dev queries
  are measured as it goes, and the best encoder so far is kept.
- Under `torchrun` several processes train (`ranks.py`): the first decides and writes, the work of a refresh is shared.
- Checkpoints are staged and renamed. `train(resume=True)` goes on from the newest whole one; everything later than it
  is dropped and made again, bit for bit where time decides nothing.

Files under `output_dir`: `passages/` token store, `generations/step-*` with the negatives of each,
`checkpoints/step-*`, `best/` and `final/` encoders, `index/` of the final encoder, `metrics.jsonl`, `negatives.jsonl`
(which negatives each batch had), `tensorboard/`, `config.json`, `report.html`, `worker.log` of a second process. With a
file of triples also `train_queries/` and `triples/`, and `dev_passages/`, the corpus of the dev queries.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState

from ance_fast.crash_points import crash_point
from ance_fast.data.chunks import ChunkRules
from ance_fast.data.dataset import Dataset
from ance_fast.data.packing import PackedBatch
from ance_fast.data.text_record import text_record
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.evaluation import Evaluation
from ance_fast.index import Index
from ance_fast.models.encoder import Encoder
from ance_fast.training.arguments import stock_arguments
from ance_fast.training.batch import BatchMaker, TrainingBatch
from ance_fast.training.callbacks import EndCallback, ProgressCallback, tensorboard_callback
from ance_fast.training.candidate_sources import run_sampler
from ance_fast.training.checkpoints import keep_newest, publish_checkpoint
from ance_fast.training.config import AnceConfig
from ance_fast.training.dev import DevMeasure, HeldOut, refuse_metrics
from ance_fast.training.given_candidates import refuse_unreadable
from ance_fast.training.grad_cache import GradCache, check_strategy
from ance_fast.training.judgements import Grades
from ance_fast.training.lamb import Lamb, check_whole_tensors, lamb_ratios
from ance_fast.training.losses import batch_loss, loss_scale
from ance_fast.training.modes import MODES
from ance_fast.training.negative_log import NegativeLog
from ance_fast.training.negatives import NegativeTable
from ance_fast.training.ranks import Ranks, join
from ance_fast.training.refresh import corpus_index
from ance_fast.training.refresher import RunParts
from ance_fast.training.report import write_report
from ance_fast.training.run_data import dev_queries, run_examples
from ance_fast.training.run_folder import RunFolder, data_identity, last_refresh, step_of
from ance_fast.training.shared_batch import share_batch
from ance_fast.training.staleness import Clock
from ance_fast.training.triples import epoch_length, triple_order

logger = logging.getLogger(__name__)


class _QueryIndices(torch.utils.data.Dataset[dict[str, int]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"query": index}


def _collate(items: list[dict[str, int]]) -> dict[str, Tensor]:
    return {"query": torch.tensor([item["query"] for item in items])}


class AnceTrainer(Trainer):
    """Train `encoder` on the queries, judgements and corpus of `dataset`; measure on `dev` (same corpus) if given.

    judged: more judgements of training queries (query id -> document id -> grade). Negatives that they, or those of
        `dev` for a query of the same id and text, call relevant are counted as false; training does not change.
    ranks: the processes that train together, by default those that `torchrun` started (`ranks.join`). All make the same
        trainer and call the same methods; `batch_size` is each one's.

    Raises `ConfigError` for settings that cannot hold, `DataError` for data that cannot be trained on; `RankError` when
    another process failed, whatever the method.
    """

    def __init__(
        self,
        encoder: Encoder,
        dataset: Dataset,
        config: AnceConfig,
        *,
        dev: Dataset | None = None,
        judged: Grades | None = None,
        callbacks: list[TrainerCallback] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ance = config
        self.ranks = ranks if ranks is not None else join(encoder.device, config.trainer_arguments)
        self.folder = Path(config.output_dir)
        self.run_folder = RunFolder(self.folder)
        self.encoder = encoder
        for tower in encoder.towers:
            if tower.backbone.dtype != torch.float32:
                raise ConfigError(
                    f"the encoder's weights are {str(tower.backbone.dtype).removeprefix('torch.')}, too coarse for an "
                    "optimizer's steps: load it with dtype='float32'; trainer_arguments={'bf16': True} computes in "
                    "halves"
                )
        if config.chunks is not None:
            encoder.set_chunks(ChunkRules.parse(config.chunks))
        lengths = {"max_query_length": config.max_query_length, "max_document_length": config.max_document_length}
        encoder.set_lengths(**lengths)
        for tower in encoder.towers:
            if not tower.layout.normalize:
                # Scores in training, mining and search are inner products: the checkpoint says so.
                tower.layout = replace(tower.layout, similarity="dot")
        start = encoder.fingerprint()
        refuse_metrics(config.metrics, dev)
        if config.dropout is not None:
            for tower in encoder.towers:
                tower.backbone.set_dropout(config.dropout)
        refuse_unreadable(config.candidates)
        stores: dict[str, Any] = {"replace": not self.run_folder.has_checkpoints(), "ranks": self.ranks}
        self.examples = run_examples(dataset, encoder, config, dev=dev, judged=judged, **stores)
        if judged is not None and self.examples.judgements is None:
            logger.warning(
                "judged: about no passage of this corpus but the positives; no false negative can be counted"
            )
        self.held_out = dev_queries(dev, dataset, self.examples, encoder, config, **stores)
        self.dev = DevMeasure(self.held_out, config.metrics, self.folder, self.examples.passages)
        self.scale = loss_scale(config.scale, encoder)
        self._progress = ProgressCallback()
        self.seconds = {"train": 0.0, "refresh": 0.0}
        self._clock = Clock()
        self._final: dict[str, float] = {}
        if self.examples.passages.chunks != encoder.chunks:
            raise ConfigError(
                f"{dataset.name}: its passages are cut by {self.examples.passages.chunks}, the encoder's by "
                f"{encoder.chunks}; train with chunks='none' on passages that cannot be cut"
            )
        self.sampler = run_sampler(self.examples, config, dataset.scores)
        self._data = data_identity(start, self.examples, self.held_out, self.sampler)
        self._make_batch = BatchMaker(
            self.examples, self.sampler, encode_tokens=config.encode_tokens, two_towers=len(encoder.towers) > 1
        )
        per_step = config.batch_size * config.gradient_accumulation_steps * self.ranks.size
        self._triples = triple_order(config, self.examples, self.sampler, self.ranks)
        self.steps_per_epoch = max(1, math.ceil(epoch_length(config, self.examples) / per_step))
        # Triples have an order of their own: the loader's numbers are then not looked at, but must never come to an
        # end, with which the stock trainer would cut an optimizer step short.
        items = len(self.examples) if self._triples is None else config.max_steps * per_step
        super().__init__(
            model=encoder,
            args=stock_arguments(config, self.folder, self.steps_per_epoch, use_cpu=encoder.device.type == "cpu"),
            train_dataset=_QueryIndices(items),
            data_collator=_collate,
            optimizer_cls_and_kwargs=(
                (Lamb, {"lr": config.learning_rate, "eps": config.adam_epsilon}) if config.optimizer == "lamb" else None
            ),
            callbacks=[*(callbacks or []), *([self._progress] if self.ranks.leads else [])],
        )
        if self.args.world_size != self.ranks.size:
            raise ConfigError(
                f"transformers.Trainer counts {self.args.world_size} processes, this package {self.ranks.size}; start "
                "several with torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE"
            )
        self.model_accepts_loss_kwargs = False
        if config.encode_tokens is not None:
            check_strategy(self.args, self.accelerator.distributed_type.value)
        if config.optimizer == "lamb":
            check_whole_tensors(self.accelerator.distributed_type.value)
        self.remove_callback(PrinterCallback)
        # The first to be told of the end, while trackers are still open for the last numbers.
        self.callback_handler.callbacks.insert(0, EndCallback(self._finish))
        self.negative_log = NegativeLog(
            self.folder / "negatives.jsonl", judgements=self.examples.judgements, writes=self.ranks.leads
        )
        steps = config.refresh_steps(self.steps_per_epoch)
        parts = RunParts(
            config,
            encoder,
            self.examples,
            self.sampler,
            self.dev,
            self.folder,
            steps,
            ranks=self.ranks,
            measured=frozenset(config.measure_steps(self.steps_per_epoch)),
        )
        self.refresher = MODES[config.refresh](parts)
        self._asked_before: int | None = None
        self._batch_of_step = 0
        self._checkpoint: Path | None = None

    @property
    def table(self) -> NegativeTable | None:
        """The negatives in use; None before the first step."""
        return self.refresher.generation.table if self.refresher.generation is not None else None

    # ---- the run ----

    def train(self, resume: bool = False) -> dict[str, float]:  # type: ignore[override]
        """Train to `max_steps`, then encode the corpus once more; returns the final dev metrics (empty without dev).

        `resume=True` continues the run in `output_dir` (`ArtifactError` if there is nothing to continue,
        `ConfigError` if it was made with other settings); one that was killed before its first checkpoint begins anew.
        Without it a folder that holds checkpoints is refused.
        """
        self.ranks.agree("settings or data", self._identity)
        checkpoint = self._resume_point() if resume else None
        if checkpoint is None:
            self.ranks.first(lambda: self.run_folder.begin(self._identity()))
        step = step_of(checkpoint) if checkpoint else 0
        if self.ranks.leads:
            board = tensorboard_callback(self.folder / "tensorboard", purge_step=step + 1 if checkpoint else None)
            if board is not None:
                self.add_callback(board)
        if checkpoint is not None and step >= self.ance.max_steps:
            # Killed between the last checkpoint and the end: the stock loop would take one step too many.
            self.encoder.load_weights(checkpoint)
            self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self._finish()
            return self._final
        self._clock.start()
        try:
            super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt:
            logger.warning("interrupted at step %d; resume to go on from the newest checkpoint", self.state.global_step)
            raise
        finally:
            self._progress.close()
            self.refresher.close()
            self.seconds["refresh"] = self.refresher.seconds
        return self._final

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self._refresh_if_due()
        cache = self._grad_cache(model, self.ance.kept_tokens or self.ance.encode_tokens)
        loss: Tensor = super().training_step(model, {**inputs, "cache": cache}, num_items_in_batch)
        cache.backward()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one micro-batch of query indices; every distinct text is encoded once.

        All graphs are kept unless `training_step` hands in its `cache`, which back-propagates the rest.
        """
        cache = inputs.get("cache") or self._grad_cache(model, None)
        batch = self._next_batch(inputs["query"].cpu().numpy())
        packed = cache.embed(batch.chunks)
        embeddings = packed[torch.as_tensor(batch.places, device=packed.device)]
        group = torch.distributed.group.WORLD if self.ranks.size > 1 else None
        loss = batch_loss(self.ance.loss, embeddings, batch, self.scale, group)
        return (loss, {"embeddings": packed}) if return_outputs else loss

    def _grad_cache(self, model: nn.Module, kept_tokens: int | None) -> GradCache:
        device = self.args.device

        def encode(chunk: PackedBatch, **options: bool) -> Tensor:
            # Entered for each chunk: what is encoded again is so after the stock trainer has left it.
            with self.compute_loss_context_manager():
                return model(chunk.to(device), **options)

        several = self.ranks.size > 1 and len(self.encoder.towers) > 1
        return GradCache(
            encode,
            device,
            kept_tokens=kept_tokens,
            no_sync=functools.partial(self.accelerator.no_sync, model),
            encode_last=functools.partial(encode, reach_all=True) if several else None,
        )

    # ---- negatives ----

    def _refresh_if_due(self) -> None:
        """Ask the refresher once before each optimizer step, whatever the number of batches it has."""
        step = self.state.global_step
        if step == self._asked_before:
            self._batch_of_step += 1
            return
        crash_point("step.before")
        self._asked_before, self._batch_of_step = step, 0
        report = self.refresher.before_step(step)
        if report is not None:
            self.log(report)

    def _next_batch(self, queries: np.ndarray) -> TrainingBatch:
        step = self.state.global_step

        def make() -> tuple[np.ndarray, TrainingBatch, np.ndarray]:
            asked, batch = self._batch_at(queries, step)
            rows = batch.negative_rows
            return asked, batch, self.refresher.ages(rows[rows >= 0], step)

        batch, everyones = share_batch(make, self.ranks, corpus=len(self.examples.corpus))
        self.negative_log.add(step, everyones.queries, everyones.negatives, everyones.ages)
        return batch

    def _batch_at(self, queries: np.ndarray, step: int) -> tuple[np.ndarray, TrainingBatch]:
        """The next batch and its queries: those that the loader has brought, or those of the next triples."""
        table = self.refresher.table_for(queries, step)
        if self._triples is None:
            return queries, self._make_batch(queries, table, step)
        number = (step - table.step) * self.args.gradient_accumulation_steps + self._batch_of_step
        asked, positive, negative = self._triples.batch(table, number).T.astype(np.int64)
        return asked, self._make_batch.of(asked, positive, negative[:, None])

    # ---- beginning, resuming, ending ----

    def _resume_point(self) -> Path | None:
        checkpoint = self.ranks.first(lambda: self.run_folder.resume_point(self._identity()))
        if checkpoint is None:
            return None
        step = step_of(checkpoint)
        self.refresher.resume(checkpoint / "resident", step)
        self._checkpoint = checkpoint
        self.dev.resume()
        self.negative_log.resume(last_refresh(self.folder / "metrics.jsonl"))
        assert self.table is not None
        logger.info("resuming from %s with negatives of step %d", checkpoint, self.table.step)
        return checkpoint

    def _identity(self) -> dict[str, Any]:
        return {"settings": {**self.ance.settings(), "processes": self.ranks.size}, "data": self._data}

    def _finish(self) -> None:
        self._progress.close()
        # A worker would share the cores with what follows.
        self.refresher.close()
        self.seconds["train"] = self._clock.seconds() - self.refresher.seconds
        self.encoder.eval()
        index = None
        # Texts of triples are nobody's corpus: what is searched then is that of the dev queries, if it is wanted.
        if self.examples.triples is None or (self.dev.passages is not None and self.dev.needs_index):
            index = corpus_index(self.encoder, self.examples, self.ance, self.ranks, self.dev.passages)

        def measure_and_write() -> dict[str, float]:
            report = self.dev(self.encoder, index, self.state.global_step)
            self.encoder.save(self.folder / "final")
            if index is not None:
                index.text_record = text_record(self.encoder.tokenizer)
                index.save(self.folder / "index")
            # Once more: a run that was killed just after its last checkpoint had one too many.
            keep_newest(self.folder / "checkpoints", self.ance.save_total_limit)
            return report

        report = self.ranks.first(measure_and_write)
        self._final = {name.removeprefix("eval_"): value for name, value in report.items()}
        report = {**report, **self.negative_log.generation()}
        if report:
            self.log(report)
        self.ranks.first(lambda: write_report(self.folder))

    def evaluate_on(
        self, dataset: Dataset, metrics: tuple[str, ...] | None = None
    ) -> tuple[dict[str, dict[str, float]], Evaluation]:
        """Run other queries over the corpus of the saved index; returns the run and its evaluation."""
        index = Index.load(self.folder / "index", fingerprint=self.encoder.fingerprint())
        held_out = HeldOut(dataset, self.encoder)
        run = held_out.search(self.encoder, index)
        texts = self.examples.passages if self.dev.passages is None else self.dev.passages
        return run, held_out.evaluate(run, metrics or self.ance.metrics, texts)

    # ---- what transformers.Trainer calls ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.refresher.interval(), **self.negative_log.interval()}
            logs["seconds_interval"] = self._clock.interval()
            logs |= lamb_ratios(self.optimizer)
        if "generation" in logs:
            logs = {**logs, **self.negative_log.generation()}
        super().log(logs, start_time)
        # The stock trainer's summary at the end of training says nothing that depends on the run's content.
        if self.is_world_process_zero() and "train_runtime" not in logs:
            entry = {"step": self.state.global_step, **{k: v for k, v in logs.items() if isinstance(v, int | float)}}
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        rate = self.ance.rate_schedule(self.steps_per_epoch, len(self.examples), self.ranks.size)
        if rate is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        target = optimizer if optimizer is not None else self.optimizer
        assert target is not None
        # Not `rate.at` itself: of an object the scheduler's state would keep a copy, beside the settings it is made of.
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(target, lambda step: rate.at(step))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(getattr(self, "_staging", self.folder))

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        step = self.state.global_step
        checkpoints = self.folder / "checkpoints"
        # One folder for all ranks: each adds the state of its random generators.
        self._staging = checkpoints / self.ranks.share(f".step-{step:08d}.{uuid.uuid4().hex[:8]}.tmp")
        save = super()._save_checkpoint
        try:
            self.ranks.each(lambda: save(model, trial))
            crash_point("checkpoint.between")
            self.ranks.first(lambda: self._publish_checkpoint(step))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{checkpoints}: the checkpoint was not saved ({error}); is the disk full?") from error
        finally:
            if self.ranks.leads:
                shutil.rmtree(self._staging, ignore_errors=True)
            del self._staging

    def _publish_checkpoint(self, step: int) -> None:
        written, target = self._staging / f"checkpoint-{step}", self.folder / "checkpoints" / f"step-{step:08d}"
        self.refresher.save(written / "resident", self._checkpoint / "resident" if self._checkpoint else None)
        publish_checkpoint(written, target, {"step": step}, previous=self._checkpoint)
        self._checkpoint = target
        crash_point("checkpoint.after")
        keep_newest(target.parent, self.ance.save_total_limit)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # the stock trainer asks every rank
            return
        folder = Path(output_dir or self.folder / "final")
        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.write(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.encoder.load_weights(resume_from_checkpoint)
