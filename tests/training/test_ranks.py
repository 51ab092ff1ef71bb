"""Several processes: what they tell each other, that they train as one would, and how they end.

Most of it happens in processes that training_ranks.py forks and that meet over gloo; torchrun starts the command.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.run import get_args_parser
from training_runs import entries, make_trainer, timeless

from ance_fast import Encoder
from ance_fast.cli.commands.train import train
from ance_fast.cli.main import app
from ance_fast.errors import ConfigError
from ance_fast.ops import contrastive_loss
from ance_fast.training.batch import TrainingBatch
from ance_fast.training.generations import Generation
from ance_fast.training.ranks import ALONE, Ranks, join, leave
from ance_fast.training.shared_batch import without_copies
from ance_fast.training.triples import triple_order

Found = dict[str, list[dict[str, Any]]]

# Two processes with half as many queries a batch each see the batches of one, up to the epoch's last.
ALIKE: dict[str, dict[str, Any]] = {
    "contrastive": {"refresh_overlap": 1.0},
    "pairwise": {"loss": "pairwise", "start": "index", "encode_tokens": 96, "gradient_accumulation_steps": 2},
    "look-ahead": {
        "sampler": "ance-tele",
        "start": "random",
        "negatives_per_query": 2,
        "chunks": "ours,length=32,count=3",
    },
    "two-towers": {"start": "random", "encode_tokens": 96},
    "two-towers-in-one-pass": {"start": "random", "loss": "pairwise"},
}
SHORT: dict[str, Any] = {"max_steps": 8, "first_refresh": 3, "refresh_every": 3, "dropout": 0.0}
TRIPLES: dict[str, Any] = {
    **SHORT,
    "order": "triples",
    "loss": "pairwise",
    "start": "index",
    "optimizer": "lamb",
    "query_chunks": 2,
    "triples_per_query": 3,
    "batch_size": 4,
}
# The second epoch begins with step 8.
RECOVERY: dict[str, Any] = {
    "max_steps": 12,
    "batch_size": 8,
    "gradient_accumulation_steps": 2,
    "dropout": 0.1,
    "encode_tokens": 192,
    "save_every": 3,
    "logging_steps": 3,
}
KILLS = {
    "the-second-in-a-step": [1, "step.before:11"],
    "the-first-inside-a-save": [0, "checkpoint.between:2"],
}
BROKEN = {
    "making-a-batch": [1, "_make_batch"],
    "encoding": [1, "ance_fast.training.refresh.encode_spans"],
    "saving": [0, "refresher.save"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(tiny_bert: Path, wiki: Path, folder: Path) -> Found:
    """What every process of every scene found."""
    scenes: list[dict[str, Any]] = [{"name": f"talk-{size}", "do": "talk", "size": size} for size in (2, 3)]
    scenes.append({"name": "die", "do": "die", "size": 3})

    def train(name: str, size: int, config: dict[str, Any], run: str | None = None, **more: Any) -> None:
        scenes.append({"name": name, "do": "train", "size": size, "run": run or name, "settings": config} | more)

    two_towers = folder / "two-towers"
    Encoder.load(str(tiny_bert)).two_towers().save(two_towers)
    for name, special in ALIKE.items():
        model = {"model": str(two_towers)} if name.startswith("two-towers") else {}
        train(f"{name}-1", 1, {**SHORT, **special, "batch_size": 8}, **model)
        train(f"{name}-2", 2, {**SHORT, **special, "batch_size": 4}, **model)
    train("triples", 2, TRIPLES)
    train("async", 2, {**SHORT, "refresh": "async", "refresh_every": 2, "max_staleness": 2, "batch_size": 4})
    train("whole", 2, RECOVERY)
    for name, dies in KILLS.items():
        train(name, 2, RECOVERY, dies=dies)
        train(f"{name}-resumed", 2, RECOVERY, run=name, resume=True)
    train("resumed-alone", 1, RECOVERY, run="whole", resume=True)
    for name, fails in BROKEN.items():
        train(name, 2, {"max_steps": 4, "save_every": 2, "start": "index"}, fails=fails)
    train("forward", 2, {"max_steps": 2}, fails=[1, "encoder.hidden"])
    train("different", 2, {}, differs=[1, {"max_steps": 13}])
    plan = folder / "plan.json"
    plan.write_text(
        json.dumps({"model": str(tiny_bert), "data": str(wiki), "folder": str(folder), "scenes": scenes}),
        encoding="utf-8",
    )
    program = Path(__file__).with_name("training_ranks.py")
    done = subprocess.run(
        [sys.executable, str(program), str(plan)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    read = {}
    for scene in scenes:
        paths = [folder / f"{scene['name']}.{rank}.json" for rank in range(scene["size"])]
        read[scene["name"]] = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    return read


def results(found: Found, name: str) -> list[Any]:
    assert not [said["error"] for said in found[name] if "error" in said]
    return [said["result"] for said in found[name]]


# ---- talking ----


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("size", [2, 3])
def test_what_the_first_rank_says_arrives_as_it_is(found: Found, size: int) -> None:
    for rank, said in enumerate(results(found, f"talk-{size}")):
        assert (said["rank"], said["size"]) == (rank, size)
        assert all(said["shared"])
        assert said["kinds"] == ["NoneType", "int", "int", "int", "bool", "str", "dict", "bytes"]
        assert said["first"] == ["of", 0]
        assert said["each"] == [10 * number for number in range(size)]


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("size", [2, 3])
def test_rows_of_unequal_shares_are_put_together_in_order(found: Found, size: int) -> None:
    for said in results(found, f"talk-{size}"):
        for count, arrays in zip((0, 1, size, 7), said["rows"], strict=True):
            rows = list(range(count))
            wanted: list[list[Any]] = [
                ["<i4", [[row] * 3 for row in rows]],
                ["<f8", [row / 2 for row in rows]],
                ["|b1", [[[row > 0]] * 2 for row in rows]],
            ]
            assert arrays == (wanted if count else [])
        assert said["filled"] == [[row, row] for row in range(7)]


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("size", [2, 3])
def test_an_error_of_one_rank_is_raised_there_and_quoted_on_the_others(found: Found, size: int) -> None:
    own = "DataError: corpus.jsonl:3: no id"
    for rank, said in enumerate(results(found, f"talk-{size}")):
        for failed, message in zip((1, 0, size - 1, 1), said["errors"], strict=False):
            quoted = f"RankError: ended, because rank {failed} failed: corpus.jsonl:3: no id"
            assert message == (own if failed == rank else quoted)
        assert said["errors"][-1].startswith(
            "ConfigError: the processes of a run differ in their number: 0 in rank 0, 1"
        )
        assert said["afterwards"] == ["still here"] * size


@pytest.mark.timeout(1000)
def test_a_process_that_dies_is_missed_at_once(found: Found) -> None:
    assert len(found["die"]) == 2
    for said in found["die"]:
        assert said["result"].startswith("RankError: another process of the run is gone")
        assert said["seconds"] < 30


def test_one_process_talks_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join("cpu") is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join("auto") is ALONE
    leave(ALONE)
    value = object()
    assert ALONE.share(value) is value
    assert ALONE.first(lambda: value) is value
    assert ALONE.each(lambda: value) == [value]
    ALONE.agree("anything", lambda: pytest.fail("nobody to agree with"))
    assert ALONE.leads


def test_more_processes_than_gpus_are_refused_before_they_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "999", "LOCAL_RANK": "998", "LOCAL_WORLD_SIZE": "999"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="999 processes on this host, which has .* GPUs"):
        join("cuda")


@settings(deadline=None)
@given(count=st.integers(0, 50), size=st.integers(1, 9))
def test_shares_are_contiguous_and_differ_by_one_row_at_most(count: int, size: int) -> None:
    spans = [Ranks(rank, size).span(count) for rank in range(size)]
    assert spans[0][0] == 0
    assert spans[-1][1] == count
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    sizes = [stop - start for start, stop in spans]
    assert max(sizes) - min(sizes) <= 1


# ---- training as one would ----


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 4))
def test_a_passage_that_several_ranks_have_is_one_candidate(seed: int, size: int) -> None:
    """The loss over all columns, copies included, is that over each distinct passage once."""
    random = np.random.default_rng(seed)
    corpus = 12
    passages = torch.from_numpy(random.standard_normal((corpus, 4)))
    batches = [some_batch(random, corpus) for _ in range(size)]
    queries = torch.from_numpy(random.standard_normal((sum(batch.num_queries for batch in batches), 4)))
    shared = [
        without_copies(batch, [before.passage_rows for before in batches[:rank]], corpus=corpus)
        for rank, batch in enumerate(batches)
    ]
    starts = np.cumsum([0, *(len(batch.passage_rows) for batch in batches)])
    columns = np.concatenate([batch.passage_rows for batch in batches])
    loss = contrastive_loss(
        queries,
        passages[columns],
        labels=torch.from_numpy(np.concatenate([b.positive + s for b, s in zip(shared, starts, strict=False)])),
        doc_ids=torch.from_numpy(np.concatenate([batch.passage_rows for batch in shared])),
        positives=joined([batch.known for batch in shared]),
    )
    distinct = np.unique(columns)
    chosen = np.concatenate([batch.passage_rows[batch.positive] for batch in batches])
    wanted = contrastive_loss(
        queries,
        passages[distinct],
        labels=torch.from_numpy(np.searchsorted(distinct, chosen)),
        doc_ids=torch.from_numpy(distinct),
        positives=joined([batch.known for batch in batches]),
    )
    torch.testing.assert_close(loss, wanted)


def some_batch(random: np.random.Generator, corpus: int) -> TrainingBatch:
    count = int(random.integers(1, 4))
    known = [np.sort(random.choice(corpus, random.integers(1, 4), replace=False)) for _ in range(count)]
    chosen = np.array([random.choice(rows) for rows in known])
    rows = np.union1d(chosen, random.choice(corpus, random.integers(0, corpus), replace=False))
    offsets = np.cumsum([0, *(len(rows) for rows in known)])
    negatives = np.full((count, 1), -1)
    return TrainingBatch(
        [], np.zeros(0), count, rows, np.searchsorted(rows, chosen), negatives, (offsets, np.concatenate(known))
    )


def joined(lists: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = np.concatenate([np.diff(offsets) for offsets, _ in lists])
    values = np.concatenate([rows for _, rows in lists])
    return torch.from_numpy(np.cumsum([0, *sizes])), torch.from_numpy(values)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_draw_the_negatives_of_one_and_end_with_its_weights(
    found: Found, folder: Path, tiny_bert: Path, name: str
) -> None:
    (one,), (first, second) = results(found, f"{name}-1"), results(found, f"{name}-2")
    assert first["weights"] == second["weights"]
    assert first["dev"] == second["dev"] == pytest.approx(one["dev"], abs=0.02)
    alone, together = folder / f"{name}-1", folder / f"{name}-2"
    assert entries(together, "negatives.jsonl") == entries(alone, "negatives.jsonl")
    logs = [
        [{key: value for key, value in entry.items() if not key.startswith("seconds")} for entry in entries(run)]
        for run in (together, alone)
    ]
    for entry, wanted in zip(*logs, strict=True):
        assert entry == pytest.approx(wanted, rel=1e-2, abs=1e-3)
    generations = [sorted(path.name for path in (run / "generations").iterdir()) for run in (together, alone)]
    assert generations[0] == generations[1]
    assert len(generations[0]) == 3
    weights, wanted_weights = (Encoder.load(str(run / "final")).state_dict() for run in (together, alone))
    start = Encoder.load(str(tiny_bert)).state_dict()
    assert weights.keys() == wanted_weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(tensor, wanted_weights[key], rtol=0, atol=1e-4)
    for prefix in {key[: -len(other)] for key in weights for other in start if key.endswith(other)}:
        moved = max(float((weights[prefix + key] - start[key]).abs().max()) for key in start)
        assert moved > 1e-3, f"{prefix}they have moved"


@pytest.mark.timeout(1000)
def test_two_processes_take_the_queries_of_a_generation_in_turn(
    found: Found, folder: Path, tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    first, second = results(found, "triples")
    assert first["weights"] == second["weights"]
    alone = make_trainer(tiny_bert, wiki, tmp_path / "out", **TRIPLES)
    orders = [triple_order(alone.ance, alone.examples, alone.sampler, Ranks(rank, 2)) for rank in range(2)]
    made = [Generation.load(path).table for path in sorted((folder / "triples" / "generations").iterdir())]
    assert [table.step for table in made] == [0, 3, 6]
    wanted = []
    for step in range(TRIPLES["max_steps"]):
        table = [table for table in made if table.step <= step][-1]
        both = [order.batch(table, step - table.step)[:, 2:] for order in orders if order is not None]
        wanted.append(hashlib.blake2b(np.int64(np.concatenate(both)).tobytes(), digest_size=16).hexdigest())
    assert [line["ids"] for line in entries(folder / "triples", "negatives.jsonl")] == wanted


@pytest.mark.timeout(1000)
def test_all_processes_take_up_what_the_worker_of_the_first_has_made(found: Found, folder: Path) -> None:
    first, second = results(found, "async")
    assert first["weights"] == second["weights"], "both drew from the same generations"
    assert first["dev"] == second["dev"]
    used = entries(folder / "async", "negatives.jsonl")
    assert [entry["step"] for entry in used] == list(range(8))
    assert max(entry.get("age_max", 0) for entry in used) <= 2
    swaps = [entry["generation"] for entry in entries(folder / "async") if "generation" in entry]
    assert swaps == list(range(1, len(swaps) + 1))
    assert len(swaps) >= 2
    assert not [path.name for path in (folder / "async").rglob(".*")]


@pytest.mark.timeout(1000)
def test_only_the_first_process_writes(found: Found, folder: Path) -> None:
    first, second = results(found, "whole")
    assert first["wrote"]
    assert not second["wrote"]
    run = folder / "whole"
    files = {path.name for path in run.iterdir()}
    assert not [name for name in files if name.startswith(".")]
    steps = [entry["step"] for entry in entries(run, "negatives.jsonl")]
    assert steps == [step for step in range(12) for _ in ("a" if step == 7 else "ab")], "step 7 ends the first epoch"
    assert [entry["step"] for entry in entries(run) if "loss" in entry] == [3, 6, 9, 12]
    assert len(list((run / "tensorboard").iterdir())) == 1


# ---- recovery ----


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", KILLS)
def test_a_run_that_lost_a_process_resumes_to_the_same_end(found: Found, folder: Path, name: str) -> None:
    killed, point = KILLS[name][0], KILLS[name][1]
    (survivor,) = found[name]
    assert "error" in survivor, f"rank {1 - killed} outlived {point}"
    assert survivor["seconds"] < 60
    ends, wanted = results(found, f"{name}-resumed"), results(found, "whole")
    assert ends == wanted
    assert ends[0]["weights"] == ends[1]["weights"]
    assert timeless(folder / name) == timeless(folder / "whole")
    assert not [path for path in (folder / name / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.timeout(1000)
def test_another_number_of_processes_cannot_go_on_with_a_run(found: Found) -> None:
    (alone,) = found["resumed-alone"]
    assert alone["error"].startswith("ConfigError")
    assert "processes: 2 then, 1 now" in alone["error"]


# ---- errors ----


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", BROKEN)
def test_an_error_in_one_process_ends_all_of_them_with_its_message(found: Found, name: str) -> None:
    rank, method = BROKEN[name]
    own, other = found[name][rank], found[name][1 - rank]
    assert own["error"] == f"DataError: {method} is broken"
    assert other["error"] == f"RankError: ended, because rank {rank} failed: {method} is broken"


@pytest.mark.timeout(1000)
def test_the_others_do_not_wait_for_one_that_failed_between_two_exchanges(found: Found) -> None:
    other, own = found["forward"]
    assert own["error"] == "DataError: encoder.hidden is broken"
    assert "error" in other
    assert other["seconds"] < 60


def test_a_world_without_a_meeting_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2 says .* start them with torchrun"):
        join("cpu")


@pytest.mark.timeout(1000)
def test_processes_that_were_started_differently_are_refused(found: Found) -> None:
    for said in found["different"]:
        assert said["error"].startswith("ConfigError: the processes of a run differ in settings or data")


# ---- the command ----


def test_torchrun_takes_no_option_of_the_command_for_its_own() -> None:
    """As the help has it: with `--`, without which `--start` could be `--start-method`."""
    documented = re.search(r"torchrun (.*) \$\(which ance-fast\) train", train.__doc__ or "")
    assert documented
    params = typer.main.get_command(app).commands["train"].params  # type: ignore[attr-defined]
    options = [name for option in params for name in option.opts if name.startswith("-")]
    assert "--start" in options
    words = ["train", "DATA", *(word for name in options for word in (name, "x"))]
    parsed = get_args_parser().parse_args([*documented[1].split(), "ance-fast", *words])
    assert (parsed.training_script, parsed.training_script_args) == ("ance-fast", words)


@pytest.mark.timeout(600)
def test_torchrun_starts_the_command(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        *(str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "--"),
        *(str(Path(sys.executable).with_name("ance-fast")), "--quiet", "train", str(wiki), "--model", str(tiny_bert)),
        *("--output", str(run), "--device", "cpu", "--dev-split", "dev", "--test-split", "test", "--json"),
        *("--max-steps", "6", "--batch-size", "4", "--refresh-every", "3", "--topk", "20"),
        *("--max-query-length", "16", "--max-document-length", "32"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1, "the first process reports for both"
    assert set(json.loads(lines[0])) >= {"dev", "test", "seconds"}
    assert [entry["step"] for entry in entries(run, "negatives.jsonl")] == list(range(6))
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]["processes"] == 2
    assert (run / "test.trec").is_file()
