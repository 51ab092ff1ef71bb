"""`AnceTrainer`: a `transformers.Trainer` whose negatives come from an index of the corpus, refreshed while it trains.

What the stock trainer does (optimizer, schedule, accumulation, mixed precision, DDP, resume) stays its own. Added here:

- The data set is query indices. Positives, negatives and tokens are resolved inside the training step.
- Before the first batch of a refresh step the corpus is encoded, indexed and mined (`refresh.py`); dev queries are
  measured on that index, and the best encoder so far is kept.
- Checkpoints are staged and renamed. `train(resume=True)` goes on from the newest whole one; everything later than it
is
  dropped and made again, bit for bit.

Files under `output_dir`: `passages/` token store, `negatives/step-*` one table a generation, `checkpoints/step-*`,
`best/` and `final/` encoders, `index/` of the final encoder, `metrics.jsonl`, `tensorboard/`, `config.json`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from ance_fast.artifacts import open_artifact, write_json
from ance_fast.data.dataset import Dataset
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.evaluation import Evaluation, evaluate
from ance_fast.index import Bm25, Index
from ance_fast.models.encoder import Encoder
from ance_fast.training.batch import BatchMaker
from ance_fast.training.callbacks import ProgressCallback, tensorboard_callback
from ance_fast.training.candidate_sources import refreshed_candidates, run_sampler
from ance_fast.training.checkpoints import cut_log, keep_newest, newest_valid_checkpoint, publish_checkpoint
from ance_fast.training.config import AnceConfig, steps_of
from ance_fast.training.examples import Examples, prepare
from ance_fast.training.losses import batch_loss
from ance_fast.training.negatives import NegativeTable, given_table, mined_table, random_table
from ance_fast.training.refresh import HeldOut, Snapshot, hardness, take_snapshot

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

    Raises `ConfigError` for settings that cannot hold, `DataError` for data that cannot be trained on.
    """

    def __init__(
        self,
        encoder: Encoder,
        dataset: Dataset,
        config: AnceConfig,
        *,
        dev: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.ance = config
        self.folder = Path(config.output_dir)
        self.encoder = encoder
        lengths = {"max_query_length": config.max_query_length, "max_document_length": config.max_document_length}
        encoder.set_lengths(**lengths)
        if not encoder.layout.normalize:
            # Scores in training, mining and search are inner products: the checkpoint says so.
            encoder.layout = replace(encoder.layout, similarity="dot")
        self._start_fingerprint = encoder.fingerprint()
        evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}}, metrics=config.metrics)  # an unknown metric is refused now
        if config.dropout is not None:
            encoder.backbone.set_dropout(config.dropout)
        self.examples: Examples = prepare(
            dataset,
            encoder,
            self.folder / "passages",
            num_proc=config.num_proc,
            show_progress=True,
            replace=not self._has_checkpoints(),
        )
        self.held_out = HeldOut(dev, encoder) if dev is not None and dev.queries else None
        self.scale = config.scale if config.scale is not None else (20.0 if encoder.layout.normalize else 1.0)
        self._progress = ProgressCallback()
        self.table: NegativeTable | None = None
        self.best: tuple[float, int] | None = None
        self.seconds = {"train": 0.0, "refresh": 0.0}
        self.sampler = run_sampler(self.examples, config.sampler, seed=config.seed, count=config.negatives_per_query)
        self._make_batch = BatchMaker(self.examples, config.negatives_per_query, config.seed, self.sampler)
        per_step = config.batch_size * config.gradient_accumulation_steps
        self.steps_per_epoch = max(1, math.ceil(len(self.examples) / per_step))
        self.refreshes = config.refresh_steps(self.steps_per_epoch)
        super().__init__(
            model=encoder,
            args=self._arguments(),
            train_dataset=_QueryIndices(len(self.examples)),
            data_collator=_collate,
            callbacks=[*(callbacks or []), self._progress],
        )
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    # ---- the run ----

    def train(self, resume: bool = False) -> dict[str, float]:  # type: ignore[override]
        """Train to `max_steps`, then encode the corpus once more; returns the final dev metrics (empty without dev).

        `resume=True` continues the run in `output_dir` (`ArtifactError` if there is nothing to continue,
        `ConfigError` if it was made with other settings). Without it a folder that holds checkpoints is refused.
        """
        checkpoint = self._resume_point() if resume else None
        if checkpoint is None:
            self._begin()
        step = int(open_artifact(checkpoint, "checkpoint", verify=False)["step"]) if checkpoint else 0
        board = tensorboard_callback(self.folder / "tensorboard", purge_step=step + 1 if checkpoint else None)
        if board is not None:
            self.add_callback(board)
        if checkpoint is not None and step >= self.ance.max_steps:
            # Killed between the last checkpoint and the end: the stock loop would take one step too many.
            self.encoder.load_weights(checkpoint)
            self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            return self._finish()
        started = time.monotonic()
        try:
            super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt:
            logger.warning("interrupted at step %d; resume to go on from the newest checkpoint", self.state.global_step)
            raise
        finally:
            self._progress.close()
        self.seconds["train"] = time.monotonic() - started - self.seconds["refresh"]
        return self._finish()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self._refresh_if_due()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one micro-batch of query indices; every distinct passage is encoded once."""
        assert self.table is not None
        batch = self._make_batch(inputs["query"].cpu().numpy(), self.table, self.state.global_step)
        packed = model(batch.packed.to(self.args.device))
        back = torch.empty(len(batch.packed), dtype=torch.int64)
        back[torch.as_tensor(batch.packed.rows)] = torch.arange(len(batch.packed))
        loss = batch_loss(self.ance.loss, packed[back.to(packed.device)], batch, self.scale)
        return (loss, {"embeddings": packed}) if return_outputs else loss

    # ---- refresh ----

    def _refresh_if_due(self) -> None:
        step = self.state.global_step
        due = [refresh for refresh in self.refreshes if refresh <= step]
        if self.table is None:
            self.table = self._start_table()
            self._publish(self.table)
        if due and self.table.step < due[-1]:
            started = time.monotonic()
            previous = self.table
            snapshot = self._snapshot()
            table = self._mined(snapshot, previous, previous.generation + 1, step)
            report = {f"stale_{name}": value for name, value in hardness(snapshot, self.examples, previous).items()}
            report |= hardness(snapshot, self.examples, table)
            report |= table.filtered_shares()
            report |= self._measure(snapshot.index, step)
            self.table = replace(table, metrics=report)
            self._publish(self.table)
            self.seconds["refresh"] += time.monotonic() - started
            self.log({"generation": float(table.generation), **report})

    def _start_table(self) -> NegativeTable:
        if self.ance.start == "random":
            return random_table(self.examples)
        if self.ance.start == "dataset":
            if self.examples.given is None:
                raise ConfigError("start='dataset': the data set brings no negatives; choose random, bm25 or index")
            return given_table(self.examples)
        if self.ance.start == "index":
            return self._mined(self._snapshot(), None, 0, 0)
        passages = self.examples.passages
        texts = (passages.document(row).full_text for row in range(len(passages)))
        most = int(np.diff(self.examples.positive_offsets).max())
        found = Bm25.build(texts, passages.ids).search(self.examples.texts, min(self.ance.topk + most, len(passages)))
        return mined_table(self.examples, found.positions, found.scores, "bm25", 0, 0).top(self.ance.topk)

    def _mined(self, snapshot: Snapshot, previous: NegativeTable | None, generation: int, step: int) -> NegativeTable:
        return refreshed_candidates(
            snapshot, self.examples, self.sampler, previous, topk=self.ance.topk, generation=generation, step=step
        )

    def _snapshot(self, queries: bool = True) -> Snapshot:
        return take_snapshot(
            self.encoder,
            self.examples,
            factory=self.ance.index_factory,
            batch_tokens=self.ance.batch_tokens,
            queries=queries,
        )

    def _measure(self, index: Index, step: int) -> dict[str, float]:
        """Dev metrics of the current weights; saves the encoder when it is the best so far."""
        if self.held_out is None:
            return {}
        evaluation = evaluate(self.held_out.search(self.encoder, index), self.held_out.qrels, metrics=self.ance.metrics)
        value = evaluation[self.ance.metrics[0]]
        if self.is_world_process_zero() and (self.best is None or value > self.best[0]):
            self.best = (value, step)
            self.encoder.save(self.folder / "best")
            write_json(self.folder / "best.json", {"metric": self.ance.metrics[0], "value": value, "step": step})
        return {f"eval_{name}": value for name, value in evaluation.items()}

    def _publish(self, table: NegativeTable) -> None:
        if self.is_world_process_zero():
            table.save(self.folder / "negatives" / f"step-{table.step:08d}-{table.source}")

    # ---- beginning, resuming, ending ----

    def _begin(self) -> None:
        if self._has_checkpoints():
            raise ConfigError(f"{self.folder}: holds checkpoints of a run; resume it, or choose another output folder")
        for name in ("negatives", "best", "tensorboard"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "best.json").unlink(missing_ok=True)
        cut_log(self.folder / "metrics.jsonl", lambda entry: False)
        write_json(self.folder / "config.json", {"settings": self.ance.settings(), "data": self._data_identity()})

    def _resume_point(self) -> Path:
        try:
            earlier = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{self.folder}: no run to resume (config.json: {error})") from error
        now = json.loads(json.dumps({"settings": self.ance.settings(), "data": self._data_identity()}))
        different = [
            f"{name}: {earlier[part].get(name)!r} then, {value!r} now"
            for part in ("settings", "data")
            for name, value in now[part].items()
            if earlier[part].get(name) != value
        ]
        if different:
            raise ConfigError(f"{self.folder}: cannot resume with other settings or data ({'; '.join(different)})")
        checkpoint = newest_valid_checkpoint(self.folder / "checkpoints")
        step = int(open_artifact(checkpoint, "checkpoint", verify=False)["step"])
        # A refresh at the checkpoint's own step comes after the checkpoint, so it is made again.
        tables = sorted((self.folder / "negatives").glob("step-*"))
        usable = [path for path in tables if int(path.name.split("-")[1]) < step]
        if not usable:
            raise ArtifactError(f"{self.folder}/negatives: the negatives used before step {step} are missing")
        self.table = NegativeTable.load(usable[-1])
        cut_log(self.folder / "metrics.jsonl", lambda e: e["step"] < step or (e["step"] == step and "loss" in e))
        try:
            best = json.loads((self.folder / "best.json").read_text(encoding="utf-8"))
            # A best later than the checkpoint stays: the same weights will be reached again.
            self.best = (best["value"], best["step"])
        except FileNotFoundError:
            self.best = None
        logger.info("resuming from %s with negatives of step %d", checkpoint, self.table.step)
        return checkpoint

    def _finish(self) -> dict[str, float]:
        self.encoder.eval()
        snapshot = self._snapshot(queries=False)
        step = self.state.global_step
        report = self._measure(snapshot.index, step)
        if self.is_world_process_zero():
            self.encoder.save(self.folder / "final")
            snapshot.index.save(self.folder / "index")
        if report:
            self.log(dict(report))
        return {name.removeprefix("eval_"): value for name, value in report.items()}

    def evaluate_on(
        self, dataset: Dataset, metrics: tuple[str, ...] | None = None
    ) -> tuple[dict[str, dict[str, float]], Evaluation]:
        """Run other queries over the same corpus through the saved index; returns the run and its evaluation."""
        index = Index.load(self.folder / "index", fingerprint=self.encoder.fingerprint())
        held_out = HeldOut(dataset, self.encoder)
        run = held_out.search(self.encoder, index)
        return run, evaluate(run, held_out.qrels, metrics=metrics or self.ance.metrics)

    # ---- what transformers.Trainer calls ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.is_world_process_zero() and ("loss" in logs or any(key.startswith("eval_") for key in logs)):
            entry = {"step": self.state.global_step, **{k: v for k, v in logs.items() if isinstance(v, int | float)}}
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(getattr(self, "_staging", self.folder))

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        step = self.state.global_step
        checkpoints = self.folder / "checkpoints"
        self._staging = checkpoints / f".step-{step:08d}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            super()._save_checkpoint(model, trial)
            if self.is_world_process_zero():
                written = self._staging / f"checkpoint-{step}"
                publish_checkpoint(written, checkpoints / f"step-{step:08d}", {"step": step})
                keep_newest(checkpoints, self.ance.save_total_limit)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{checkpoints}: the checkpoint was not saved ({error}); is the disk full?") from error
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
            del self._staging

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.folder / "final")
        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.write(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.encoder.load_weights(resume_from_checkpoint)

    def _arguments(self) -> TrainingArguments:
        config = self.ance
        save_every = config.save_every
        if save_every is None:
            save_every = config.refresh_every if config.refresh != "none" else max(1, config.max_steps // 4)
        settings: dict[str, Any] = {
            "output_dir": str(self.folder),
            "max_steps": config.max_steps,
            "per_device_train_batch_size": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "learning_rate": config.learning_rate,
            "warmup_steps": round(config.warmup_fraction * config.max_steps),
            "lr_scheduler_type": config.lr_scheduler,
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "save_strategy": "steps",
            "save_steps": steps_of(save_every, self.steps_per_epoch, "save_every"),
            "logging_strategy": "steps",
            "logging_steps": config.logging_steps,
            "seed": config.seed,
            "data_seed": config.seed,
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "use_cpu": self.encoder.device.type == "cpu",
        }
        arguments = TrainingArguments(**{**settings, **config.trainer_arguments})
        # Several GPUs are for torchrun, a process each: the stock trainer would wrap the model in DataParallel, which
        # cannot split a packed batch.
        arguments._n_gpu = min(1, arguments.n_gpu)
        return arguments

    def _data_identity(self) -> Mapping[str, Any]:
        examples, digest = self.examples, hashlib.blake2b(digest_size=16)
        digest.update(examples.positive_offsets.tobytes() + examples.positive_rows.tobytes())
        return {
            "start": self._start_fingerprint,
            "passages": examples.passages.manifest["content"],
            "queries": examples.queries.manifest["content"],
            "positives": digest.hexdigest(),
            "dev": self.held_out.queries.manifest["content"] if self.held_out else None,
        }

    def _has_checkpoints(self) -> bool:
        return any((self.folder / "checkpoints").glob("step-*"))
