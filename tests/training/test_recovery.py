"""A run that is killed anywhere and resumed ends as if nothing had happened: dropout on, two batches a step.

What depends on time (async) ends with all its steps, whole generations and negatives of the age that was promised.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_runs import carry_out, entries, timeless

from ance_fast import Encoder, load_dataset
from ance_fast.crash_points import CRASH_POINTS
from ance_fast.training.generations import Generation

# Epochs of 10 steps.
SETTINGS: dict[str, Any] = {
    "max_steps": 22,
    "gradient_accumulation_steps": 2,
    "batch_size": 12,
    "dropout": 0.1,
    "first_refresh": 4,
    "refresh_every": 4,
    "save_every": 6,
    "logging_steps": 3,
    "encode_tokens": 512,
}
# The sampler whose state is the largest: earlier lists, weights, the mean passage.
ROLLING = {"refresh": "rolling", "max_staleness": 8, "rolling_hot": 6, "rerank": 20} | {
    "sampler": "ance-tele,per_source=8,scores=centred,weighting=softmax"
}
# After each of them come at least two refreshes (of steps 4, 8, 12, 16 and 20).
KILLS = {
    "sync": {
        "whole": "",
        "in-the-second-epoch": "step.before:15",
        "after-a-save": "checkpoint.after:2",
        "before-a-generation-is-published": "generation.before:3",
    },
    "rolling": {
        "whole": "",
        "inside-a-save": "checkpoint.between:2",
        "before-a-published-generation-is-used": "generation.after:4",
    },
}
ASYNC = {"refresh": "async", "max_steps": 15, "max_staleness": 5, "refresh_every": 2, "start": "index"}
ASYNC_KILLS = {"as-a-generation-is-taken-into-use": "generation.swapped:3"}


def test_every_crash_point_of_training_is_tested_here() -> None:
    tested = {point.split(":")[0] for kills in (*KILLS.values(), ASYNC_KILLS) for point in kills.values()}
    assert tested >= {point for point in CRASH_POINTS if point.startswith(("step.", "generation.", "checkpoint."))}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["sync", "rolling"])
def test_a_killed_run_resumes_to_the_very_same_negatives_and_weights(
    tiny_bert: Path, wiki: Path, tmp_path: Path, mode: str
) -> None:
    carry_out(tiny_bert, wiki, tmp_path, SETTINGS | (ROLLING if mode == "rolling" else {}), KILLS[mode])
    whole = tmp_path / "whole"
    steps_per_epoch = -(-len(load_dataset(str(wiki), split="train").queries) // 24)
    assert steps_per_epoch == 10, "the kills above are meant for epochs of 10 steps"
    final = Encoder.load(str(whole / "final")).fingerprint()
    assert final != Encoder.load(str(tiny_bert), normalize=True).fingerprint()
    assert [entry["step"] for entry in entries(whole, "negatives.jsonl")] == [step for step in range(22) for _ in "ab"]
    for name in KILLS[mode]:
        folder = tmp_path / name
        assert Encoder.load(str(folder / "final")).fingerprint() == final, name
        assert timeless(folder) == timeless(whole), name
        assert _generations(folder) == _generations(whole), name
        assert not list(folder.rglob(".*")), name


@pytest.mark.timeout(1200)
def test_a_killed_asynchronous_run_makes_all_its_steps_and_keeps_its_bound(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    carry_out(tiny_bert, wiki, tmp_path, SETTINGS | ASYNC, ASYNC_KILLS)
    for name in ASYNC_KILLS:
        folder = tmp_path / name
        used = entries(folder, "negatives.jsonl")
        assert [entry["step"] for entry in used] == [step for step in range(15) for _ in "ab"], name
        assert max(entry["age_max"] for entry in used) <= 5, name
        assert [entry["step"] for entry in entries(folder) if "loss" in entry][-1] == 15, name
        made = [Generation.load(path) for path in sorted((folder / "generations").glob("step-*"))]
        numbers = [generation.number for generation in made]
        assert numbers == sorted(set(numbers)), name
        assert max(generation.step for generation in made) >= 9, name
        swaps = {entry["generation"] for entry in entries(folder) if "generation" in entry}
        assert swaps <= set(numbers), name
        assert not list(folder.rglob(".*")), name


def _generations(folder: Path) -> list[tuple[int, int, str, bytes]]:
    made = [Generation.load(path) for path in sorted((folder / "generations").glob("step-*"))]
    assert len(made) == 6
    return [(g.number, g.step, g.fingerprint, g.table.candidates.tobytes()) for g in made]
