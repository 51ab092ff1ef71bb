"""What a run logs, whatever its way to refresh: the same numbers to the log, TensorBoard and every tracker."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import SETTINGS, entries
from transformers import TrainerCallback

from ance_fast import Encoder, load_dataset
from ance_fast.errors import DataError
from ance_fast.training import AnceConfig, AnceTrainer
from ance_fast.training.generations import Generation

Numbers = Counter[tuple[int, str, np.float32]]
MODES: dict[str, dict[str, Any]] = {
    "none": {"refresh": "none"},
    "sync": {"refresh": "sync", "max_staleness": 3},
    "rolling": {"refresh": "rolling", "rolling_slice": 60},
    "async": {"refresh": "async", "max_staleness": 4},
}
EVERY_GENERATION = {"generation", "eval_nDCG@10", "eval_RR@10", "eval_R@100", "loss_fresh", "loss_stale"}
EVERY_GENERATION |= {"candidates_judged", "false_candidate_rate", "seconds_measure"}
WHOLE = {"margin", "stale_margin", "harder_than_positive", "seconds_encode", "seconds_mine"}
ASKED: dict[str, set[str]] = {
    "none": set(),
    "sync": EVERY_GENERATION | WHOLE | {"seconds_refresh"},
    "rolling": EVERY_GENERATION,
    "async": EVERY_GENERATION | WHOLE | {"seconds_worker", "steps_behind"},
}


class Tracker(TrainerCallback):
    """Remembers what it is told until training ends, as one that then closes its connection."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        assert not self.closed
        self.told.append((state.global_step, dict(logs)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.closed = True


@pytest.fixture(scope="module", params=sorted(MODES))
def run(
    tiny_bert: Path, wiki: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[str, AnceTrainer, Tracker]:
    """A run in which passages of even rows are judged relevant to every query."""
    folder, tracker = tmp_path_factory.mktemp("run") / "out", Tracker()
    encoder = Encoder.load(str(tiny_bert), device="cpu", dtype="float32", normalize=True)
    dataset = load_dataset(str(wiki), split="train")
    judged = {
        query: {document.id: 1 - row % 2 for row, document in enumerate(dataset.corpus)} for query in dataset.queries
    }
    settings = {**SETTINGS, **MODES[request.param], "trainer_arguments": {"report_to": ["tensorboard"]}}
    trainer = AnceTrainer(
        encoder,
        dataset,
        AnceConfig(output_dir=str(folder), **settings),
        dev=load_dataset(str(wiki), split="dev"),
        judged=judged,
        callbacks=[tracker],
    )
    trainer.train()
    return request.param, trainer, tracker


def logged(folder: Path) -> Numbers:
    """(step, name, value) of every number in `metrics.jsonl`."""
    return Counter(
        (entry["step"], name, np.float32(value))
        for entry in entries(folder)
        for name, value in entry.items()
        if name != "step"
    )


def on_board(folder: Path) -> Numbers:
    """(step, name, value) of every number in the event files, less the stock trainer's summary."""
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    summary = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"}
    names = {
        tag: tag.replace("eval/", "eval_", 1).removeprefix("train/")
        for tag in board.Tags()["scalars"]
        if tag.removeprefix("train/") not in summary
    }
    return Counter(
        (event.step, name, np.float32(event.value)) for tag, name in names.items() for event in board.Scalars(tag)
    )


def test_every_number_of_the_log_reaches_every_tracker(run: tuple[str, AnceTrainer, Tracker]) -> None:
    """Also the last ones, which are measured after the last step."""
    _, trainer, tracker = run
    wanted = logged(trainer.folder)
    assert (12, "eval_nDCG@10") in {(step, name) for step, name, _ in wanted}
    told = Counter((step, name, np.float32(value)) for step, logs in tracker.told for name, value in logs.items())
    assert not wanted - told
    assert not wanted - on_board(trainer.folder / "tensorboard")
    (theirs,) = (trainer.folder / "runs").iterdir()
    assert not wanted - on_board(theirs)


def test_a_run_says_what_it_was_asked_to_measure(run: tuple[str, AnceTrainer, Tracker]) -> None:
    mode, trainer, _ = run
    log = entries(trainer.folder)
    lines = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in lines] == [2, 4, 6, 8, 10, 12]
    assert all({"seconds_interval", "negatives_judged", "false_negative_rate"} <= entry.keys() for entry in lines)
    assert all(entry["seconds_interval"] > 0 and entry["negatives_judged"] == 1 for entry in lines)
    generations = [entry for entry in log if "generation" in entry]
    assert len(generations) in {"none": [0], "async": range(1, 12)}.get(mode, [2])
    assert all(ASKED[mode] <= entry.keys() for entry in generations)
    ages = [entry["negative_age_max"] for entry in lines if "negative_age_max" in entry]
    assert (len(ages) == 0) == (mode == "none")
    assert all(("worker_busy" in entry and "seconds_waited" in entry) == (mode == "async") for entry in lines)
    if mode != "none":
        assert max(ages) == max(entry.get("stale_negative_age_max", 0) for entry in log)


def test_the_age_of_a_generation_is_that_of_its_batches(run: tuple[str, AnceTrainer, Tracker]) -> None:
    """Each generation's mean lies in the line of the next, or of the end."""
    mode, trainer, _ = run
    batches = entries(trainer.folder, "negatives.jsonl")
    found = [entry for entry in entries(trainer.folder) if "stale_negative_age" in entry]
    begins = [entry["step"] for entry in entries(trainer.folder) if "generation" in entry]
    assert [entry["step"] for entry in found] == ([] if mode == "none" else [*begins[1:], 12])
    for begin, entry in zip(begins, found, strict=True):
        life = [b for b in batches if begin <= b["step"] < entry["step"]]
        total = sum(b["age_mean"] * b["negatives"] for b in life)
        assert entry["stale_negative_age"] == pytest.approx(total / sum(b["negatives"] for b in life))
        assert entry["stale_negative_age_max"] == max(b["age_max"] for b in life)


def test_the_rate_of_false_candidates_is_that_of_the_table(run: tuple[str, AnceTrainer, Tracker]) -> None:
    mode, trainer, _ = run
    made = [entry for entry in entries(trainer.folder) if "false_candidate_rate" in entry]
    assert (not made) == (mode == "none")
    for entry in made:
        step = entry["step"] - int(entry.get("steps_behind", 0))
        table = Generation.load(trainer.folder / "generations" / f"step-{step:08d}-index").table
        rows = table.candidates[table.candidates >= 0]
        assert entry["false_candidate_rate"] == pytest.approx((rows % 2 == 0).mean())


def test_a_run_leaves_its_report(run: tuple[str, AnceTrainer, Tracker]) -> None:
    mode, trainer, _ = run
    page = (trainer.folder / "report.html").read_text(encoding="utf-8")
    assert "Training, finished" in page
    assert "Dev queries</title>" in page
    assert ("Age of negatives</title>" in page) == (mode != "none")


def test_judgements_of_other_queries_are_refused(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(str(tiny_bert), device="cpu", dtype="float32")
    config = AnceConfig(output_dir=str(tmp_path / "out"), **SETTINGS)
    with pytest.raises(DataError, match="none of the 1 queries in `judged` is a training query"):
        AnceTrainer(encoder, load_dataset(str(wiki), split="train"), config, judged={"nobody": {"d": 1}})
